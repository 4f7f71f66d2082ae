"""What TensorBoard and MLflow get to see, read back from their files."""

import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tensorboardX.proto.event_pb2 import Event

from bintally.config import with_settings
from bintally.errors import ConfigError
from bintally.recipes import smoke
from train.tracking import EXPERIMENT, check_trackers, figures_of, tracked

METRICS = {"epoch": 1, "val_nll": 0.5, "health": {"wall_s": 1.0}, "diverged": "since batch 3"}


def read_scalars(folder: Path) -> Iterator[tuple[str, int, float]]:
    """The scalars in TensorBoard's event files: records of a length, its checksum, an event and its checksum."""
    for path in sorted(folder.glob("events.out.tfevents.*")):
        rest = path.read_bytes()
        while rest:
            (size,) = struct.unpack("<Q", rest[:8])
            event = Event.FromString(rest[12 : 12 + size])
            rest = rest[16 + size :]
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    yield value.tag, event.step, value.simple_value


def test_only_numbers_are_tracked() -> None:
    assert figures_of(METRICS) == {"epoch": 1.0, "val_nll": 0.5}


def test_tensorboard_gets_every_figure(tmp_path: Path) -> None:
    with tracked(["tensorboard"], tmp_path, smoke()) as trackers:
        for epoch, nll in ((1, 0.5), (2, 0.25)):
            for track in trackers:
                track(epoch, {"val_nll": nll})
    assert list(read_scalars(tmp_path / "tensorboard")) == [("val_nll", 1, 0.5), ("val_nll", 2, 0.25)]


def test_mlflow_goes_on_in_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for epoch, nll in ((1, 0.5), (2, 0.25)):
        with tracked(["mlflow"], tmp_path, smoke()) as trackers:
            for track in trackers:
                track(epoch, {"val_nll": nll})
    client = mlflow.MlflowClient(tracking_uri=f"file:{tmp_path / 'mlflow'}")
    (run,) = client.search_runs([client.get_experiment_by_name(EXPERIMENT).experiment_id])
    assert run.data.params["optim.lr"] == "0.001"
    assert [(one.step, one.value) for one in client.get_metric_history(run.info.run_id, "val_nll")] == [
        (1, 0.5),
        (2, 0.25),
    ]


def test_trials_of_a_search_are_runs_of_one_experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for run, lr in (("trial-0", 0.5), ("trial-1", 0.25), ("trial-0", 0.5)):
        recipe = with_settings(smoke(), [f"optim.lr={lr}"])
        with tracked(["tensorboard", "mlflow"], tmp_path, recipe, run=run) as trackers:
            for track in trackers:
                track(1, {"val_nll": lr})
    client = mlflow.MlflowClient(tracking_uri=f"file:{tmp_path / 'mlflow'}")
    (experiment,) = (one for one in client.search_experiments() if one.name.startswith(EXPERIMENT))
    runs = client.search_runs([experiment.experiment_id])
    assert {(one.info.run_name, one.data.params["optim.lr"]) for one in runs} == {
        ("trial-0", "0.5"),
        ("trial-1", "0.25"),
    }
    assert list(read_scalars(tmp_path / "tensorboard" / "trial-1")) == [("val_nll", 1, 0.25)]


def test_a_tracker_whose_disk_is_gone_is_told_once_and_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with tracked(["mlflow", "tensorboard"], tmp_path, smoke()) as trackers:
        for epoch in (1, 2, 3):
            for track in trackers:
                track(epoch, {"val_nll": 1 / epoch})
            if epoch == 1:
                (tmp_path / "mlflow").rename(tmp_path / "gone")
                (tmp_path / "mlflow").touch()
    assert [step for _, step, _ in read_scalars(tmp_path / "tensorboard")] == [1, 2, 3]
    assert capsys.readouterr().out.count("track mlflow failed, and the run goes on without it") == 1


def test_a_tracker_that_does_not_answer_is_told_and_left(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    s3_server: Callable[[Callable[[str], tuple[int, bytes]]], str],
) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", s3_server(lambda _: (403, b"{}")))
    with tracked(["mlflow"], tmp_path, smoke()) as trackers:
        assert trackers == []
    assert capsys.readouterr().out.count("track mlflow failed") == 1


def test_a_run_that_is_stopped_is_said_to_be_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(KeyboardInterrupt), tracked(["mlflow"], tmp_path, smoke()):
        raise KeyboardInterrupt
    client = mlflow.MlflowClient(tracking_uri=f"file:{tmp_path / 'mlflow'}")
    (run,) = client.search_runs([client.get_experiment_by_name(EXPERIMENT).experiment_id])
    assert run.info.status == "KILLED"


def test_a_tracker_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.tracking.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"bintally\[mlflow\]"):
        check_trackers(["mlflow"])
