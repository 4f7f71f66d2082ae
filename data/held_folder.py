"""A folder that one command at a time fills with files, each whole or not at all, so that a stopped run goes on."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from bintally.errors import ConfigError

BEGUN_FILE: Final = "begun.json"  # what the files of the folder depend on


@contextmanager
def held(folder: Path, *, flag: str) -> Iterator[None]:
    """Hold the folder alone. The lock goes with the process, however that ends; its file is left behind only by a kill.

    Args:
        folder: made if it is not there.
        flag: what errors tell to change.

    Raises:
        ConfigError: somebody else holds it, or nothing can be written.
    """
    lock_path = folder / "lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = lock_path.open("w")
    except OSError as error:
        raise ConfigError(f"{flag} cannot be written: {error}") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(f"{flag}: {folder} is being written by another command: {error}") from None
        if os.fstat(file.fileno()).st_nlink == 0:
            raise ConfigError(f"{flag}: {folder} was being written by another command, which just finished")
        try:
            yield
        finally:
            lock_path.unlink(missing_ok=True)  # while it is held: who has opened it meanwhile finds it deleted


@contextmanager
def replacing(path: Path, *, flag: str) -> Iterator[Path]:
    """A file that takes the place of another as soon as it is whole and on the disk.

    Raises:
        ConfigError: it cannot be written, as when the disk is full.
    """
    partial = path.with_name(f"{path.name}.tmp")
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise ConfigError(f"{flag} cannot be written: {error}") from None


def clear_leftovers(folder: Path) -> None:
    """Delete what a kill left half written."""
    for leftover in folder.glob("*.tmp"):
        leftover.unlink()


def note_begun(folder: Path, of: dict[str, Any]) -> None:
    """Write down what the files depend on, JSON-ready."""
    (folder / BEGUN_FILE).write_text(json.dumps(of, indent=2) + "\n")


def check_begun(folder: Path, of: dict[str, Any], *, flag: str) -> None:
    """Refuse to go on with files of something else.

    Raises:
        ConfigError: names what differs.
    """
    begun = json.loads((folder / BEGUN_FILE).read_text())
    changed = [f"{name} {begun.get(name)!r}, not {value!r}" for name, value in of.items() if begun.get(name) != value]
    if changed:
        raise ConfigError(f"{folder} was begun with {'; '.join(changed)}: delete it, or choose another {flag}")
