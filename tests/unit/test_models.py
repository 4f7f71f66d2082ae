"""Where models come from: folders and S3."""

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import boto3
import pytest
import torch

from bintally.checkpoint import load_checkpoint, save_checkpoint
from bintally.errors import CheckpointError
from bintally.model import build_model
from bintally.recipes import smoke
from serve.models import load_model
from serve.predictor import probe_photo


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = smoke()
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("models") / "checkpoint"
    save_checkpoint(path, build_model(recipe.model, num_classes=recipe.data.num_classes), recipe, {})
    return path


@pytest.fixture
def in_s3(checkpoint: Path, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The same checkpoint in a bucket that asks for signed requests, its credentials in the environment."""
    for name, value in {
        "AWS_ENDPOINT_URL": s3_endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "not-a-secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    client.create_bucket(Bucket="models")
    for file in checkpoint.iterdir():
        client.upload_file(str(file), "models", f"counter/v1/{file.name}")
    return "s3://models/counter/v1"


def test_a_model_from_s3_is_that_of_the_folder(checkpoint: Path, in_s3: str) -> None:
    version = load_checkpoint(checkpoint).version
    predictor, local = load_model(f"{in_s3}@{version}"), load_model(str(checkpoint))
    photo, _ = local.decode(probe_photo())
    assert predictor.version == local.version == version
    assert predictor.count([photo]) == local.count([photo])


def test_what_is_wrong_in_s3_is_told(in_s3: str) -> None:
    with pytest.raises(CheckpointError, match=r"has the weights .*, not ffffffffffff"):
        load_model(f"{in_s3}@ffffffffffff")
    with pytest.raises(CheckpointError, match="there is no checkpoint at s3://models/counter/v2"):
        load_model("s3://models/counter/v2")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_model("s3://no-such-bucket/counter")


def test_a_pickle_is_never_loaded(tmp_path: Path, checkpoint: Path) -> None:
    """Weights that would run a program are no weights; nothing of it runs."""

    class Evil:
        def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
            return Path.touch.__get__(tmp_path / "ran"), ()  # type: ignore[return-value]

    evil = tmp_path / "evil"
    shutil.copytree(checkpoint, evil)
    for name in ("model.safetensors", "model.pt", "pytorch_model.bin", "model.onnx"):
        (evil / name).write_bytes(pickle.dumps(Evil()))
    pickle.loads(pickle.dumps(Evil()))  # noqa: S301  # the bait works
    (tmp_path / "ran").unlink()
    with pytest.raises(CheckpointError, match="damaged"):
        load_model(str(evil))
    assert not (tmp_path / "ran").exists()
