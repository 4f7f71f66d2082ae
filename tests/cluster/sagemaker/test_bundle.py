"""The tarball: the same bytes each time, all that a host needs, nothing that cannot count."""

import ast
import importlib.metadata
import json
import shutil
import sys
import tarfile
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from bintally.checkpoint import load_checkpoint, save_checkpoint
from bintally.errors import CheckpointError, ConfigError
from bintally.model import build_model
from bintally.recipes import smoke
from bintally.runtime_record import RuntimeRecord, write_runtime
from serve.aws.bundle import pack, read_bundle, write_tarball

ROOT = Path(__file__).parents[3]
LAZY = {"onnx", "ray", "torchvision"}
"""Imported where they are needed: to make a graph, in AWS's Ray Serve image, for backbones of torchvision."""


def names_in(path: Path) -> list[str]:
    with tarfile.open(path) as tar:
        return tar.getnames()


def text_in(path: Path, name: str) -> str:
    with tarfile.open(path) as tar:
        file = tar.extractfile(name)
        assert file is not None
        return file.read().decode()


@pytest.fixture
def checkpoint(served_checkpoint: Path, tmp_path: Path) -> Path:
    """One that a test may change; its files have other times than the first."""
    return shutil.copytree(served_checkpoint, tmp_path / "checkpoint", copy_function=shutil.copyfile)


def test_the_same_checkpoint_gives_the_same_bytes(served_checkpoint: Path, checkpoint: Path, tmp_path: Path) -> None:
    first = pack(served_checkpoint, tmp_path / "first.tar.gz")
    second = pack(checkpoint, tmp_path / "elsewhere" / "second.tar.gz")
    assert first.path.read_bytes() == second.path.read_bytes()
    assert asdict(first) | {"path": None} == asdict(second) | {"path": None}
    assert first.num_bytes == first.path.stat().st_size
    assert first.version == load_checkpoint(checkpoint).version
    (checkpoint / "metrics.json").write_text('{"accuracy": 1}')
    assert pack(checkpoint, tmp_path / "third.tar.gz").sha256 != first.sha256


def test_the_tarball_has_what_each_host_asks_for(checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "resume.pt").write_bytes(b"the optimiser's")
    bundle = pack(checkpoint, tmp_path / "model.tar.gz")
    names = names_in(bundle.path)
    assert names == sorted(names)
    assert {name for name in names if not name.startswith("code/")} == {
        *("config.yaml", "deployment.py", "model.json", "checkpoint/model.safetensors", "checkpoint/config.json"),
        *("checkpoint/metrics.json", "checkpoint/calibration.json"),
    }
    assert {"code/inference.py", "code/requirements.txt", "code/serve/container/__main__.py"} < set(names)
    with tarfile.open(bundle.path) as tar:
        assert {(one.uid, one.gid, one.mtime, one.uname, one.mode) for one in tar} == {(0, 0, 0, "", 0o644)}
    card = json.loads(text_in(bundle.path, "model.json"))
    assert (card["version"], card["max_count"], card["backbone"]) == (bundle.version, 5, "small_cnn")
    assert str(tmp_path) not in text_in(bundle.path, "model.json")


def test_packages_that_no_image_has_are_pinned_as_installed(checkpoint: Path, tmp_path: Path) -> None:
    requirements = text_in(pack(checkpoint, tmp_path / "model.tar.gz").path, "code/requirements.txt").split()
    assert f"simplejpeg=={importlib.metadata.version('simplejpeg')}" in requirements
    assert not {"torch", "torchvision", "ray", "onnxruntime"} & {one.partition("==")[0] for one in requirements}


def test_graphs_travel_along_with_what_runs_them(checkpoint: Path, tmp_path: Path) -> None:
    version = load_checkpoint(checkpoint).version
    record = RuntimeRecord(model_version=version, chosen="eager", why="it is faster", graphs={}, refused={})
    write_runtime(checkpoint, record, {"onnx_int8": b"one", "onnx_fp32": b"another"})
    bundle = pack(checkpoint, tmp_path / "model.tar.gz")
    assert {f"checkpoint/{name}" for name in ("runtime.json", "model.onnx", "model.int8.onnx")} < set(
        names_in(bundle.path)
    )
    assert "onnxruntime==" in text_in(bundle.path, "code/requirements.txt")


def test_wheels_travel_along_and_no_index_is_asked(checkpoint: Path, tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    with pytest.raises(ConfigError, match=r"wheels: .*holds no \.whl"):
        pack(checkpoint, tmp_path / "model.tar.gz", wheels)
    (wheels / "simplejpeg-1-py3-none-any.whl").write_bytes(b"a wheel")
    (wheels / "notes.txt").write_bytes(b"none")
    bundle = pack(checkpoint, tmp_path / "model.tar.gz", wheels)
    assert [name for name in names_in(bundle.path) if "wheels" in name] == ["code/wheels/simplejpeg-1-py3-none-any.whl"]
    assert text_in(bundle.path, "code/requirements.txt").startswith("--no-index\n--find-links wheels\nsimplejpeg==")


def test_what_cannot_be_packed_leaves_nothing(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(ConfigError, match=r"out must end with \.tar\.gz"):
        pack(checkpoint, out / "model.tar")
    with pytest.raises(ConfigError, match=r"out: .*cannot be written: File exists"):
        pack(checkpoint, checkpoint / "config.json" / "model.tar.gz")
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="damaged"):
        pack(checkpoint, out / "model.tar.gz")
    assert list(out.iterdir()) == []


def test_a_damaged_bundle_is_told_in_a_line(checkpoint: Path, tmp_path: Path) -> None:
    packed = pack(checkpoint, tmp_path / "model.tar.gz")
    assert read_bundle(packed.path) == packed
    whole, damaged = packed.path.read_bytes(), tmp_path / "damaged.tar.gz"
    for num_bytes in (len(whole) - 4, len(whole) // 2, 11):  # the first lacks the end of its checksum alone
        damaged.write_bytes(whole[:num_bytes])
        with pytest.raises(ConfigError, match=r"bundle: .*is cut short"):
            read_bundle(damaged)
    for content in (b"", b"no gzip", whole[:-8] + bytes(8)):
        damaged.write_bytes(content)
        with pytest.raises(ConfigError, match=r"bundle: .*is none that"):
            read_bundle(damaged)
    with pytest.raises(ConfigError, match=r"bundle: .*cannot be read: Is a directory"):
        read_bundle(tmp_path)


@pytest.mark.parametrize("card", [b"[]", b"{}", b"null", b"{", None])
def test_a_bundle_without_a_card_is_none(card: bytes | None, tmp_path: Path) -> None:
    with (tmp_path / "model.tar.gz").open("wb") as file:
        write_tarball({"model.json/is/a/folder": b""} if card is None else {"model.json": card}, file)
    with pytest.raises(ConfigError, match=r"bundle: .*is none that"):
        read_bundle(tmp_path / "model.tar.gz")


def test_a_model_that_gives_no_probabilities_is_not_packed(tmp_path: Path) -> None:
    model = build_model(smoke().model, num_classes=smoke().data.num_classes)
    torch.nn.init.constant_(next(model.parameters()), float("nan"))
    save_checkpoint(tmp_path / "checkpoint", model, smoke(), {})
    with pytest.raises(CheckpointError, match="answers NaN"):
        pack(tmp_path / "checkpoint", tmp_path / "model.tar.gz")


def test_our_image_has_all_that_the_code_in_the_tarball_imports(packed_model: Path) -> None:
    listed = (ROOT / "serve/container/requirements.txt").read_text().split()
    present = {"starlette", *(name.replace("pillow", "PIL") for name in listed)}  # starlette comes with fastapi
    ours = {"bintally", "serve", "inference", *sys.stdlib_module_names}
    imported = set()
    for path in packed_model.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add((node.module or "").split(".")[0])
    assert imported - ours - LAZY <= present
    assert "torchvision" in present
