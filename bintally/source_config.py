"""Which bins a run is about, and how their photos become arrays; the part of the configuration that reading needs."""

import re
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import ClassVar, Final, Literal
from urllib.parse import urlsplit

from pydantic import ConfigDict

from bintally.errors import ConfigError

# obstore panics at other hosts and bucket names, with what is no Exception. It takes no control characters and no
# segment that is empty, . or .. in a prefix.
_SOURCE: Final = re.compile(r"s3://[A-Za-z0-9][A-Za-z0-9._-]*(/(?!\.\.?(/|$))[^/\x00-\x1f\x7f]+)*/?|file:///.*")
_IDS: Final = re.compile(r"all|range:\d+-\d+|file:/.*|list:[^,]+(,[^,]+)*")
_ENDPOINT: Final = re.compile(r"https?://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]+)?(/[A-Za-z0-9._~/-]*)?")

SplitBy = Literal["grouped", "official", "hash"]
Resize = Literal["squash", "letterbox"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PixelConfig:
    """All that decides how the bytes of a photo become an array; the same in training and in the server."""

    size: int
    """Height and width in pixels that photos are resized to."""
    resize: Resize = "squash"
    """squash: the photo fills the square; letterbox: it keeps its aspect, with grey beside it."""
    fast_decode: bool = False
    """Decode JPEGs that are at least twice as large as needed at half their size: faster, not the same pixels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Which bins, and how their photos become arrays."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    source: str = "s3://aft-vbi-pds"
    """A bucket laid out like ABID: s3://bucket[/prefix] or file:///absolute/folder."""
    endpoint_url: str | None = None
    """Another S3 server than AWS, as http(s)://host:port."""
    region: str = "us-east-1"
    """Region of the bucket."""
    signed: bool = False
    """Sign requests with the AWS credentials of the environment; ABID is public and needs none."""
    ids: str = "all"
    """Which bins: all, range:FIRST-LAST (numbers, both included), file:/absolute/path or list:00001,00002."""
    unpadded: bool = False
    """Take un-padded ids (ABID's 1..1200, other photos under colliding numbers) beside the padded ones."""
    labels: str | None = None
    """Absolute folder of the challenge's official lists, whose counts replace the records'; None reads the records."""
    split_by: SplitBy = "grouped"
    """How ids are split: grouped (neighbouring ids stay together), official (the challenge's lists) or hash."""
    max_count: int = 5
    """Bins that hold more items than this are left out; the model answers 0..max_count."""
    image_size: int = 224
    """Height and width in pixels that photos are resized to."""
    resize: Resize = "squash"
    """squash: the photo fills the square; letterbox: it keeps its aspect, with grey beside it."""
    fast_decode: bool = False
    """Decode JPEGs that are at least twice as large as needed at half their size: faster, not the same pixels."""
    max_images: int | None = None
    """Use this many ids of the bucket, chosen by a stable hash; None uses all."""

    def __post_init__(self) -> None:
        if not _SOURCE.fullmatch(self.source):
            raise ConfigError(f"source must be s3://bucket[/prefix] or file:///absolute/folder, not {self.source!r}")
        if self.endpoint_url is not None and not _is_endpoint(self.endpoint_url):
            raise ConfigError(
                f"endpoint_url must be http(s)://host[:port], as http://127.0.0.1:9000, not {self.endpoint_url!r}"
            )
        if not _IDS.fullmatch(self.ids):
            raise ConfigError(f"ids must be all, range:1-9, file:/absolute/path or list:00001,00002, not {self.ids!r}")
        if self.labels is not None and not Path(self.labels).is_absolute():
            raise ConfigError(f"labels must be an absolute folder, not {self.labels!r}")
        if self.split_by == "official" and self.labels is None:
            raise ConfigError("split_by official needs labels, the folder of the challenge's lists")
        if self.max_count < 1:
            raise ConfigError(f"max_count must be at least 1, not {self.max_count}")
        if not 16 <= self.image_size <= 2048:
            raise ConfigError(f"image_size must lie in 16..2048 pixels, not {self.image_size}")
        if self.max_images is not None and self.max_images < 1:
            raise ConfigError(f"max_images must be at least 1, not {self.max_images}")

    @property
    def num_classes(self) -> int:
        """Counts 0..max_count."""
        return self.max_count + 1

    @property
    def pixels(self) -> PixelConfig:
        """How the photos become arrays, for `bintally.image.decode_photo`."""
        return PixelConfig(size=self.image_size, resize=self.resize, fast_decode=self.fast_decode)


def _is_endpoint(url: str) -> bool:
    if not _ENDPOINT.fullmatch(url):
        return False
    try:
        host, _ = urlsplit(url).hostname or "", urlsplit(url).port  # reading the port checks its range
        if ":" in host or host.rsplit(".", 1)[-1].isdigit():
            ip_address(host)
    except ValueError:
        return False
    return True
