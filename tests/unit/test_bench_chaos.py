"""The arithmetic and the report of benchmarks/chaos.py, and the outage of the benchmarks' S3 server."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from benchmarks.chaos import ChaosArgs, choose_faults, do_faults, tell
from benchmarks.parts.chaos_compare import Outcome, count_repeated, differences, lost_ids, read_outcome
from benchmarks.parts.chaos_report import format_rows, render_page
from benchmarks.parts.chaos_row import ChaosSetup, FaultRow, NotHereError
from benchmarks.parts.chaos_target import judge, moments, partial_epochs
from benchmarks.s3_server import s3_server
from bintally.errors import ConfigError, RunError
from tune.record import EVENTS_FILE, TRIALS_FILE, EpochRecord, TrialEvent, What, append_record
from tune.space import Point

ROOT = Path(__file__).resolve().parents[2]
FIGURES = {"train_loss": 1.5, "val_nll": 1.25, "val_num_images": 132.0}
CALM = Outcome(
    best=(1, 2),
    points={0: {"optim.lr": 0.001}, 1: {"optim.lr": 0.002}},
    states={0: "stopped early", 1: "ended"},
    epochs={(0, 1): FIGURES, (1, 1): FIGURES, (1, 2): FIGURES},
    num_train=576,
    num_dropped=3,
    num_repeated=0,
)


def changed(**figures: float) -> Outcome:
    """The same, but for figures of the last epoch."""
    return replace(CALM, epochs={**CALM.epochs, (1, 2): FIGURES | figures})


def note(run_dir: Path, what: What, trial: int) -> None:
    append_record(
        run_dir / EVENTS_FILE, TrialEvent(what=what, at=1.0, trial_id=f"ab_{trial:05d}", point={"optim.lr": trial})
    )


def add_epoch(run_dir: Path, trial: int, epoch: int) -> None:
    record = EpochRecord(
        trial_id=f"ab_{trial:05d}",
        point={"optim.lr": trial},
        epoch=epoch,
        checkpoint_path="x",
        metrics=FIGURES | {"epoch_s": 2.0},
        ended=2.0,
    )
    append_record(run_dir / TRIALS_FILE, record)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """Of a search of two trials, the second of which reported its first epoch twice."""
    for trial, epochs in ((0, (1,)), (1, (1, 1, 2))):
        note(tmp_path, "started", trial)
        for epoch in epochs:
            add_epoch(tmp_path, trial, epoch)
        note(tmp_path, "stopped" if trial == 0 else "ended", trial)
    (tmp_path / "results.json").write_text(json.dumps({"best": {"trial_id": "ab_00001", "epoch": 2}}))
    (tmp_path / "drops.json").write_text(json.dumps({"missing_image": 2, "count_above_max": 1}))
    folder = tmp_path / "trials/train-ab_00000"
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text(json.dumps({"epoch": 1, "images_per_s": 96.0, "train_s": 6.0}) + "\n")
    return tmp_path


def test_an_outcome_is_read_from_the_record(run_dir: Path) -> None:
    points: dict[int, Point] = {0: {"optim.lr": 0}, 1: {"optim.lr": 1}}
    assert read_outcome(run_dir) == replace(CALM, points=points, num_repeated=1)


def test_each_epoch_that_is_there_again_counts_once(run_dir: Path) -> None:
    add_epoch(run_dir, 1, 1)
    add_epoch(run_dir, 0, 1)
    with (run_dir / TRIALS_FILE).open("a") as file:
        file.write('{"trial_id": "ab_00001", "epo')  # a kill
    assert count_repeated(run_dir / TRIALS_FILE) == 2


def test_the_same_outcome_lost_nothing() -> None:
    later = replace(changed(train_loss=1.5 * (1 + 1e-9)), num_repeated=1)
    assert (differences(CALM, later), lost_ids(CALM, later)) == ([], 0)


@pytest.mark.parametrize(
    ("got", "lost", "says"),
    [
        (changed(val_num_images=130.0), 2, "val_num_images of epoch 2 of trial 1 is 130, not 132"),
        (changed(train_loss=1.5001), 576, "train_loss of epoch 2 of trial 1 is 1.5001, not 1.5"),
        (changed(val_nll=1.26), 0, "val_nll of epoch 2 of trial 1 is 1.26, not 1.25"),
        (replace(CALM, epochs={(0, 1): FIGURES, (1, 1): FIGURES}), 708, "epochs [(1, 2)] are missing"),
        (replace(CALM, epochs={**CALM.epochs, (0, 2): FIGURES}), 0, "epochs [(0, 2)] are more"),
        (replace(CALM, best=(0, 1)), 0, "best is epoch 1 of trial 0, not 2 of 1"),
        (replace(CALM, states={0: "ended", 1: "failed"}), 0, "trials ended"),
        (replace(CALM, points={0: {"optim.lr": 0.001}}), 0, "other points"),
    ],
)
def test_what_a_fault_changed_is_told_and_counted(got: Outcome, lost: int, says: str) -> None:
    told = "; ".join(differences(CALM, got))
    assert says in told
    assert lost_ids(CALM, got) == lost
    row = judge("head", "killed", CALM, got, [], 12.34)
    assert (row.recovered, row.lost, row.outage_s) == (False, lost, 12.3)
    assert says in row.told


def test_more_drops_are_lost_ids() -> None:
    assert lost_ids(CALM, replace(CALM, num_dropped=7)) == 4


@pytest.mark.parametrize(("repeated", "left", "recovered"), [(1, [], True), (2, [], False), (0, ["ray::x"], False)])
def test_one_epoch_may_be_repeated_and_nothing_be_left(repeated: int, left: list[str], recovered: bool) -> None:
    row = judge("head", "killed", CALM, replace(CALM, num_repeated=repeated), left, 1.0)
    assert (row.recovered, row.repeated_epochs) == (recovered, repeated)
    assert all(what in row.told for what in left)


def test_faults_come_where_no_trial_has_ended() -> None:
    setup = ChaosSetup(seed=0, work_dir=Path(), quick=False)
    assert {(one.trial, one.epoch) for one in moments(setup)} == {(0, 2), (0, 3), (0, 4), (1, 1), (2, 1)}


def test_checkpoints_within_an_epoch_are_told_from_those_at_its_end(tmp_path: Path) -> None:
    for name, content in (("c1", '{"epoch": 1}'), ("c2", '{"epoch": 2, "partial": true}'), ("c3", '{"epoch": 2, "par')):
        folder = tmp_path / f"trials/train-ab_00000/checkpoint_{name}"
        folder.mkdir(parents=True)
        (folder / "metrics.json").write_text(content)
    assert partial_epochs(tmp_path, "train-*_00000") == {"checkpoint_c2": 2}
    assert partial_epochs(tmp_path, "train-*_00001") == {}


def survive(setup: ChaosSetup) -> FaultRow:
    assert setup.work_dir.is_dir()
    return FaultRow(
        name=setup.work_dir.name, recovered=True, lost=0, repeated_epochs=1, outage_s=9.6, told=f"seed {setup.seed}"
    )


def perish(setup: ChaosSetup) -> FaultRow:
    return replace(survive(setup), recovered=False, lost=4, repeated_epochs=None, outage_s=None, told="<gone>")


def fail(setup: ChaosSetup) -> FaultRow:
    raise RunError("the search ended with 2, not 0:\nerror: full")


def break_down(setup: ChaosSetup) -> FaultRow:
    return next(iter(()))  # as where a process is looked for that has ended


def skip(setup: ChaosSetup) -> FaultRow:
    raise NotHereError("needs root")


def stop(setup: ChaosSetup) -> FaultRow:
    raise KeyboardInterrupt


def test_each_fault_becomes_a_row_and_the_report_stays_when_it_is_stopped(tmp_path: Path) -> None:
    faults: dict[str, Callable[[ChaosSetup], FaultRow]] = {
        "a": survive,
        "b": perish,
        "c": fail,
        "d": skip,
        "e": break_down,
        "f": stop,
    }
    args = ChaosArgs(seed=3, json=tmp_path / "figures.json")
    with pytest.raises(KeyboardInterrupt):
        do_faults(faults, args, tmp_path)
    results = json.loads((tmp_path / "figures.json").read_text())
    assert results == json.loads((tmp_path / "chaos.json").read_text())
    rows = results["rows"]
    assert list(rows) == ["a", "b", "c", "d", "e"]
    setup = ChaosSetup(seed=3, work_dir=tmp_path / "a", quick=False)
    assert asdict(survive(setup)).items() <= rows["a"].items()
    assert rows["c"]["failed"] == "the search ended with 2, not 0: error: full"
    assert "&lt;gone&gt;" in (tmp_path / "report.html").read_text()
    assert rows["e"]["failed"].startswith("StopIteration")
    assert "break_down" in (tmp_path / "e/traceback.txt").read_text()
    assert "1 of 4" in render_page(rows, results)
    assert format_rows(rows).splitlines()[2:] == [
        "| a | yes | 0 | 1 | 10 | seed 3 |",
        "| b | no | 4 | - | - | <gone> |",
        "| c | no | - | - | - | failed: the search ended with 2, not 0: error: full |",
        "| d | - | - | - | - | skipped: needs root |",
        "| e | no | - | - | - | failed: StopIteration:  |",
    ]
    with pytest.raises(RunError, match="not survived: b, c, e"):
        tell(rows)
    with pytest.raises(ConfigError, match="choose another folder"):
        do_faults(faults, args, tmp_path)


def test_rows_are_added_to_those_of_an_earlier_run(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    do_faults({"a": survive, "b": perish}, ChaosArgs(seed=3, quick=True, json=path), tmp_path)
    (tmp_path / "again").mkdir()
    do_faults({"b": survive, "c": skip}, ChaosArgs(seed=4, json=path), tmp_path / "again")
    rows = json.loads(path.read_text())["rows"]
    assert {name: (row["seed"], row["quick"]) for name, row in rows.items()} == {
        "a": (3, True),
        "b": (4, False),
        "c": (4, False),
    }
    assert rows["b"]["recovered"]


@pytest.mark.parametrize("text", ["", "[]", '{"rows": {"floor": {"cpu_s": 1}}}', '{"rows": [1]}'])
def test_a_file_of_something_else_is_not_written_over(text: str, tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text(text)
    with pytest.raises(ConfigError, match=r"json: .*other\.json holds no rows of a chaos run"):
        do_faults({"a": survive}, ChaosArgs(json=tmp_path / "other.json"), tmp_path)
    assert (tmp_path / "other.json").read_text() == text


def test_faults_are_chosen_by_name() -> None:
    assert list(choose_faults(("head", "train_worker"))) == ["head", "train_worker"]
    assert {"worker_node", "trial_driver", "spot_notice", "bucket_503", "bucket_silent", "full_disk"} <= set(
        choose_faults(())
    )


def test_an_unknown_fault_is_one_line_of_the_command() -> None:
    # As a script, beside which benchmarks/serve.py hides the package `serve`.
    command = [sys.executable, str(ROOT / "benchmarks/chaos.py"), "--only", "haed"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert re.fullmatch("error: only: there is no fault haed; choose among .*head.*\n", done.stderr)


def test_the_s3_server_answers_503_from_one_signal_to_the_next(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"whole")
    with s3_server(tmp_path) as (endpoint, pid):
        url = f"{endpoint}/bins/x"

        def status() -> int:
            try:
                with urlopen(url) as answer:  # noqa: S310  # our own server
                    return int(answer.status)
            except HTTPError as error:
                return error.code

        assert status() == 200
        os.kill(pid, signal.SIGUSR1)
        while status() != 503:  # until it has the signal
            pass
        assert status() == 503
        os.kill(pid, signal.SIGUSR1)
        while status() != 200:
            pass
