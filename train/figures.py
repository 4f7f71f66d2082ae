"""The figures that a training reports each epoch, by name, and what they are when there are none."""

from collections.abc import Mapping
from typing import Final, Literal

Keep = tuple[str, Literal["min", "max"]]
"""Which checkpoint of a training is best: a figure, and whether its lowest or its highest is."""
BEST_NLL: Final[Keep] = ("val_nll", "min")
DIVERGED: Final = 1e30  # ASHA never stops a trial that reports NaN, so a diverged loss is reported as this
_LOSSES: Final = ("train_loss", "val_nll", "val_rmse", "val_mae")
_SHARES: Final = ("val_accuracy", "val_within_one")
_REST: Final = ("val_num_images", "lr", "train_s", "epoch_s", "images_per_s")
FIGURES: Final = (*_LOSSES, *_SHARES, *_REST)


def worst_figures() -> dict[str, float]:
    """Those of an epoch that nobody may choose."""
    return dict.fromkeys(_LOSSES, DIVERGED) | dict.fromkeys((*_SHARES, *_REST), 0.0)


def has_diverged(figures: Mapping[str, float]) -> bool:
    """Whether the weights of such an epoch are of no use, whatever single figures look like."""
    return not figures.get("val_nll", 0.0) < DIVERGED
