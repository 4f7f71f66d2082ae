"""From a config to the two datasets of a training: list once, split, and keep the rows in memory when they fit.

Rows that fit are fetched once and shared by all trials and epochs through Ray's object store. Rows that do not are
streamed from the bucket anew in each epoch, in another order.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import ray
from ray.data import Dataset
from ray.exceptions import RayError

from bintally.batch import COUNT
from bintally.config import DataConfig
from bintally.errors import ConfigError, NoUsableRowsError
from data.drops import DropLedger
from data.ids import choose_ids
from data.pipeline import stream_rows
from data.progress import say
from data.session import unwrap
from data.split import Split, make_splitter, split_ids

MEMORY_SHARE: Final = 0.4  # of the object store; the rest is for batches on their way


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingRows:
    """The rows that a training eats."""

    train: Dataset
    val: Dataset
    num_train: int
    """Training rows; an upper bound while streaming, when counts are not known yet."""
    in_memory: bool
    """Whether the rows lie in the object store."""


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
    splits: dict[Split, list[str]], data: DataConfig, ledger: DropLedger, *, seed: int
) -> TrainingRows:
    """Fetch, or prepare to stream, the training and validation rows.

    Raises:
        SourceError: the bucket cannot be read, or no row of a split can be used.
    """
    train = stream_rows(splits["train"], data, ledger, seed=seed)
    val = stream_rows(splits["val"], data, ledger)
    num_train = len(splits["train"])
    num_bytes = (num_train + len(splits["val"])) * data.image_size**2 * 3
    in_memory = num_bytes <= MEMORY_SHARE * ray.cluster_resources().get("object_store_memory", 0)
    say(f"about {num_bytes / 1e9:.2f} GB decoded: " + ("kept in memory" if in_memory else "streamed each epoch"))
    if in_memory:
        train, val = _fetch(train, "train", ledger), _fetch(val, "val", ledger)
        num_train = train.count()
        say(ledger.describe(num_kept=num_train + val.count()))
        for name, rows in (("train", train), ("val", val)):
            say(f"{name} rows by count: {count_mix(rows)}")
    return TrainingRows(train=train, val=val, num_train=num_train, in_memory=in_memory)


def _fetch(rows: Dataset, split: Split, ledger: DropLedger) -> Dataset:
    say(f"fetching the {split} rows")
    try:
        fetched: Dataset = rows.materialize()
    except RayError as error:
        raise unwrap(error) or error from None
    if fetched.count() == 0:
        raise NoUsableRowsError(f"no usable row in the {split} split; {ledger.describe(num_kept=0)}")
    return fetched


def count_mix(rows: Dataset) -> dict[int, int]:
    """Number of rows by count."""
    counts: Counter[int] = Counter()
    for batch in rows.select_columns([COUNT]).iter_batches(batch_size=4096):
        counts.update(batch[COUNT].tolist())
    return dict(sorted(counts.items()))
