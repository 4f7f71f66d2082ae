"""What a network's raw outputs mean: the way from them to a distribution over the counts 0..K-1, for each head.

softmax           K logits, one per count
corn              K-1 logits of "more than k, given at least k"
cumulative_link   K-1 logits of "more than k": one score minus K-1 rising thresholds, learnt beside the network
regression        a location, counted from the middle count, and the logarithm of a spread, both in items
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
MAX_LOG_SPREAD: Final = 3.0
"""Spreads lie within exp(-3)..exp(3), 0.05 to 20 items: sharper ones only overflow, wider ones are flat already."""


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
        first = torch.tensor([1 - num_classes / 2])  # so that the thresholds lie evenly around a score of zero
        gap = torch.tensor(1 - MIN_GAP).expm1().log()  # the inverse of softplus: gaps of one to begin with
        self.raw = nn.Parameter(torch.cat([first, gap.expand(num_classes - 2)]))

    def forward(self, score: Float[Tensor, "batch 1"]) -> Float[Tensor, "batch thresholds"]:
        """Logits of "more than k", in float32."""
        rises = torch.cat([self.raw[:1], F.softplus(self.raw[1:]) + MIN_GAP])
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
    """A normal density at the counts, normalised over them; so its likelihood compares with that of the other heads."""
    levels = torch.arange(num_classes, device=outputs.device) - (num_classes - 1) / 2
    location, raw_spread = outputs[:, :1], outputs[:, 1:]
    log_spread = MAX_LOG_SPREAD * torch.tanh(raw_spread / MAX_LOG_SPREAD)
    # The square of the location is the same for all counts and left out: it would overflow.
    exponents = (levels * location - levels.square() / 2) * torch.exp(-2 * log_spread)
    return exponents.log_softmax(dim=1)


_READ: Final[dict[Head, Callable[[Tensor, int], Tensor]]] = {
    "softmax": _read_softmax,
    "corn": _read_corn,
    "cumulative_link": _read_cumulative_link,
    "regression": _read_regression,
}
