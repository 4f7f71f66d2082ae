"""The official lists of the ABID challenge: counts that stand in for the records, and the split that papers score on.

    counting_train.json, counting_val.json    [[index, count], ...]

The index is 0-based and ids begin at '00001', so index 522 is the bin '00523'.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from bintally.errors import ConfigError

TRAIN_LIST: Final = "counting_train.json"
VAL_LIST: Final = "counting_val.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class OfficialLists:
    """Both lists, by id."""

    counts: dict[str, int]
    """The count of every listed bin; shared by the whole process, so never change it."""
    val_ids: frozenset[str]
    """The ids of the validation list; all others are of the training list."""


@lru_cache(maxsize=2)  # 0.5 s for the 360,767 rows of the real lists; a worker asks once per block of ids
def read_lists(folder: str) -> OfficialLists:
    """Both lists of a folder, read once per process.

    Raises:
        ConfigError: a list is missing or garbled, or a bin is listed twice; the message names `labels` and the file.
    """
    train, val = (_read_list(Path(folder) / name) for name in (TRAIN_LIST, VAL_LIST))
    both = train.keys() & val.keys()
    if both:
        raise ConfigError(f"labels: {min(both)} is in {TRAIN_LIST} and in {VAL_LIST} of {folder}")
    return OfficialLists(counts=train | val, val_ids=frozenset(val))


def listed_counts(ids: Iterable[str], folder: str) -> dict[str, int]:
    """The official counts of those ids that are listed, in the given order.

    Raises:
        ConfigError: as `read_lists`.
    """
    counts = read_lists(folder).counts
    return {bin_id: counts[bin_id] for bin_id in ids if bin_id in counts}


def _read_list(path: Path) -> dict[str, int]:
    try:
        rows = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ConfigError(f"labels: there is no {path.name} in {path.parent}") from None
    except OSError as error:
        raise ConfigError(f"labels: {path} cannot be read: {error}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"labels: {path} is not JSON: {error}") from None
    if not isinstance(rows, list):
        raise ConfigError(f"labels: {path} holds a {type(rows).__name__}, not a list of [index, count]")
    for number, row in enumerate(rows):
        if not _is_row(row):
            raise ConfigError(f"labels: row {number} of {path} is {str(row)[:80]}, not [index, count]")
    counts = {f"{index + 1:05d}": count for index, count in rows}
    if len(counts) < len(rows):
        raise ConfigError(f"labels: {path} has {len(rows) - len(counts):,} rows for bins that it listed before")
    return counts


def _is_row(row: Any) -> bool:  # noqa: ANN401  # JSON
    return isinstance(row, list) and len(row) == 2 and all(type(value) is int and value >= 0 for value in row)
