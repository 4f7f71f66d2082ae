"""What a process and all its descendants use, from /proc (Linux)."""

import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
_PR_SET_CHILD_SUBREAPER: Final = 36


def adopt_orphans() -> None:
    """Become the parent of orphaned descendants, as Ray's workers are; otherwise they would leave the tree."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def family(root: int) -> list[int]:
    """A process and all its descendants."""
    return _tree(root, _stats())


def cpu_s(root: int) -> float:
    """CPU-seconds of a process, its descendants, and those of them that have ended and were waited for."""
    stats = _stats()
    # utime, stime, cutime, cstime; the c is for children that were waited for.
    return sum(sum(map(int, stats[pid][11:15])) for pid in _tree(root, stats)) / _TICKS_PER_S


def machine_cpu_s() -> float:
    """CPU-seconds that all cores of the machine were busy since it started."""
    user, nice, system, _idle, _iowait, irq, softirq = map(int, Path("/proc/stat").read_text().split()[1:8])
    return (user + nice + system + irq + softirq) / _TICKS_PER_S


@contextmanager
def watch_memory(root: int, *, period_s: float = 0.5) -> Iterator[list[float]]:
    """Samples of the tree's resident memory in MB, taken in the background."""
    samples: list[float] = []
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(period_s):
            samples.append(resident_mb(root))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        stop.set()
        thread.join()


def resident_mb(root: int) -> float:
    """Pss: a page that processes share, as Ray's object store, is divided among them, so that it counts once."""
    total_kb = 0
    for pid in family(root):
        rollup = _read(Path(f"/proc/{pid}/smaps_rollup"))
        total_kb += sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
    return total_kb / 1000


def _tree(root: int, stats: dict[int, list[str]]) -> list[int]:
    children: dict[int, list[int]] = {}
    for pid, fields in stats.items():
        children.setdefault(int(fields[1]), []).append(pid)
    tree = [root] if root in stats else []
    for pid in tree:  # grows as it goes
        tree += children.get(pid, [])
    return tree


def _stats() -> dict[int, list[str]]:
    """The fields of /proc/<pid>/stat from the state on, of every process; the name before may hold spaces."""
    texts = ((int(path.name), _read(path / "stat")) for path in Path("/proc").iterdir() if path.name.isdigit())
    return {pid: text.rpartition(")")[2].split() for pid, text in texts if text}


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (FileNotFoundError, ProcessLookupError, PermissionError):  # it ended, or is not ours
        return ""
