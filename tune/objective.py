"""What a search optimises: one of the figures that a training reports each epoch."""

from dataclasses import dataclass
from typing import ClassVar, Final, Literal

from pydantic import ConfigDict

from bintally.errors import ConfigError

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


@dataclass(frozen=True, kw_only=True, slots=True)
class Objective:
    """A reported figure, and which way is better."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    metric: str = "val_nll"
    """Name as in metrics.jsonl."""
    mode: Mode = "min"
    """Whether the lowest or the highest is best."""

    def loss(self, metrics: dict[str, float]) -> float:
        """The figure, turned so that lower is better."""
        value = metrics[self.metric]
        return value if self.mode == "min" else -value


def parse_objective(text: str) -> Objective:
    """The objective of a text as `nll`, `val_rmse` or `train_loss:min`.

    Raises:
        ConfigError: the figure is not known, and no `:min` or `:max` says which way is better.
    """
    name, colon, mode = text.partition(":")
    metric = name if name in _BETTER or colon else f"val_{name}"
    if colon and mode in ("min", "max"):
        return Objective(metric=metric, mode="min" if mode == "min" else "max")
    if colon or metric not in _BETTER:
        known = ", ".join(one.removeprefix("val_") for one in _BETTER)
        raise ConfigError(f"objective must be one of {known}, or a reported figure with :min or :max, not {text!r}")
    return Objective(metric=metric, mode=_BETTER[metric])
