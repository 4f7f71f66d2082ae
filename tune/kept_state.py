"""Tune's state of a search, kept whole: Tune writes it in place, so that a full disk or a kill may leave half of it."""

import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Final

_COPY: Final = "whole"  # folder within Tune's own


def keep_state(folder: Path) -> None:
    """Copy the state in Tune's folder, if it is whole and there is room."""
    files = _files(folder)
    if not files or not all(map(_is_whole, files)):
        return
    partial, copy = folder / f".{_COPY}", folder / _COPY
    shutil.rmtree(partial, ignore_errors=True)
    with suppress(OSError):
        partial.mkdir()
        for path in files:
            shutil.copy2(path, partial)
        shutil.rmtree(copy, ignore_errors=True)
        partial.rename(copy)


def mend_state(folder: Path) -> None:
    """Put the copy in the place of a state that is not whole. What it does not know yet, the record does."""
    files, copy = _files(folder), folder / _COPY
    if not copy.exists() or all(map(_is_whole, files)):
        return
    for path in files:
        path.unlink()
    for path in copy.iterdir():
        shutil.copy2(path, folder)


def _files(folder: Path) -> list[Path]:
    return [*folder.glob("*.json"), *folder.glob("*.pkl")]


def _is_whole(path: Path) -> bool:
    content = path.read_bytes()
    if not path.name.startswith("experiment_state"):
        return content.endswith(b".")  # a pickle, which is not to be loaded before it is known to be whole
    try:
        json.loads(content)
    except ValueError:
        return False
    return True
