"""The order of an epoch: every id once, the same for the same seed, fresh tenths, and even counts if asked for."""

from itertools import pairwise

import numpy as np
import pytest

from data.order import Sampling, balanced_order, epoch_order

SIZES = (0, 1, 2, 3, 7, 10, 19, 99, 100, 1009, 5000)
FRACTIONS = (1.0, 0.999, 0.7, 0.5, 1 / 3, 0.3, 0.29, 0.1, 0.01, 1e-9)


def orders(num_ids: int, num_epochs: int, *, epoch_fraction: float = 1.0, seed: int = 0) -> list[list[int]]:
    """The first epochs, one after the other."""
    sampling = Sampling(seed=seed, epoch_fraction=epoch_fraction)
    return [epoch_order(num_ids, sampling, epoch).tolist() for epoch in range(1, num_epochs + 1)]


def balanced(counts: list[int], num_epochs: int, *, epoch_fraction: float = 1.0, seed: int = 0) -> list[list[int]]:
    """As `orders`, with every count equally often."""
    sampling = Sampling(seed=seed, epoch_fraction=epoch_fraction, balanced=True)
    return [balanced_order(np.array(counts, np.int64), sampling, epoch).tolist() for epoch in range(1, num_epochs + 1)]


def visits(order: list[int], counts: list[int]) -> list[int]:
    """How often each count, from 0 to the largest, is visited."""
    return np.bincount([counts[index] for index in order], minlength=max(counts) + 1).tolist()


# epoch_order


@pytest.mark.parametrize("num_ids", SIZES)
def test_an_epoch_visits_every_id_once(num_ids: int) -> None:
    for order in orders(num_ids, 3):
        assert sorted(order) == list(range(num_ids))


@pytest.mark.parametrize(
    ("seed", "epoch", "epoch_fraction", "order"),
    [
        (0, 1, 1.0, [4, 6, 2, 7, 3, 5, 9, 0, 8, 1]),
        (0, 2, 1.0, [5, 1, 6, 3, 4, 8, 9, 7, 2, 0]),
        (7, 1, 1.0, [8, 0, 7, 1, 3, 6, 2, 4, 5, 9]),
        (0, 1, 0.3, [4, 6, 2]),
        (0, 2, 0.3, [7, 3, 5]),
        (0, 4, 0.3, [5, 1, 6]),  # one was left, too few for an epoch; so this is of the second shuffle
    ],
)
def test_the_order_is_the_same_on_every_machine_and_in_every_version(
    seed: int, epoch: int, epoch_fraction: float, order: list[int]
) -> None:
    assert epoch_order(10, Sampling(seed=seed, epoch_fraction=epoch_fraction), epoch).tolist() == order


def test_the_order_does_not_depend_on_what_was_asked_before() -> None:
    forwards = [epoch_order(50, Sampling(seed=3), epoch).tolist() for epoch in (1, 2, 3)]
    np.random.default_rng(0).random(10)
    backwards = [epoch_order(50, Sampling(seed=3), epoch).tolist() for epoch in (3, 2, 1)]
    assert forwards == backwards[::-1]


def test_every_seed_and_every_epoch_has_an_order_of_its_own() -> None:
    some = [tuple(order) for seed in (0, 1, 2, 2**32 - 1) for order in orders(100, 20, seed=seed)]
    assert len(set(some)) == 80


def test_the_order_is_shuffled_thoroughly() -> None:
    order = epoch_order(10_000, Sampling(seed=0), 1)
    assert abs(np.corrcoef(order, np.arange(10_000))[0, 1]) < 0.03
    assert sum(b - a == 1 for a, b in pairwise(order.tolist())) < 10  # neighbours stay together about once


@pytest.mark.parametrize("num_ids", [10, 100, 15, 19, 96, 1006, 1009])
def test_ten_tenths_share_no_id(num_ids: int) -> None:
    tenths = orders(num_ids, 10, epoch_fraction=0.1)
    together = [index for tenth in tenths for index in tenth]
    assert {len(tenth) for tenth in tenths} == {num_ids // 10}
    assert len(set(together)) == len(together)


@pytest.mark.parametrize("num_ids", [10, 100, 1000, 5000])
def test_ten_tenths_are_all_ids_and_the_next_ten_cut_them_differently(num_ids: int) -> None:
    tenths = orders(num_ids, 20, epoch_fraction=0.1)
    for ten in (tenths[:10], tenths[10:]):
        assert sorted(index for tenth in ten for index in tenth) == list(range(num_ids))
    assert tenths[0] != tenths[10]


@pytest.mark.parametrize("epoch_fraction", FRACTIONS)
@pytest.mark.parametrize("num_ids", SIZES)
def test_any_fraction_of_any_number_of_ids(num_ids: int, epoch_fraction: float) -> None:
    size = Sampling(seed=0, epoch_fraction=epoch_fraction).epoch_size(num_ids)
    assert min(1, num_ids) <= size <= num_ids
    assert num_ids * epoch_fraction - 1 < size
    for order in orders(num_ids, 12, epoch_fraction=epoch_fraction):
        assert len(order) == size
        assert len(set(order)) == size
        assert set(order) <= set(range(num_ids))


@pytest.mark.parametrize(
    ("num_ids", "epoch_fraction", "size"),
    [(100, 0.29, 29), (10, 0.7, 7), (10, 0.3, 3), (9, 1 / 3, 3), (10, 1 / 3, 3), (535_234, 0.1, 53_523), (5, 0.1, 1)],
)
def test_the_size_of_an_epoch(num_ids: int, epoch_fraction: float, size: int) -> None:
    assert Sampling(seed=0, epoch_fraction=epoch_fraction).epoch_size(num_ids) == size


@pytest.mark.parametrize("epoch_fraction", [1 / 3, 0.3, 0.29, 0.1, 0.01])
def test_an_id_waits_until_no_whole_epoch_of_fresh_ones_is_left(epoch_fraction: float) -> None:
    num_ids = 101
    size = Sampling(seed=0, epoch_fraction=epoch_fraction).epoch_size(num_ids)
    num_epochs = num_ids // size
    seen = [index for order in orders(num_ids, num_epochs, epoch_fraction=epoch_fraction) for index in order]
    assert len(set(seen)) == num_epochs * size > num_ids - size


# balanced_order

MIX = [0] * 5 + [1] * 40 + [2] * 90 + [3] * 12 + [4] * 3 + [5] * 50


@pytest.mark.parametrize("epoch_fraction", [1.0, 0.7, 0.1, 0.03, 0.01])
def test_every_count_is_visited_equally_often(epoch_fraction: float) -> None:
    size = Sampling(seed=0, epoch_fraction=epoch_fraction).epoch_size(len(MIX))
    for order in balanced(MIX, 7, epoch_fraction=epoch_fraction):
        often = visits(order, MIX)
        assert sum(often) == size
        assert max(often) - min(often) <= 1


def test_counts_are_even_over_all_epochs_even_where_one_is_too_short_for_all_of_them() -> None:
    so_far: list[int] = []
    for order in balanced(MIX, 12, epoch_fraction=0.02):  # 4 ids of 6 counts
        assert len(order) == 4
        so_far += order
        often = visits(so_far, MIX)
        assert max(often) - min(often) <= 1


@pytest.mark.parametrize("epoch_fraction", [1.0, 0.37, 0.1])
def test_no_id_is_visited_again_before_the_others_of_its_count(epoch_fraction: float) -> None:
    often = np.zeros(len(MIX), int)
    for order in balanced(MIX, 25, epoch_fraction=epoch_fraction):
        np.add.at(often, order, 1)
        for count in set(MIX):
            of_count = often[np.array(MIX) == count]
            assert of_count.max() - of_count.min() <= 1


def test_ids_without_a_count_are_never_visited() -> None:
    counts = [-1, 0, -1, 1, 1, 1, -1, -1]
    for order in balanced(counts, 5):
        assert len(order) == 4  # as many as there are usable ids
        assert visits(order, counts) == [2, 2]
        assert set(order) <= {1, 3, 4, 5}


@pytest.mark.parametrize("counts", [[], [-1, -1]])
def test_nothing_to_visit(counts: list[int]) -> None:
    assert balanced(counts, 2) == [[], []]


@pytest.mark.parametrize("count", [0, 3])
def test_a_single_count_is_shuffled_as_a_whole(count: int) -> None:
    first, second = balanced([count] * 30, 2)
    assert sorted(first) == sorted(second) == list(range(30))
    assert first != second


def test_counts_that_are_even_already_are_all_visited_once() -> None:
    for order in balanced([0, 1, 2] * 20, 3):
        assert sorted(order) == list(range(60))


def test_counts_come_mixed() -> None:
    counts = [0] * 300 + [1] * 300
    (order,) = balanced(counts, 1)
    changes = sum(counts[a] != counts[b] for a, b in pairwise(order))
    assert 250 < changes < 350  # of 599; class by class it would be 1, turn by turn 599


@pytest.mark.parametrize(("epoch", "order"), [(1, [5, 9, 3, 8, 2, 7, 9, 9, 4, 6]), (2, [9, 9, 6, 1, 8, 0, 7, 9, 8, 1])])
def test_the_balanced_order_is_the_same_on_every_machine_and_in_every_version(epoch: int, order: list[int]) -> None:
    counts = np.array([0, 0, 0, 0, 0, 0, 1, 1, 1, 2, -1])
    assert balanced_order(counts, Sampling(seed=0, balanced=True), epoch).tolist() == order


def test_every_seed_and_every_epoch_has_a_balanced_order_of_its_own() -> None:
    some = [tuple(order) for seed in (0, 1, 2) for order in balanced(MIX, 10, seed=seed)]
    assert len(set(some)) == 30
