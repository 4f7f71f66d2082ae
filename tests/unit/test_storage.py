"""Train's folder of a run, as kills and full disks leave it."""

import json
from pathlib import Path

import pytest
import torch
from ray.train import CheckpointConfig
from ray.train.v2._internal.execution.checkpoint.checkpoint_manager import CheckpointManager
from ray.train.v2._internal.execution.storage import StorageContext

from bintally.checkpoint import save_checkpoint
from bintally.model import build_model
from bintally.recipes import smoke
from train.figures import BEST_NLL
from train.storage import drop_unlisted, mend_record

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


def manager_of(run_dir: Path) -> CheckpointManager:
    """What Train starts with."""
    config = CheckpointConfig(num_to_keep=1, checkpoint_score_attribute="val_nll", checkpoint_score_order="min")
    return CheckpointManager(config, StorageContext(str(run_dir.parent), run_dir.name))


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
    drop_unlisted(run_dir)
    assert sorted(path.name for path in run_dir.glob("checkpoint_*/")) == [f"checkpoint_{n}" for n in (1, 2, 3)]
    assert json.loads(sound)["current_report_index"] == 3


def test_nothing_is_deleted_by_half_a_record(run_dir: Path) -> None:
    (run_dir / RECORD).write_text("")
    drop_unlisted(run_dir)
    assert len(list(run_dir.glob("checkpoint_*/"))) == 6
