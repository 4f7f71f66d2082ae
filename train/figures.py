"""The figures that a training reports each epoch, by name, and what they are when there are none."""

import math
from collections.abc import Mapping
from typing import Any, Final, Literal

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


def epoch_figures(train_loss: float, summary: Mapping[str, Any]) -> dict[str, float]:
    """Training loss and validation figures of an epoch, finite even if the training diverged.

    Args:
        train_loss: mean per row.
        summary: of the validation, as `bintally.metrics.CountTally` gives it.
    """
    scores = {f"val_{name}": summary[name] for name in ("nll", "accuracy", "within_one", "rmse", "mae")}
    if not math.isfinite(summary["nll"]):  # what such weights answer is chance, even if it happens to be right
        worst = worst_figures()
        scores = {name: worst[name] for name in scores}
    return {
        "train_loss": train_loss if math.isfinite(train_loss) else DIVERGED,
        **scores,
        "val_num_images": summary["num_images"],
    }


def has_diverged(figures: Mapping[str, float]) -> bool:
    """Whether the weights of such an epoch are of no use, whatever single figures look like."""
    return not figures.get("val_nll", 0.0) < DIVERGED
