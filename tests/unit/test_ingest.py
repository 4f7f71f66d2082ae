"""What a balanced stream knows of its ids beforehand; without Ray."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import numpy as np

from bintally.batch import PADDING
from bintally.source_config import DataConfig
from data.blocks import FetchSpec
from data.drops import DropLedger
from data.ingest import count_mix, usable_counts

MakeBucket = Callable[..., Path]
WriteLists = Callable[[dict[str, int], dict[str, int]], str]


@dataclass
class Ledger:
    """Stands for the actor that keeps the reasons."""

    drops: dict[str, str] = field(default_factory=dict)

    def record(self, drops: dict[str, str]) -> None:
        """As `DropLedger.record`."""
        self.drops |= drops


def counts_of(data: DataConfig, ids: list[str]) -> tuple[list[int], dict[str, str]]:
    ledger = Ledger()
    return usable_counts(ids, FetchSpec(data=data, ledger=cast("DropLedger", ledger))), ledger.drops


def test_counts_come_from_the_records_without_a_photo(bucket_dir: MakeBucket) -> None:
    folder = bucket_dir({"00001": 3, "00002": 0, "523": 1}, broken={"bin-images/00002.jpg": None})
    assert counts_of(DataConfig(source=f"file://{folder}"), ["523", "00002", "00001"]) == ([1, 0, 3], {})


def test_ids_that_cannot_be_used_have_no_count_and_a_reason(bucket_dir: MakeBucket) -> None:
    broken = {"metadata/00002.json": None, "metadata/00003.json": b"{"}
    folder = bucket_dir({"00001": 3, "00002": 0, "00003": 1, "00004": 6, "00005": 5}, broken=broken)
    counts, drops = counts_of(DataConfig(source=f"file://{folder}"), ["00001", "00002", "00003", "00004", "00005"])
    assert counts == [3, PADDING, PADDING, PADDING, 5]
    assert drops == {"00002": "missing_label", "00003": "label_not_json", "00004": "count_above_max"}


def test_official_counts_need_no_bucket_and_are_filtered_too(write_lists: WriteLists) -> None:
    labels = write_lists({"00001": 3, "00002": 6}, {"00003": 2})
    data = DataConfig(source="file:///nowhere", labels=labels, max_count=2)
    assert counts_of(data, ["00003", "00002", "00001"]) == (
        [2, PADDING, PADDING],
        {"00001": "count_above_max", "00002": "count_above_max"},
    )


def test_the_mix_of_counts_leaves_dropped_ids_out() -> None:
    assert count_mix(np.array([3, PADDING, 0, 3, PADDING])) == {0: 1, 3: 2}
    assert count_mix(np.array([PADDING])) == {}
