"""One small seam over obstore: the objects of a bucket laid out like ABID, wherever it lies.

    bin-images/<id>.jpg    the photo
    metadata/<id>.json     its inventory record

`s3://bucket[/prefix]` is read anonymously, or with the credentials of the environment if `signed`; `file:///folder`
from disk; a test may give a `Bucket` any store, as obstore's MemoryStore. obstore retries 5xx, timeouts, resets and
short bodies with backoff; `data.patience` asks again where it does not; what is left afterwards is told apart here.
"""

import asyncio
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final

import obstore
from obstore.exceptions import BaseError, NotFoundError, PermissionDeniedError, UnauthenticatedError

from bintally.errors import AccessDeniedError, SourceNotFoundError, SourceUnreachableError
from bintally.source_config import DataConfig
from data.listing import Listing
from data.patience import check_whole, insist
from data.stores import LISTING_RETRIES, MAX_WAIT_S, READ_TIMEOUT_S, STREAM_RETRIES, open_folder, open_s3

if TYPE_CHECKING:
    from obstore.store import ObjectStore

__all__ = ["IMAGE_PREFIX", "LABEL_PREFIX", "LISTING_RETRIES", "STREAM_RETRIES", "Bucket", "open_bucket"]

IMAGE_PREFIX: Final = "bin-images"
LABEL_PREFIX: Final = "metadata"

# A refused listing comes as obstore's generic error, whose text alone tells the status.
_DENIED: Final = re.compile(r"non-2xx status code: (401|403)\b")


@dataclass(frozen=True, slots=True)
class Bucket:
    """A readable bucket."""

    store: "ObjectStore"
    where: str
    """The source and endpoint as the user knows them, for messages."""

    def list_ids(self, on_progress: Callable[[int], None] = lambda _: None) -> list[str]:
        """Sorted ids of all photos: file names without folder and extension.

        Args:
            on_progress: called with the number of ids seen so far, once per page of 1,000.

        Raises:
            SourceNotFoundError: there is no such bucket, or no photo in it.
            AccessDeniedError: listing is forbidden.
            SourceUnreachableError: no answer after bounded retries.
        """
        listing = Listing(store=self.store, folder=IMAGE_PREFIX, suffix=".jpg", on_progress=on_progress)
        with self.source_errors():
            ids = asyncio.run(listing.read())
        if not ids:
            raise SourceNotFoundError(f"no {IMAGE_PREFIX}/*.jpg under {self.where}")
        return sorted(ids)

    async def get(self, key: str) -> bytes | None:
        """The bytes of one object, or None if it does not exist.

        Raises:
            AccessDeniedError: the object may not be read.
            SourceUnreachableError: no whole answer after bounded retries.
        """

        async def ask() -> bytes:
            response = await obstore.get_async(self.store, key)
            return check_whole(bytes(await response.bytes_async()), response.meta["e_tag"])

        with self.source_errors():
            try:
                return await insist(ask)
            except (FileNotFoundError, NotFoundError):
                return None

    @contextmanager
    def source_errors(self) -> Iterator[None]:
        """Turn the client's errors into ours."""
        try:
            yield
        except (PermissionDeniedError, UnauthenticatedError, PermissionError) as error:
            raise AccessDeniedError(f"access to {self.where} is denied: {_first_line(error)}") from None
        except (FileNotFoundError, NotFoundError) as error:
            raise SourceNotFoundError(f"{self.where} does not exist: {_first_line(error)}") from None
        except (BaseError, OSError) as error:
            if _DENIED.search(str(error)):
                raise AccessDeniedError(f"access to {self.where} is denied: {_first_line(error)}") from None
            if "<Code>NoSuchBucket</Code>" in str(error):
                raise SourceNotFoundError(f"{self.where}: there is no such bucket") from None
            raise SourceUnreachableError(f"{self.where} cannot be read: {_first_line(error)}") from None


def open_bucket(
    data: DataConfig,
    *,
    max_retries: int = STREAM_RETRIES,
    max_wait_s: float = MAX_WAIT_S,
    read_timeout_s: float = READ_TIMEOUT_S,
) -> Bucket:
    """The bucket of a config; one client per process and configuration.

    Args:
        data: says where it lies.
        max_retries: requests after the first, when an answer does not come.
        max_wait_s: longest pause before one of them.
        read_timeout_s: silence after which a request is made again.

    Raises:
        SourceNotFoundError: the folder of a file:// source does not exist.
        ConfigError: requests are to be signed, and there are no credentials.
    """
    return _open_bucket(data, max_retries, max_wait_s, read_timeout_s)


@lru_cache(maxsize=8)
def _open_bucket(data: DataConfig, max_retries: int, max_wait_s: float, read_timeout_s: float) -> Bucket:
    if data.source.startswith("file://"):
        return Bucket(open_folder(data.source), data.source)
    store = open_s3(data, max_retries=max_retries, max_wait_s=max_wait_s, read_timeout_s=read_timeout_s)
    return Bucket(store, f"{data.source} at {data.endpoint_url or f'AWS {data.region}'}")


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
