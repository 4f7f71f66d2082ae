"""The predictor: the same numbers as the pixel path of training, and readable refusals."""

import io
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bintally.checkpoint import load_checkpoint, save_checkpoint
from bintally.config import Recipe
from bintally.errors import CheckpointError, ImageError
from bintally.image import decode_photo
from bintally.model import build_model
from bintally.recipes import smoke
from bintally.source_config import PixelConfig, Resize
from serve.predictor import Predictor


def make_photo(format_name: str = "JPEG", *, seed: int = 0, size: tuple[int, int] = (80, 64)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize(size).save(file, format_name)
    return file.getvalue()


def make_checkpoint(path: Path, *, fill: float | None = None, recipe: Recipe | None = None) -> Path:
    recipe = recipe or smoke()
    torch.manual_seed(0)
    model = build_model(recipe.model, num_classes=recipe.data.num_classes)
    if fill is not None:
        for parameter in model.parameters():
            torch.nn.init.constant_(parameter, fill)
    save_checkpoint(path, model, recipe, {})
    return path


@pytest.fixture(scope="module")
def checkpoint_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("predictor") / "checkpoint")


@pytest.fixture(scope="module")
def predictor(checkpoint_dir: Path) -> Predictor:
    return Predictor.load(checkpoint_dir)


@pytest.mark.parametrize("format_name", ["JPEG", "PNG"])
def test_numbers_equal_the_core_bit_for_bit(predictor: Predictor, checkpoint_dir: Path, format_name: str) -> None:
    photo = make_photo(format_name)
    checkpoint = load_checkpoint(checkpoint_dir)
    expected = checkpoint.predict(decode_photo(photo, checkpoint.recipe.data.pixels)[None])[0]

    (prediction,) = predictor.count([predictor.decode(photo)[0]])

    assert prediction.probabilities == tuple(expected.tolist())
    assert prediction.count == int(expected.argmax())
    assert predictor.version == checkpoint.version


@pytest.mark.parametrize("resize", ["squash", "letterbox"])
@pytest.mark.parametrize("fast_decode", [False, True])
def test_photos_are_resized_as_the_recipe_says(tmp_path: Path, resize: Resize, fast_decode: bool) -> None:
    """test_pipeline_rows.py holds the stream of training to the same arrays."""
    recipe = smoke()
    recipe = replace(recipe, data=replace(recipe.data, resize=resize, fast_decode=fast_decode))
    predictor = Predictor.load(make_checkpoint(tmp_path / "checkpoint", recipe=recipe))
    photo = make_photo(size=(120, 90))
    pixels = PixelConfig(size=recipe.data.image_size, resize=resize, fast_decode=fast_decode)
    assert np.array_equal(predictor.decode(photo)[0], decode_photo(photo, pixels))
    other = replace(pixels, fast_decode=not fast_decode)  # the setting matters for this photo
    assert not np.array_equal(predictor.decode(photo)[0], decode_photo(photo, other))


def test_probabilities_cover_every_count_and_add_up(predictor: Predictor) -> None:
    (prediction,) = predictor.count([predictor.decode(make_photo())[0]])
    assert len(prediction.probabilities) == smoke().data.num_classes
    assert sum(prediction.probabilities) == pytest.approx(1, abs=1e-6)
    assert prediction.probabilities[prediction.count] == max(prediction.probabilities)


def test_a_batch_keeps_order_and_numbers(predictor: Predictor) -> None:
    photos = [predictor.decode(make_photo(seed=seed))[0] for seed in range(5)]
    together = predictor.count(photos)
    alone = [predictor.count([photo])[0] for photo in photos]
    np.testing.assert_allclose([p.probabilities for p in together], [p.probabilities for p in alone], atol=1e-5)
    assert len({p.probabilities for p in together}) == len(photos)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not_an_image"),
        (b"not a photo", "not_an_image"),
        (make_photo("GIF"), "not_an_image"),
        (make_photo("JPEG")[:-200], "truncated_image"),
        (make_photo("PNG")[:-200], "truncated_image"),
        (make_photo(size=(8, 8)), "absurd_dimensions"),
    ],
)
def test_bad_bytes_carry_their_reason(predictor: Predictor, data: bytes, reason: str) -> None:
    with pytest.raises(ImageError) as caught:
        predictor.decode(data)
    assert caught.value.reason == reason


def test_no_checkpoint_at_the_path(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        Predictor.load(tmp_path / "absent")


def test_damaged_weights(tmp_path: Path) -> None:
    weights = make_checkpoint(tmp_path / "checkpoint") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="damaged"):
        Predictor.load(tmp_path / "checkpoint")


def test_a_model_that_answers_nan_is_not_loaded(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="NaN"):
        Predictor.load(make_checkpoint(tmp_path / "checkpoint", fill=float("nan")))


def test_without_a_calibration_there_is_no_range(predictor: Predictor) -> None:
    (counted,) = predictor.count([predictor.decode(make_photo())[0]])
    assert (counted.low, counted.high, predictor.thresholds) == (None, None, None)
    assert predictor.verify(counted, counted.count).decision == "review"


def test_the_local_engine_does_without_ray() -> None:
    code = "import sys, serve.local; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_a_replica_with_a_gpu_counts_by_pytorch_on_it(checkpoint_dir: Path) -> None:
    """cpu:0 stands for the GPU that CI has not: another device than the plain one."""
    elsewhere, here = Predictor.load(checkpoint_dir, device="cpu:0"), Predictor.load(checkpoint_dir, "eager")
    photo, _ = here.decode(make_photo())
    assert elsewhere.count([photo]) == here.count([photo])
    assert (elsewhere.runtime.name, elsewhere.runtime.reason[-5:]) == ("eager", "cpu:0")
    with pytest.raises(CheckpointError, match="num_gpus"):
        Predictor.load(checkpoint_dir, "onnx_int8", device="cuda")
