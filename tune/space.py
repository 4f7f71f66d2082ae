"""The search space: learning rate, log-uniform, and global batch size."""

from dataclasses import dataclass
from typing import Any

from ray import tune as ray_tune

from bintally.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchSpace:
    """What the trials draw from."""

    lr: tuple[float, float]
    """Lowest and highest peak learning rate."""
    batch_sizes: tuple[int, ...]
    """Global batch sizes to choose among."""

    def __post_init__(self) -> None:
        low, high = self.lr
        if not 0 < low < high:
            raise ConfigError(f"lr needs a low and a higher bound above 0, not {low} {high}")
        if not self.batch_sizes:
            raise ConfigError("batch_sizes is empty")

    def to_tune(self) -> dict[str, Any]:
        """As Ray Tune's sampling distributions."""
        return {
            "lr": ray_tune.loguniform(*self.lr),
            "global_batch_size": ray_tune.choice(list(self.batch_sizes)),
        }
