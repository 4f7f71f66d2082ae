"""Where Train keeps a run: folders as kills and full disks leave them, and S3."""

import json
import pickle
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch
from pyarrow.fs import FileSystem, LocalFileSystem, copy_files
from ray.train import Checkpoint, CheckpointConfig
from ray.train.v2._internal.execution.checkpoint.checkpoint_manager import CheckpointManager
from ray.train.v2._internal.execution.storage import StorageContext

from bintally.checkpoint import save_checkpoint
from bintally.model import build_model
from bintally.recipes import smoke
from data.s3_folder import S3Folder
from train.figures import BEST_NLL
from train.storage import Storage, drop_unlisted, mend_record, place_of

S3_KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "not-a-secret"}
RECORD = "checkpoint_manager_snapshot.json"


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """Three whole checkpoints, of which the second is the best, and then halves of what a checkpoint consists of."""
    folder = tmp_path / "train"
    model = build_model(smoke().model, num_classes=6, image_size=32)
    for number, val_nll in enumerate((1.7, 1.5, 1.6, 1.4, 1.3, 1.2), 1):
        save_checkpoint(folder / f"checkpoint_{number}", model, smoke(), {"epoch": number, "val_nll": val_nll})
        torch.save({"weights": model.state_dict()}, folder / f"checkpoint_{number}" / "resume.pt")
    for number, name in ((4, "model.safetensors"), (5, "resume.pt")):
        file = folder / f"checkpoint_{number}" / name
        file.write_bytes(file.read_bytes()[:-1000])
    (folder / "checkpoint_6" / "metrics.json").unlink()
    return folder


def manager_of(run_dir: Path, filesystem: FileSystem | None = None) -> CheckpointManager:
    """What Train starts with."""
    config = CheckpointConfig(num_to_keep=1, checkpoint_score_attribute="val_nll", checkpoint_score_order="min")
    return CheckpointManager(config, StorageContext(str(run_dir.parent), run_dir.name, filesystem))


@pytest.mark.parametrize("kept", [0.0, 0.5])
def test_a_record_that_was_cut_off_is_written_anew_from_the_whole_checkpoints(kept: float, run_dir: Path) -> None:
    (run_dir / RECORD).write_text("")
    mend_record(run_dir, BEST_NLL)
    whole = (run_dir / RECORD).read_text()
    (run_dir / RECORD).write_text(whole[: round(kept * len(whole))])
    mend_record(run_dir, BEST_NLL)
    manager = manager_of(run_dir)
    latest, best = manager.latest_checkpoint_result, manager.best_checkpoint_result
    assert (Path(latest.checkpoint.path).name, Path(best.checkpoint.path).name) == ("checkpoint_3", "checkpoint_2")
    assert best.metrics == {"epoch": 2, "val_nll": 1.5}


def test_without_a_whole_checkpoint_a_run_begins_anew(tmp_path: Path) -> None:
    (tmp_path / "train" / "checkpoint_1").mkdir(parents=True)
    (tmp_path / "train" / RECORD).write_text("")
    mend_record(tmp_path / "train", BEST_NLL)
    assert manager_of(tmp_path / "train").latest_checkpoint_result is None


def test_a_sound_record_stays_and_what_it_does_not_list_goes(run_dir: Path) -> None:
    (run_dir / RECORD).write_text("")
    mend_record(run_dir, BEST_NLL)
    sound = (run_dir / RECORD).read_text()
    mend_record(run_dir, BEST_NLL)
    assert (run_dir / RECORD).read_text() == sound
    drop_unlisted(LocalFileSystem(), str(run_dir))
    assert sorted(path.name for path in run_dir.glob("checkpoint_*/")) == [f"checkpoint_{n}" for n in (1, 2, 3)]
    assert json.loads(sound)["current_report_index"] == 3


def test_nothing_is_deleted_by_half_a_record(run_dir: Path) -> None:
    (run_dir / RECORD).write_text("")
    drop_unlisted(LocalFileSystem(), str(run_dir))
    assert len(list(run_dir.glob("checkpoint_*/"))) == 6


def test_in_s3_too_what_train_does_not_list_goes(run_dir: Path, s3_runs: str) -> None:
    storage = Storage.of(s3_runs)
    (run_dir / RECORD).write_text("")
    mend_record(run_dir, BEST_NLL)  # lists the whole ones of the six
    copy_files(str(run_dir), str(storage.path / "train"), destination_filesystem=storage.filesystem)
    latest = manager_of(storage.path / "train", storage.filesystem).latest_checkpoint_result.checkpoint
    assert place_of(latest) == f"{s3_runs}/train/checkpoint_3"
    assert place_of(Checkpoint(str(run_dir / "checkpoint_3"))) == str(run_dir / "checkpoint_3")
    drop_unlisted(storage.filesystem, str(storage.path / "train"))
    names = S3Folder.open(s3_runs, "run_dir").store.list_with_delimiter("train")["common_prefixes"]
    assert sorted(names) == [f"train/checkpoint_{number}" for number in (1, 2, 3)]


@pytest.fixture
def busy_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """An S3 server, named by the environment, that answers 503 three times; the objects that were asked for."""
    asked: list[str] = []

    class Busy(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            asked.append(self.path)
            self.send_response(503 if len(asked) <= 3 else 200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Busy) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        for name, value in (S3_KEYS | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}"}).items():
            monkeypatch.setenv(name, value)
        yield asked
        server.shutdown()


def test_s3_is_asked_again_from_any_node(busy_server: list[str]) -> None:
    filesystem = Storage.of("s3://runs/x").filesystem
    on_a_node = pickle.loads(pickle.dumps(filesystem))  # noqa: S301  # as Train sends it
    assert on_a_node.get_file_info("runs/x/config.json").is_file
    assert busy_server == ["/runs/x/config.json"] * 4  # pyarrow's own would have given up before the last
