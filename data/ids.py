"""Which bins a run takes: `DataConfig.ids`, `unpadded` and `max_images` as a sorted list of ids.

Only `all` lists the bucket. An id that is given and not there is dropped later, with a reason.
"""

import re
from pathlib import Path
from typing import Final

from bintally.errors import ConfigError
from bintally.source_config import DataConfig
from data.bucket import LISTING_RETRIES, open_bucket
from data.progress import say
from data.split import is_padded, sample_ids

MAX_RANGE: Final = 10_000_000  # ids; a typo should not fill the memory

_COMMENT: Final = re.compile(r"(^|\s)#.*")
_BAD_ID: Final = re.compile(r"/|\.\.|[\x00-\x1f\x7f]")


def choose_ids(data: DataConfig) -> list[str]:
    """The ids that the config asks for, sorted, each once.

    Raises:
        SourceError: the bucket has to be listed, and cannot be or holds no bins.
        ConfigError: `ids` gives no id, one that cannot be an id, or none but un-padded ones without `unpadded`.
    """
    kind, _, value = data.ids.partition(":")
    if kind == "all":
        ids = _list_all(data)
    elif kind == "range":
        ids = _number_range(value)
    else:
        ids = _check(value.split(",") if kind == "list" else _read_file(Path(value)))
    kept = ids if data.unpadded else _leave_unpadded_out(ids, data.ids)
    left_out = f" ({len(ids) - len(kept):,} un-padded ones left out)" if len(kept) < len(ids) else ""
    chosen = sample_ids(kept, data.max_images)
    say(f"{len(chosen):,} ids{left_out}")
    return chosen


def _list_all(data: DataConfig) -> list[str]:
    say(f"listing {data.source}")
    next_told = 100_000

    def tell(num_ids: int) -> None:
        nonlocal next_told
        if num_ids >= next_told:
            say(f"  {num_ids:,} ids so far")
            next_told += 100_000

    return open_bucket(data, max_retries=LISTING_RETRIES).list_ids(on_progress=tell)


def _leave_unpadded_out(ids: list[str], choice: str) -> list[str]:
    """The padded ids; a bucket without any is no ABID, and its keys are all there is."""
    padded = [bin_id for bin_id in ids if is_padded(bin_id)]
    if padded or choice == "all":
        return padded or ids
    raise ConfigError(f"ids {_shorten(choice)} gives un-padded ids alone, as {ids[0]!r}: --unpadded takes them")


def _number_range(value: str) -> list[str]:
    first, last = map(int, value.split("-"))
    if first > last:
        raise ConfigError(f"ids range:{value} is empty: the first number is the larger one")
    if last - first >= MAX_RANGE:
        raise ConfigError(f"ids range:{value} is more than {MAX_RANGE:,} ids")
    return [f"{number:05d}" for number in range(first, last + 1)]


def _check(given: list[str]) -> list[str]:
    """The ids, stripped and each once.

    Raises:
        ConfigError: there is none, or one that would name an object outside its folder.
    """
    ids = sorted({bin_id.strip() for bin_id in given} - {""})
    if not ids:
        raise ConfigError("ids gives no id")
    for bin_id in ids:
        if _BAD_ID.search(bin_id):
            raise ConfigError(f"ids may hold no slash, no .. and no control character, as {bin_id!r} does")
    return ids


def _read_file(path: Path) -> list[str]:
    """A line per id, # before a comment; or the id column of a Parquet file, as data/manifest.py writes it."""
    try:
        if path.suffix == ".parquet":
            return _read_parquet(path)
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"ids file {path} cannot be read: {error}") from None
    return [_COMMENT.sub("", line) for line in lines]


def _read_parquet(path: Path) -> list[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        ids = pq.read_table(path, columns=["id"])["id"]
    except (pa.ArrowInvalid, KeyError) as error:
        raise ConfigError(f"ids file {path} has no readable id column: {error}") from None
    if not (pa.types.is_string(ids.type) or pa.types.is_large_string(ids.type)):
        raise ConfigError(f"the ids of {path} are {ids.type}, not strings: '00523' is another bin than '523'")
    values: list[str] = ids.drop_null().to_pylist()
    return values


def _shorten(choice: str) -> str:
    return choice if len(choice) <= 60 else f"{choice[:57]}..."
