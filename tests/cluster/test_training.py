"""Trainings on a local Ray: the same numbers however they are shared, cut up or interrupted."""

import os
import re
import resource
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ray.train import Checkpoint, Result, TrainingFailedError, UserCallback
from ray.train.v2._internal.execution.context import TrainRunContext

from benchmarks.parts.usage import family
from bintally.checkpoint import load_checkpoint
from bintally.config import ComputeConfig, ModelConfig, OptimConfig, Recipe
from bintally.errors import CheckpointError
from bintally.source_config import DataConfig
from data.args import ReadArgs, ResourceArgs
from data.drops import DropLedger
from data.ingest import list_splits, load_training_rows
from data.training_rows import TrainingRows
from train.run import failure_of
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


def train(recipe: Recipe, rows: TrainingRows, name: str, storage: Path, **resources: float) -> Result:
    args = ResourceArgs(**resources)  # type: ignore[arg-type]
    return build_trainer(recipe, rows, args, name=name, storage_path=storage, callback=LeaveFlags(storage)).fit()


@pytest.fixture
def fit(rows: TrainingRows, tmp_path: Path) -> MakeFit:
    """Train a recipe on the tiny bucket; the name is that of its folder."""

    def run(recipe: Recipe, name: str = "train", **resources: float) -> Result:
        return train(recipe, rows, Path(name).name, (tmp_path / name).parent, **resources)

    return run


@pytest.fixture(scope="module")
def undisturbed(recipe: Recipe, rows: TrainingRows, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """The recipe trained without a fault."""
    return train(recipe, rows, "whole", tmp_path_factory.mktemp("undisturbed"))


def version(result: Result) -> str:
    return load_checkpoint(Path(result.checkpoint.path)).version


def figures(result: Result) -> dict[str, float]:
    assert result.metrics is not None
    return {name: result.metrics[name] for name in ("epoch", "train_loss", "val_nll", "val_accuracy")}


def train_workers() -> list[int]:
    """Process ids of the training workers below this process, and of nobody else's."""
    found = []
    for pid in family(os.getpid()):
        with suppress(OSError):
            if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::RayTrainWorker"):
                found.append(pid)
    return found


def kill_when(flag: Path, killed: list[int]) -> threading.Thread:
    """Kill the training worker when the file appears."""

    def watch() -> None:
        give_up_at_s = time.monotonic() + 120
        while not flag.exists() and time.monotonic() < give_up_at_s:
            time.sleep(0.01)
        for pid in train_workers():
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def test_a_training_killed_in_mid_epoch_ends_with_the_same_numbers(
    recipe: Recipe, undisturbed: Result, fit: MakeFit, tmp_path: Path
) -> None:
    killed: list[int] = []
    (tmp_path / "partial").unlink(missing_ok=True)
    thread = kill_when(tmp_path / "partial", killed)
    interrupted = fit(recipe, "killed", checkpoint_s=0.0)
    thread.join()
    assert len(killed) == 1
    assert figures(interrupted) == pytest.approx(figures(undisturbed), rel=1e-12)  # but for the order of a sum
    assert version(interrupted) == version(undisturbed)


def checkpoint_sizes(folder: Path) -> dict[str, dict[str, int]]:
    """Bytes of the files of each checkpoint of a training, the oldest first."""
    folders = sorted(folder.glob("checkpoint_*/"))
    return {one.name: {file.name: file.stat().st_size for file in one.iterdir()} for one in folders}


def kill_in_third_copy(folder: Path, left: list[dict[str, int]]) -> threading.Thread:
    """Kill the training worker as soon as it begins to store its third checkpoint; tells what is there of it then."""

    def watch() -> None:
        seen: set[str] = set()
        workers: list[int] = []
        give_up_at_s = time.monotonic() + 120
        while len(seen) < 3 and time.monotonic() < give_up_at_s:
            seen |= {path.name for path in folder.glob("checkpoint_*/")}
            if len(seen) == 2 and not workers:
                workers = train_workers()
        for pid in workers:
            os.kill(pid, signal.SIGKILL)
        left.append(checkpoint_sizes(folder)[max(seen)])

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


@pytest.mark.faults
def test_a_checkpoint_that_a_kill_left_half_written_is_overlooked(recipe: Recipe, fit: MakeFit, tmp_path: Path) -> None:
    # A large network, whose checkpoint takes a while to store.
    large = replace(
        recipe,
        model=ModelConfig(backbone="resnet18"),
        optim=replace(recipe.optim, optimizer="sgd", ema_decay=None),
        epoch_fraction=0.3,
    )
    whole = fit(large, "whole")
    complete = max(checkpoint_sizes(tmp_path / "whole").items())[1]
    left: list[dict[str, int]] = []
    thread = kill_in_third_copy(tmp_path / "killed", left)
    interrupted = fit(large, "killed", checkpoint_s=1e-9)
    thread.join()
    assert left[0].get("resume.pt", 0) < complete["resume.pt"]
    assert figures(interrupted) == pytest.approx(figures(whole), rel=1e-12)
    assert version(interrupted) == version(whole)
    kept = checkpoint_sizes(tmp_path / "killed")
    assert len(kept) <= 2  # the best and the newest
    assert {tuple(sorted(sizes)) for sizes in kept.values()} == {tuple(sorted(complete))}
    for name in ("whole", "killed"):
        shutil.rmtree(tmp_path / name)


@contextmanager
def full_storage(folder: Path) -> Iterator[None]:
    """Room for two checkpoints of the tiny recipe in the folder, but not for three; enough of it afterwards."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=9m", "tmpfs", str(folder)]
    made = subprocess.run(mount, capture_output=True, check=False)
    if made.returncode:
        pytest.skip(f"no file system can be mounted here: {made.stderr.decode().strip()}")
    yield
    subprocess.run(["mount", "-o", "remount,size=99m", folder], check=True)  # noqa: S607


@contextmanager
def full_scratch(folder: Path) -> Iterator[None]:
    """Training workers cannot write a file as large as a checkpoint, once one within the second epoch is stored."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.02):
            for pid in train_workers() if (folder / "partial").exists() else []:
                with suppress(ProcessLookupError):
                    resource.prlimit(pid, resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:  # else it would go on with the trainings of other tests
        over.set()
        thread.join()


@pytest.mark.faults
@pytest.mark.parametrize(
    ("filled", "says"),
    [
        (full_storage, r"a checkpoint could not be stored in .*: No space left on device; .*goes on with it"),
        (full_scratch, r"checkpoint .* could not be written: .*"),
    ],
)
def test_a_full_disk_is_one_error_and_the_same_training_goes_on_when_there_is_room(
    filled: Callable[[Path], AbstractContextManager[None]],
    says: str,
    recipe: Recipe,
    undisturbed: Result,
    fit: MakeFit,
    disk: Path,
) -> None:
    with filled(disk):
        with pytest.raises(TrainingFailedError) as caught:
            fit(recipe, "disk/train", checkpoint_s=1e-9)
        error = failure_of(caught.value, disk)
        assert isinstance(error, CheckpointError)
        assert re.fullmatch(says, str(error))
    kept = checkpoint_sizes(disk / "train")
    whole = max(sizes["metrics.json"] and sizes["model.safetensors"] for sizes in kept.values())
    newest = [n for n, sizes in kept.items() if all(sizes.values()) and sizes["model.safetensors"] == whole][-1]
    assert load_checkpoint(disk / "train" / newest).recipe == recipe
    done = fit(recipe, "disk/train", checkpoint_s=1e-9)
    assert figures(done) == pytest.approx(figures(undisturbed), rel=1e-12)
    assert version(done) == version(undisturbed)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A folder that may become a file system of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    yield folder
    if folder.is_mount():
        subprocess.run(["umount", "--lazy", folder], check=True)  # noqa: S607


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
