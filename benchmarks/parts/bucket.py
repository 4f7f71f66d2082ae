"""The bucket that all rows read, and the truth about it."""

import json
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.parts.job import Sums
from data.progress import say
from data.synthetic import SyntheticConfig, write_bucket

SAMPLES_PER_SHARD: Final = 250


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchBucket:
    """A synthetic bucket in a folder: pairs of objects, and the same pairs in tar files."""

    folder: Path
    ids: list[str]
    shards: list[str]
    truth: Sums


def make_bucket(folder: Path, num_images: int) -> BenchBucket:
    """Draw the bucket, pack the shards, and add up the labels."""
    say(f"drawing {num_images:,} bins")
    write_bucket(SyntheticConfig(num_bins=num_images, out=str(folder), num_workers=2))
    ids = sorted(path.stem for path in (folder / "bin-images").iterdir())
    records = [json.loads((folder / f"metadata/{bin_id}.json").read_text()) for bin_id in ids]
    truth = Sums(num_rows=num_images, label_sum=sum(record["EXPECTED_QUANTITY"] for record in records))
    num_bytes = sum((folder / f"bin-images/{bin_id}.jpg").stat().st_size for bin_id in ids)
    say(f"{num_bytes / num_images / 1000:.1f} KB per photo on average")
    return BenchBucket(folder=folder, ids=ids, shards=_write_shards(folder, ids), truth=truth)


def _write_shards(folder: Path, ids: list[str]) -> list[str]:
    (folder / "shards").mkdir()
    # At least one for each of two workers, however few images there are.
    size = min(SAMPLES_PER_SHARD, -(-len(ids) // 2))
    keys = []
    for number, start in enumerate(range(0, len(ids), size)):
        keys.append(f"shards/{number:06d}.tar")
        with tarfile.open(folder / keys[-1], "w") as shard:
            for bin_id in ids[start : start + size]:
                shard.add(folder / f"bin-images/{bin_id}.jpg", f"{bin_id}.jpg")
                shard.add(folder / f"metadata/{bin_id}.json", f"{bin_id}.json")
    return keys
