"""Writes a synthetic bucket in the layout of ABID: drawn bins with their inventory records.

python data/synthetic.py --num-bins 2000 --out file:///tmp/bins
"""

import json
import multiprocessing
import signal
import sys
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from bintally.cli import readable_errors
from bintally.errors import ConfigError
from data.synthetic_plan import BLOCK_SIZE, BinPlan, Fault, Product, SyntheticConfig, plan_block

if TYPE_CHECKING:
    from obstore.store import ObjectStore

__all__ = ["SyntheticConfig", "SyntheticSummary", "encode_bin", "iter_plans", "write_bucket"]

JPEG_QUALITY = 85
PLAIN_PROGRESS_S = 10.0
Progress: TypeAlias = Callable[[int, int], None]
Block: TypeAlias = tuple[int, bool]  # its number, and whether its keys are padded


@dataclass(frozen=True, kw_only=True, slots=True)
class SyntheticSummary:
    """What was written; sums, so that blocks add up in any order."""

    num_bins: int = 0
    num_images: int = 0
    """Objects under bin-images/, the broken ones included."""
    num_metadata: int = 0
    """Objects under metadata/, the broken ones included."""
    num_bytes: int = 0
    num_pairs: int = 0
    """Ids that show the bin of the previous id with one item more or less."""
    num_wrong_labels: int = 0
    num_by_count: Counter[int] = field(default_factory=Counter)
    """Bins per number of items in the picture, whatever the record says."""
    num_by_fault: Counter[Fault] = field(default_factory=Counter)
    """Bins per fault."""

    def __add__(self, other: "SyntheticSummary") -> "SyntheticSummary":
        return SyntheticSummary(
            **{name: getattr(self, name) + getattr(other, name) for name in SyntheticSummary.__slots__}
        )

    def describe(self) -> str:
        """One line for people."""
        return (
            f"{self.num_bins} bins: {self.num_images} images, {self.num_metadata} records, "
            f"{self.num_bytes / 1e6:.1f} MB; {self.num_pairs} follow their neighbour, "
            f"{self.num_wrong_labels} wrong labels, {self.num_by_fault.total()} broken"
        )


def iter_plans(config: SyntheticConfig) -> Iterator[BinPlan]:
    """Every bin of the bucket with its true content, without drawing it."""
    for block, padded in _blocks(config):
        yield from plan_block(config, block, padded=padded)


def encode_bin(plan: BinPlan, *, difficulty: float) -> tuple[bytes | None, bytes | None]:
    """The two objects of one bin, image and record; None for an object that is missing on purpose."""
    import simplejpeg

    from data.synthetic_draw import render_bin

    pixels = render_bin(plan, difficulty=difficulty)
    image: bytes | None = simplejpeg.encode_jpeg(pixels, quality=JPEG_QUALITY, colorsubsampling="420")
    record: bytes | None = json.dumps(_document(plan), indent=4, sort_keys=True).encode()
    return _break_image(image, plan.fault), _break_record(record, plan)


def write_bucket(config: SyntheticConfig, *, on_progress: Progress = lambda _done, _total: None) -> SyntheticSummary:
    """Writes every object of the bucket; calls `on_progress(done, total)` in bins, first with 0 done.

    Raises:
        ConfigError: when `out` cannot be written.
    """
    total = config.num_bins + config.num_unpadded
    _check_writable(config.out)
    on_progress(0, total)
    summary = SyntheticSummary()
    with closing(_write_blocks(config)) as parts:
        for part in parts:
            summary += part
            on_progress(summary.num_bins, total)
    return summary


def _blocks(config: SyntheticConfig) -> list[Block]:
    padded = [(block, True) for block in range(-(-config.num_bins // BLOCK_SIZE))]
    return padded + [(block, False) for block in range(-(-config.num_unpadded // BLOCK_SIZE))]


def _write_blocks(config: SyntheticConfig) -> Generator[SyntheticSummary, None, None]:
    blocks = _blocks(config)
    num_workers = min(config.num_workers, len(blocks))
    if num_workers == 1:
        yield from map(partial(_write_block, config), blocks)
        return
    # Spawn, since the caller may have threads. On Ctrl-C the pool stops its workers; a put is atomic, so
    # no object is left half written.
    with multiprocessing.get_context("spawn").Pool(num_workers, _ignore_interrupt) as pool:
        yield from pool.imap_unordered(partial(_write_block, config), blocks)


def _ignore_interrupt() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _write_block(config: SyntheticConfig, block: Block) -> SyntheticSummary:
    store = _open_store(config.out)
    summary = SyntheticSummary()
    for plan in plan_block(config, block[0], padded=block[1]):
        summary += _write_bin(store, plan, config.difficulty)
    return summary


def _write_bin(store: "ObjectStore", plan: BinPlan, difficulty: float) -> SyntheticSummary:
    image, record = encode_bin(plan, difficulty=difficulty)
    # Image first: a record in the bucket then means that its picture is there. A put replaces the
    # object as a whole, on a disk as well.
    for key, content in ((f"bin-images/{plan.bin_id}.jpg", image), (f"metadata/{plan.bin_id}.json", record)):
        if content is not None:
            store.put(key, content)
        elif plan.fault:  # an earlier bucket in the same place may have it
            with suppress(FileNotFoundError):
                store.delete(key)
    return SyntheticSummary(
        num_bins=1,
        num_images=int(image is not None),
        num_metadata=int(record is not None),
        num_bytes=len(image or b"") + len(record or b""),
        num_pairs=int(plan.follows_previous),
        num_wrong_labels=int(plan.is_wrong_label),
        num_by_count=Counter({len(plan.items): 1}),
        num_by_fault=Counter([plan.fault] if plan.fault else []),
    )


def _document(plan: BinPlan) -> dict[str, Any]:
    """The record in the shape of ABID; un-padded records have one key more, and items one less."""
    document: dict[str, Any] = {
        "BIN_FCSKU_DATA": {p.fcsku: _entry(p, quantity, plan.padded) for p, quantity in plan.recorded},
        "EXPECTED_QUANTITY": plan.recorded_quantity,
    }
    if not plan.padded:
        document["image_fname"] = f"{plan.bin_id}.jpg"
    if plan.fault == "no_quantity":
        del document["EXPECTED_QUANTITY"]
    return document


def _entry(product: Product, quantity: int, padded: bool) -> dict[str, Any]:
    sides = product.size_in or (None, None, None)
    entry: dict[str, Any] = {
        "asin": product.asin,
        "name": product.name,
        "quantity": quantity,
        "weight": _measure("pounds", product.weight_pounds),
    }
    for name, value in zip(("length", "width", "height"), sides, strict=True):
        entry[name] = _measure("IN", value)
    return entry | {"normalizedName": product.name} if padded else entry


def _measure(unit: str, value: float | None) -> dict[str, Any] | None:
    return None if value is None else {"unit": unit, "value": value}


def _break_image(image: bytes | None, fault: Fault | None) -> bytes | None:
    if fault == "missing_image":
        return None
    if fault == "not_an_image":
        return b"<html><body>503 Service Unavailable</body></html>\n"
    return image[: len(image) // 2] if image and fault == "truncated_image" else image


def _break_record(record: bytes | None, plan: BinPlan) -> bytes | None:
    if plan.fault == "missing_metadata":
        return None
    return record[: len(record) // 2] if record and plan.fault == "metadata_not_json" else record


def _url_of(out: str) -> str:
    return out if "://" in out else Path(out).expanduser().absolute().as_uri()


def _open_store(out: str) -> "ObjectStore":
    from obstore.store import from_url

    url = _url_of(out)
    return from_url(url, mkdir=True) if url.startswith("file:") else from_url(url)


def _check_writable(out: str) -> None:
    from obstore.exceptions import BaseError

    try:
        store = _open_store(out)
        store.put(".write-test", b"")
        store.delete(".write-test")
    except (BaseError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"out must be a place that can be written, got {out!r}: {reason}") from error


def _plain_progress() -> Progress:
    """Progress for logs: a line at once, then one every few seconds and one at the end."""
    import time

    last_s = -PLAIN_PROGRESS_S

    def show(done: int, total: int) -> None:
        nonlocal last_s
        if done == total or time.monotonic() - last_s >= PLAIN_PROGRESS_S:
            last_s = time.monotonic()
            print(f"drawing bins: {done}/{total}", file=sys.stderr, flush=True)

    return show


def _write_with_progress(config: SyntheticConfig) -> SyntheticSummary:
    if not sys.stderr.isatty():
        return write_bucket(config, on_progress=_plain_progress())
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = (*Progress.get_default_columns()[:-1], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("drawing bins")
        return write_bucket(config, on_progress=lambda done, total: bar.update(task, completed=done, total=total))


def main() -> None:
    """Parses the command line and writes the bucket."""
    import tyro

    # A partial, since tyro would print a box for an error raised by a class.
    with readable_errors():
        config = tyro.cli(partial(SyntheticConfig), description=__doc__)
        summary = _write_with_progress(config)
        print(f"{_url_of(config.out)}: {summary.describe()}")


if __name__ == "__main__":
    main()
