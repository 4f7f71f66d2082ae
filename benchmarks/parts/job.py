"""What a row has to read, what it has to find, and how the process of a row talks with the one that measures it."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal, get_args

RowName = Literal["floor", "bintally", "dataloader_boto3", "ray_read_images", "webdataset"]
ROWS: Final[tuple[RowName, ...]] = get_args(RowName)
RAY_ROWS: Final = ("bintally", "ray_read_images")

BUCKET: Final = "bins"
IMAGE_SIZE: Final = 224
BATCH_SIZE: Final = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What a row has to read."""

    endpoint: str
    """The S3 server."""
    ids: list[str]
    """The bins: two objects each."""
    shards: list[str]
    """Keys of the same bins packed into tar files."""
    num_passes: int
    """How often to read them all; the later passes find workers that have started."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sums:
    """What a row read; adds up over batches."""

    num_rows: int = 0
    label_sum: int = 0

    def __add__(self, other: "Sums") -> "Sums":
        return Sums(num_rows=self.num_rows + other.num_rows, label_sum=self.label_sum + other.label_sum)


def write_job(job: Job, path: Path) -> None:
    """Write a job for `read_job`."""
    path.write_text(json.dumps(asdict(job)))


def read_job(path: Path) -> Job:
    """The job in a file."""
    return Job(**json.loads(path.read_text()))
