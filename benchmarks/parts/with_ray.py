"""The rows on Ray Data: this project's stream, and the readers that Ray brings."""

from collections.abc import Iterator
from functools import cache, partial
from urllib.parse import urlsplit

import ray.data
from pyarrow.fs import S3FileSystem
from ray.data import Dataset

from benchmarks.parts.boto import add_count
from benchmarks.parts.job import BATCH_SIZE, BUCKET, IMAGE_SIZE, Job, Sums
from bintally.batch import COUNT, IMAGE
from bintally.config import DataConfig
from data.drops import DropLedger
from data.pipeline import stream_rows

MAX_COUNT = 30  # the synthetic bucket's largest; nothing is filtered out


def bintally(job: Job) -> Iterator[Sums]:
    """`data.pipeline.stream_rows`, as training eats it."""
    config = DataConfig(source=f"s3://{BUCKET}", endpoint_url=job.endpoint, image_size=IMAGE_SIZE, max_count=MAX_COUNT)
    yield from _sums(stream_rows(job.ids, config, _ledger()))


@cache
def _ledger() -> DropLedger:
    return DropLedger.start()  # an actor, so a process; one per run, as in training


def ray_read_images(job: Job) -> Iterator[Sums]:
    """`ray.data.read_images` on the prefix, and the label fetched by boto3 in a map."""
    url = urlsplit(job.endpoint)
    files = S3FileSystem(anonymous=True, endpoint_override=url.netloc, scheme=url.scheme, region="us-east-1")
    ds = ray.data.read_images(
        f"{BUCKET}/bin-images", filesystem=files, size=(IMAGE_SIZE, IMAGE_SIZE), mode="RGB", include_paths=True
    )
    yield from _sums(ds.map(partial(add_count, endpoint=job.endpoint)))


def _sums(ds: Dataset) -> Iterator[Sums]:
    for batch in ds.iter_batches(batch_size=BATCH_SIZE):
        assert batch[IMAGE].shape[1:] == (IMAGE_SIZE, IMAGE_SIZE, 3)
        yield Sums(num_rows=len(batch[COUNT]), label_sum=int(batch[COUNT].sum()))
