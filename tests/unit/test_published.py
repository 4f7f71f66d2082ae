"""Published results: nothing is comparable unless the photos are the same."""

from dataclasses import replace

import pytest

from bintally.source_config import DataConfig
from train.published import OFFICIAL_IMAGES, PUBLISHED, compare_published, differences

OFFICIAL = DataConfig(source="file:///mirror", split_by="official", labels="/lists")


def test_the_whole_official_list_is_comparable_wherever_it_lies() -> None:
    assert differences(OFFICIAL, "test", OFFICIAL_IMAGES) == []
    assert differences(OFFICIAL, "test", OFFICIAL_IMAGES - 300) == []  # some photos of a bucket may be broken
    rows = compare_published(OFFICIAL, "test", OFFICIAL_IMAGES)["rows"]
    assert [row["who"].split()[0] for row in rows if row["comparable"]] == ["ABID", "Majority"]


@pytest.mark.parametrize(
    ("data", "split", "num_images", "names"),
    [
        (DataConfig(), "test", OFFICIAL_IMAGES, "split by grouped"),
        (OFFICIAL, "val", OFFICIAL_IMAGES, "val split"),
        (OFFICIAL, "all", OFFICIAL_IMAGES, "all split"),
        (replace(OFFICIAL, max_count=10), "test", OFFICIAL_IMAGES, "0 to 10"),
        (replace(OFFICIAL, max_images=40_000), "test", 2_690, "2,690 photos"),
        (OFFICIAL, "test", OFFICIAL_IMAGES + 1, "36,033 photos"),
    ],
)
def test_anything_else_is_not(data: DataConfig, split: str, num_images: int, names: str) -> None:
    compared = compare_published(data, split, num_images)
    assert len(compared["differs"]) == 1
    assert names in compared["differs"][0]
    assert not any(row["comparable"] for row in compared["rows"])


def test_every_result_says_where_it_is_from() -> None:
    assert [(one.accuracy, one.rmse) for one in PUBLISHED] == [
        (0.5567, 0.930),
        (0.248, 1.355),
        (0.562, 0.90),
        (0.31, 1.96),
        (0.30, None),
        (0.28, None),
        (0.40, None),
    ]
    assert all(one.split and one.data and one.classes for one in PUBLISHED)


def test_the_baselines_rmse_follows_from_its_rmse_per_count() -> None:
    """Weighted by the counts of the official validation list."""
    numbers = (966, 4098, 7622, 8951, 8054, 6341)
    assert sum(numbers) == OFFICIAL_IMAGES
    squares = sum(number * rmse**2 for number, rmse in zip(numbers, PUBLISHED[0].rmse_per_count, strict=True))
    assert (squares / OFFICIAL_IMAGES) ** 0.5 == pytest.approx(PUBLISHED[0].rmse, abs=5e-4)
