"""The report reproduces what is known of the real ABID pairs; see README.md beside them."""

import csv
from pathlib import Path

import numpy as np
import pytest

from bintally.source_config import DataConfig
from data.facts import measure_bin, to_table
from data.findings import Findings
from data.split import Split

ABID = Path(__file__).resolve().parents[3] / "shared" / "abid"

pytestmark = pytest.mark.skipif(
    not (ABID / "bucket").is_dir(), reason="the real ABID pairs are not on this machine, nor are their numbers"
)


@pytest.fixture(scope="module")
def truth() -> list[dict[str, str]]:
    with (ABID / "pairs.csv").open() as file:
        return [row for row in csv.DictReader(file) if len(row["id"]) >= 5]


@pytest.fixture(scope="module")
def findings() -> Findings:
    ids = sorted(path.stem for path in (ABID / "bucket/bin-images").glob("?????*.jpg"))
    facts = [
        measure_bin(
            bin_id,
            (ABID / f"bucket/metadata/{bin_id}.json").read_bytes(),
            (ABID / f"bucket/bin-images/{bin_id}.jpg").read_bytes(),
        )
        for bin_id in ids
    ]
    splits: dict[Split, list[str]] = {"train": ids[:500], "val": ids[500:650], "test": ids[650:]}
    return Findings.of(to_table(facts), splits, DataConfig(source=f"file://{ABID}/bucket"))


def test_all_padded_pairs_are_good_and_add_up(findings: Findings) -> None:
    assert findings.num_ids == findings.num_good == 799
    assert findings.num_faults == 0  # so no record's items differ from its EXPECTED_QUANTITY
    assert set(findings.drops) == {"count_above_max"}


def test_counts_are_those_of_the_list(findings: Findings, truth: list[dict[str, str]]) -> None:
    counts = np.array([int(row["expected_quantity"]) for row in truth])
    found = findings.counts
    assert found.bins_by_count == {int(count): int((counts == count).sum()) for count in np.unique(counts)}
    assert (min(found.bins_by_count), found.largest) == (0, 48)
    assert found.num_above_max == findings.drops["count_above_max"] == (counts > 5).sum()


def test_sizes_are_those_of_the_list_and_near_those_of_the_whole_set(
    findings: Findings, truth: list[dict[str, str]]
) -> None:
    sizes = np.array([(int(row["width"]), int(row["height"])) for row in truth])
    photos = findings.photos
    assert (photos.width.median, photos.height.median) == tuple(np.median(sizes, axis=0))
    assert photos.aspect.mean == pytest.approx((sizes[:, 0] / sizes[:, 1]).mean())
    # README: median 468x334, 315-785 x 240-1069, aspect 0.60-1.69, 57.8 kB and 2.0 kB, of a larger sample.
    assert (photos.width.median, photos.height.median) == (pytest.approx(468, abs=5), pytest.approx(334, abs=5))
    assert (photos.width.least, photos.width.most) == (315, 785)
    assert (photos.height.least, photos.height.most) == (240, 1069)
    assert (round(photos.aspect.least, 2), round(photos.aspect.most, 2)) == (0.60, 1.69)
    assert photos.photo_bytes.mean == pytest.approx(57_800, rel=0.01)
    assert photos.record_bytes.mean == pytest.approx(2_000, rel=0.1)


def test_neighbours_share_products_as_in_the_readme(findings: Findings) -> None:
    neighbours = findings.neighbours
    assert neighbours.num_neighbours == 798
    assert neighbours.share_sharing == pytest.approx(0.40, abs=0.01)
    assert neighbours.share_differ_by_one == pytest.approx(0.68, abs=0.03)  # 68 % is of the ids up to 999
    assert neighbours.largest_stranger_similarity is not None
    assert neighbours.largest_stranger_similarity < 0.9


def test_few_labels_are_suspected_and_no_empty_bin_is(findings: Findings) -> None:
    assert {(one.kind, one.ids[0]) for one in findings.suspects} == {
        ("same_photo", "00015"),  # 15 items, then 12
        ("same_photo", "00357"),
        ("same_photo", "00415"),
        ("same_photo", "00797"),
    }
