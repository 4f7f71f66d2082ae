"""Faults of what a search reads from and writes to, each done once."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from benchmarks.parts.chaos_row import ChaosSetup, FaultRow, NotHereError
from benchmarks.parts.chaos_target import LIMIT_S, Strike, Target, bucket_of, run_fault
from benchmarks.s3_server import s3_server

DISK_MB: Final = 64  # a search of the smoke recipe writes a fifth of that


def run_bucket_503(setup: ChaosSetup) -> FaultRow:
    """A bucket that answers 503 to everything for a minute."""
    return _without_bucket(setup, "answered 503 to everything", signal.SIGUSR1, signal.SIGUSR1)


def run_bucket_silent(setup: ChaosSetup) -> FaultRow:
    """A bucket that answers nothing for a minute; connections stay open."""
    return _without_bucket(setup, "answered nothing", signal.SIGSTOP, signal.SIGCONT)


def _without_bucket(setup: ChaosSetup, how: str, begin: signal.Signals, end: signal.Signals) -> FaultRow:
    duration_s = 20 if setup.quick else 60
    with s3_server(bucket_of(setup)) as (endpoint, server):

        def strike(target: Target) -> Strike:
            target.wait_for_mid_epoch()
            at = time.monotonic()
            os.kill(server, begin)
            try:
                time.sleep(duration_s)
            finally:
                os.kill(server, end)
            return target.struck(f"the bucket {how} for {duration_s} s, from within {target.when} on", at, [])

        return run_fault(setup, strike, ("--source", "s3://bins", "--endpoint-url", endpoint, "--stream"))


def run_full_disk(setup: ChaosSetup) -> FaultRow:
    """A run folder on a disk that is full when a checkpoint comes; the search is resumed once there is room."""

    def strike(target: Target) -> Strike:
        target.wait_for_mid_epoch()
        workers = target.workers()
        at = time.monotonic()
        filler = target.run_dir / "filler"
        fill(filler)
        error = target.search.ends(2, limit_s=LIMIT_S).strip().splitlines()[-1]
        filler.unlink()
        target.resume_here()
        return target.struck(f"the disk full within {target.when} ({error!r}); --resume with room", at, workers)

    with small_disk(setup.work_dir / "run"):
        return run_fault(setup, strike)


def fill(path: Path) -> None:
    """Write a file until the disk is full."""
    try:
        with path.open("wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass
    except OSError:
        return


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A folder that is a file system of its own meanwhile.

    Raises:
        NotHereError: none can be mounted.
    """
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", str(folder)]
    made = subprocess.run(mount, capture_output=True, text=True, check=False)
    if made.returncode:
        raise NotHereError(f"no disk can be mounted, which needs root: {made.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)  # noqa: S607  # on the PATH


ROWS: Final[dict[str, Callable[[ChaosSetup], FaultRow]]] = {
    "bucket_503": run_bucket_503,
    "bucket_silent": run_bucket_silent,
    "full_disk": run_full_disk,
}
