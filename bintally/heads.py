"""What a network's raw outputs mean: the way from them to a distribution over the counts 0..K-1, for each head.

    softmax           K logits, one per count
    corn              K-1 logits of "more than k, given at least k"
    cumulative_link   K-1 logits of "more than k": one score minus K-1 rising thresholds, learnt beside the network
    regression        a location in items, counted from the middle count and divided by the variance; and a number
                      whose softplus is one over the variance

So any head has a likelihood, by which it is scored and calibrated like the others.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from bintally.config import Head

MIN_GAP: Final = 1e-3
"""Between neighbouring thresholds, so that no count becomes impossible."""
FIRST_GAP: Final = 2.0
"""Before training, which gives a count between two thresholds a probability of 0.46 at most."""
THRESHOLD_RATE: Final = 10.0
"""How much faster than weights the thresholds learn: at the rates that suit weights they would hardly move."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CountHead:
    """How raw outputs are read."""

    kind: Head
    """Which of the four."""
    num_classes: int
    """Counts 0..num_classes-1."""

    @property
    def num_scores(self) -> int:
        """How many numbers per photo the last layer of the backbone has to give."""
        return {"softmax": self.num_classes, "corn": self.num_classes - 1, "cumulative_link": 1, "regression": 2}[
            self.kind
        ]

    def log_probabilities(self, outputs: Float[Tensor, "batch outputs"]) -> Float[Tensor, "batch classes"]:
        """Log-probability of each count, normalised, in float32 also where the outputs are bfloat16."""
        return _READ[self.kind](outputs.float(), self.num_classes)


class OrderedThresholds(nn.Module):
    """Turns one score into K-1 logits of "more than k" that fall as k rises."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        first = torch.tensor([FIRST_GAP * (1 - num_classes / 2)])  # so that they lie evenly around a score of zero
        gap = torch.tensor(FIRST_GAP - MIN_GAP).expm1().log()  # the inverse of softplus
        self.raw = nn.Parameter(torch.cat([first, gap.expand(num_classes - 2)]) / THRESHOLD_RATE)

    def forward(self, score: Float[Tensor, "batch 1"]) -> Float[Tensor, "batch thresholds"]:
        """Logits of "more than k", in float32."""
        raw = THRESHOLD_RATE * self.raw
        rises = torch.cat([raw[:1], F.softplus(raw[1:]) + MIN_GAP])
        return score.float() - rises.cumsum(dim=0)


def _read_softmax(logits: Tensor, _num_classes: int) -> Tensor:
    return logits.log_softmax(dim=1)


def _read_corn(logits: Tensor, _num_classes: int) -> Tensor:
    log_more = F.logsigmoid(logits).cumsum(dim=1)
    log_stop = F.logsigmoid(-logits)
    certain = torch.zeros_like(logits[:, :1])
    return torch.cat([certain, log_more], dim=1) + torch.cat([log_stop, certain], dim=1)


def _read_cumulative_link(logits: Tensor, _num_classes: int) -> Tensor:
    """By sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - exp(b - a)), as a difference would underflow."""
    certain = torch.zeros_like(logits[:, :1])
    # Scores beyond 1e6 leave no digits for the gaps; they are far from all thresholds but the first or last.
    gaps = (logits[:, :-1] - logits[:, 1:]).clamp(min=MIN_GAP / 2)
    log_between = torch.log(-torch.expm1(-gaps))
    log_more = torch.cat([certain, F.logsigmoid(logits)], dim=1)
    log_at_most = torch.cat([F.logsigmoid(-logits), certain], dim=1)
    return log_more + log_at_most + torch.cat([certain, log_between, certain], dim=1)


def _read_regression(outputs: Tensor, num_classes: int) -> Tensor:
    """A normal density at the counts, normalised over them.

    In these natural parameters the likelihood of a row is concave up to the softplus. With a location and the logarithm
    of a spread, training got stuck at a wide spread, where the location has hardly a gradient.
    """
    levels = torch.arange(num_classes, device=outputs.device) - (num_classes - 1) / 2
    precision = F.softplus(outputs[:, 1:])
    return (levels * outputs[:, :1] - levels.square() / 2 * precision).log_softmax(dim=1)


_READ: Final[dict[Head, Callable[[Tensor, int], Tensor]]] = {
    "softmax": _read_softmax,
    "corn": _read_corn,
    "cumulative_link": _read_cumulative_link,
    "regression": _read_regression,
}
