"""The rows on Ray Data: this project's stream, and the readers that Ray brings."""

from collections.abc import Iterator, Sequence
from functools import cache, partial
from urllib.parse import urlsplit

import ray.data
from pyarrow.fs import S3FileSystem
from ray.data import Dataset

from benchmarks.parts.boto import add_count
from benchmarks.parts.job import BATCH_SIZE, BUCKET, IMAGE_SIZE, Job, Sums
from bintally.batch import COUNT, IMAGE, PADDING
from bintally.source_config import DataConfig
from data.blocks import FetchSpec
from data.clock import EpochClock
from data.decode import Share
from data.drops import DropLedger
from data.feed import StreamFeed
from data.order import Sampling
from data.pipeline import BatchStream, EpochOrder, IdTable

MAX_COUNT = 30  # the synthetic bucket's largest; nothing is filtered out


def bintally(job: Job) -> Iterator[Sums]:
    """Shuffled exact batches, as a training with one worker reads them."""
    feed = _feed(job.endpoint, tuple(job.ids))
    for batch in feed.epoch(1):
        assert batch[IMAGE].shape[1:] == (IMAGE_SIZE, IMAGE_SIZE, 3)
        real = batch[COUNT] != PADDING
        yield Sums(num_rows=int(real.sum()), label_sum=int(batch[COUNT][real].sum()))


@cache
def _feed(endpoint: str, ids: tuple[str, ...]) -> StreamFeed:
    return make_feed(endpoint, ids)  # with its processes, once per run, as in training


def make_feed(endpoint: str, ids: Sequence[str]) -> StreamFeed:
    """What Ray Train gives the only worker of a training."""
    config = DataConfig(source=f"s3://{BUCKET}", endpoint_url=endpoint, image_size=IMAGE_SIZE, max_count=MAX_COUNT)
    spec = FetchSpec(data=config, ledger=DropLedger.start())
    share, sampling, clock = Share(global_batch_size=BATCH_SIZE), Sampling(seed=0), EpochClock.start()
    order = EpochOrder(sampling=sampling, clock=clock)
    stream, photos = BatchStream.of(IdTable.put(ids), spec, order, BATCH_SIZE)
    shard = stream.batches(photos, 1).streaming_split(1, equal=True)[0]
    return StreamFeed(shard, share, 0, clock)


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
