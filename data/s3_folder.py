"""A folder in S3, s3://bucket/prefix, as runs leave it there and as checkpoints and recipes are taken from there.

Where S3 is, the environment says (AWS_REGION, AWS_ENDPOINT_URL), as for everything that reads checkpoints; credentials
are what boto3 finds.
"""

import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final, Self

import obstore
from obstore.exceptions import BaseError, NotFoundError

from bintally.errors import ConfigError
from bintally.source_config import DataConfig
from data.args import is_remote
from data.stores import open_s3

if TYPE_CHECKING:
    from obstore.store import ObjectStore

# A slow answer is no reason to send a file again; longer outages are met by whoever asked.
_RETRIES: Final = 4
_MAX_WAIT_S: Final = 2.0
_TIMEOUT_S: Final = 30.0
_PARTS_AT_ONCE: Final = 4  # of 5 MB, each within the time-out even on a slow line
_CHUNK_BYTES: Final = 10_000_000

_DENIED: Final = re.compile(r"status code: (401|403)\b")

_TRAINS_OWN: Final = ("checkpoint_", ".")
"""How the names begin of what Ray Train keeps in its folders: checkpoints, the record of them, a marker."""

Signature = tuple[int, int]
"""Time of the last change in ns, and size in bytes: another one means another content."""


@dataclass(frozen=True, slots=True)
class S3Folder:
    """What lies below a prefix of a bucket. Whatever goes wrong is a ConfigError of one line."""

    uri: str
    flag: str
    """By which it was given, for errors."""
    store: "ObjectStore"
    server: str
    """For errors, too."""

    @classmethod
    def open(cls, uri: str, flag: str) -> Self:
        """The folder of an address, which need not exist.

        Raises:
            ConfigError: it is none, or there are no credentials.
        """
        if not is_remote(uri, flag):
            raise ConfigError(f"{flag} must be s3://bucket/prefix, not {uri!r}")
        uri = uri.rstrip("/")
        endpoint, region = s3_server()
        try:
            data = DataConfig(source=uri, endpoint_url=endpoint, region=region, signed=True)
        except ConfigError as error:
            raise ConfigError(f"AWS_ENDPOINT_URL: {error}") from None
        try:
            store = open_s3(data, max_retries=_RETRIES, max_wait_s=_MAX_WAIT_S, read_timeout_s=_TIMEOUT_S)
        except ConfigError:
            raise ConfigError(f"{flag} {uri} needs AWS credentials, and boto3 finds none in the environment") from None
        return cls(uri, flag, store, endpoint or f"AWS {region}")

    def check_writable(self) -> None:
        """Write something and delete it.

        Raises:
            ConfigError: there is no such bucket, or no right to do so.
        """
        self.put(".bintally-probe", b"may be deleted")
        self.delete([".bintally-probe"])

    def names(self) -> list[str]:
        """Paths of all files below it, the oldest first, without what Ray Train keeps there and what is empty.

        S3 has no folders; pyarrow marks them by empty objects.
        """
        with self._errors():
            found = [one for page in obstore.list(self.store) for one in page if one["size"]]
        found.sort(key=lambda one: one["last_modified"])
        return [one["path"] for one in found if not _is_trains(one["path"])]

    def read(self, name: str) -> bytes | None:
        """The content of a file; None if it does not exist."""
        with self._errors():
            try:
                return bytes(obstore.get(self.store, name).bytes())
            except (FileNotFoundError, NotFoundError):
                return None

    def fetch(self, folder: Path) -> dict[str, Signature]:
        """Copy all of `names` into a folder, in their order; what each file is there."""
        fetched = {}
        for name in self.names():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with self._errors(), path.open("wb") as file:
                for chunk in obstore.get(self.store, name).stream(min_chunk_size=_CHUNK_BYTES):
                    file.write(chunk)
            fetched[name] = signature(path)
        return fetched

    def put(self, name: str, content: bytes | Path) -> None:
        """Write a file, or write it anew; a reader sees all of it, or what was there before. One that is gone stays."""
        with ExitStack() as stack:
            try:
                body = content if isinstance(content, bytes) else stack.enter_context(content.open("rb"))
            except FileNotFoundError:
                return
            with self._errors():
                obstore.put(self.store, name, body, max_concurrency=_PARTS_AT_ONCE)

    def delete(self, names: list[str]) -> None:
        """Delete files."""
        if names:
            with self._errors():
                obstore.delete(self.store, names)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (BaseError, OSError) as error:
            raise ConfigError(f"{self.flag} {self.uri} at {self.server}: {_reason(str(error))}") from None


def s3_server() -> tuple[str | None, str]:
    """Endpoint, None for AWS, and region, as boto3 and the AWS command line take them from the environment."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    return endpoint or None, region or "us-east-1"


@contextmanager
def local_copy(place: str, flag: str) -> Iterator[Path]:
    """A folder on this machine with what lies at a place, meanwhile: the folder itself, or a copy of one in S3.

    What was added to the copy or changed in it is written back at the end, as when a checkpoint is calibrated.

    Raises:
        ConfigError: the place is neither, there is nothing in S3, or it may not be read or written.
    """
    if not is_remote(place, flag):
        yield Path(place)
        return
    remote = S3Folder.open(place, flag)
    with TemporaryDirectory(prefix="bintally-") as name:
        folder = Path(name)
        fetched = remote.fetch(folder)
        if not fetched:
            raise ConfigError(f"{flag}: there is nothing at {place}")
        yield folder
        for changed in sorted(name for name, one in files_in(folder).items() if fetched.get(name) != one):
            remote.put(changed, folder / changed)


def read_object(uri: str, flag: str) -> bytes:
    """One object, as s3://bucket/prefix/best.json.

    Raises:
        ConfigError: it does not exist, or may not be read.
    """
    folder, _, name = uri.rpartition("/")
    content = S3Folder.open(folder, flag).read(name)
    if content is None:
        raise ConfigError(f"{flag}: there is nothing at {uri}")
    return content


def exists(place: str) -> bool:
    """Whether there is a folder with something in it."""
    return bool(S3Folder.open(place, "checkpoint").names()) if is_remote(place, "checkpoint") else Path(place).exists()


def files_in(folder: Path) -> dict[str, Signature]:
    """The files of a folder by their paths below it, the one that was written last at the end.

    Without empty ones, and those that are not finished, whose names or folders begin with a dot or end with .tmp.
    """
    found = {}
    for parent, folders, names in os.walk(folder):  # passes over what vanishes meanwhile
        folders[:] = [name for name in folders if not name.startswith(".")]
        for path in (Path(parent, name) for name in names if not name.startswith(".") and not name.endswith(".tmp")):
            with suppress(FileNotFoundError):
                found[path.relative_to(folder).as_posix()] = signature(path)
    return dict(sorted(((name, one) for name, one in found.items() if one[1]), key=lambda item: item[1]))


def signature(path: Path) -> Signature:
    """What changes when a file does."""
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_size


def _reason(error: str) -> str:
    """What obstore says, whose first line has no more than the status."""
    if "<Code>NoSuchBucket</Code>" in error:
        return "there is no such bucket"
    first = next(iter(error.strip().splitlines()), "no reason was given")
    return f"these AWS credentials may not do that: {first}" if _DENIED.search(error) else first


def _is_trains(name: str) -> bool:
    return any(part.startswith(_TRAINS_OWN) for part in name.split("/"))
