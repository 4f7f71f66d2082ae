"""Trainings on a local Ray: the same numbers however they are shared, cut up or interrupted."""

import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ray.train import Checkpoint, Result, UserCallback
from ray.train.v2._internal.execution.context import TrainRunContext

from benchmarks.parts.usage import family
from bintally.checkpoint import load_checkpoint
from bintally.config import ComputeConfig, ModelConfig, OptimConfig, Recipe
from bintally.source_config import DataConfig
from data.args import ReadArgs, ResourceArgs
from data.drops import DropLedger
from data.ingest import list_splits, load_training_rows
from data.training_rows import TrainingRows
from train.state import PARTIAL
from train.trainer import build_trainer

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("local_ray")]


MakeFit = Callable[..., Result]


@pytest.fixture(scope="module")
def recipe(tiny_bucket: Path) -> Recipe:
    return Recipe(
        name="tiny",
        data=DataConfig(source=f"file://{tiny_bucket}", image_size=32, max_images=400, split_by="hash"),
        model=ModelConfig(backbone="small_cnn"),
        optim=OptimConfig(lr=3e-3, global_batch_size=8, ema_decay=0.99),
        max_epochs=2,
    )


@pytest.fixture(scope="module")
def rows(recipe: Recipe) -> TrainingRows:
    return load_training_rows(list_splits(recipe.data), recipe, DropLedger.start(), ReadArgs(max_dropped="100%"))


class LeaveFlags(UserCallback):
    """Tells the test, another process, of a checkpoint within the second epoch, and of a divergence."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def after_report(
        self,
        run_context: TrainRunContext,  # noqa: ARG002  # Train passes them by name
        metrics: list[dict[str, Any]],
        checkpoint: Checkpoint | None,  # noqa: ARG002
    ) -> None:
        if metrics[0].get(PARTIAL) and metrics[0]["epoch"] == 2:
            (self._folder / "partial").touch()
        if "diverged" in metrics[0]:
            (self._folder / "diverged").write_text(metrics[0]["diverged"])


@pytest.fixture
def fit(rows: TrainingRows, tmp_path: Path) -> MakeFit:
    """Train a recipe on the tiny bucket."""

    def run(recipe: Recipe, name: str = "train", **resources: float) -> Result:
        trainer = build_trainer(
            recipe, rows, ResourceArgs(**resources), name=name, storage_path=tmp_path, callback=LeaveFlags(tmp_path)
        )
        return trainer.fit()

    return run


def figures(result: Result) -> dict[str, float]:
    assert result.metrics is not None
    return {name: result.metrics[name] for name in ("epoch", "train_loss", "val_nll", "val_accuracy")}


def kill_when(flag: Path, killed: list[int]) -> threading.Thread:
    """Kill the training worker when the file appears."""

    def watch() -> None:
        give_up_at_s = time.monotonic() + 120
        while not flag.exists() and time.monotonic() < give_up_at_s:
            time.sleep(0.01)
        for pid in family(os.getpid()):  # nobody else's worker
            try:
                title = Path(f"/proc/{pid}/cmdline").read_bytes()
            except OSError:
                continue
            if title.startswith(b"ray::RayTrainWorker") and pid not in killed:
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def test_a_training_killed_in_mid_epoch_ends_with_the_same_numbers(
    recipe: Recipe, fit: MakeFit, tmp_path: Path
) -> None:
    whole = fit(recipe, "whole")
    killed: list[int] = []
    (tmp_path / "partial").unlink(missing_ok=True)
    thread = kill_when(tmp_path / "partial", killed)
    interrupted = fit(recipe, "killed", checkpoint_s=0.0)
    thread.join()
    assert len(killed) == 1
    assert figures(interrupted) == pytest.approx(figures(whole), rel=1e-12)  # but for the order of a sum
    assert (
        load_checkpoint(Path(interrupted.checkpoint.path)).version
        == load_checkpoint(Path(whole.checkpoint.path)).version
    )


def test_two_workers_and_micro_batches_give_the_same_curve(recipe: Recipe, fit: MakeFit) -> None:
    # By SGD: Adam makes as much of a gradient of rounding errors as of a real one; after 60 steps its losses differ by
    # up to 0.2 %.
    recipe = replace(recipe, optim=replace(recipe.optim, optimizer="sgd", lr=0.02))
    alone = figures(fit(recipe, "alone"))
    shared = figures(fit(replace(recipe, compute=ComputeConfig(micro_batch_size=3)), "shared", num_workers=2))
    for name in ("epoch", "train_loss", "val_nll"):
        assert shared[name] == pytest.approx(alone[name], rel=1e-4)


def test_a_training_that_diverges_names_the_photos(recipe: Recipe, fit: MakeFit, tmp_path: Path) -> None:
    fit(replace(recipe, optim=replace(recipe.optim, optimizer="sgd", lr=99.0, clip_norm=None)), "diverging")
    reason = (tmp_path / "diverged").read_text()
    assert "not finite since batch" in reason
    assert len(reason.rpartition(": ")[2].split(", ")) == recipe.optim.global_batch_size


def test_a_training_stops_when_it_gets_no_better(recipe: Recipe, fit: MakeFit) -> None:
    stuck = replace(recipe, max_epochs=30, patience=1, optim=replace(recipe.optim, lr=1e-12, ema_decay=None))
    result = fit(stuck, "stuck")
    assert result.metrics is not None
    assert result.metrics["epoch"] < 30


def test_two_workers_train_in_bf16_by_stages_with_class_weights_and_small_first(recipe: Recipe, fit: MakeFit) -> None:
    recipe = replace(
        recipe,
        compute=ComputeConfig(precision="bf16"),
        optim=replace(recipe.optim, trained="staged", layer_decay=0.8, schedule="plateau"),
        loss=replace(recipe.loss, class_weights=True),
        small_first=((1, 16),),
    )
    result = fit(recipe, "all", num_workers=2)
    assert figures(result)["epoch"] == 2
    assert 0 < figures(result)["val_nll"] < 5
