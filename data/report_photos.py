"""The photos that the report shows: fetched by id once it is known which, and shrunk at once."""

import asyncio
import io
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from PIL import Image

from bintally.errors import ImageError, LabelError, SourceUnreachableError
from bintally.image import check_header
from bintally.labels import parse_record
from data.bucket import IMAGE_PREFIX, LABEL_PREFIX, Bucket

SHOWN_SIDE: Final = 288  # pixels; sharp on a phone, 10 to 15 kB each
_QUALITY: Final = 80
_MAX_IN_FLIGHT: Final = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class ShownPhoto:
    """A photo small enough for a page."""

    jpeg: bytes
    width: int
    height: int


def load_photos(bucket: Bucket, ids: Iterable[str]) -> dict[str, ShownPhoto]:
    """Photos by id; those that cannot be read or decoded are left out.

    Raises:
        AccessDeniedError: a photo may not be read.
    """
    loaded = asyncio.run(_load_all(bucket, list(ids)))
    return {bin_id: photo for bin_id, photo in loaded if photo is not None}


async def _load_all(bucket: Bucket, ids: list[str]) -> list[tuple[str, ShownPhoto | None]]:
    slots = asyncio.Semaphore(_MAX_IN_FLIGHT)

    async def load(bin_id: str) -> tuple[str, ShownPhoto | None]:
        async with slots:
            try:
                data = await bucket.get(f"{IMAGE_PREFIX}/{bin_id}.jpg")
            except SourceUnreachableError:
                return bin_id, None
        return bin_id, shrink_photo(data) if data is not None else None

    return await asyncio.gather(*map(load, ids))


def shrink_photo(data: bytes) -> ShownPhoto | None:
    """At most SHOWN_SIDE pixels wide and high, the aspect kept; None for what is no photo."""
    try:
        check_header(data)
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
            photo = image.convert("RGB")
    except (ImageError, OSError, ValueError, SyntaxError):
        return None
    photo.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
    file = io.BytesIO()
    photo.save(file, "JPEG", quality=_QUALITY, optimize=True)
    return ShownPhoto(jpeg=file.getvalue(), width=photo.width, height=photo.height)


def load_product_names(bucket: Bucket, example_bins: dict[str, str]) -> dict[str, str]:
    """Names by ASIN, read from the record of one bin that holds the product; unknown ones are left out.

    Args:
        bucket: where the records lie.
        example_bins: {asin: id of a bin}.
    """

    async def load() -> list[bytes | None]:
        return await asyncio.gather(*(bucket.get(f"{LABEL_PREFIX}/{bin_id}.json") for bin_id in example_bins.values()))

    names: dict[str, str] = {}
    for asin, record in zip(example_bins, asyncio.run(load()), strict=True):
        names |= {asin: name} if (name := _name_in(record, asin)) else {}
    return names


def _name_in(record: bytes | None, asin: str) -> str | None:
    try:
        items = parse_record(record).items if record is not None else ()
    except LabelError:
        return None
    return next((item.name for item in items if (item.asin or item.fcsku) == asin), None)
