"""Measures rows from outside: each in a process of its own, against a server whose CPU is not counted.

The process of a row says `ready`, waits for a line, reads all rows once, says what it found, and says `ready` again or
waits for the last line. So the snapshots are taken while all its processes still live.
"""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from benchmarks.parts.job import RAY_ROWS, RowName, Sums, read_job
from benchmarks.parts.usage import adopt_orphans, cpu_s, machine_cpu_s, watch_memory

ROW_LIMIT_S: Final = 600
METHOD: Final = (
    "Labelled 224 px uint8 images from a synthetic bucket, one JPEG (about 31 KB) and one JSON object per image,"
    " from a server on the loopback."
    " _30ms: the server holds each answer back for 30 ms."
    " cpu_s_per_1000: user and system CPU-seconds of the row's whole process tree per 1,000 images, without the server,"
    " from the moment that its driver has imported its modules and, for the Ray rows, ray.init has returned;"
    " the start of workers and their imports count."
    " _warm: the third pass in the same session, whose workers have started, so the marginal cost."
    " rss_mb: peak over samples of the tree's memory, shared pages counted once (Pss), Ray's own processes included."
    " others_cores: cores busy with anything else meanwhile; much above 0.2, the figures are not to be trusted."
    " Number of rows and sum of labels are checked in every pass."
)


class RowFailedError(Exception):
    """A row ended early, took too long or found other rows than there are."""


@dataclass(frozen=True, slots=True)
class Target:
    """What a measured row must find, and the server it reads from."""

    job_path: Path
    truth: Sums
    server_pid: int
    num_passes: int


def run_row(name: RowName, job_path: Path) -> None:
    """The process of a row."""
    job = read_job(job_path)
    adopt_orphans()
    module = import_module("benchmarks.parts.with_ray" if name in RAY_ROWS else "benchmarks.parts.plain")
    with _session(name):
        for _ in range(job.num_passes):
            _say(event="ready")
            sys.stdin.readline()
            found = sum(getattr(module, name)(job), start=Sums())
            _say(event="done", num_rows=found.num_rows, label_sum=found.label_sum)
        sys.stdin.readline()


@contextmanager
def _session(name: RowName) -> Iterator[None]:
    if name not in RAY_ROWS:
        yield
        return
    from data.session import ray_session

    with ray_session():
        yield


def _say(**values: Any) -> None:  # noqa: ANN401  # JSON
    print(json.dumps(values), flush=True)


def measure_row(name: RowName, target: Target) -> dict[str, float]:
    """The figures of one row.

    Raises:
        RowFailedError: it did not read what is there.
    """
    with _started(name, target.job_path) as row, watch_memory(row.pid) as memory_mb:
        figures = _measure_pass(row, target)
        for _ in range(target.num_passes - 1):
            warm = _measure_pass(row, target)
            figures |= {f"{key}_warm": warm[key] for key in ("cpu_s_per_1000", "images_per_s")}
    return figures | {"rss_mb": round(max(memory_mb), 1)}


@contextmanager
def _started(name: RowName, job_path: Path) -> Iterator["subprocess.Popen[str]"]:
    script = Path(__file__).parents[1] / "ingest.py"
    command = [sys.executable, str(script), "--row", name, "--job", str(job_path)]
    with (job_path.parent / f"{name}.stderr").open("w+") as messages:
        row = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=messages, text=True)
        timer = threading.Timer(ROW_LIMIT_S, row.terminate)
        timer.start()
        try:
            yield row
            row.communicate("\n", timeout=60)
        except (BrokenPipeError, EOFError):
            row.wait(timeout=60)
            messages.seek(0)
            last = (messages.read().strip().splitlines() or ["no message"])[-1]
            raise RowFailedError(f"ended with exit code {row.returncode}: {last}") from None
        finally:
            timer.cancel()
            row.terminate()
            row.wait(timeout=60)


def _measure_pass(row: "subprocess.Popen[str]", target: Target) -> dict[str, float]:
    _await_event(row, "ready")
    assert row.stdin is not None
    start, cpu_before, other_before = time.monotonic(), cpu_s(row.pid), _other_cpu_s(row.pid, target.server_pid)
    row.stdin.write("\n")
    row.stdin.flush()
    done = _await_event(row, "done")
    wall_s = time.monotonic() - start
    row_cpu_s = cpu_s(row.pid) - cpu_before
    found = Sums(num_rows=done["num_rows"], label_sum=done["label_sum"])
    if found != target.truth:
        raise RowFailedError(f"found {found} instead of {target.truth}")
    return {
        "cpu_s_per_1000": round(1000 * row_cpu_s / found.num_rows, 3),
        "images_per_s": round(found.num_rows / wall_s, 1),
        "others_cores": round((_other_cpu_s(row.pid, target.server_pid) - other_before) / wall_s, 2),
    }


def _await_event(row: "subprocess.Popen[str]", event: str) -> dict[str, Any]:
    assert row.stdout is not None
    for line in row.stdout:
        if line.startswith(f'{{"event": "{event}"'):  # libraries may print too
            values: dict[str, Any] = json.loads(line)
            return values
    raise EOFError


def _other_cpu_s(row_pid: int, server_pid: int) -> float:
    return machine_cpu_s() - cpu_s(row_pid) - cpu_s(server_pid)
