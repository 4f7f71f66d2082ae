"""Points of a search: the same for the same seed, whatever else changes."""

import math
from dataclasses import replace

import pytest

from bintally.errors import ConfigError
from bintally.recipes import smoke
from data.args import ReadArgs, ResourceArgs
from tune.config import BudgetConfig, Sampler, SearchConfig
from tune.samplers import listed_points, random_points, recipes_to_check, settled
from tune.space import BATCH_SIZE, LR, Choice, Dimension, Interval, SearchSpace

RATE = Interval(low=1e-4, high=1e-1, log=True)
SIZES = Choice(values=(8, 16, 32))
SPACE = SearchSpace(dimensions={LR: RATE, BATCH_SIZE: SIZES})


def search_of(dimensions: dict[str, Dimension], sampler: Sampler = "random", *, num_workers: int = 1) -> SearchConfig:
    return SearchConfig(
        recipe=smoke(),
        space=SearchSpace(dimensions=dimensions),
        budget=BudgetConfig(trials=5),
        sampler=sampler,
        resources=ResourceArgs(num_workers=num_workers),
        read=ReadArgs(),
    )


def test_the_points_of_a_seed_are_known() -> None:
    rates = [point[LR] for point in random_points(SPACE, 0, 3)]
    sizes = [point[BATCH_SIZE] for point in random_points(SPACE, 0, 3)]
    assert rates == pytest.approx([0.0997503, 0.00631035, 0.0505208])
    assert sizes == [32, 32, 8]


def test_another_seed_gives_other_points() -> None:
    assert random_points(SPACE, 1, 8) == random_points(SPACE, 1, 8)
    assert random_points(SPACE, 1, 8) != random_points(SPACE, 2, 8)


def test_a_larger_search_begins_with_the_points_of_a_smaller_one() -> None:
    assert random_points(SPACE, 7, 40)[:10] == random_points(SPACE, 7, 10)


def test_another_field_leaves_the_values_of_the_others() -> None:
    wider = SearchSpace(dimensions={"optim.weight_decay": Interval(low=0, high=1), **SPACE.dimensions})
    narrow = [(point[LR], point[BATCH_SIZE]) for point in random_points(SPACE, 3, 10)]
    assert [(point[LR], point[BATCH_SIZE]) for point in random_points(wider, 3, 10)] == narrow


def test_a_logarithmic_range_is_drawn_evenly_in_its_logarithm() -> None:
    points = random_points(SearchSpace(dimensions={LR: RATE}), 0, 2_000)
    shares = sorted(math.log10(float(str(point[LR]))) / 3 + 4 / 3 for point in points)
    assert shares[0] >= 0
    assert shares[-1] <= 1
    # The largest gap between the drawn and the even distribution; 1.95 / sqrt(n) is its 99.9 % bound.
    assert max(abs((rank + 1) / 2_000 - share) for rank, share in enumerate(shares)) < 1.95 / math.sqrt(2_000)


def test_no_point_is_drawn_twice_and_an_exhausted_space_ends() -> None:
    space = SearchSpace(dimensions={BATCH_SIZE: SIZES, "balanced": Choice(values=(True, False))})
    points = random_points(space, 0, 50)
    assert len(points) == 6
    assert len({tuple(point.items()) for point in points}) == 6


def test_a_grid_is_every_pair_and_as_many_trials() -> None:
    config = settled(search_of({LR: RATE, BATCH_SIZE: SIZES}, "grid"))
    assert config.budget.trials == 12
    assert listed_points(config) == config.space.grid(4)
    assert settled(config) == config


@pytest.mark.parametrize("sampler", ["tpe", "bohb"])
def test_suggested_points_are_not_listed(sampler: Sampler) -> None:
    config = search_of({LR: RATE}, sampler)
    assert listed_points(config) is None
    assert settled(config) == config


def test_corners_and_listed_points_are_checked_beforehand() -> None:
    config = search_of({BATCH_SIZE: Interval(low=8, high=64, whole=True)})
    sizes = [recipe.optim.global_batch_size for recipe in recipes_to_check(config)]
    assert sizes[:2] == [8, 64]
    assert sizes[2:] == [point[BATCH_SIZE] for point in random_points(config.space, 0, 5)]


def test_a_range_of_batch_sizes_that_workers_cannot_share_is_refused_where_points_are_suggested() -> None:
    ranged = search_of({BATCH_SIZE: Interval(low=8, high=64, whole=True)}, "tpe", num_workers=2)
    with pytest.raises(ConfigError, match=r"space optim\.global_batch_size: sampler tpe.*list the sizes"):
        recipes_to_check(ranged)
    assert recipes_to_check(replace(ranged, space=SPACE))
