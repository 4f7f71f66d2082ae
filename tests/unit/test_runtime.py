"""What a checkpoint counts by: a graph that is damaged or foreign is never used, and the reason is told."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch

from bintally import runtime_record
from bintally.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from bintally.errors import CheckpointError, ExportError
from bintally.model import build_model
from bintally.onnx_graph import export_graph, open_graph, quantise_graph
from bintally.recipes import smoke
from bintally.runtime import load_runtime, probe_photos, record_graph
from bintally.runtime_record import RuntimeName, RuntimeRecord, read_runtime_record, write_runtime

SIZE = 32


def photos(num: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (num, SIZE, SIZE, 3), dtype=np.uint8)


def make_checkpoint(folder: Path, *, seed: int = 0) -> Checkpoint:
    torch.manual_seed(seed)
    recipe = smoke()
    save_checkpoint(folder, build_model(recipe.model, num_classes=6), recipe, {})
    return load_checkpoint(folder)


Made = tuple[Path, Checkpoint, dict[runtime_record.GraphName, bytes]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A checkpoint and its two graphs, which take seconds to make."""
    folder = tmp_path_factory.mktemp("made") / "checkpoint"
    checkpoint = make_checkpoint(folder)
    fp32 = export_graph(checkpoint.model, SIZE)
    return folder, checkpoint, {"onnx_fp32": fp32, "onnx_int8": quantise_graph(fp32, photos(32))}


@pytest.fixture
def ready(made: Made, tmp_path: Path) -> tuple[Path, Checkpoint]:
    """A folder of its own with both graphs, the 8-bit one chosen."""
    _, _, graphs = made
    folder = tmp_path / "checkpoint"
    checkpoint = make_checkpoint(folder)
    write_runtime(folder, record_of(checkpoint, graphs), graphs)
    return folder, checkpoint


def record_of(
    checkpoint: Checkpoint, graphs: dict[runtime_record.GraphName, bytes], chosen: RuntimeName = "onnx_int8"
) -> RuntimeRecord:
    return RuntimeRecord(
        model_version=checkpoint.version,
        chosen=chosen,
        why="measured once",
        graphs={name: record_graph(graph, open_graph(graph), SIZE) for name, graph in graphs.items()},
        refused={},
    )


def edit(folder: Path, **changes: object) -> None:
    path = folder / "runtime.json"
    values: dict[str, Any] = json.loads(path.read_text())
    path.write_text(json.dumps(values | changes))


# What is loaded


def test_auto_takes_what_was_chosen(ready: tuple[Path, Checkpoint]) -> None:
    folder, checkpoint = ready
    runtime = load_runtime(folder, checkpoint)
    assert (runtime.name, runtime.reason) == ("onnx_int8", "measured once")
    np.testing.assert_allclose(runtime.predict(photos(3)), checkpoint.predict(photos(3)), atol=0.05)


@pytest.mark.parametrize("choice", get_args(RuntimeName))
def test_what_is_asked_for_is_taken(ready: tuple[Path, Checkpoint], choice: RuntimeName) -> None:
    folder, checkpoint = ready
    runtime = load_runtime(folder, checkpoint, choice)
    assert (runtime.name, runtime.reason) == (choice, "it was asked for")
    assert runtime.predict(photos(2)).shape == (2, 6)


@pytest.mark.parametrize("chosen", ["onnx_fp32", "eager"])
def test_a_slower_choice_is_kept_to(ready: tuple[Path, Checkpoint], chosen: str) -> None:
    folder, checkpoint = ready
    edit(folder, chosen=chosen)
    assert load_runtime(folder, checkpoint).name == chosen


def damage(folder: Path, name: str, how: str) -> None:
    path = folder / name
    data = bytearray(path.read_bytes())
    if how == "gone":
        path.unlink()
    elif how == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif how == "flipped":
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    else:
        path.unlink()
        path.mkdir()


@pytest.mark.parametrize("how", ["gone", "cut", "flipped", "folder"])
def test_a_damaged_graph_falls_back_to_the_next_and_says_so(ready: tuple[Path, Checkpoint], how: str) -> None:
    folder, checkpoint = ready
    damage(folder, "model.int8.onnx", how)
    runtime = load_runtime(folder, checkpoint)
    assert runtime.name == "onnx_fp32"
    assert str(folder / "model.int8.onnx") in runtime.reason
    assert f"train/accelerate.py --checkpoint {folder}" in runtime.reason
    with pytest.raises(CheckpointError, match=r"no onnx_int8: .*model\.int8\.onnx.*train/accelerate\.py"):
        load_runtime(folder, checkpoint, "onnx_int8")

    damage(folder, "model.onnx", how)
    runtime = load_runtime(folder, checkpoint)
    assert runtime.name == "eager"
    assert "model.int8.onnx" in runtime.reason
    assert "model.onnx" in runtime.reason
    assert "\n" not in runtime.reason
    assert np.array_equal(runtime.predict(photos(2)), checkpoint.predict(photos(2)))


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", "null", '{"chosen": "onnx_int8"}', "folder", "gone"])
def test_without_a_sound_record_no_graph_is_used(ready: tuple[Path, Checkpoint], content: str) -> None:
    folder, checkpoint = ready
    if content in ("folder", "gone"):
        damage(folder, "runtime.json", content)
    else:
        (folder / "runtime.json").write_text(content)
    runtime = load_runtime(folder, checkpoint)
    assert runtime.name == "eager"
    assert str(folder / "runtime.json") in runtime.reason
    with pytest.raises(CheckpointError, match=r"no onnx_fp32: .*runtime\.json"):
        load_runtime(folder, checkpoint, "onnx_fp32")


@pytest.mark.parametrize("changes", [{"chosen": "tensorrt"}, {"colour": 1}, {"graphs": {}}, {"model_version": 5}])
def test_a_record_that_says_what_it_cannot_is_damaged(ready: tuple[Path, Checkpoint], changes: dict[str, Any]) -> None:
    folder, checkpoint = ready
    edit(folder, **changes)
    with pytest.raises(CheckpointError, match=r"runtime\.json is damaged"):
        read_runtime_record(folder, checkpoint.version)


def test_graphs_of_other_weights_are_not_used(ready: tuple[Path, Checkpoint], tmp_path: Path) -> None:
    folder, _ = ready
    other = make_checkpoint(tmp_path / "other", seed=1)
    runtime = load_runtime(folder, other)
    assert runtime.name == "eager"
    assert "of the weights" in runtime.reason
    assert other.version in runtime.reason


def test_a_foreign_graph_is_not_used(ready: tuple[Path, Checkpoint], made: Made, tmp_path: Path) -> None:
    """Sound, and of the same shape, but of other weights; even with its own hash it answers otherwise."""
    folder, checkpoint = ready
    other = make_checkpoint(tmp_path / "other", seed=1)
    with torch.no_grad():
        other.model.backbone.head.bias.add_(torch.arange(6.0))
    foreign = export_graph(other.model, SIZE)
    (folder / "model.int8.onnx").write_bytes(foreign)
    assert "another SHA-256" in load_runtime(folder, checkpoint).reason

    graphs = json.loads((folder / "runtime.json").read_text())["graphs"]
    graphs["onnx_int8"]["sha256"] = record_graph(foreign, open_graph(foreign), SIZE).sha256
    edit(folder, graphs=graphs)
    runtime = load_runtime(folder, checkpoint)
    assert runtime.name == "onnx_fp32"
    assert "answers otherwise here" in runtime.reason


def test_a_graph_for_photos_of_another_size_is_not_used(ready: tuple[Path, Checkpoint]) -> None:
    folder, checkpoint = ready
    larger = replace(checkpoint.recipe, data=replace(checkpoint.recipe.data, image_size=48))
    runtime = load_runtime(folder, replace(checkpoint, recipe=larger))
    assert runtime.name == "eager"
    assert "cannot count photos of 48 px" in runtime.reason


def test_a_graph_that_answers_nan_is_not_recorded(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "checkpoint")
    with torch.no_grad():
        checkpoint.model.backbone.head.bias.fill_(float("nan"))
    graph = export_graph(checkpoint.model, SIZE)
    with pytest.raises(ExportError, match="NaN"):
        record_graph(graph, open_graph(graph), SIZE)


def test_a_graph_that_was_refused_cannot_be_asked_for(made: Made, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "checkpoint")
    graphs = {"onnx_fp32": made[2]["onnx_fp32"]}
    record = replace(record_of(checkpoint, graphs, "onnx_fp32"), refused={"onnx_int8": "it loses 4 points"})
    write_runtime(tmp_path / "checkpoint", record, graphs)
    assert load_runtime(tmp_path / "checkpoint", checkpoint).name == "onnx_fp32"
    with pytest.raises(CheckpointError, match=r"no onnx_int8: .*it loses 4 points"):
        load_runtime(tmp_path / "checkpoint", checkpoint, "onnx_int8")


def test_probe_photos_are_the_same_everywhere() -> None:
    shown = probe_photos(SIZE)
    assert (shown.shape, shown.dtype) == ((4, SIZE, SIZE, 3), np.uint8)
    assert shown[1, 3, 2].tolist() == [12, 52, 92]
    assert shown[3, 9, 20].tolist() == [224, 8, 48]


# What is written


def test_what_is_written_comes_back(ready: tuple[Path, Checkpoint], made: Made) -> None:
    folder, checkpoint = ready
    assert read_runtime_record(folder, checkpoint.version) == record_of(checkpoint, made[2])
    assert (folder / "model.onnx").read_bytes() == made[2]["onnx_fp32"]
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []


def test_a_new_set_leaves_nothing_of_the_old_one(ready: tuple[Path, Checkpoint]) -> None:
    folder, checkpoint = ready
    record = RuntimeRecord(model_version=checkpoint.version, chosen="eager", why="slow", graphs={}, refused={})
    write_runtime(folder, record, {})
    assert list(folder.glob("*.onnx")) == []
    runtime = load_runtime(folder, checkpoint)
    assert (runtime.name, runtime.reason) == ("eager", "slow")


def test_other_weights_at_the_same_path_keep_no_graphs(ready: tuple[Path, Checkpoint]) -> None:
    folder, _ = ready
    checkpoint = make_checkpoint(folder, seed=1)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "metrics.json", "model.safetensors"]
    assert load_runtime(folder, checkpoint).name == "eager"


def test_a_full_disk_leaves_what_was_there(
    ready: tuple[Path, Checkpoint], made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, checkpoint = ready
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    write_bytes = Path.write_bytes

    def fail_at_the_record(path: Path, data: bytes) -> int:
        if "runtime.json" in path.name:
            raise OSError(28, "No space left on device")
        return write_bytes(path, data)

    monkeypatch.setattr(Path, "write_bytes", fail_at_the_record)
    with pytest.raises(CheckpointError, match="No space left on device"):
        write_runtime(folder, record_of(checkpoint, made[2], "onnx_fp32"), made[2])
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("stop_at", range(1, 6))
def test_a_kill_while_writing_leaves_no_record_of_other_graphs(
    ready: tuple[Path, Checkpoint], made: Made, monkeypatch: pytest.MonkeyPatch, stop_at: int
) -> None:
    """Whatever step is the last one, the folder is sound or says that it has no graphs."""
    folder, checkpoint = ready
    steps = 0
    unlink, replace_path = Path.unlink, Path.replace

    def step() -> None:
        nonlocal steps
        steps += 1
        if steps == stop_at:
            raise KeyboardInterrupt

    def unlinking(path: Path, *, missing_ok: bool = False) -> None:
        step()
        unlink(path, missing_ok=missing_ok)

    def replacing(path: Path, target: Path) -> Path:
        step()
        return replace_path(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", unlinking)
        patch.setattr(Path, "replace", replacing)
        with pytest.raises(KeyboardInterrupt):
            write_runtime(folder, record_of(checkpoint, made[2], "onnx_fp32"), made[2])
    runtime = load_runtime(folder, checkpoint)
    if (folder / "runtime.json").exists():
        assert runtime.name == "onnx_int8", "the old set, untouched"
    else:
        assert "runtime.json is not there" in runtime.reason


def test_without_onnx_runtime_pytorch_counts_and_says_why(
    ready: tuple[Path, Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, checkpoint = ready
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # as if it were not installed
    runtime = load_runtime(folder, checkpoint)
    assert runtime.name == "eager"
    assert "ONNX Runtime cannot be imported" in runtime.reason
    with pytest.raises(CheckpointError, match=r"no onnx_fp32: .*ONNX Runtime cannot be imported"):
        load_runtime(folder, checkpoint, "onnx_fp32")
