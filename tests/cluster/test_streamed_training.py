"""Trainings on a stream, of which nobody knows beforehand which rows it will drop."""

from dataclasses import replace
from pathlib import Path

import pytest
from ray.train import Checkpoint, TrainingFailedError, UserCallback
from ray.train.v2._internal.execution.context import TrainRunContext

from bintally.config import LossConfig, ModelConfig, OptimConfig, Recipe
from bintally.errors import NoUsableRowsError
from bintally.source_config import DataConfig
from data.args import ReadArgs, ResourceArgs
from data.drops import DropLedger
from data.ingest import list_splits, load_training_rows
from train.run import failure_of
from train.trainer import build_trainer

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("local_ray")]


@pytest.fixture
def recipe(tiny_bucket: Path) -> Recipe:
    data = DataConfig(source=f"file://{tiny_bucket}", image_size=32, max_images=200, split_by="hash", max_count=3)
    optim = OptimConfig(lr=3e-3, global_batch_size=8)
    return Recipe(name="tiny", data=data, model=ModelConfig(backbone="small_cnn"), optim=optim, max_epochs=2)


class CountBegins(UserCallback):
    """Appends a line to a file for each start of a group of workers."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def after_exception(self, run_context: TrainRunContext, worker_exceptions: dict[int, Exception]) -> None:  # noqa: ARG002  # Ray's signature
        """Called by Train's controller."""
        with self._path.open("a") as file:
            file.write("failed\n")

    def after_report(
        self, run_context: TrainRunContext, metrics: list[dict[str, float]], checkpoint: Checkpoint | None
    ) -> None:
        """Called by Train once per report."""


@pytest.mark.parametrize("class_weights", [False, True])  # for these, a stream reads the records beforehand
def test_a_stream_that_drops_rows_has_the_rates_and_losses_of_the_same_rows_in_memory(
    recipe: Recipe, tmp_path: Path, class_weights: bool
) -> None:
    recipe = replace(recipe, loss=LossConfig(class_weights=class_weights))
    figures = []
    for stream in (False, True):
        ledger, read = DropLedger.start(), ReadArgs(stream=stream)
        rows = load_training_rows(list_splits(recipe.data), recipe, ledger, read)
        callback, name = CountBegins(tmp_path / "failed"), f"stream-{stream}"
        trainer = build_trainer(recipe, rows, ResourceArgs(), name=name, storage_path=tmp_path, callback=callback)
        metrics = trainer.fit().metrics
        assert metrics is not None
        figures.append({name: metrics[name] for name in ("epoch", "lr", "train_loss", "val_nll", "num_images")})
        assert ledger.table()["count_above_max"] > 50
    assert figures[1] == pytest.approx(figures[0], rel=1e-12)


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_stream_without_a_usable_row_is_one_error_and_no_restart(recipe: Recipe, tmp_path: Path, split: str) -> None:
    recipe = replace(recipe, data=replace(recipe.data, max_images=None))
    splits = list_splits(recipe.data)
    splits["train"] = splits["train"][:100]
    splits[split] = [f"{number:05d}" for number in range(0, 1200, 50)]  # those without a record
    rows = load_training_rows(splits, recipe, DropLedger.start(), ReadArgs(stream=True))
    callback = CountBegins(tmp_path / "failed")
    trainer = build_trainer(recipe, rows, ResourceArgs(), name="train", storage_path=tmp_path, callback=callback)
    with pytest.raises(TrainingFailedError) as caught:
        trainer.fit()
    error = failure_of(caught.value, tmp_path)
    assert isinstance(error, NoUsableRowsError)
    assert f"no usable row in the {split} split" in str(error)
    assert not (tmp_path / "failed").exists()
