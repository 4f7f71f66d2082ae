"""Reads labelled 224 px images from an S3 bucket in several ways, and measures what each way costs.

python benchmarks/ingest.py                # 2,000 images, some minutes
python benchmarks/ingest.py --quick        # 300 images
python benchmarks/ingest.py --json ingest.json
"""

import sys
import tempfile
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.parts.job import RAY_ROWS, ROWS, Job, RowName, write_job
from bintally.cli import readable_errors
from bintally.errors import ConfigError

LATENCIES_MS = {"": 0, "_30ms": 30}


@dataclass(frozen=True, kw_only=True, slots=True)
class IngestArgs:
    """What to measure."""

    num_images: int | None = None
    """Images in the bucket. Default: 2000, or 300 with --quick."""
    quick: bool = False
    """Few images, so that start costs weigh more: shows that it runs, not how fast."""
    json: Path | None = None
    """Write the figures to this file."""
    row: RowName | None = None
    """Measure this row alone."""
    job: Path | None = None
    """Given by the script itself to the process of each row."""

    def __post_init__(self) -> None:
        if self.num_images is not None and self.num_images < 2:
            raise ConfigError(f"num_images must be at least 2, not {self.num_images}")

    @property
    def size(self) -> int:
        """Images in the bucket."""
        return self.num_images or (300 if self.quick else 2000)


def measure_all(args: IngestArgs, folder: Path) -> dict[str, dict[str, Any]]:
    """The figures of every row, without and with latency; a row without figures says why."""
    from benchmarks.parts.bucket import make_bucket
    from benchmarks.parts.measure import Target
    from benchmarks.s3_server import s3_server

    bucket = make_bucket(folder / "bucket", args.size)
    chosen: tuple[RowName, ...] = (args.row,) if args.row else ROWS
    rows: dict[str, dict[str, Any]] = {name: {} for name in chosen}
    for suffix, latency_ms in LATENCIES_MS.items():
        with s3_server(bucket.folder, latency_ms=latency_ms) as (endpoint, server_pid):
            for name in chosen:
                # The last pass shows what is left when workers have started; the second one still starts some.
                num_passes = 3 if name in RAY_ROWS and (name == "bintally" or not latency_ms) else 1
                job = Job(endpoint=endpoint, ids=bucket.ids, shards=bucket.shards, num_passes=num_passes)
                write_job(job, folder / "job.json")
                target = Target(folder / "job.json", bucket.truth, server_pid, num_passes)
                rows[name] |= {key + suffix: value for key, value in _figures(name, suffix, target).items()}
    return rows


def _figures(name: RowName, suffix: str, target: Any) -> dict[str, Any]:  # noqa: ANN401
    from benchmarks.parts.measure import RowFailedError, measure_row
    from data.progress import say

    if name == "webdataset" and find_spec("webdataset") is None:
        figures: dict[str, Any] = {"skipped": "the package webdataset is not installed"}
    else:
        try:
            figures = measure_row(name, target)
        except RowFailedError as error:
            figures = {"failed": str(error)}
    say(f"{name}{suffix}: " + ", ".join(f"{key} {value}" for key, value in figures.items()))
    return figures


def main() -> None:
    """Parse the command line, measure, print."""
    import tyro

    with readable_errors():
        # A partial, since tyro would print a box for an error raised by a class.
        args = tyro.cli(partial(IngestArgs), description=__doc__)
        if args.job and args.row:
            from benchmarks.parts.measure import run_row

            run_row(args.row, args.job)
            return
        from benchmarks.parts.report import describe_machine, format_rows, write_json

        machine = describe_machine()
        with tempfile.TemporaryDirectory(prefix="bintally-bench-") as folder:
            rows = measure_all(args, Path(folder))
        print("\n" + format_rows(rows, tuple(LATENCIES_MS)))
        if args.json:
            write_json(rows, machine, args.size, args.json)
        sys.exit(int(any(key.startswith("failed") for figures in rows.values() for key in figures)))


if __name__ == "__main__":
    main()
