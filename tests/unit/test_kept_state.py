"""Tune's state as a full disk or a kill leaves it: the copy is whole, and takes its place."""

import json
import pickle
from pathlib import Path

import pytest

from tune.kept_state import keep_state, mend_state

STATE, SEARCHER = "experiment_state-2026.json", "basic-variant-state-2026.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / STATE).write_text(json.dumps({"trials": [1, 2, 3]}))
    (tmp_path / SEARCHER).write_bytes(pickle.dumps({"points": [1, 2, 3]}))
    (tmp_path / "trial").mkdir()
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


@pytest.mark.parametrize("name", [STATE, SEARCHER])
def test_a_state_that_was_cut_off_is_replaced_by_the_copy(name: str, folder: Path) -> None:
    keep_state(folder)
    whole = contents(folder)
    cut(folder / name)
    keep_state(folder)  # keeps no half
    mend_state(folder)
    assert contents(folder) == whole


def test_a_state_that_is_whole_stays_newer_than_the_copy(folder: Path) -> None:
    keep_state(folder)
    (folder / STATE).write_text(json.dumps({"trials": [4]}))
    mend_state(folder)
    assert json.loads((folder / STATE).read_text()) == {"trials": [4]}


def test_half_a_state_of_a_resumed_session_does_not_hide_the_copy(folder: Path) -> None:
    keep_state(folder)
    whole = contents(folder)
    (folder / "experiment_state-2027.json").write_text('{"trials": [')
    mend_state(folder)
    assert contents(folder) == whole


def test_without_a_state_or_a_copy_nothing_happens(tmp_path: Path) -> None:
    keep_state(tmp_path)
    mend_state(tmp_path / "absent")
    (tmp_path / STATE).write_text("{")
    mend_state(tmp_path)
    assert contents(tmp_path) == {STATE: b"{"}
