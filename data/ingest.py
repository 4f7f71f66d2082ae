"""From a config to what a training reads: list once, split, and keep the rows in memory when they fit.

Rows that fit into the object store of every node are fetched once and shared by all trials and epochs. Rows that do not
are streamed from the bucket anew in each epoch. The batches are the same either way.
"""

from collections.abc import Iterable
from typing import Final

import numpy as np
import ray
from ray.data import Dataset
from ray.exceptions import RayError

from bintally.batch import PADDING
from bintally.config import Recipe
from bintally.errors import ConfigError, NoUsableRowsError, RowError
from bintally.source_config import DataConfig
from data.args import ReadArgs
from data.blocks import FetchSpec
from data.bucket import open_bucket
from data.cache import CacheConfig
from data.clock import EpochClock
from data.drops import DropLedger
from data.ids import choose_ids
from data.official import listed_counts
from data.pipeline import IdTable, stream_rows
from data.progress import say
from data.records import fetch_records
from data.session import unwrap
from data.split import Split, make_splitter, split_ids
from data.stored import StoredRows
from data.training_rows import SplitRows, TrainingRows

CACHE_KEEP_S: Final = 6 * 3600.0  # longer than an epoch, or a bucket larger than the cache would wash through it
MEMORY_SHARE: Final = 0.4  # of the object store; the rest is for batches on their way


def list_splits(data: DataConfig, *, needed: Iterable[Split] = ("train", "val")) -> dict[Split, list[str]]:
    """Choose the ids and split them; needs no Ray, so that a wrong source is told at once.

    Args:
        data: which bins, and how they are split.
        needed: splits that may not be empty.

    Raises:
        SourceError: the bucket cannot be listed or holds no bins.
        ConfigError: a needed split is empty, `ids` gives no id, or the official lists cannot be read.
    """
    splitter = make_splitter(data)
    chosen = choose_ids(data)
    splits = split_ids(chosen, splitter)
    say(f"split by {data.split_by}: {describe_splits(splits, len(chosen))}")
    for split in needed:
        if not splits[split]:
            raise ConfigError(
                f"the {split} split is empty ({describe_splits(splits, len(chosen))}): split_by {data.split_by} needs "
                "more ids here; change ids, max_images or split_by"
            )
    return splits


def describe_splits(splits: dict[Split, list[str]], num_ids: int) -> str:
    """How many ids are in each split, and how many of all are in none."""
    sizes = ", ".join(f"{split} {len(members):,}" for split, members in splits.items())
    num_unlisted = num_ids - sum(map(len, splits.values()))
    return sizes + (f", {num_unlisted:,} not on the official lists" if num_unlisted else "")


def load_training_rows(
    splits: dict[Split, list[str]], recipe: Recipe, ledger: DropLedger, read: ReadArgs
) -> TrainingRows:
    """Fetch, or prepare to stream, the training and validation rows.

    Args:
        splits: ids by split.
        recipe: where the rows lie and how epochs visit them.
        ledger: hears of every dropped id.
        read: whether to keep them in memory or on disk.

    Raises:
        SourceError: the bucket cannot be read, or no row of a split can be used.
    """
    data = recipe.data
    spec = FetchSpec(data=data, ledger=ledger, cache=cache_of(read, data))
    num_ids: dict[Split, int] = {"train": len(splits["train"]), "val": len(splits["val"])}
    num_bytes = sum(num_ids.values()) * data.image_size**2 * 3
    in_memory = not read.stream and num_bytes <= MEMORY_SHARE * smallest_object_store()
    say(f"about {num_bytes / 1e9:.2f} GB decoded: " + ("kept in memory" if in_memory else "streamed each epoch"))
    train_counts: np.ndarray | None
    if in_memory:
        rows = {split: _fetch(put_ids(splits[split], data), split, spec) for split in num_ids}
        mixes = {split: count_mix(kept) for split, (_, kept) in rows.items()}
        say(ledger.describe(num_kept=sum(sum(mix.values()) for mix in mixes.values())))
        for split, mix in mixes.items():
            say(f"{split} rows by count: {mix}")
        (train, train_counts), (val, _) = rows["train"], rows["val"]
        num_train = sum(mixes["train"].values())
    else:
        known = data.labels is not None
        train_table, train_counts = _put_stream("train", splits, spec, with_counts=known or needs_counts(recipe))
        val_table, _ = _put_stream("val", splits, spec, with_counts=known)
        train, val = SplitRows(ids=train_table), SplitRows(ids=val_table)
        num_train = num_ids["train"] if train_counts is None else int((train_counts != PADDING).sum())
    return TrainingRows(
        train=train,
        val=val,
        spec=spec,
        clock=EpochClock.start(),
        num_train=num_train,
        class_rows=None if train_counts is None else class_rows(train_counts, data.num_classes),
    )


def needs_counts(recipe: Recipe) -> bool:
    """Whether a training has to know all counts before its first epoch."""
    return recipe.balanced or recipe.loss.class_weights


def cache_of(read: ReadArgs, data: DataConfig) -> CacheConfig | None:
    """Where fetched bins are kept; nowhere if the source is a folder already."""
    if read.cache is None:
        return None
    if data.source.startswith("file://"):
        say("--cache has no use for a file:// source, and is left alone")
        return None
    return CacheConfig(folder=str(read.cache.resolve()), limit_bytes=int(read.cache_gb * 1e9), keep_s=CACHE_KEEP_S)


def smallest_object_store() -> float:
    """Bytes of the smallest object store of the running cluster: rows kept in memory may have to fit into each."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return min((float(resources.get("object_store_memory", 0)) for resources in nodes), default=0.0)


def put_ids(ids: list[str], data: DataConfig) -> IdTable:
    """The ids in Ray's object store, with their labels if these come from the official lists."""
    if data.labels is None:
        return IdTable.put(ids)
    return IdTable.put(ids, list(listed_counts(ids, data.labels).values()))


def _put_stream(
    split: Split, splits: dict[Split, list[str]], spec: FetchSpec, *, with_counts: bool
) -> tuple[IdTable, np.ndarray | None]:
    """A split's ids to be streamed and, if they are to be known beforehand, the counts of those that are usable."""
    ids = splits[split]
    if not with_counts:
        return IdTable.put(ids), None
    counts = usable_counts(ids, spec)
    _check_any(split, np.array(counts), spec)
    return IdTable.put(ids, counts), np.array(counts)


def usable_counts(ids: list[str], spec: FetchSpec) -> list[int]:
    """The label of each id; PADDING for those that cannot be used and will not be visited, which are reported."""
    labels, max_count = spec.data.labels, spec.data.max_count
    counts = _recorded_counts(ids, spec) if labels is None else listed_counts(ids, labels)
    spec.ledger.record({bin_id: "count_above_max" for bin_id, count in counts.items() if count > max_count})
    usable = {bin_id: count for bin_id, count in counts.items() if count <= max_count}
    return [usable.get(bin_id, PADDING) for bin_id in ids]


def _recorded_counts(ids: list[str], spec: FetchSpec) -> dict[str, int]:
    """The counts in the records of those ids that have a sound one."""
    say(f"reading {len(ids):,} records, since balanced sampling and class weights have to know the counts beforehand")
    counts: dict[str, int] = {}
    drops: dict[str, str] = {}
    for bin_id, record in fetch_records(open_bucket(spec.data), ids):
        if isinstance(record, RowError):
            drops[bin_id] = record.reason
        else:
            counts[bin_id] = record.expected_quantity
    spec.ledger.record(drops)
    return counts


def _fetch(ids: IdTable, split: str, spec: FetchSpec) -> tuple[SplitRows, np.ndarray]:
    """The rows of a split, in the object store, and the counts of those that are usable."""
    say(f"fetching the {split} rows")
    try:
        fetched: Dataset = stream_rows(ids, spec).materialize()
    except RayError as error:
        raise unwrap(error) or error from None
    stored = StoredRows.of(fetched, ids.num_ids)
    counts = stored.open().counts
    _check_any(split, counts, spec)
    return SplitRows(ids=ids, stored=stored), counts


def _check_any(split: str, counts: np.ndarray, spec: FetchSpec) -> None:
    if not (counts != PADDING).any():
        raise NoUsableRowsError(f"no usable row in the {split} split; {spec.ledger.describe(num_kept=0)}")


def class_rows(counts: np.ndarray, num_classes: int) -> tuple[int, ...]:
    """Number of rows of each count from 0."""
    return tuple(np.bincount(counts[counts != PADDING], minlength=num_classes).tolist())


def count_mix(counts: np.ndarray) -> dict[int, int]:
    """Number of rows by count."""
    values, numbers = np.unique(counts[counts != PADDING], return_counts=True)
    return dict(zip(values.tolist(), numbers.tolist(), strict=True))
