"""How long a training waits for its first batch, and how much memory a stream takes, for buckets of three sizes.

    python benchmarks/first_batch.py                      # some minutes
    python benchmarks/first_batch.py --quick
    python benchmarks/first_batch.py --json first_batch.json

The whole bucket is 535,234 ids, as in ABID; since nobody has so many photos here, the ids of a small synthetic bucket
are repeated. Listing is not part of it. Each row runs in a process of its own, on a Ray that has started its workers.
"""

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from bintally.cli import readable_errors

NUM_ABID: Final = 535_234
METHOD: Final = (
    "Seconds from the ids of a split, as a list of strings in the driver, to the first batch of 64 photos of 224 px,"
    " shuffled, through streaming_split as in training, without the start of processes; median of five runs."
    " peak_mb: highest Pss of the row's process tree while up to 200 batches are read each time, Ray included."
    " The S3 server is on the loopback."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class FirstBatchArgs:
    """What to measure."""

    quick: bool = False
    """Fewer photos and epochs: shows that it runs, not how fast."""
    json: Path | None = None
    """Write the figures to this file."""
    num_ids: int | None = None
    """Given by the script itself to the process of each row."""
    endpoint: str | None = None
    """As num_ids."""
    num_photos: int | None = None
    """As num_ids."""

    @property
    def size(self) -> int:
        """Photos in the bucket."""
        return self.num_photos or (200 if self.quick else 2000)


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    """What one row showed."""

    first_batch_s: float
    peak_mb: float


def run_row(args: FirstBatchArgs) -> Figures:
    """Read the start of some epochs."""
    import os
    from statistics import median

    from benchmarks.parts.usage import adopt_orphans, watch_memory
    from benchmarks.parts.with_ray import make_feed
    from data.session import ray_session

    assert args.endpoint is not None
    assert args.num_ids is not None
    adopt_orphans()
    photos = [f"{number:05d}" for number in range(1, args.size + 1)]
    with ray_session():
        for _ in range(2):
            list(make_feed(args.endpoint, photos).epoch(1))  # starts the workers
        ids = (photos * (args.num_ids // len(photos) + 1))[: args.num_ids]
        waits = []
        with watch_memory(os.getpid()) as memory_mb:
            for _ in range(2 if args.quick else 5):
                started = time.monotonic()
                feed = make_feed(args.endpoint, ids)
                plan_s = time.monotonic() - started
                feed.shard.stats()  # waits until the coordinator's process is up
                started = time.monotonic()
                batches = feed.epoch(1)
                next(batches)
                waits.append(plan_s + time.monotonic() - started)
                for _ in zip(batches, range(5 if args.quick else 200), strict=False):
                    pass
        return Figures(first_batch_s=round(median(waits), 2), peak_mb=round(max(memory_mb), 1))


def measure_all(args: FirstBatchArgs, folder: Path) -> dict[str, Any]:
    """All rows."""
    from benchmarks.parts.bucket import make_bucket
    from benchmarks.s3_server import s3_server
    from data.progress import say

    rows = {}
    bucket = make_bucket(folder / "bucket", args.size)
    with s3_server(bucket.folder) as (endpoint, _):
        for name, num_ids in (("small", args.size), ("tenth", NUM_ABID // 10), ("abid", NUM_ABID)):
            command = [sys.executable, __file__, "--num-ids", str(num_ids), "--endpoint", endpoint]
            flags = ["--num-photos", str(args.size), *(["--quick"] if args.quick else [])]
            done = subprocess.run([*command, *flags], check=True, stdout=subprocess.PIPE, text=True)
            rows[name] = {"num_ids": num_ids} | json.loads(done.stdout.splitlines()[-1])
            say(f"{name}: {rows[name]}")
    return rows


def main() -> None:
    """Parse the command line, measure, print."""
    import tyro

    with readable_errors():
        args = tyro.cli(partial(FirstBatchArgs), description=__doc__)
        if args.num_ids is not None:
            print(json.dumps(asdict(run_row(args))))
            return
        from benchmarks.parts.report import describe_machine

        machine = describe_machine()
        with tempfile.TemporaryDirectory(prefix="bintally-bench-") as folder:
            rows = measure_all(args, Path(folder))
        if args.json:
            values = {"rows": rows, "machine": machine, "method": METHOD}
            args.json.write_text(json.dumps(values, indent=2) + "\n")


if __name__ == "__main__":
    main()
