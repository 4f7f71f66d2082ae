"""One row of benchmarks/serve.py, once: start its server, ask, look at its memory, end it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.parts.serve_rows import LOOPS, ROOT, SERVERS, Place, Server
from benchmarks.parts.usage import family, resident_mb
from bintally.errors import RunError
from bintally.ports import free_port

START_S: Final = 180.0
END_S: Final = 30.0
ENTER_S: Final = 10.0  # until a server has a network of its own
FIGURES: Final = ("rps", "p50_ms", "p99_ms", "cpu_ms", "errors", "others_cores", "load_cpu_ms")


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What all rows are given."""

    folder: Path
    """Holds the checkpoint and the photo; logs go there."""
    concurrency: tuple[int, ...]
    seconds: float
    extra: Path | None
    server_core: int | None
    """All processes of a server run on it; None leaves them to the system."""
    load_core: int | None

    @property
    def checkpoint(self) -> Path:
        """The folder that is served."""
        return self.folder / "checkpoint"

    @property
    def photo(self) -> Path:
        """The file that is sent."""
        return self.folder / "photo.jpg"


def run_row(name: str, work: Work) -> dict[str, Any]:
    """The figures of one row in one round; `missing` or `failed` if it has none."""
    try:
        if name in LOOPS:
            return run_loop(LOOPS[name], work)
        reason = SERVERS[name].missing(work.extra)
        return {"missing": reason} if reason else run_server(name, SERVERS[name], work)
    except RunError as error:
        return {"failed": str(error)}


def run_loop(runtime: str, work: Work) -> dict[str, Any]:
    """Of a bare loop: batches of 1 stand beside one client, batches of 8 beside more.

    Raises:
        RunError: it failed.
    """
    script = str(ROOT / "benchmarks/parts/bare_loop.py")
    command = [sys.executable, script, str(work.checkpoint), str(work.photo), runtime, str(work.seconds)]
    done = subprocess.run(
        [*_pinned(work.server_core), *command], capture_output=True, text=True, check=False, env=_environment()
    )
    if done.returncode:
        raise RunError(f"it ended with {done.returncode}: {done.stderr.strip()[-300:]}")
    by_batch = json.loads(done.stdout.splitlines()[-1])
    return {f"c{number}": loop_figures(by_batch["8" if number >= 8 else "1"], number) for number in work.concurrency}


def loop_figures(one: dict[str, float], concurrency: int) -> dict[str, Any]:
    """A bare loop as if it had clients, each of which waits for all that came before."""
    return {"rps": one["rps"], "p50_ms": round(1000 * concurrency / one["rps"], 2), "cpu_ms": one["cpu_ms"]}


def run_server(name: str, server: Server, work: Work) -> dict[str, Any]:
    """Of a server.

    Raises:
        RunError: it did not start, or did not answer.
    """
    place = Place(checkpoint=work.checkpoint, port=free_port(), extra=work.extra)
    log_path = work.folder / f"{name}.log"
    figures_path = work.folder / f"{name}.json"
    begun = time.monotonic()
    with started(server, place, work, log_path) as process:
        command = [*_in_network_of(server, process.pid), *_pinned(work.load_core), sys.executable]
        command += [str(ROOT / "benchmarks/load.py"), "--url", f"http://127.0.0.1:{place.port}{server.path}"]
        command += ["--photo", str(work.photo), "--concurrency", *map(str, work.concurrency)]
        command += ["--seconds", str(work.seconds), "--wait-s", str(START_S), "--pid", str(process.pid)]
        command += ["--json", str(figures_path), *(["--form", server.form] if server.form else [])]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=_environment())
        rss_mb = resident_mb(process.pid)
        if done.returncode:
            raise RunError(f"{done.stderr.strip()[-300:]}; its log ends {log_path.read_text()[-300:]!r}")
    measured = json.loads(figures_path.read_text())
    by_concurrency = {
        f"c{number}": {key: measured[f"c{number}"][key] for key in FIGURES} for number in work.concurrency
    }
    return {**by_concurrency, "rss_mb": round(rss_mb), "start_s": round(measured["ready_at"] - begun, 1)}


@contextmanager
def started(server: Server, place: Place, work: Work, log_path: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A server meanwhile; at the end none of its processes is left."""
    with log_path.open("w") as log:
        process = subprocess.Popen(
            server.full_command(place, work.server_core),
            env=server.full_environment(place),
            stdout=log,
            stderr=log,
            cwd=work.folder,
        )
        try:
            yield process
        finally:
            end(process)


def end(process: "subprocess.Popen[bytes]") -> None:
    """SIGTERM, some time, and then SIGKILL for whatever of it is left."""
    members = {pid: _begun_at(pid) for pid in family(process.pid)}
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(END_S)
    for pid, begun_at in members.items():
        if begun_at is not None and _begun_at(pid) == begun_at:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    process.wait()


def _begun_at(pid: int) -> str | None:
    """Tells a process from a later one of the same number; None if there is none, or it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]


def _in_network_of(server: Server, pid: int) -> Sequence[str]:
    if not server.own_network:
        return ()
    ours, deadline = Path("/proc/self/ns/net").readlink(), time.monotonic() + ENTER_S
    with suppress(OSError):  # it has ended; what asks it says so
        while Path(f"/proc/{pid}/ns/net").readlink() == ours and time.monotonic() < deadline:
            time.sleep(0.05)
    return ("nsenter", "--target", str(pid), "--user", "--net", "--preserve-credentials")


def _pinned(core: int | None) -> list[str]:
    return [] if core is None else ["taskset", "-c", str(core)]


def _environment() -> dict[str, str]:
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
