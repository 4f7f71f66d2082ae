"""The bucket whose photos the server audits. Clients name keys in it, and nothing outside."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

import obstore
from obstore.exceptions import BaseError, NotFoundError, PermissionDeniedError, UnauthenticatedError
from obstore.store import LocalStore, S3Store

from bintally.errors import AccessDeniedError, SourceNotFoundError, SourceUnreachableError
from serve.audit_table import MAX_RECORDS
from serve.problems import Refusal
from serve.settings import Settings
from serve.telemetry import server_log

if TYPE_CHECKING:
    from obstore.store import ObjectStore

PHOTO_SUFFIXES: Final = (".jpg", ".jpeg", ".png")

# S3 sends its first byte within some 100 ms. One photo of many may cost this patience, not more.
MAX_RETRIES: Final = 5
GIVE_UP_S: Final = 20.0
FIRST_WAIT_S: Final = 0.1
MAX_WAIT_S: Final = 5.0
CONNECT_TIMEOUT_S: Final = 5.0
READ_TIMEOUT_S: Final = 4.0
REQUEST_TIMEOUT_S: Final = 20.0


@dataclass(frozen=True, slots=True)
class AuditBucket:
    """A readable bucket. Its messages are for clients; where it lies, and what it said, goes into the log alone."""

    store: "ObjectStore"

    async def fetch(self, key: str, max_bytes: int) -> bytes:
        """One photo.

        Raises:
            Refusal: there is none, or it is too large.
            AccessDeniedError: it may not be read.
            SourceUnreachableError: no whole answer after bounded retries.
        """
        with _source_errors(key):
            try:
                response = await obstore.get_async(self.store, key)
                if response.meta["size"] > max_bytes:
                    raise Refusal("body_too_large", f"a photo may hold {max_bytes} bytes at most")
                return bytes(await response.bytes_async())
            except (FileNotFoundError, NotFoundError) as error:
                if "<Code>NoSuchBucket</Code>" in str(error):
                    raise
                raise no_photo() from None

    async def photos_in(self, folder: str) -> list[str]:
        """The keys of all photos under a folder, sorted.

        Raises:
            Refusal: there is none, or there are more than an audit takes.
            SourceError: the bucket cannot be listed.
        """
        keys: list[str] = []
        with _source_errors(folder):
            async for page in obstore.list(self.store, prefix=folder):
                keys += [entry["path"] for entry in page if entry["path"].lower().endswith(PHOTO_SUFFIXES)]
                if len(keys) > MAX_RECORDS:
                    raise Refusal("invalid_request", f"prefix: more than {MAX_RECORDS:,} photos lie under {folder}")
        if not keys:
            raise Refusal("invalid_request", f"prefix: no photo lies under {folder}")
        return sorted(keys)


def no_photo() -> Refusal:
    """What stands beside a record whose photo does not exist."""
    return Refusal("no_photo", "the bucket has no such photo")


def open_bucket(settings: Settings) -> AuditBucket:
    """The bucket of the settings; one client per process.

    Raises:
        Refusal: `audit_is_off`.
        SourceNotFoundError: the folder of a file:// source does not exist.
    """
    if settings.audit_source is None:
        raise Refusal("audit_is_off", "this server audits no bucket; its setting audit_source names one")
    return _open_bucket(settings.audit_source, settings.audit_endpoint_url, settings.audit_signed)


@lru_cache(maxsize=2)
def _open_bucket(source: str, endpoint_url: str | None, signed: bool) -> AuditBucket:
    if source.startswith("file://"):
        folder = Path(unquote(source.removeprefix("file://")))  # not urlsplit: # and ? are part of a folder's name
        if not folder.is_dir():
            server_log.error("audit_source %s: there is no such folder", source)
            raise SourceNotFoundError("the bucket does not exist")
        return AuditBucket(LocalStore(folder))
    name, _, prefix = source.removeprefix("s3://").partition("/")
    store = S3Store(
        name,
        prefix=prefix.strip("/") or None,
        config={"endpoint": endpoint_url} if endpoint_url else {},  # obstore refuses None as an endpoint
        skip_signature=not signed,
        client_options={
            "allow_http": True,
            "connect_timeout": timedelta(seconds=CONNECT_TIMEOUT_S),
            "read_timeout": timedelta(seconds=READ_TIMEOUT_S),
            "timeout": timedelta(seconds=REQUEST_TIMEOUT_S),
        },
        retry_config={
            "max_retries": MAX_RETRIES,
            "retry_timeout": timedelta(seconds=GIVE_UP_S),
            "backoff": {
                "init_backoff": timedelta(seconds=FIRST_WAIT_S),
                "max_backoff": timedelta(seconds=MAX_WAIT_S),
                "base": 2,
            },
        },
    )
    return AuditBucket(store)


@contextmanager
def _source_errors(what: str) -> Iterator[None]:
    """Turn the client's errors into ours."""
    try:
        yield
    except (PermissionDeniedError, UnauthenticatedError, PermissionError) as error:
        server_log.warning("%s may not be read: %s", what, _first_line(error))
        raise AccessDeniedError("the bucket denies access") from None
    except (FileNotFoundError, NotFoundError) as error:
        server_log.warning("%s: %s", what, _first_line(error))
        raise SourceNotFoundError("the bucket does not exist") from None
    except (BaseError, OSError) as error:
        server_log.warning("%s cannot be read: %s", what, _first_line(error))
        raise SourceUnreachableError("the bucket cannot be read; the server's log tells more") from None


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
