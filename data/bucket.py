"""One small seam over obstore: the objects of a bucket laid out like ABID, wherever it lies.

    bin-images/<id>.jpg    the photo
    metadata/<id>.json     its inventory record

`s3://bucket[/prefix]` is read anonymously, `file:///folder` from disk. obstore retries 5xx, timeouts, resets and short
bodies with backoff; what is left afterwards is told apart here.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Final
from urllib.parse import unquote

import obstore
from obstore.exceptions import BaseError, NotFoundError, PermissionDeniedError, UnauthenticatedError
from obstore.store import LocalStore, S3Store

from bintally.config import DataConfig
from bintally.errors import AccessDeniedError, SourceNotFoundError, SourceUnreachableError

IMAGE_PREFIX: Final = "bin-images"
LABEL_PREFIX: Final = "metadata"

# While streaming, patience is cheap; at the start a typo should not cost a minute.
STREAM_RETRIES: Final = 10
LISTING_RETRIES: Final = 5

# A refused listing comes as obstore's generic error, whose text alone tells the status.
_DENIED: Final = re.compile(r"non-2xx status code: (401|403)\b")


@dataclass(frozen=True, slots=True)
class Bucket:
    """A readable bucket."""

    store: LocalStore | S3Store
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
        ids: list[str] = []
        with self.source_errors():
            for page in obstore.list(self.store, prefix=IMAGE_PREFIX, chunk_size=1000):
                paths = (Path(entry["path"]) for entry in page)
                ids.extend(path.stem for path in paths if path.suffix == ".jpg")
                on_progress(len(ids))
        if not ids:
            raise SourceNotFoundError(f"no {IMAGE_PREFIX}/*.jpg under {self.where}")
        return sorted(ids)

    async def get(self, key: str) -> bytes | None:
        """The bytes of one object, or None if it does not exist.

        Raises:
            AccessDeniedError: the object may not be read.
            SourceUnreachableError: no whole answer after bounded retries.
        """
        with self.source_errors():
            try:
                response = await obstore.get_async(self.store, key)
                return bytes(await response.bytes_async())
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


def open_bucket(data: DataConfig, *, max_retries: int = STREAM_RETRIES) -> Bucket:
    """The bucket of a config; one client per process and configuration.

    Raises:
        SourceNotFoundError: the folder of a file:// source does not exist.
    """
    return _open_bucket(data.source, data.endpoint_url, data.region, max_retries)


@lru_cache(maxsize=8)
def _open_bucket(source: str, endpoint_url: str | None, region: str, max_retries: int) -> Bucket:
    if source.startswith("file://"):
        folder = Path(unquote(source.removeprefix("file://")))  # not urlsplit: # and ? are part of a folder's name
        if not folder.is_dir():
            raise SourceNotFoundError(f"{source}: there is no folder {folder}")
        return Bucket(LocalStore(folder), source)
    name, _, prefix = source.removeprefix("s3://").partition("/")
    store = S3Store(
        name,
        prefix=prefix.strip("/") or None,
        region=region,
        endpoint=endpoint_url,
        skip_signature=True,
        client_options={"allow_http": True, "timeout": "30s", "connect_timeout": "5s"},
        retry_config={
            "max_retries": max_retries,
            "retry_timeout": timedelta(seconds=120),
            "backoff": {
                "init_backoff": timedelta(milliseconds=100),
                "max_backoff": timedelta(seconds=15),
                "base": 2,
            },
        },
    )
    return Bucket(store, f"{source} at {endpoint_url or f'AWS {region}'}")


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
