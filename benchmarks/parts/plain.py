"""The rows without Ray: the floor, and what people write with torch alone."""

import asyncio
import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import numpy as np
import obstore
import simplejpeg
import torch
from obstore.store import S3Store
from PIL import Image
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset

from benchmarks.parts.boto import get_count, get_object
from benchmarks.parts.job import BATCH_SIZE, BUCKET, IMAGE_SIZE, Job, Sums

NUM_DECODERS: Final = 2
NUM_LOADER_WORKERS: Final = 2
NUM_IN_FLIGHT: Final = 64


def floor(job: Job) -> Iterator[Sums]:
    """Both objects by async obstore, decode in threads, nothing else; a lower bound for any framework."""
    torch.set_num_threads(1)  # the threads below are the parallelism
    store = S3Store(
        BUCKET, endpoint=job.endpoint, region="us-east-1", skip_signature=True, client_options={"allow_http": True}
    )
    with ThreadPoolExecutor(NUM_DECODERS) as decoders:
        yield asyncio.run(_floor(store, job.ids, decoders))


async def _floor(store: S3Store, ids: list[str], decoders: ThreadPoolExecutor) -> Sums:
    loop = asyncio.get_running_loop()
    slots = asyncio.Semaphore(NUM_IN_FLIGHT)
    batch = np.empty((BATCH_SIZE, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)

    async def get(key: str) -> obstore.Bytes:
        return await (await obstore.get_async(store, key)).bytes_async()

    async def load(index: int, bin_id: str) -> int:
        async with slots:
            record, photo = await asyncio.gather(get(f"metadata/{bin_id}.json"), get(f"bin-images/{bin_id}.jpg"))
            return await loop.run_in_executor(decoders, _decode_into, batch[index % BATCH_SIZE], photo, record)

    counts = await asyncio.gather(*(load(index, bin_id) for index, bin_id in enumerate(ids)))
    return Sums(num_rows=len(counts), label_sum=sum(counts))


def _decode_into(out: np.ndarray, photo: obstore.Bytes, record: obstore.Bytes) -> int:
    pixels = torch.from_numpy(simplejpeg.decode_jpeg(photo, colorspace="RGB", strict=True))
    nchw = pixels[None].permute(0, 3, 1, 2)  # in this order torch sees channels_last, which halves the resize
    resized = F.interpolate(nchw, (IMAGE_SIZE, IMAGE_SIZE), mode="bilinear", antialias=True, align_corners=False)
    out[...] = resized[0].permute(1, 2, 0).numpy()
    return int(json.loads(bytes(record))["EXPECTED_QUANTITY"])


def dataloader_boto3(job: Job) -> Iterator[Sums]:
    """Two GETs per item by boto3, decode and resize by PIL, in the workers of a torch DataLoader."""
    yield from _sums(DataLoader(_Pairs(job), batch_size=BATCH_SIZE, num_workers=NUM_LOADER_WORKERS))


class _Pairs(Dataset[tuple[torch.Tensor, int]]):
    def __init__(self, job: Job) -> None:
        self._job = job

    def __len__(self) -> int:
        return len(self._job.ids)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        bin_id = self._job.ids[index]
        photo = get_object(self._job.endpoint, f"bin-images/{bin_id}.jpg")
        return _resize(Image.open(io.BytesIO(photo))), get_count(self._job.endpoint, bin_id)


def webdataset(job: Job) -> Iterator[Sums]:
    """Tar shards of the original photos, read by the webdataset package in the workers of a torch DataLoader."""
    import webdataset as wds

    urls = [f"{job.endpoint}/{BUCKET}/{key}" for key in job.shards]
    shards: IterableDataset[Any] = wds.WebDataset(urls, shardshuffle=False).to_tuple("jpg", "json").map(_decode_pair)
    yield from _sums(DataLoader(shards, batch_size=BATCH_SIZE, num_workers=NUM_LOADER_WORKERS))


def _decode_pair(pair: tuple[bytes, bytes]) -> tuple[torch.Tensor, int]:
    photo, record = pair
    return _resize(Image.open(io.BytesIO(photo))), int(json.loads(record)["EXPECTED_QUANTITY"])


def _resize(image: Image.Image) -> torch.Tensor:
    resized = image.convert("RGB").resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(resized))


def _sums(loader: "DataLoader[Any]") -> Iterator[Sums]:
    for images, counts in loader:
        assert images.shape[1:] == (IMAGE_SIZE, IMAGE_SIZE, 3)
        yield Sums(num_rows=len(counts), label_sum=int(counts.sum()))
