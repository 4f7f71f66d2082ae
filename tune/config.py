"""What a search does, as a value that is stored with the run, so that a resumed search does the same."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final

from pydantic import ConfigDict, TypeAdapter, ValidationError

from bintally.config import Recipe
from bintally.errors import ConfigError
from data.args import ReadArgs, ResourceArgs

SEARCH_FILE: Final = "search.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchSpace:
    """What the trials draw from."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    lr: tuple[float, float]
    """Lowest and highest peak learning rate, drawn log-uniformly."""
    batch_sizes: tuple[int, ...]
    """Global batch sizes to choose among."""

    def __post_init__(self) -> None:
        low, high = self.lr
        if not 0 < low < high:
            raise ConfigError(f"lr needs a low and a higher bound above 0, not {low} {high}")
        if not self.batch_sizes:
            raise ConfigError("batch_sizes is empty")


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchConfig:
    """What a search does."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    recipe: Recipe
    """What all trials share."""
    space: SearchSpace
    """What they draw for themselves."""
    num_trials: int
    """Points of the space to try."""
    resources: ResourceArgs
    """What one trial may use."""
    read: ReadArgs
    """How the bucket is read."""

    def __post_init__(self) -> None:
        if self.num_trials < 1:
            raise ConfigError(f"num_trials must be at least 1, not {self.num_trials}")
        self.points()  # refuses bounds that no recipe allows
        self.read.resolve()  # these refuse shares, sizes and times that make no sense
        self.resources.resolve()

    def points(self) -> list[Recipe]:
        """The recipe at the corners of the space, to check before anything starts."""
        return [
            self.recipe.with_optim(lr=lr, global_batch_size=size)
            for lr in self.space.lr
            for size in self.space.batch_sizes
        ]


_SEARCH = TypeAdapter(SearchConfig)


def write_search(config: SearchConfig, run_dir: Path) -> None:
    """Store a search with its run.

    Raises:
        ConfigError: the folder already holds another one.
    """
    path = run_dir / SEARCH_FILE
    if path.exists():
        raise ConfigError(f"run_dir {run_dir} already holds a search; go on with it by --resume, or choose another")
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
