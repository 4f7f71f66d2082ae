"""What a task of the inference does with its rows, and what a run is refused for; no Ray is needed."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bintally.batch import COUNT, HEIGHT, ID, IMAGE, POSITION, WIDTH, ArrayBatch
from bintally.checkpoint import Checkpoint
from bintally.errors import ConfigError
from bintally.model import build_model
from bintally.recipes import smoke
from data.args import ReadArgs
from train.evaluate_infer import count_rows, dropped_rows, measure_photos
from train.evaluate_parts import SCHEMA
from train.scoring import EvaluatePlan


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    torch.manual_seed(0)
    recipe = smoke()
    model = build_model(recipe.model, num_classes=6).eval()
    return Checkpoint(model=model, recipe=recipe, metrics={}, version="0123456789ab")


def stream_rows(num: int) -> ArrayBatch:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (num, 32, 32, 3), np.uint8)
    images.flags.writeable = False  # as the stream gives them
    return {
        ID: np.array([f"{number:05d}" for number in range(num)], np.str_),
        POSITION: np.arange(num) + 100,
        IMAGE: images,
        COUNT: np.arange(num) % 6,
        WIDTH: np.full(num, 480),
        HEIGHT: np.full(num, 320),
    }


def test_a_row_has_what_the_model_says_of_the_photo_and_its_mirror_image(checkpoint: Checkpoint) -> None:
    batch = stream_rows(3)
    rows = count_rows(batch, checkpoint, tta=True)
    mirrored = np.stack([np.fliplr(image) for image in batch[IMAGE]])
    for column, images in (("probabilities", batch[IMAGE]), ("flipped", mirrored)):
        assert np.allclose(np.array(rows[column].to_pylist()), checkpoint.predict(images), atol=1e-6)
    assert rows["probabilities"] != rows["flipped"]
    assert rows["id"].to_pylist() == ["00000", "00001", "00002"]
    assert rows["count"].to_pylist() == [0, 1, 2]
    assert rows["position"].to_pylist() == [100, 101, 102]
    assert rows["width"].to_pylist() == [480] * 3


@pytest.mark.parametrize("num", [0, 2])
def test_rows_fit_the_schema_of_the_parts(checkpoint: Checkpoint, num: int) -> None:
    rows = count_rows(stream_rows(num), checkpoint, tta=False).drop_columns(["position"]).cast(SCHEMA)
    assert rows.num_rows == rows["flipped"].null_count == num
    assert dropped_rows({"00007": "missing_image"}).schema.equals(SCHEMA)


def test_brightness_and_sharpness_are_those_of_the_photo() -> None:
    black, white, noisy = np.zeros((32, 32, 3)), np.full((32, 32, 3), 255), stream_rows(1)[IMAGE][0]
    brightness, sharpness = measure_photos(np.stack([black, white, noisy]).astype(np.uint8))
    luma = (noisy.astype(float) * [0.299, 0.587, 0.114]).sum(axis=2).mean()
    assert brightness.tolist() == pytest.approx([0, 255, luma], abs=0.1)
    assert sharpness[:2].tolist() == [0, 0]
    assert sharpness[2] > 1_000


@pytest.mark.parametrize("split", ["val", "all"])
def test_photos_that_the_calibration_is_fitted_on_are_not_scored(checkpoint: Checkpoint, split: str) -> None:
    plan = EvaluatePlan(
        checkpoint_dir=Path("x"),
        checkpoint=checkpoint,
        data=smoke().data,
        split="test",
        run_dir=Path("y"),
        read=ReadArgs(),
        calibrate=True,
    )
    with pytest.raises(ConfigError, match=f"split {split}"):
        replace(plan, split=split)
