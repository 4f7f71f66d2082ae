"""The checkpoint folder: what is saved comes back bit for bit, and what cannot be read says why."""

import errno
import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from bintally.calibration import Calibration
from bintally.checkpoint import Checkpoint, load_checkpoint, load_weights, save_checkpoint, write_calibration
from bintally.config import ModelConfig, Recipe
from bintally.errors import CheckpointError
from bintally.model import Counter, build_model
from bintally.recipes import smoke
from bintally.verify import VerifyThresholds
from train.run import keep_checkpoint
from train.storage import RESUME_FILE

ROOT = Path(__file__).parents[2]
METRICS = {"epoch": 2, "val_nll": 0.5}


def make_model(recipe: Recipe, seed: int = 0) -> Counter:
    torch.manual_seed(seed)
    return build_model(recipe.model, num_classes=recipe.data.num_classes)


def save(path: Path, *, seed: int = 0, recipe: Recipe | None = None) -> Path:
    recipe = recipe or smoke()
    save_checkpoint(path, make_model(recipe, seed), recipe, METRICS)
    return path


def edit_json(path: Path, *fields: str, value: object) -> None:
    values: dict[str, Any] = json.loads(path.read_text())
    section = values
    for field in fields[:-1]:
        section = section[field]
    section[fields[-1]] = value
    path.write_text(json.dumps(values))


def photos(num: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (num, 32, 32, 3), dtype=np.uint8)


def test_a_checkpoint_predicts_what_the_model_predicted(tmp_path: Path) -> None:
    recipe = replace(smoke(), seed=5)
    model = make_model(recipe).eval()
    save_checkpoint(tmp_path / "checkpoint", model, recipe, METRICS)
    loaded = load_checkpoint(tmp_path / "checkpoint")
    before = Checkpoint(model=model, recipe=recipe, metrics={}, version="").predict(photos())
    assert np.array_equal(loaded.predict(photos()), before)
    assert (loaded.recipe, loaded.metrics) == (recipe, METRICS)
    assert not loaded.model.training


def test_probabilities_are_the_softmax_of_the_logits(tmp_path: Path) -> None:
    loaded = load_checkpoint(save(tmp_path / "checkpoint"))
    with torch.inference_mode():
        logits = loaded.model(torch.from_numpy(photos())).double().numpy()
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(loaded.predict(photos()), expected, rtol=1e-5)


def test_predict_takes_arrays_as_the_stream_gives_them(tmp_path: Path) -> None:
    """Read-only, and views into larger ones."""
    loaded = load_checkpoint(save(tmp_path / "checkpoint"))
    images = photos(6)
    images.flags.writeable = False
    assert np.array_equal(loaded.predict(images[::2]), loaded.predict(images[::2].copy()))


def test_the_version_is_the_hash_of_the_weights(tmp_path: Path) -> None:
    first, same, other = save(tmp_path / "a"), save(tmp_path / "b"), save(tmp_path / "c", seed=1)
    digest = hashlib.sha256((first / "model.safetensors").read_bytes()).hexdigest()
    assert load_checkpoint(first).version == load_checkpoint(same).version == digest[:12]
    assert load_checkpoint(other).version != digest[:12]
    assert load_weights(first, make_model(smoke())) == digest[:12]


def test_the_folder_holds_three_files_and_nothing_else(tmp_path: Path) -> None:
    folder = save(tmp_path / "checkpoint")
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "metrics.json", "model.safetensors"]
    assert list(tmp_path.iterdir()) == [folder]


def calibration(version: str) -> Calibration:
    return Calibration(
        temperature=1.5,
        thresholds={"0.9": 0.75},
        model_version=version,
        source="file:///bins",
        split="val",
        split_by="grouped",
        num_images=87,
    )


def test_saving_again_replaces_the_whole_folder(tmp_path: Path) -> None:
    folder = save(tmp_path / "checkpoint")
    before = load_checkpoint(folder).version
    write_calibration(folder, calibration(before))
    save(folder, seed=1)
    assert load_checkpoint(folder).version != before
    assert not (folder / "calibration.json").exists()


def test_parent_folders_are_made(tmp_path: Path) -> None:
    assert load_checkpoint(save(tmp_path / "a" / "b" / "checkpoint")).recipe == smoke()


def test_pretrained_weights_need_not_be_there_any_more(tmp_path: Path) -> None:
    """A server has neither the internet nor the file that the training began with."""
    recipe = smoke()
    recipe = replace(recipe, model=replace(recipe.model, weights=str(tmp_path / "gone.pth")))
    model = build_model(recipe.model, num_classes=6, load_weights=False)
    save_checkpoint(tmp_path / "checkpoint", model, recipe, {})
    assert torch.equal(load_checkpoint(tmp_path / "checkpoint").model.mean, model.mean)


# What cannot be read


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "metrics.json"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    (save(tmp_path / "checkpoint") / name).unlink()
    with pytest.raises(CheckpointError, match=re.escape(name)):
        load_checkpoint(tmp_path / "checkpoint")


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"no checkpoint at {tmp_path}/absent"):
        load_checkpoint(tmp_path / "absent")


@pytest.mark.parametrize("num_bytes", [0, 4, 100, 50_000, -1])
def test_weights_cut_short(tmp_path: Path, num_bytes: int) -> None:
    weights = save(tmp_path / "checkpoint") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:num_bytes])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
        load_checkpoint(tmp_path / "checkpoint")


@pytest.mark.parametrize(
    ("fields", "value"),
    [(("model", "backbone"), "resnet18"), (("data", "max_count"), 9), (("data", "max_count"), 1)],
)
def test_weights_that_do_not_fit_the_config(tmp_path: Path, fields: tuple[str, ...], value: object) -> None:
    folder = save(tmp_path / "checkpoint")
    edit_json(folder / "config.json", "recipe", *fields, value=value)
    with pytest.raises(CheckpointError, match=r"do not fit its config\.json"):
        load_checkpoint(folder)


@pytest.mark.parametrize("value", [1, 0, None, "2", [2]])
def test_a_format_of_another_time(tmp_path: Path, value: object) -> None:
    folder = save(tmp_path / "checkpoint")
    edit_json(folder / "config.json", "format", value=value)
    with pytest.raises(CheckpointError, match="reads format 2"):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    ("fields", "value", "names"),
    [
        (("recipe",), None, "config.json"),
        (("recipe", "max_epochs"), 0, "max_epochs"),
        (("recipe", "colour"), 1, "colour"),
        (("recipe", "model", "backbone"), "resnet43", "resnet43"),
    ],
)
def test_a_config_that_is_no_recipe(tmp_path: Path, fields: tuple[str, ...], value: object, names: str) -> None:
    folder = save(tmp_path / "checkpoint")
    edit_json(folder / "config.json", *fields, value=value)
    with pytest.raises(CheckpointError, match=names):
        load_checkpoint(folder)


@pytest.mark.parametrize("name", ["config.json", "metrics.json"])
@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000], ids=range(6))
def test_json_that_is_no_object(tmp_path: Path, name: str, data: bytes) -> None:
    (save(tmp_path / "checkpoint") / name).write_bytes(data)
    with pytest.raises(CheckpointError, match=re.escape(name)):
        load_checkpoint(tmp_path / "checkpoint")


# What cannot be written


def test_what_an_interrupted_save_left_does_not_disturb(tmp_path: Path) -> None:
    folder = save(tmp_path / "checkpoint")
    for pid in (1, 99999):
        (tmp_path / f".checkpoint.{pid}.partial").mkdir()
        (tmp_path / f".checkpoint.{pid}.partial" / "model.safetensors").write_bytes(b"half")
    version = load_checkpoint(folder).version
    save(folder, seed=1)
    assert load_checkpoint(folder).version != version


def test_what_this_process_left_is_cleaned_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.getpid", lambda: 4242)
    leftover = tmp_path / ".checkpoint.4242.partial"
    leftover.mkdir()
    (leftover / "junk").write_bytes(b"half")
    folder = save(tmp_path / "checkpoint")
    assert not (folder / "junk").exists()
    assert not leftover.exists()


def fill_disk(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_leaves_the_older_checkpoint_intact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save(tmp_path / "checkpoint")
    version = load_checkpoint(folder).version
    with monkeypatch.context() as patch:
        patch.setattr(safetensors.torch, "save_file", fill_disk)
        with pytest.raises(CheckpointError, match="No space left on device"):
            save(folder, seed=1)
    assert load_checkpoint(folder).version == version
    assert list(tmp_path.iterdir()) == [folder], "nothing half-written stays behind"


def test_a_disk_that_fills_up_at_the_last_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save(tmp_path / "checkpoint")
    version = load_checkpoint(folder).version
    write_text = Path.write_text

    def write_some(path: Path, text: str) -> int:
        if path.name == "metrics.json":
            fill_disk()
        return write_text(path, text)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", write_some)
        with pytest.raises(CheckpointError, match="No space left on device"):
            save(folder, seed=1)
    assert load_checkpoint(folder).version == version


@pytest.mark.parametrize("metrics", [{"val_nll": torch.zeros(1)}, {"val_nll": {1, 2}}], ids=["tensor", "set"])
def test_metrics_that_are_not_json_leave_nothing_behind(tmp_path: Path, metrics: dict[str, Any]) -> None:
    folder = save(tmp_path / "checkpoint")
    with pytest.raises(TypeError, match="JSON"):
        save_checkpoint(folder, make_model(smoke()), smoke(), metrics)
    assert list(tmp_path.iterdir()) == [folder]
    assert load_checkpoint(folder).metrics == METRICS


def test_a_path_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="could not be written"):
        save(tmp_path / "file" / "checkpoint")


def test_a_file_in_the_way_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "checkpoint").write_text("precious")
    with pytest.raises(CheckpointError, match="could not be written"):
        save(tmp_path / "checkpoint")
    assert (tmp_path / "checkpoint").read_text() == "precious"


# A training's checkpoint is copied


def test_a_copy_leaves_behind_what_only_a_restart_needs(tmp_path: Path) -> None:
    source = save(tmp_path / "source")
    (source / RESUME_FILE).write_bytes(b"optimiser")
    target = tmp_path / "run" / "checkpoint"
    save(target, seed=1)
    assert keep_checkpoint(source, target) == target
    assert load_checkpoint(target).version == load_checkpoint(source).version
    assert not (target / RESUME_FILE).exists()
    assert list(target.parent.iterdir()) == [target]


def test_a_copy_may_have_more_figures(tmp_path: Path) -> None:
    before = load_checkpoint(save(tmp_path / "source"))
    copied = load_checkpoint(keep_checkpoint(tmp_path / "source", tmp_path / "target", val_ids="0a"))
    assert copied.metrics == before.metrics | {"val_ids": "0a"}


def test_a_copy_that_fails_leaves_the_older_one(tmp_path: Path) -> None:
    source, target = save(tmp_path / "source"), save(tmp_path / "target", seed=1)
    version = load_checkpoint(target).version
    (source / "dangling").symlink_to("absent")
    with pytest.raises(CheckpointError, match=r"could not be written.*dangling"):
        keep_checkpoint(source, target)
    assert load_checkpoint(target).version == version
    assert sorted(tmp_path.iterdir()) == [source, target]


def test_a_checkpoint_that_is_gone_cannot_be_copied(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="absent"):
        keep_checkpoint(tmp_path / "absent", tmp_path / "target")
    assert list(tmp_path.iterdir()) == []


# Nothing in a checkpoint executes


@pytest.mark.parametrize("path", [ROOT / "bintally" / "checkpoint.py", *(ROOT / "serve").glob("*.py")], ids=str)
def test_no_pickle_on_the_way_to_the_server(path: Path) -> None:
    assert (
        re.findall(r"\bpickle\b|(?<!safetensors\.)\btorch\.load\b|\bcloudpickle\b|\bjoblib\b", path.read_text()) == []
    )


def test_a_pickle_in_place_of_the_weights_is_not_run(tmp_path: Path) -> None:
    folder = save(tmp_path / "checkpoint")
    torch.save(make_model(smoke()).state_dict(), folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(folder)


def test_a_checkpoint_of_resnet18_works_as_well(tmp_path: Path) -> None:
    recipe = replace(smoke(), model=ModelConfig(backbone="resnet18"))
    assert load_checkpoint(save(tmp_path / "checkpoint", recipe=recipe)).predict(photos()).shape == (3, 6)


# The calibration


def test_a_calibration_comes_back_with_its_checkpoint(tmp_path: Path) -> None:
    folder = save(tmp_path / "checkpoint")
    assert load_checkpoint(folder).calibration is None
    fitted = calibration(load_checkpoint(folder).version)
    write_calibration(folder, fitted)
    assert load_checkpoint(folder).calibration == fitted
    again = replace(fitted, temperature=2.5)
    write_calibration(folder, again)
    assert load_checkpoint(folder).calibration == again
    assert sorted(path.name for path in folder.iterdir()) == [
        "calibration.json",
        "config.json",
        "metrics.json",
        "model.safetensors",
    ]


def test_thresholds_for_records_come_back_and_may_be_absent(tmp_path: Path) -> None:
    folder = save(tmp_path / "checkpoint")
    fitted = replace(
        calibration(load_checkpoint(folder).version), verify=VerifyThresholds(mismatch=0.02, match=0.5, misses=0.1)
    )
    write_calibration(folder, fitted)
    assert load_checkpoint(folder).calibration == fitted
    path = folder / "calibration.json"
    path.write_text(json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key != "verify"}))
    assert load_checkpoint(folder).calibration == replace(fitted, verify=None)  # a file of before


def test_thresholds_that_cross_are_refused(tmp_path: Path) -> None:
    folder = save(tmp_path / "checkpoint")
    path = folder / "calibration.json"
    write_calibration(folder, calibration(load_checkpoint(folder).version))
    crossed = {"mismatch": 0.5, "match": 0.1, "false_alarms": 0.02, "misses": 0.05}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"verify": crossed}))
    with pytest.raises(CheckpointError, match="mismatch and match"):
        load_checkpoint(folder)


def test_a_calibration_without_the_range_that_is_told_is_refused(tmp_path: Path) -> None:
    folder = save(tmp_path / "checkpoint")
    path = folder / "calibration.json"
    write_calibration(folder, calibration(load_checkpoint(folder).version))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"thresholds": {"0.8": 0.5}}))
    with pytest.raises(CheckpointError, match=r"thresholds must hold one for '0\.9'"):
        load_checkpoint(folder)


def test_a_calibration_of_other_weights_is_refused(tmp_path: Path) -> None:
    folder = save(tmp_path / "checkpoint")
    write_calibration(folder, calibration("0123456789ab"))
    with pytest.raises(CheckpointError, match=r"0123456789ab.*delete it"):
        load_checkpoint(folder)


@pytest.mark.parametrize("content", ["{}", "[", '{"temperature": -1}'])
def test_a_damaged_calibration_is_refused(tmp_path: Path, content: str) -> None:
    folder = save(tmp_path / "checkpoint")
    (folder / "calibration.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"calibration\.json is no calibration"):
        load_checkpoint(folder)


def test_a_calibration_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="could not be written"):
        write_calibration(tmp_path / "absent", calibration("0123456789ab"))
