"""How honest each split of a bucket is: measured on the records, as a table, JSON and one HTML page."""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

from bintally.errors import NoUsableRowsError, RowError
from bintally.source_config import DataConfig, SplitBy
from data.bucket import open_bucket
from data.ids import choose_ids
from data.leak_page import render_page
from data.official import listed_counts
from data.progress import say
from data.records import fetch_records
from data.siblings import Leak, find_leaks, split_by_runs
from data.split import Splitter, make_splitter, split_ids

PROGRESS_S: Final = 5.0
BY_RUNS: Final = "grouped, records known"


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitLeaks:
    """What one way to split leaks."""

    num_train: int
    val: Leak
    test: Leak


@dataclass(frozen=True, kw_only=True, slots=True)
class LeakReport:
    """What every way to split a bucket leaks."""

    source: str
    max_count: int
    num_ids: int
    """Ids that were looked at."""
    num_images: int
    """Those that are used: with a record or a listed count of at most max_count."""
    faults: dict[str, int]
    """Ids whose record cannot be used, by reason."""
    splits: dict[str, SplitLeaks]


@dataclass(frozen=True, kw_only=True, slots=True)
class Records:
    """What a leak report needs of the records: little, so that those of a whole bucket fit in memory."""

    counts: dict[str, int]
    asins: dict[str, frozenset[str]]
    faults: dict[str, int]


def measure_leaks(data: DataConfig) -> LeakReport:
    """Read all records of a bucket, and look for siblings in every split.

    Raises:
        SourceError: the bucket cannot be read or has no usable record.
        ConfigError: the official lists cannot be read, or `ids` gives no id.
    """
    splitters: dict[str, Splitter] = {rule: make_splitter(replace(data, split_by=rule)) for rule in _rules(data)}
    ids = choose_ids(data)
    records = read_records(data, ids)
    counts = records.counts if data.labels is None else listed_counts(ids, data.labels)
    used = [bin_id for bin_id in ids if counts.get(bin_id, data.max_count + 1) <= data.max_count]
    if not used or not records.asins:
        raise NoUsableRowsError(f"no usable record among {len(ids):,} of {data.source}: {records.faults}")
    return LeakReport(
        source=data.source,
        max_count=data.max_count,
        num_ids=len(ids),
        num_images=len(used),
        faults=records.faults,
        splits=compare_splits(used, records.asins, splitters | {BY_RUNS: split_by_runs(records.asins)}),
    )


def compare_splits(
    used: list[str], asins: Mapping[str, frozenset[str]], splitters: Mapping[str, Splitter]
) -> dict[str, SplitLeaks]:
    """The leaks of each way to split."""
    found: dict[str, SplitLeaks] = {}
    for name, splitter in splitters.items():
        splits = split_ids(used, splitter)
        leaks = find_leaks(splits, asins)
        found[name] = SplitLeaks(num_train=len(splits["train"]), val=leaks["val"], test=leaks["test"])
    return found


def read_records(data: DataConfig, ids: list[str], *, progress_s: float = PROGRESS_S) -> Records:
    """Count and products of each id, with a line of progress every so many seconds.

    Raises:
        SourceError: the bucket cannot be read.
    """
    records = Records(counts={}, asins={}, faults={})
    started_s = shown_s = time.monotonic()
    say(f"reading {len(ids):,} records")
    for number, (bin_id, record) in enumerate(fetch_records(open_bucket(data), ids), start=1):
        if isinstance(record, RowError):
            records.faults[record.reason] = records.faults.get(record.reason, 0) + 1
        else:
            records.counts[bin_id], records.asins[bin_id] = record.expected_quantity, record.asins
        now_s = time.monotonic()
        if now_s - shown_s >= progress_s:
            shown_s, rate = now_s, number / (now_s - started_s)
            say(f"  {number:,} of {len(ids):,} records, {rate:,.0f}/s, {(len(ids) - number) / rate:,.0f} s left")
    return records


def write_report(report: LeakReport, run_dir: Path) -> None:
    """Write leaks.json and leaks.html."""
    values = asdict(report)
    (run_dir / "leaks.json").write_text(json.dumps(values, indent=2) + "\n")
    (run_dir / "leaks.html").write_text(render_page(values), encoding="utf-8")


def format_report(report: LeakReport) -> str:
    """The table for people."""
    faults = ", ".join(f"{count:,} {reason}" for reason, count in report.faults.items())
    lines = [
        f"{report.num_images:,} of {report.num_ids:,} ids used, counts 0-{report.max_count}; records without use: "
        + (faults or "none"),
        "images with a sibling in training (surely):",
        f"  {'split':<24}{'train':>9}   {'val':<32}{'test'}",
    ]
    lines += [
        f"  {name:<24}{one.num_train:>9,}   {_describe(one.val):<32}{_describe(one.test)}"
        for name, one in report.splits.items()
    ]
    return "\n".join(lines)


def _describe(leak: Leak) -> str:
    share = f"{leak.num_siblings / leak.num_images:.1%}" if leak.num_images else "-"
    return f"{leak.num_siblings:,} ({leak.num_sure:,}) of {leak.num_images:,}, {share}"


def _rules(data: DataConfig) -> tuple[SplitBy, ...]:
    return ("hash", "grouped") if data.labels is None else ("hash", "official", "grouped")
