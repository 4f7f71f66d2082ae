"""The loss of each row: how far the distribution that a network gives is from the count in the record.

The ordinal heads and regression are fitted by their likelihood. For corn that is the published loss, binary
cross-entropies over the rows that got so far, added up: the conditional logits multiply to the probability of a count.
"""

from typing import Final

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from bintally.batch import PADDING
from bintally.config import LossConfig
from bintally.errors import ConfigError
from bintally.heads import CountHead

_ONE_HOT_TAU: Final = 1e-4  # softer labels than these are one-hot in float32 already; a tau of 1e-50 would be 0 in it
_LEAST_MISS: Final = 1e-6  # of focal: the derivative of (1 - p)^gamma is infinite at p = 1 for gamma below 1


def row_losses(
    outputs: Float[Tensor, "batch outputs"],
    counts: Int64[Tensor, " batch"],
    head: CountHead,
    config: LossConfig,
    class_weights: Float[Tensor, " classes"] | None = None,
) -> Float[Tensor, " batch"]:
    """Loss of each row in nats; 0 and without gradient where the count is PADDING.

    Args:
        outputs: what the network gave.
        counts: counts of the records, or PADDING.
        head: how the outputs are read.
        config: the kind of loss. Kinds beside cross_entropy are for the softmax head, as Recipe checks.
        class_weights: factor of the rows of each count, on the device of the outputs; None weighs all alike.
    """
    log_probs = head.log_probabilities(outputs)
    real = counts != PADDING
    targets = torch.where(real, counts, 0)
    losses = _unweighted(log_probs, targets, config)
    if class_weights is not None:
        losses = losses * class_weights[targets]
    return torch.where(real, losses, 0.0)


def class_weights(histogram: Int64[Tensor, " classes"]) -> Float[Tensor, " classes"]:
    """Weight of each count by the inverse of its share of the rows; the mean weight of a row is 1.

    Args:
        histogram: how many rows there are of each count.

    Raises:
        ConfigError: a count has no rows.
    """
    empty = [count for count, num_rows in enumerate(histogram.tolist()) if num_rows == 0]
    if empty:
        raise ConfigError(
            f"loss.class_weights: no training row has the count {', '.join(map(str, empty))}, so it has no weight;"
            " lower data.max_count, take more ids, or switch class_weights off"
        )
    return (histogram.sum() / (len(histogram) * histogram.double())).float()


def _unweighted(log_probs: Tensor, targets: Tensor, config: LossConfig) -> Tensor:
    if config.kind == "sord":
        return -(_soft_labels(targets, log_probs.shape[1], config.sord_tau) * log_probs).sum(dim=1)
    log_prob = log_probs.gather(1, targets[:, None])[:, 0]
    if config.kind == "focal":
        miss = (-torch.expm1(log_prob)).clamp(min=_LEAST_MISS)
        return -(miss**config.focal_gamma) * log_prob
    return -log_prob


def _soft_labels(targets: Tensor, num_classes: int, tau: float) -> Tensor:
    distance = (torch.arange(num_classes, device=targets.device) - targets[:, None]).abs()
    return (-distance / max(tau, _ONE_HOT_TAU)).softmax(dim=1)
