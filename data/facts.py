"""What the report knows of a bin: some numbers and a thumbnail, never the photo, so a whole bucket fits into memory.

    ids -> blocks of ids -> fetch record and photo together -> measure -> one row of under 0.5 kB per bin

A bin that cannot be used keeps its row, with the reason of the drop table.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Final, cast

import numpy as np
import pyarrow as pa
import ray.data
from jaxtyping import Float
from ray.data import Dataset
from ray.exceptions import RayError

from bintally.batch import ID
from bintally.errors import ImageError, LabelError, RowError, SourceUnreachableError
from bintally.image import check_header, decode_photo
from bintally.labels import parse_record
from bintally.quality import LUMA, measure_sharpness
from bintally.source_config import DataConfig, PixelConfig
from data.bucket import open_bucket
from data.fetch import FetchedBin, fetch_bins
from data.session import unwrap

# Brightness and sharpness depend on the size, so it is the same for all photos.
GREY_SIDE: Final = 224
GREY: Final = PixelConfig(size=GREY_SIDE)
CLUTTER_SIDE: Final = 32
THUMB_SIDE: Final = 16

_IDS_PER_TASK: Final = 128


@dataclass(frozen=True, kw_only=True, slots=True)
class BinFacts:
    """One bin as the report sees it; what could not be found out is zero or empty."""

    bin_id: str
    fault: str = ""
    """Why the bin cannot be used, as in the drop table; empty for a good bin."""
    detail: str = ""
    """What the fault is in particular."""
    count: int = 0
    """EXPECTED_QUANTITY."""
    asins: tuple[str, ...] = ()
    """Distinct products."""
    width: int = 0
    """Pixels."""
    height: int = 0
    """Pixels."""
    photo_bytes: int = 0
    record_bytes: int = 0
    luma: float = 0.0
    """Mean brightness, 0 black to 255 white."""
    sharpness: float = 0.0
    """Variance of the Laplacian of the grey photo of GREY_SIDE x GREY_SIDE; low when blurred, or when plain."""
    clutter: float = 0.0
    """Mean slope between pixels of the grey photo of CLUTTER_SIDE, over its brightness; low for an empty bin."""
    thumb: bytes = b""
    """THUMB_SIDE x THUMB_SIDE grey pixels, row by row."""


SCHEMA: Final = pa.schema(
    [
        *((name, pa.string()) for name in ("bin_id", "fault", "detail")),
        ("count", pa.int64()),
        ("asins", pa.list_(pa.string())),
        *((name, pa.int64()) for name in ("width", "height", "photo_bytes", "record_bytes")),
        *((name, pa.float64()) for name in ("luma", "sharpness", "clutter")),
        ("thumb", pa.binary()),
    ]
)
"""The columns of a table of BinFacts."""


def to_table(facts: Sequence[BinFacts]) -> pa.Table:
    """One row per bin."""
    return pa.Table.from_pylist([asdict(one) for one in facts], schema=SCHEMA)


def measure_bin(bin_id: str, record: bytes | None, photo: bytes | None) -> BinFacts:
    """The facts of one bin, from its two objects; None for an object that does not exist."""
    try:
        if record is None:
            raise LabelError("missing_label")
        if photo is None:
            raise ImageError("missing_image")
        parsed = parse_record(record)
        width, height = check_header(photo)
        grey = decode_photo(photo, GREY).astype(np.float32) @ LUMA
    except RowError as error:
        return BinFacts(bin_id=bin_id, fault=error.reason, detail=str(error))
    return BinFacts(
        bin_id=bin_id,
        count=parsed.expected_quantity,
        asins=tuple(sorted(parsed.asins)),
        width=width,
        height=height,
        photo_bytes=len(photo),
        record_bytes=len(record),
        luma=float(grey.mean()),
        sharpness=measure_sharpness(grey),
        clutter=measure_clutter(shrink(grey, CLUTTER_SIDE)),
        thumb=shrink(grey, THUMB_SIDE).round().astype(np.uint8).tobytes(),
    )


def measure_clutter(grey: Float[np.ndarray, "height width"]) -> float:
    """Mean slope, as a share of the mean brightness, so that a dark bin is not emptier than a bright one."""
    slope = np.hypot(np.diff(grey, axis=0)[:, :-1], np.diff(grey, axis=1)[:-1])
    return float(slope.mean() / max(float(grey.mean()), 1.0))


def shrink(grey: Float[np.ndarray, "side side"], side: int) -> Float[np.ndarray, "small small"]:
    """Means of equal square blocks."""
    block = len(grey) // side
    return grey.reshape(side, block, side, block).mean(axis=(1, 3))  # type: ignore[no-any-return]  # numpy's Any


def collect_facts(ids: Sequence[str], data: DataConfig, on_progress: Callable[[int], None]) -> pa.Table:
    """The facts of these bins, in no order; needs a running Ray.

    Args:
        ids: bins to read; neighbours should stand together.
        data: where they lie.
        on_progress: called with the number of bins measured so far, once per block.

    Raises:
        SourceError: objects may not be read, or not one of a whole block could be fetched.
    """
    ds: Dataset = ray.data.from_arrow(pa.table({ID: pa.array(ids, pa.string())}))
    ds = ds.repartition(target_num_rows_per_block=_IDS_PER_TASK)
    ds = ds.map_batches(partial(measure_block, data=data), batch_size=_IDS_PER_TASK)
    blocks: list[pa.Table] = []
    num_done = 0
    try:
        for block in cast("Iterable[pa.Table]", ds.iter_batches(batch_size=None, batch_format="pyarrow")):
            blocks.append(block.cast(SCHEMA))
            num_done += block.num_rows
            on_progress(num_done)
    except RayError as error:
        raise unwrap(error) or error from None
    return pa.concat_tables([SCHEMA.empty_table(), *blocks])


def measure_block(batch: dict[str, np.ndarray], data: DataConfig) -> pa.Table:
    """Fetch and measure one block of ids.

    Raises:
        SourceUnreachableError: not one of them could be fetched.
    """
    ids = [str(bin_id) for bin_id in batch[ID]]
    fetched = fetch_bins(open_bucket(data), ids)
    return to_table([_measure_fetched(bin_id, one) for bin_id, one in zip(ids, fetched, strict=True)])


def _measure_fetched(bin_id: str, fetched: FetchedBin) -> BinFacts:
    if isinstance(fetched, SourceUnreachableError):
        return BinFacts(bin_id=bin_id, fault="fetch_failed", detail=str(fetched))
    return measure_bin(bin_id, *fetched)
