"""A search in a process of its own: watched through its run folder and its log, and what it leaves behind."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from bintally.errors import RunError

ROOT: Final = Path(__file__).resolve().parents[2]
REMOVAL_S: Final = 90.0  # Ray's two agents try for a minute to tell of the end of their Ray
MARKER: Final = "STARTED_BY"
OF_RAY: Final = {"_AutoscalingCoordinatorActor", "_StatsActor", "_UsageCollectionActor"}
"""Ray Data has one of each in a cluster, which stay."""
_LOOK: Final = """
import json, sys, ray
from ray.util.placement_group import placement_group_table
from ray.util.state import list_actors
from ray.util.state.exception import RayStateApiException

ray.init(log_to_driver=False)
for _ in sys.stdin:
    groups = {key: "group " + one["state"] for key, one in placement_group_table().items() if one["state"] != "REMOVED"}
    try:
        actors = list_actors(filters=[("state", "!=", "DEAD")], limit=1_000, raise_on_missing_output=False)
        groups |= {one.actor_id: one.class_name for one in actors}
    except RayStateApiException as error:  # of a busy dashboard
        groups[""] = "no answer: " + str(error)
    print(json.dumps(groups), flush=True)
"""


class Running:
    """A search in a process of its own, whose children can be told by a variable that they inherit."""

    def __init__(self, marker: str, *flags: object, more: Mapping[str, str] | None = None) -> None:
        """Start it.

        Args:
            marker: value of that variable, which nothing else has; its output goes to a log of this name.
            flags: of the command.
            more: variables beside ours.
        """
        self.marker = marker
        self._log_path = Path(f"{marker}.log")
        with self._log_path.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(ROOT / "tune/search.py"), *map(str, flags)],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(more or {}), MARKER: marker},
            )

    @property
    def output(self) -> str:
        """All that it printed."""
        return self._log_path.read_text()

    def _last_words(self) -> str:
        return f"{self._log_path.name} ends with {(self.output.strip().splitlines() or [''])[-1]!r}"

    def wait_for(self, *words: str) -> None:
        """Return once it has printed one of these words."""
        self.wait_until(lambda: any(word in self.output for word in words), f"it has not said {' or '.join(words)}")

    def wait_until(self, look: Callable[[], bool], lacking: str, *, limit_s: float = 300.0) -> None:
        """Return once something is so.

        Args:
            look: whether it is.
            lacking: what to say if it never is.
            limit_s: how long to wait.

        Raises:
            RunError: the search ended before, or the time is over.
        """
        give_up_at_s = time.monotonic() + limit_s
        while not look():
            if self.process.poll() is not None and not look():
                raise RunError(f"{lacking}, and the search ended with {self.process.returncode}; {self._last_words()}")
            if time.monotonic() > give_up_at_s:
                raise RunError(f"{lacking} after {limit_s:.0f} s; {self._last_words()}")
            time.sleep(0.02)

    def ends(self, code: int, *, limit_s: float = 300.0) -> str:
        """All that it printed.

        Args:
            code: with which it must end.
            limit_s: how long to wait for that.

        Raises:
            RunError: it ended otherwise, or not at all.
        """
        try:
            ended = self.process.wait(timeout=limit_s)
        except subprocess.TimeoutExpired:
            raise RunError(f"the search has not ended after {limit_s:.0f} s; {self._last_words()}") from None
        if ended != code:
            raise RunError(f"the search ended with {ended}, not {code}; {self._last_words()}")
        return self.output

    def stop(self) -> None:
        """End it, if it still runs."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def left(self) -> list[str]:
        """Commands of the processes that it started and that still run, Ray's daemons included."""
        return marked_processes(self.marker)


def marked_processes(marker: str) -> list[str]:
    """Commands of the running processes that have a marker in their environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"{MARKER}={marker}\0".encode() in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode()[:200])
        except OSError:
            continue
    return found


def soon(find: Callable[[], list[str]]) -> list[str]:
    """What is still found after the time that Ray may take to remove it."""
    give_up_at_s = time.monotonic() + REMOVAL_S
    while (found := find()) and time.monotonic() < give_up_at_s:
        time.sleep(0.5)
    return found


@contextmanager
def looking_into(cluster: Mapping[str, str]) -> Iterator[Callable[[], dict[str, str]]]:
    """A function that says what each placement group and actor of a cluster is, by id.

    Asked by a process of its own: in ours Ray may have settled on no authentication already.

    Args:
        cluster: variables by which a command joins it.
    """
    looking = subprocess.Popen(
        [sys.executable, "-c", _LOOK],
        env=os.environ | cluster,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert looking.stdin is not None
    assert looking.stdout is not None
    asked, answers = looking.stdin, looking.stdout

    def look() -> dict[str, Any]:
        print(file=asked, flush=True)
        answer = next(line for line in answers if line.startswith("{"))  # Ray prints its warnings there, too
        found: dict[str, str] = json.loads(answer)
        return found

    try:
        yield look
    finally:
        looking.communicate(timeout=60)
