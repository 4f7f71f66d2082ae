"""A counter as an ONNX graph answers as PyTorch does, by any head, for any number of photos."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from bintally.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from bintally.config import Head, ModelConfig
from bintally.errors import ExportError
from bintally.heads import CountHead
from bintally.model import Counter, build_model
from bintally.onnx_graph import export_graph, open_graph, quantise_graph
from bintally.recipes import smoke
from bintally.runtime_record import GraphName

SIZE = 32
HEADS = get_args(Head)
Made = tuple[Path, Checkpoint, dict[GraphName, bytes]]


def photos(num: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (num, SIZE, SIZE, 3), dtype=np.uint8)


def make_checkpoint(folder: Path, *, seed: int = 0, head: Head = "softmax", backbone: str = "small_cnn") -> Checkpoint:
    torch.manual_seed(seed)
    recipe = replace(smoke(), model=ModelConfig(backbone=backbone, head=head))
    save_checkpoint(folder, build_model(recipe.model, num_classes=6), recipe, {})
    return load_checkpoint(folder)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A checkpoint and its two graphs, which take seconds to make."""
    folder = tmp_path_factory.mktemp("made") / "checkpoint"
    checkpoint = make_checkpoint(folder)
    fp32 = export_graph(checkpoint.model, SIZE)
    return folder, checkpoint, {"onnx_fp32": fp32, "onnx_int8": quantise_graph(fp32, photos(32))}


@pytest.mark.parametrize("head", HEADS)
def test_every_head_answers_as_in_pytorch_at_any_batch_size(head: Head, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "checkpoint", head=head)
    with torch.no_grad():  # large outputs, where a careless log or exp gives NaN
        checkpoint.model.backbone.head.weight.mul_(30)
    graph = export_graph(checkpoint.model, SIZE)
    answer = open_graph(graph)
    for num in (1, 2, 7):
        images = photos(num, seed=num)
        np.testing.assert_allclose(answer(images), checkpoint.predict(images), atol=2e-5)
    quantised = open_graph(quantise_graph(graph, photos(16)))(photos(7))
    assert np.isfinite(quantised).all()
    np.testing.assert_allclose(quantised.sum(axis=1), 1, atol=1e-4)


def test_a_resnet_in_8_bits_is_small_and_close(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "checkpoint", backbone="resnet18")
    fp32 = export_graph(checkpoint.model, SIZE)
    int8 = quantise_graph(fp32, photos(32))
    assert len(int8) < 0.3 * len(fp32)
    np.testing.assert_allclose(open_graph(fp32)(photos(5)), checkpoint.predict(photos(5)), atol=1e-5)
    np.testing.assert_allclose(open_graph(int8)(photos(5)), checkpoint.predict(photos(5)), atol=0.05)
    convolutions = [node for node in onnx.load_model_from_string(int8).graph.node if node.op_type == "Conv"]
    assert all(node.input[0].endswith("DequantizeLinear_Output") for node in convolutions)


def test_a_graph_holds_its_weights_and_nothing_of_this_machine(made: Made) -> None:
    for graph in made[2].values():
        model = onnx.load_model_from_string(graph)
        assert not any(tensor.external_data for tensor in model.graph.initializer)
        assert str(Path(__file__).parents[2]).encode() not in graph
        onnx.checker.check_model(model)


def test_read_only_photos_and_views_are_taken(made: Made) -> None:
    _, checkpoint, graphs = made
    images = photos(6)
    images.flags.writeable = False
    np.testing.assert_allclose(open_graph(graphs["onnx_fp32"])(images[::2]), checkpoint.predict(images[::2]), atol=1e-5)


class Deciding(nn.Module):
    """Takes another way for dark photos, which a graph without branches cannot."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        means = pixels.mean(dim=(2, 3)).repeat(1, 2)
        return -means if pixels.sum() < 0 else means


def test_a_network_that_cannot_be_exported_says_why() -> None:
    model = Counter(Deciding(), CountHead(kind="softmax", num_classes=6), mean=(0.5,) * 3, std=(0.2,) * 3).eval()
    with pytest.raises(ExportError, match=r"\w+: \w+"):
        export_graph(model, SIZE)


def test_a_network_of_one_layer_has_nothing_to_quantise() -> None:
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, 6))
    model = Counter(backbone, CountHead(kind="softmax", num_classes=6), mean=(0.5,) * 3, std=(0.2,) * 3).eval()
    graph = export_graph(model, SIZE)
    with pytest.raises(ExportError, match="no layer but the last"):
        quantise_graph(graph, photos(8))


@pytest.mark.parametrize("graph", [b"", b"\x08\x07", b"not a graph"])
def test_what_is_no_graph_is_not_opened(graph: bytes) -> None:
    with pytest.raises(ExportError, match=r"ONNX Runtime .* cannot load it"):
        open_graph(graph)


def test_onnx_runtime_reports_nothing_to_its_maker(made: Made, tmp_path: Path) -> None:
    """Its wheels do by default; what they leave in the temporary folder shows it."""
    folder, _, graphs = made
    (folder / "model.onnx").write_bytes(graphs["onnx_fp32"])
    code = f"""if True:
        from pathlib import Path
        from bintally.onnx_graph import open_graph
        open_graph(Path({str(folder / "model.onnx")!r}).read_bytes())
    """
    env = {key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"}
    env |= {"TMPDIR": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, check=True, timeout=120)
    assert list(tmp_path.iterdir()) == []
