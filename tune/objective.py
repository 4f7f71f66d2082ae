"""What a search optimises: one of the figures that a training reports each epoch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Final, Literal

from pydantic import ConfigDict

from bintally.errors import ConfigError
from train.figures import DIVERGED, FIGURES, has_diverged

Mode = Literal["min", "max"]
_BETTER: Final[dict[str, Mode]] = {
    "val_nll": "min",
    "val_accuracy": "max",
    "val_within_one": "max",
    "val_rmse": "min",
    "val_mae": "min",
    "train_loss": "min",
    "images_per_s": "max",
}
SCORE: Final = "objective_loss"  # what Tune is told beside a training's figures: `Objective.loss`, so lower is better


@dataclass(frozen=True, kw_only=True, slots=True)
class Objective:
    """A reported figure, and which way is better."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    metric: str = "val_nll"
    """Name as in metrics.jsonl."""
    mode: Mode = "min"
    """Whether the lowest or the highest is best."""

    def loss(self, metrics: Mapping[str, float]) -> float:
        """The figure, turned so that lower is better; of an epoch that diverged, worse than any."""
        value = metrics[self.metric]
        if has_diverged(metrics) or not abs(value) < DIVERGED:
            return DIVERGED
        return value if self.mode == "min" else -value


def parse_objective(text: str) -> Objective:
    """The objective of a text as `nll`, `val_rmse` or `train_loss:min`.

    Raises:
        ConfigError: the figure is not known, and no `:min` or `:max` says which way is better.
    """
    name, colon, mode = text.partition(":")
    metric = name if name in FIGURES else f"val_{name}"
    if metric in FIGURES and mode in ("min", "max"):
        return Objective(metric=metric, mode="min" if mode == "min" else "max")
    if colon or metric not in _BETTER:
        known = ", ".join(one.removeprefix("val_") for one in _BETTER)
        rest = ", ".join(one for one in FIGURES if one not in _BETTER)
        raise ConfigError(
            f"objective must be one of {known}, or one of those or of {rest} with :min or :max, not {text!r}"
        )
    return Objective(metric=metric, mode=_BETTER[metric])
