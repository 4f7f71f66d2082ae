"""Tallies: figures worked out by hand, and sums that do not care how the rows were dealt out."""

import json
import math

import pytest
import torch

from bintally.metrics import CountTally

# Expected 0, 0, 1, 2, 2, 2; counted 0, 1, 1, 2, 0, 1.
EXPECTED = torch.tensor([0, 0, 1, 2, 2, 2])
LOGITS = torch.nn.functional.one_hot(torch.tensor([0, 1, 1, 2, 0, 1]), 3).float() * math.log(2)
# Each row is (1/2, 1/4, 1/4) in some order: a hit costs log 2 nats, a miss log 4.


def random_batch(num_rows: int, *, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(num_rows, 6, generator=generator)
    return logits, torch.randint(0, 6, (num_rows,), generator=generator)


def test_rows_of_the_confusion_matrix_are_expected_counts() -> None:
    tally = CountTally.of(LOGITS, EXPECTED)
    assert tally.confusion.tolist() == [[1, 1, 0], [0, 1, 0], [1, 1, 1]]
    assert tally.num_images == 6


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_images", 6),
        ("accuracy", 3 / 6),
        ("within_one", 5 / 6),
        ("rmse", math.sqrt((1 + 4 + 1) / 6)),
        ("mae", (1 + 2 + 1) / 6),
        ("nll", (3 * math.log(2) + 3 * math.log(4)) / 6),
        ("majority_accuracy", 3 / 6),
        ("random_accuracy", 1 / 3),
    ],
)
def test_figures_by_hand(name: str, value: float) -> None:
    assert CountTally.of(LOGITS, EXPECTED).summary()[name] == pytest.approx(value)


def test_figures_per_count_by_hand() -> None:
    per_count = CountTally.of(LOGITS, EXPECTED).summary()["per_count"]
    assert per_count["0"] == pytest.approx({"num_images": 2, "accuracy": 1 / 2, "rmse": math.sqrt(1 / 2)})
    assert per_count["1"] == pytest.approx({"num_images": 1, "accuracy": 1.0, "rmse": 0.0})
    assert per_count["2"] == pytest.approx({"num_images": 3, "accuracy": 1 / 3, "rmse": math.sqrt(5 / 3)})


def test_a_count_that_never_occurs_has_no_figures() -> None:
    tally = CountTally.of(LOGITS[2:], EXPECTED[2:])
    assert set(tally.summary()["per_count"]) == {"1", "2"}
    assert len(tally.confusion) == 3


@pytest.mark.parametrize("cuts", [[50], [1, 2, 3], [99], [0], [20, 20, 60]])
def test_parts_add_up_to_the_whole(cuts: list[int]) -> None:
    logits, counts = random_batch(100)
    parts = zip(logits.tensor_split(cuts), counts.tensor_split(cuts), strict=True)
    total = CountTally.empty(6)
    for part_logits, part_counts in parts:
        total = total + CountTally.of(part_logits, part_counts)
    whole = CountTally.of(logits, counts)
    assert torch.equal(total.confusion, whole.confusion)
    assert total.nll_sum == pytest.approx(whole.nll_sum, rel=1e-6)
    assert total.summary() | {"nll": 0} == whole.summary() | {"nll": 0}


def test_adding_leaves_the_summands_alone() -> None:
    tally = CountTally.of(LOGITS, EXPECTED)
    _ = tally + tally
    assert tally.num_images == 6


def test_a_tally_survives_its_vector() -> None:
    tally = CountTally.of(*random_batch(30))
    vector = tally.to_vector()
    assert vector.dtype == torch.float64
    back = CountTally.from_vector(vector)
    assert torch.equal(back.confusion, tally.confusion)
    assert back.confusion.dtype == torch.int64
    assert back.nll_sum == tally.nll_sum


def test_vectors_of_workers_add_up_as_an_all_reduce_adds_them() -> None:
    one, other = CountTally.of(*random_batch(30)), CountTally.of(*random_batch(20, seed=1))
    reduced = CountTally.from_vector(one.to_vector() + other.to_vector())
    assert torch.equal(reduced.confusion, (one + other).confusion)
    assert reduced.nll_sum == pytest.approx((one + other).nll_sum)


def test_half_precision_logits_are_tallied_in_full_precision() -> None:
    logits, counts = random_batch(200)
    half = CountTally.of(logits.bfloat16(), counts)
    assert half.nll_sum == pytest.approx(CountTally.of(logits.bfloat16().float(), counts).nll_sum)


def test_a_summary_is_json() -> None:
    summary = CountTally.of(*random_batch(30)).summary()
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


def test_nothing_tallied_has_no_figures() -> None:
    with pytest.raises(ValueError, match="no images"):
        CountTally.empty(6).summary()
