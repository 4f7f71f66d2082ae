"""The folder of a run, which may lie in S3: worked on in a folder of this machine, and copied as it grows.

Workers write their checkpoints straight into S3 (`train.storage`). All else is small and written by the driver, or by
what drives trials beside it, in a working folder. What changes there is copied within seconds, by a thread that nobody
waits for, so that a slow bucket slows down nothing, and whole before the command ends. The working folder is deleted
then; after a kill it is still there, and goes on being what is right on its machine, unless another machine has gone on
with the copy meanwhile. Decision 0009 has the reasons.
"""

import hashlib
import json
import os
import re
import shutil
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bintally.errors import ConfigError, RunError
from data.args import is_remote, new_run_dir
from data.held_folder import held
from data.progress import say

if TYPE_CHECKING:
    from data.s3_folder import S3Folder, Signature

MARKER: Final = "bintally-run.json"  # says of which working folder a copy is
STATE: Final = "tune"  # the folders in which Tune keeps its own state
_LOOK_S: Final = 1.0  # what a lost machine costs of the record, beside the epochs that are under way
_QUIET_S: Final = 0.5  # after the last change of Tune's state, which is many files
_AGAIN_S: Final = 15.0
_LAST_S: Final = 120.0  # how long the end of a command waits for a bucket that does not answer


@dataclass(frozen=True, kw_only=True, slots=True)
class RunPlace:
    """Where a run is."""

    folder: Path
    """Where the driver reads and writes; absolute."""
    place: str
    """Where users and workers find it: the same folder, or s3://bucket/prefix."""


@contextmanager
def open_run(run_dir: str | None, verb: str, *, must_exist: bool = False) -> Iterator[RunPlace]:
    """Make the folder of a run, or go on with it; of one in S3, meanwhile, a working folder that is copied there.

    Args:
        run_dir: a folder, s3://bucket/prefix, or None for a new folder under runs/.
        verb: for the name of a new one.
        must_exist: refuse a place in S3 that holds no run.

    Raises:
        ConfigError: it is no such place, cannot be read or written, or another command is at work there.
        RunError: at the end, what is new could not be copied.
    """
    if run_dir is None or not is_remote(run_dir, "run_dir"):
        folder = new_run_dir(None if run_dir is None else Path(run_dir), verb)
        with held(folder, flag="run_dir"):
            yield RunPlace(folder=folder, place=str(folder))
        return
    from data.s3_folder import S3Folder  # heavy, and only for this

    remote = S3Folder.open(run_dir, "run_dir")
    remote.check_writable()
    home = _home_of(remote.uri)
    with held(home, flag="run_dir"):
        mirror = _bring(remote, home, must_exist=must_exist)
        say(f"{remote.uri} is worked on in {mirror.folder}")
        try:
            with mirror.running():
                yield RunPlace(folder=mirror.folder, place=remote.uri)
        finally:
            if mirror.is_whole:
                (home / MARKER).unlink()  # first: what is half deleted is nobody's newest
                shutil.rmtree(mirror.folder, ignore_errors=True)


def _home_of(uri: str) -> Path:
    """Where the working folder of a run lies: the same for all commands of a user, and on all machines alike."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", uri.rpartition("/")[2])[:40]
    return cache / "bintally" / "runs" / f"{name}-{hashlib.sha256(uri.encode()).hexdigest()[:12]}"


def _bring(remote: "S3Folder", home: Path, *, must_exist: bool) -> "Mirror":
    """The working folder of a run, as it was left on this machine or else as S3 has it."""
    folder, marker = home / "run", home / MARKER
    theirs = remote.read(MARKER)
    if theirs is None and must_exist:
        raise ConfigError(f"run_dir {remote.uri} holds no run to go on with")
    ours = marker.read_bytes() if folder.exists() and marker.exists() else None
    if ours is not None and ours == theirs:
        # All is written again: it may be newer here.
        known: dict[str, Signature | None] = {name: None for name in remote.names() if name != MARKER}
        return Mirror(folder, remote, ours, known)
    if folder.exists():
        shutil.rmtree(home / "superseded", ignore_errors=True)
        folder.rename(home / "superseded")
        say(f"an older working folder, which {remote.uri} does not go on with, is kept as {home / 'superseded'}")
    folder.mkdir()
    known = {}
    if theirs is not None:
        known = {**remote.fetch(folder)}
        known.pop(MARKER, None)
        (folder / MARKER).unlink(missing_ok=True)
        _check_place(folder, known, json.loads(theirs))
    ours = json.dumps({"working_folder": str(folder), "id": uuid.uuid4().hex}).encode()
    marker.write_bytes(ours)
    return Mirror(folder, remote, ours, known)


def _check_place(folder: Path, known: "dict[str, Signature | None]", marker: dict[str, str]) -> None:
    """Refuse a search that Tune could not go on with: its state names files by where they were."""
    if any(map(_is_state, known)) and marker["working_folder"] != str(folder):
        raise ConfigError(
            f"run_dir: this search was worked on in {marker['working_folder']}, and can go on there alone, not in"
            f" {folder}: set XDG_CACHE_HOME, or HOME, as it was"
        )


class Mirror:
    """Copies what changes in a folder to S3, so that what lies there can be gone on with at any moment.

    Files are copied in the order in which they were written, and Tune's state after all others, but as it was before
    these were read: it never knows of a trial's end that the record lacks.
    """

    def __init__(
        self,
        folder: Path,
        remote: "S3Folder",
        marker: bytes,
        known: "dict[str, Signature | None]",
        *,
        last_s: float = _LAST_S,
    ) -> None:
        """For one folder; nothing is copied before `running`.

        Args:
            folder: to copy.
            remote: where to.
            marker: says whose copy it is; written before anything else.
            known: what lies there, by name; with what it was in the folder, unless it is to be copied again.
            last_s: how long the end waits for a bucket that does not take the rest.
        """
        self.folder, self._remote, self._marker, self._known = folder, remote, marker, known
        self.is_whole = False  # at the end: nothing is left to be copied
        self._marked = False
        self._last_s = last_s
        self._ended = threading.Event()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Copy meanwhile, in a thread, and the rest at the end.

        Raises:
            RunError: the rest could not be copied, and nothing else went wrong.
        """
        thread = threading.Thread(target=self._follow, daemon=True, name="mirror")
        thread.start()
        try:
            yield
        except BaseException:
            try:
                self._finish(thread)
            except RunError as error:
                say(str(error))
            raise
        self._finish(thread)

    def sync(self, *, last: bool = False) -> None:
        """Copy what is new; of Tune's state nothing while it is being written, unless this is the last time.

        Raises:
            ConfigError: the bucket does not take it; the next call goes on.
        """
        state = self._changed_state(last=last)
        content = {name: (self.folder / name).read_bytes() for name in state}
        found = {name: one for name, one in self._files().items() if not _is_state(name)}  # only now: see above
        changed = [name for name, one in found.items() if self._known.get(name) != one]
        gone = [name for name in self._known if not _is_state(name) and name not in found]
        if not self._marked and (content or changed or gone):
            self._remote.put(MARKER, self._marker)
            self._marked = True
        for name in changed:
            self._remote.put(name, self.folder / name)
            self._known[name] = found[name]
        self._remote.delete(gone)
        for name in gone:
            del self._known[name]
        for name, body in content.items():
            self._remote.put(name, body)
            self._known[name] = state[name]

    def _changed_state(self, *, last: bool) -> "dict[str, Signature]":
        found = {name: one for name, one in self._files().items() if _is_state(name) and self._known.get(name) != one}
        newest_ns = max((changed_ns for changed_ns, _ in found.values()), default=0)
        is_quiet = time.time_ns() - newest_ns > _QUIET_S * 1e9
        return found if last or is_quiet else {}

    def _files(self) -> "dict[str, Signature]":
        from data.s3_folder import files_in

        return files_in(self.folder)

    def _follow(self) -> None:
        """Copy until the end; what goes wrong is told once, and tried again."""
        wait_s = _LOOK_S
        while not self._ended.wait(wait_s):
            try:
                self.sync()
            except (ConfigError, OSError) as error:
                if wait_s != _AGAIN_S:
                    say(f"{error}; the run goes on, and what is new is copied later")
                wait_s = _AGAIN_S
            else:
                if wait_s == _AGAIN_S:
                    say(f"{self._remote.uri} is up to date again")
                wait_s = _LOOK_S

    def _finish(self, thread: threading.Thread) -> None:
        self._ended.set()
        thread.join()
        give_up_s = time.monotonic() + self._last_s
        while not self.is_whole:
            try:
                self.sync(last=True)
                self.is_whole = True
            except (ConfigError, OSError) as error:
                if time.monotonic() > give_up_s:
                    raise RunError(
                        f"the newest of the run could not be copied ({error}); it lies in {self.folder}, and the same"
                        f" command with --run-dir {self._remote.uri} copies it"
                    ) from None
                time.sleep(_LOOK_S)


def _is_state(name: str) -> bool:
    return STATE in name.split("/")[:-1]
