"""A search on a cluster of a head and two nodes, which a fault hits; how it goes on, and what that costs."""

import json
import random
import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from benchmarks.parts.chaos_cluster import RayCluster, running_cluster, title_of
from benchmarks.parts.chaos_compare import Outcome, differences, lost_ids, read_outcome
from benchmarks.parts.chaos_row import ChaosSetup, FaultRow
from benchmarks.parts.chaos_search import MARKER, OF_RAY, Running, looking_into, marked_processes, soon
from data.progress import say
from data.synthetic import SyntheticConfig, write_bucket
from train.state import PARTIAL
from tune.record import TRIALS_FILE, read_records

NODES: Final = ("a", "b")
NEW_NODE: Final = "c"
NUM_BINS: Final = 900  # an epoch of some seconds
LIMIT_S: Final = 600.0  # of a search, which takes one to two minutes
_GONE_S: Final = 90.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Moment:
    """When a fault comes."""

    trial: int
    epoch: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Strike:
    """A fault that was done."""

    did: str
    """In words."""
    at: float
    """By `time.monotonic()`."""
    before: frozenset[str]
    """The progress that does not count as going on."""


class Target:
    """A search on a cluster, as the fault that is to hit it sees it."""

    def __init__(self, setup: ChaosSetup, stack: ExitStack, bucket: tuple[str, ...] = ()) -> None:
        """Start both.

        Args:
            setup: of the fault.
            stack: ends both.
            bucket: flags that name its bucket; without, it is read from disk.
        """
        self.run_dir = setup.work_dir / "run"
        self.random = random.Random(f"{setup.seed} {setup.work_dir.name}")  # noqa: S311  # no secrets
        self.moment = self.random.choice(moments(setup))
        self._setup, self._stack = setup, stack
        self.markers: list[str] = []
        self._headless: list[str] = []
        self._start("search", *search_flags(setup), *(bucket or ("--source", f"file://{bucket_of(setup)}")))

    def resume_elsewhere(self) -> None:
        """Go on with the search on another cluster; of the old one nothing may be left by the end."""
        self._headless.append(self.markers[-1])
        self._start("resumed", "--resume")

    def resume_here(self) -> None:
        """Go on with the search on the same cluster."""
        self._search("resumed", "--resume")

    def _start(self, name: str, *flags: object) -> None:
        folder = self._setup.work_dir
        cluster = running_cluster(NODES, folder / f"{name}-cluster.log", {MARKER: str(folder / name)})
        self.cluster: RayCluster = self._stack.enter_context(cluster)
        self._search(name, *flags)

    def _search(self, name: str, *flags: object) -> None:
        marker = str(self._setup.work_dir / name)
        self.markers.append(marker)
        self.search = Running(marker, "--run-dir", self.run_dir, *flags, more=self.cluster.environment)
        self._stack.callback(self.search.stop)

    def wait_for_mid_epoch(self) -> None:
        """Return at the moment of the fault: behind the first checkpoint within its epoch."""
        folder, epoch = f"train-*_{self.moment.trial:05d}", self.moment.epoch
        self.search.wait_until(
            lambda: any(one == epoch for one in partial_epochs(self.run_dir, folder).values()),
            f"trial {self.moment.trial} has not come to the middle of epoch {epoch}",
            limit_s=LIMIT_S,
        )

    def progress(self) -> frozenset[str]:
        """Names of all that says that the search goes on: epochs, and checkpoints within epochs."""
        return frozenset([*map(str, epochs_of(self.run_dir)), *partial_epochs(self.run_dir)])

    @property
    def when(self) -> str:
        """The moment of a fault in mid-epoch, in words."""
        return f"epoch {self.moment.epoch} of trial {self.moment.trial}"

    def workers(self) -> list[int]:
        """Process ids of the training workers."""
        return sorted(self.cluster.workers("RayTrainWorker"))

    def driver(self) -> int:
        """Process id of the Tune actor that drives the trial; the name of its folder holds the trial's id."""
        pids = self.cluster.workers("ImplicitFunc")
        return next(pid for pid in pids if f"_{self.moment.trial:05d}_" in str(Path(f"/proc/{pid}/cwd").readlink()))

    def struck(self, did: str, at: float, workers: list[int]) -> Strike:
        """What was done, once the workers of then are gone."""
        say(f"  {did}")
        give_up_at_s = time.monotonic() + _GONE_S
        while any(map(title_of, workers)) and time.monotonic() < give_up_at_s:
            time.sleep(0.05)
        return Strike(did=did, at=at, before=self.progress())

    def left_in_cluster(self) -> list[str]:
        """Placement groups and actors that have not gone some time after the search, and nodes without a head."""
        left = soon(lambda: [one for marker in self._headless for one in marked_processes(marker) if is_of_ray(one)])
        with looking_into(self.cluster.environment) as look:
            return left + soon(lambda: [what for what in look().values() if what not in OF_RAY])


def is_of_ray(command: str) -> bool:
    """Whether a process is a node or a worker, and not what started them."""
    return command.startswith("ray::") or "/raylet " in command


def moments(setup: ChaosSetup) -> list[Moment]:
    """When a fault may come: in any epoch but the first of trial 0, which no other stops, or the first of another."""
    num_trials, num_epochs = size_of(setup)
    later = [Moment(trial=0, epoch=epoch) for epoch in range(2, num_epochs + 1)]
    return later + [Moment(trial=trial, epoch=1) for trial in range(1, num_trials)]


def size_of(setup: ChaosSetup) -> tuple[int, int]:
    """Trials of the search, and epochs of the longest."""
    return (2, 2) if setup.quick else (3, 4)


def search_flags(setup: ChaosSetup) -> tuple[str, ...]:
    """The search, but for its bucket. Two workers per trial let one trial run at a time, so that ASHA decides alike."""
    num_trials, num_epochs = size_of(setup)
    shape = ("--num-trials", f"{num_trials}", "--max-epochs", f"{num_epochs}", "--seed", f"{setup.seed}")
    cost = ("--recipe", "smoke", "--num-workers", "2", "--batch-sizes", "4", "--no-final", "--checkpoint-s", "1")
    return (*shape, *cost, "--lr", "0.0002", "0.002")


def bucket_of(setup: ChaosSetup) -> Path:
    """The drawn bucket that all faults of a run share."""
    folder = setup.work_dir.parent / "bucket"
    if not folder.exists():
        write_bucket(SyntheticConfig(num_bins=NUM_BINS, out=str(folder), counts="uniform", difficulty=0, num_workers=2))
    return folder


def undisturbed(setup: ChaosSetup) -> Outcome:
    """What the search of a run comes to without a fault; searched once."""
    folder = setup.work_dir.parent / f"undisturbed-{setup.seed}{'-quick' if setup.quick else ''}"
    if not (folder / "run/results.json").exists():
        say("the same search without a fault")
        shutil.rmtree(folder, ignore_errors=True)  # of one that did not come to its end
        folder.mkdir()
        with ExitStack() as stack:
            calm = ChaosSetup(seed=setup.seed, work_dir=folder, quick=setup.quick)
            Target(calm, stack).search.ends(0, limit_s=LIMIT_S)
    return read_outcome(folder / "run")


def run_fault(setup: ChaosSetup, strike: Callable[[Target], Strike], bucket: tuple[str, ...] = ()) -> FaultRow:
    """A search that is struck, compared with one that is not.

    Args:
        setup: of the fault.
        strike: does it, some time after the search has begun.
        bucket: flags that name its bucket; without, it is read from disk.

    Raises:
        RunError: the search did not come to its end.
    """
    expected = undisturbed(setup)
    with ExitStack() as stack:
        target = Target(setup, stack, bucket)
        done = strike(target)
        target.search.wait_until(lambda: bool(target.progress() - done.before), "it does not go on", limit_s=LIMIT_S)
        outage_s = time.monotonic() - done.at
        say(f"  goes on after {outage_s:.0f} s")
        target.search.ends(0, limit_s=LIMIT_S)
        left = target.left_in_cluster()
    for marker in target.markers:
        left += soon(partial(marked_processes, marker))
    return judge(setup.work_dir.name, done.did, expected, read_outcome(target.run_dir), left, outage_s)


def judge(name: str, did: str, expected: Outcome, got: Outcome, left: list[str], outage_s: float) -> FaultRow:
    """The row of a fault after which the search came to its end.

    Args:
        name: of the fault.
        did: what was done, in words.
        expected: of the search without it.
        got: of the search with it.
        left: what the search left running.
        outage_s: until it went on.
    """
    wrong = differences(expected, got) + [f"left running: {what}" for what in left]
    if got.num_repeated > 1:
        wrong.append(f"{got.num_repeated} epochs were repeated")
    same = f"same best trial, {len(got.points)} trials and {len(got.epochs)} epochs, to the last figure; nothing left"
    return FaultRow(
        name=name,
        recovered=not wrong,
        lost=lost_ids(expected, got),
        repeated_epochs=got.num_repeated,
        outage_s=round(outage_s, 1),
        told=f"{did}: {'; '.join(wrong) or same}",
    )


def epochs_of(run_dir: Path) -> list[tuple[int, int]]:
    """Number of the trial and of the epoch of all that were reported."""
    return [(int(one.trial_id.rpartition("_")[2]), one.epoch) for one in read_records(run_dir / TRIALS_FILE)]


def partial_epochs(run_dir: Path, trial: str = "*") -> dict[str, int]:
    """The epoch of each checkpoint that was stored within one, by its name."""
    found: dict[str, int] = {}
    for path in run_dir.glob(f"trials/{trial}/checkpoint_*/metrics.json"):
        with suppress(OSError, ValueError):  # it is being written, or deleted
            metrics = json.loads(path.read_text())
            if metrics.get(PARTIAL):
                found[path.parent.name] = metrics["epoch"]
    return found
