"""Runs in S3: what their working folder holds is there in time, whole at the end, and is what a run goes on with."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from obstore.store import MemoryStore

from bintally.errors import ConfigError, RunError
from data.s3_folder import S3Folder
from train.mirror import MARKER, Mirror, open_run

STATE = "tune/experiment_state.json"


class Bucket(S3Folder):
    """A folder in a bucket that notes what is put, and does first what a test wants."""

    def __init__(self, before_put: Callable[[str], None] = lambda _: None) -> None:
        super().__init__("s3://runs/x", "run_dir", MemoryStore(), "memory")
        object.__setattr__(self, "put_names", [])
        object.__setattr__(self, "before_put", before_put)

    def put(self, name: str, content: bytes | Path) -> None:
        self.before_put(name)  # type: ignore[attr-defined]
        super().put(name, content)
        self.put_names.append(name)  # type: ignore[attr-defined]


def put_names(bucket: Bucket) -> list[str]:
    names: list[str] = bucket.put_names  # type: ignore[attr-defined]
    return names


def mirror_of(folder: Path, bucket: Bucket, last_s: float = 60.0) -> Mirror:
    return Mirror(folder, bucket, b"{}", {}, last_s=last_s)


def write(path: Path, text: str, *, age_s: float = 5.0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    then = time.time() - age_s
    os.utime(path, (then, then))


def test_what_is_new_is_copied_in_the_order_in_which_it_was_written(tmp_path: Path) -> None:
    bucket = Bucket()
    mirror = mirror_of(tmp_path, bucket)
    mirror.sync()
    assert put_names(bucket) == []  # so that a refused command leaves nothing
    write(tmp_path / "checkpoint/README.md", "written last", age_s=1)
    write(tmp_path / "checkpoint/model.safetensors", "weights", age_s=2)
    write(tmp_path / ".checkpoint.1.partial/model.safetensors", "half")
    write(tmp_path / "trials.jsonl", "{}\n", age_s=3)
    mirror.sync()
    assert put_names(bucket) == [MARKER, "trials.jsonl", "checkpoint/model.safetensors", "checkpoint/README.md"]
    with (tmp_path / "trials.jsonl").open("a") as file:
        file.write("{}\n")
    (tmp_path / "checkpoint/README.md").unlink()
    mirror.sync()
    mirror.sync()
    assert put_names(bucket)[4:] == ["trials.jsonl"]
    assert bucket.read("trials.jsonl") == b"{}\n{}\n"
    assert bucket.read("checkpoint/README.md") is None


def test_the_state_of_a_search_is_never_newer_than_its_record(tmp_path: Path) -> None:
    def a_trial_ends(name: str) -> None:
        if name == "events.jsonl":
            write(tmp_path / STATE, "newer")

    bucket = Bucket(before_put=a_trial_ends)
    mirror = mirror_of(tmp_path, bucket)
    write(tmp_path / "tune/tuner.pkl", "first", age_s=9)
    write(tmp_path / STATE, "older", age_s=8)
    write(tmp_path / "final/tune/tuner.pkl", "too", age_s=7)
    write(tmp_path / "events.jsonl", "{}", age_s=6)
    mirror.sync()
    assert put_names(bucket) == [MARKER, "events.jsonl", "tune/tuner.pkl", STATE, "final/tune/tuner.pkl"]
    assert bucket.read(STATE) == b"older"
    mirror.sync()
    assert bucket.read(STATE) == b"newer"


def test_a_record_that_is_not_taken_holds_the_state_back(tmp_path: Path) -> None:
    taken = False

    def refuse(name: str) -> None:
        if name == "events.jsonl" and not taken:
            raise ConfigError("503 Slow Down")

    bucket = Bucket(before_put=refuse)
    mirror = mirror_of(tmp_path, bucket)
    write(tmp_path / STATE, "state")
    write(tmp_path / "events.jsonl", "{}")
    with pytest.raises(ConfigError, match="Slow Down"):
        mirror.sync()
    assert bucket.read(STATE) is None
    taken = True
    mirror.sync()
    assert bucket.read(STATE) == b"state"


def test_state_that_is_being_written_is_left_until_it_is_not(tmp_path: Path) -> None:
    bucket = Bucket()
    mirror = mirror_of(tmp_path, bucket)
    write(tmp_path / "tune/tuner.pkl", "one file of several")
    write(tmp_path / STATE, "half", age_s=0)
    mirror.sync()
    assert put_names(bucket) == []
    mirror.sync(last=True)
    assert put_names(bucket) == [MARKER, "tune/tuner.pkl", STATE]


def test_an_outage_at_the_end_is_waited_for(tmp_path: Path) -> None:
    asked: list[str] = []

    def refuse_once(name: str) -> None:
        asked.append(name)
        if len(asked) == 1:
            raise ConfigError("503 Slow Down")

    bucket = Bucket(before_put=refuse_once)
    mirror = mirror_of(tmp_path, bucket)
    with mirror.running():
        write(tmp_path / "results.json", "{}")
    assert mirror.is_whole
    assert bucket.read("results.json") == b"{}"


def test_what_could_not_be_copied_is_told_and_hides_no_other_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(name: str) -> None:
        raise ConfigError("403 Forbidden")

    write(tmp_path / "results.json", "{}")
    mirror = mirror_of(tmp_path, Bucket(before_put=refuse), last_s=0.0)
    with pytest.raises(RunError, match=f"403 Forbidden.*lies in {tmp_path}.*--run-dir s3://runs/x"), mirror.running():
        pass
    with (
        pytest.raises(RunError, match="all trials diverged"),
        mirror_of(tmp_path, Bucket(before_put=refuse), last_s=0.0).running(),
    ):
        raise RunError("all trials diverged")
    assert f"lies in {tmp_path}" in capsys.readouterr().out
    assert not mirror.is_whole


def test_two_commands_do_not_share_a_folder(tmp_path: Path) -> None:
    with open_run(str(tmp_path / "run"), "fit") as run:
        assert (run.folder, run.place) == (tmp_path / "run", str(tmp_path / "run"))
        with (
            pytest.raises(ConfigError, match=r"run_dir: .* is being written by another command"),
            open_run(str(tmp_path / "run"), "fit"),
        ):
            pass
    with open_run(str(tmp_path / "run"), "fit"):
        pass


def test_a_run_is_worked_on_here_and_lies_there(s3_runs: str, tmp_path: Path) -> None:
    with open_run(f"{s3_runs}/run", "fit") as run:
        assert run.place == f"{s3_runs}/run"
        write(run.folder / "trials/train-1/metrics.jsonl", "one\n")
        write(run.folder / "tune/tuner.pkl", "state")
        working = run.folder
    assert not working.exists()
    assert tmp_path in working.parents
    with open_run(f"{s3_runs}/run", "fit", must_exist=True) as run:
        assert run.folder == working
        assert (run.folder / "trials/train-1/metrics.jsonl").read_text() == "one\n"
        assert (run.folder / "tune/tuner.pkl").read_text() == "state"
        with (
            pytest.raises(ConfigError, match=r"run_dir: .* is being written by another command"),
            open_run(f"{s3_runs}/run", "fit"),
        ):
            pass
    folder = S3Folder.open(f"{s3_runs}/run", "run_dir")
    assert sorted(folder.names()) == [MARKER, "trials/train-1/metrics.jsonl", "tune/tuner.pkl"]
    with (
        pytest.raises(ConfigError, match=f"run_dir {s3_runs}/none holds no run"),
        open_run(f"{s3_runs}/none", "search", must_exist=True),
    ):
        pass


def test_a_refused_command_leaves_nothing(s3_runs: str) -> None:
    with pytest.raises(ConfigError, match="refused"), open_run(f"{s3_runs}/refused", "fit"):
        raise ConfigError("refused")
    assert S3Folder.open(f"{s3_runs}/refused", "run_dir").names() == []


KILLED = """
import os, signal, sys, time
from train.mirror import open_run
with open_run(sys.argv[1], "fit") as run:
    (run.folder / "metrics.jsonl").write_text("epoch 1\\n")
    from data.s3_folder import S3Folder
    while S3Folder.open(sys.argv[1], "run_dir").read("metrics.jsonl") != b"epoch 1\\n":
        time.sleep(0.1)
    with (run.folder / "metrics.jsonl").open("a") as file:
        file.write("epoch 2\\n")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_after_a_kill_the_newest_goes_on(s3_runs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"{s3_runs}/killed"
    for _ in range(2):
        killed = subprocess.run([sys.executable, "-c", KILLED, uri], capture_output=True, text=True, check=False)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        with open_run(uri, "fit") as run:
            assert (run.folder / "metrics.jsonl").read_text() == "epoch 1\nepoch 2\n"  # as this machine knows
    subprocess.run([sys.executable, "-c", KILLED, uri], capture_output=True, check=False)
    other = tmp_path / "another machine"
    with monkeypatch.context() as there:
        there.setenv("XDG_CACHE_HOME", str(other))
        with open_run(uri, "fit") as run:
            copied = (run.folder / "metrics.jsonl").read_text()
            assert copied.startswith("epoch 1\n")  # as the bucket knows
            (run.folder / "metrics.jsonl").write_text("gone on with elsewhere\n")
    with open_run(uri, "fit") as run:
        assert (run.folder / "metrics.jsonl").read_text() == "gone on with elsewhere\n"
        assert (run.folder.parent / "superseded/metrics.jsonl").read_text() == "epoch 1\nepoch 2\n"


def test_a_search_cannot_move_to_another_working_folder(
    s3_runs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_run(f"{s3_runs}/moved", "search") as run:
        write(run.folder / STATE, "state")
        working = run.folder
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another home"))
    with (
        pytest.raises(ConfigError, match=f"was worked on in {working}.*XDG_CACHE_HOME"),
        open_run(f"{s3_runs}/moved", "search"),
    ):
        pass
    shutil.rmtree(tmp_path / "another home")
