"""Which points a search tries: listed beforehand (random, grid), or suggested by Optuna from the results (tpe, bohb).

Listed points depend on the seed and the space alone, not on Ray or on how fast trials end. Each field has a stream of
numbers of its own, so that a larger search begins with the points of a smaller one, and another field in the space
leaves the values of the others as they were.
"""

import importlib.util
import random
from dataclasses import replace
from typing import Final

from bintally.config import Recipe
from bintally.errors import ConfigError
from tune.config import SearchConfig
from tune.space import BATCH_SIZE, Interval, Point, SearchSpace, recipe_at

MAX_GRID: Final = 10_000
MAX_MISSES: Final = 1_000  # draws in a row that give no new point: the space has no more of them


def random_points(space: SearchSpace, seed: int, num_points: int) -> list[Point]:
    """So many different points, or as many as the space has."""
    streams = {field: random.Random(f"{seed} {field}") for field in space.dimensions}  # noqa: S311  # no secrets
    points: dict[tuple[object, ...], Point] = {}
    misses = 0
    while len(points) < num_points and misses < MAX_MISSES:
        point = {field: space.dimensions[field].at(stream.random()) for field, stream in streams.items()}
        before = len(points)
        points.setdefault(tuple(map(repr, point.values())), point)
        misses = 0 if len(points) > before else misses + 1
    return list(points.values())


def listed_points(config: SearchConfig) -> list[Point] | None:
    """The points of a search in the order in which they are tried; None if they are suggested one by one.

    Raises:
        ConfigError: the grid is too large.
    """
    if config.sampler == "random":
        return random_points(config.space, config.recipe.seed, config.budget.trials)
    if config.sampler == "grid":
        if (size := config.space.num_grid(config.grid_steps)) > MAX_GRID:
            raise ConfigError(
                f"the grid has {size:,} points, more than {MAX_GRID:,}; choose smaller grid_steps, or fewer values"
            )
        return config.space.grid(config.grid_steps)
    return None


def settled(config: SearchConfig) -> SearchConfig:
    """The same search with as many trials as there are points; the same if it is settled already.

    Raises:
        ConfigError: the sampler cannot work.
    """
    points = listed_points(config)
    if points is None:
        if importlib.util.find_spec("optuna") is None:
            raise ConfigError(
                f"sampler {config.sampler} needs Optuna, which is not installed:"
                " .venv/bin/uv pip install 'optuna>=5', or pip install 'bintally[tpe]'; or choose --sampler random"
            )
        return config
    return replace(config, budget=replace(config.budget, trials=len(points)))


def recipes_to_check(config: SearchConfig) -> list[Recipe]:
    """What must be trainable before anything starts: the corners of the space, and each listed point.

    Raises:
        ConfigError: the sampler could suggest a batch that the workers cannot share.
    """
    points = listed_points(config)
    if points is None:
        batch, workers = config.space.dimensions.get(BATCH_SIZE), config.resources.num_workers
        if isinstance(batch, Interval) and workers > 1:
            raise ConfigError(
                f"space {BATCH_SIZE}: sampler {config.sampler} may choose a size that num_workers {workers} cannot"
                " share equally; list the sizes, as 32,64,128"
            )
    return [*config.points(), *(recipe_at(config.recipe, point) for point in points or [])]
