"""What a search does, as a value that is stored with the run, so that a resumed search does the same."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from bintally.config import Recipe
from bintally.errors import ConfigError
from data.args import ReadArgs, ResourceArgs
from train.tracking import TrackerName
from tune.objective import Objective
from tune.record import EVENTS_FILE
from tune.space import MAX_EPOCHS, SearchSpace, describe_point, recipe_at

SEARCH_FILE: Final = "search.json"
NLL: Final = Objective()
_SHARED: Final = ("data.", "name")

Sampler = Literal["random", "grid", "tpe", "bohb"]


@dataclass(frozen=True, kw_only=True, slots=True)
class AshaConfig:
    """When a trial is stopped early: at each rung, unless it is among the best of those that came there."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    grace_epochs: int | None = None
    """No trial is stopped before this epoch, the first rung. None: a sixth of the epochs, rounded up."""
    reduction_factor: float = 3.0
    """One in so many goes on from a rung; the next rung lies so many times as far."""
    brackets: int = 1
    """Trials are dealt out to so many ladders, each of which begins a rung later than the one before."""
    enabled: bool = True
    """False lets every trial run to its end."""

    def __post_init__(self) -> None:
        if self.grace_epochs is not None and self.grace_epochs < 1:
            raise ConfigError(f"grace_epochs must be at least 1, not {self.grace_epochs}")
        if not 1 < self.reduction_factor < math.inf:
            raise ConfigError(f"reduction_factor must be finite and above 1, not {self.reduction_factor}")
        if self.brackets < 1:
            raise ConfigError(f"brackets must be at least 1, not {self.brackets}")


@dataclass(frozen=True, kw_only=True, slots=True)
class BudgetConfig:
    """When a search ends, at the latest."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    trials: int
    """Points of the space to try."""
    epochs: int | None = None
    """Epochs of all trials together, after which none begins another; None sets no limit."""
    time_s: float | None = None
    """Seconds after which no trial begins another epoch; None sets no limit. A resumed search has them anew."""

    def __post_init__(self) -> None:
        if self.trials < 1:
            raise ConfigError(f"num_trials must be at least 1, not {self.trials}")
        if self.epochs is not None and self.epochs < 1:
            raise ConfigError(f"max_total_epochs must be at least 1, not {self.epochs}")
        if self.time_s is not None and not 0 < self.time_s < math.inf:
            raise ConfigError(f"time_budget_s must be finite and above 0, not {self.time_s}")


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchConfig:
    """What a search does."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    recipe: Recipe
    """What all trials share."""
    space: SearchSpace
    """What they draw for themselves."""
    budget: BudgetConfig
    """When it ends at the latest."""
    sampler: Sampler = "random"
    """How points are chosen: random, grid, tpe (Optuna) or bohb (TPE on the scores of the rungs)."""
    grid_steps: int = 4
    """Of grid: values of each interval."""
    objective: Objective = NLL
    """What the best trial is best at."""
    asha: AshaConfig = AshaConfig()
    """When trials are stopped early."""
    final_seeds: int = 3
    """Trainings of the winner on its full budget, each with another seed, after the search; 0 keeps its trial."""
    price_per_hour: float | None = None
    """Of one worker, in any currency; None shows hours alone."""
    track: tuple[TrackerName, ...] = ()
    """Where each trial is recorded, too."""
    resources: ResourceArgs
    """What one trial may use."""
    read: ReadArgs
    """How the bucket is read."""

    def __post_init__(self) -> None:
        if self.grid_steps < 1:
            raise ConfigError(f"grid_steps must be at least 1, not {self.grid_steps}")
        if self.final_seeds < 0:
            raise ConfigError(f"final_seeds must be at least 0, not {self.final_seeds}")
        for field in self.space.dimensions:
            if field.startswith(_SHARED):
                raise ConfigError(f"space cannot vary {field}: all trials read the same rows")
        if self.price_per_hour is not None and not 0 <= self.price_per_hour < math.inf:
            raise ConfigError(f"price_per_hour must be finite and at least 0, not {self.price_per_hour}")
        self.points()  # refuses bounds that no recipe allows
        self._check_rungs()
        self.read.resolve()  # these refuse shares, sizes and times that make no sense
        self.resources.resolve()

    @property
    def max_epochs(self) -> int:
        """Epochs of the longest trial that the space allows."""
        dimension = self.space.dimensions.get(MAX_EPOCHS)
        ends = () if dimension is None else dimension.ends()
        return max((end for end in ends if isinstance(end, int)), default=self.recipe.max_epochs)

    @property
    def grace_epochs(self) -> int:
        """The first epoch after which a trial may be stopped."""
        return self.asha.grace_epochs or math.ceil(self.max_epochs / 6)

    def points(self) -> list[Recipe]:
        """The recipe at the corners of the space, to check before anything starts.

        Raises:
            ConfigError: one of them is none, or there are too many.
        """
        recipes = []
        for point in self.space.corners():
            try:
                recipes.append(recipe_at(self.recipe, point))
            except ConfigError as error:
                raise ConfigError(f"space at {describe_point(point)}: {str(error).removeprefix('set: ')}") from None
        return recipes

    def _check_rungs(self) -> None:
        if not self.asha.enabled:
            return
        if self.grace_epochs > self.max_epochs:
            raise ConfigError(
                f"grace_epochs {self.grace_epochs} is more than max_epochs {self.max_epochs}; choose fewer"
            )
        num_rungs = 1 + int(math.log(self.max_epochs / self.grace_epochs) / math.log(self.asha.reduction_factor))
        if self.asha.brackets > num_rungs:
            raise ConfigError(
                f"brackets must be at most {num_rungs}, not {self.asha.brackets}: so many rungs lie between"
                f" grace_epochs {self.grace_epochs} and max_epochs {self.max_epochs}"
            )


_SEARCH = TypeAdapter(SearchConfig)


def write_search(config: SearchConfig, run_dir: Path, place: str | None = None) -> None:
    """Store a search with its run, which lies at `place` for its user; also over one of which nothing has begun.

    Such a one was refused, as for a source that is not there, and may have the fault that is mended now.

    Raises:
        ConfigError: the folder already holds another one.
    """
    path = run_dir / SEARCH_FILE
    if path.exists() and (run_dir / EVENTS_FILE).exists():
        raise ConfigError(
            f"run_dir {place or run_dir} already holds a search; go on with it by --resume, or choose another"
        )
    path.write_bytes(_SEARCH.dump_json(config, indent=2) + b"\n")


def read_search(run_dir: Path) -> SearchConfig:
    """The search that a run folder was started with.

    Raises:
        ConfigError: there is none to resume.
    """
    path = run_dir / SEARCH_FILE
    try:
        return _SEARCH.validate_json(path.read_bytes())
    except FileNotFoundError:
        raise ConfigError(f"run_dir {run_dir} holds no search to resume: there is no {SEARCH_FILE}") from None
    except OSError as error:
        raise ConfigError(f"run_dir {run_dir} cannot be read: {error}") from None
    except ValidationError as error:
        raise ConfigError(f"{path} is damaged: {error.errors()[0]['msg']}") from None
