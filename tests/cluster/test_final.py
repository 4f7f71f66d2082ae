"""The end of a search: the winner trained again by several seeds, on the rows that the search has read."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from bintally.checkpoint import load_checkpoint
from bintally.config import Recipe, read_recipe
from bintally.recipes import smoke
from data.args import ReadArgs, ResourceArgs
from data.drops import DropLedger
from data.ingest import list_splits, load_training_rows
from data.progress import say
from train.news import heard
from tune.conclude import conclude
from tune.config import BudgetConfig, SearchConfig
from tune.final_folder import begin_final
from tune.record import EVENTS_FILE, TRIALS_FILE, EpochRecord, TrialEvent, append_record, read_records
from tune.space import LR, Interval, SearchSpace, recipe_at
from tune.trial import TrialSetup

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("local_ray")]


def make_config(bucket: Path) -> SearchConfig:
    recipe = smoke()
    data = replace(recipe.data, source=f"file://{bucket}", max_images=300, split_by="hash")
    return SearchConfig(
        recipe=replace(recipe, data=data),
        space=SearchSpace(dimensions={LR: Interval(low=1e-4, high=1e-2, log=True)}),
        budget=BudgetConfig(trials=1),
        final_seeds=2,
        resources=ResourceArgs(num_cpus=4),
        read=ReadArgs(max_dropped="100%"),
    )


def leave_a_search(run_dir: Path, checkpoint: Path) -> None:
    """The record of one trial that was worse than any training will be."""
    point = {LR: 1e-3}
    for what, at in (("session", 1.0), ("started", 2.0), ("ended", 9.0)):
        trial_id = "" if what == "session" else "a_00000"
        append_record(run_dir / EVENTS_FILE, TrialEvent(what=what, at=at, trial_id=trial_id, point=point))  # type: ignore[arg-type]
    figures = ("val_nll", "val_accuracy", "val_within_one", "val_rmse", "val_mae", "train_loss", "images_per_s")
    metrics = {**dict.fromkeys(figures, 9.0), "val_num_images": 40, "epoch_s": 1.0}
    record = EpochRecord(
        trial_id="a_00000", point=point, epoch=1, checkpoint_path=str(checkpoint), metrics=metrics, ended=8.0
    )
    append_record(run_dir / TRIALS_FILE, record)


def leave_finals_of_another_winner(run_dir: Path, checkpoint: Path, another: Recipe) -> None:
    """What a session before would have left, were its seeds better than any training will be."""
    folder = begin_final(another, run_dir)
    for name in ("seed0", "seed1"):
        shutil.copytree(checkpoint, folder / name / "checkpoint")
    perfect = {"accuracy": 1.0, "rmse": 0.0, "nll": 0.0, "model_version": load_checkpoint(checkpoint).version}
    (folder / "test.json").write_text(json.dumps({"seed0": perfect, "seed1": perfect}))
    shutil.copytree(checkpoint, run_dir / "checkpoint")


def test_the_final_trainings(tiny_bucket: Path, tmp_path: Path) -> None:
    bucket = tmp_path / "bucket"
    for name in ("bin-images", "metadata"):
        (bucket / name).mkdir(parents=True)
        for path in (tiny_bucket / name).iterdir():
            (bucket / name / path.name).hardlink_to(path)
    config, run_dir = make_config(bucket), tmp_path / "found"
    run_dir.mkdir()
    splits = list_splits(config.recipe.data)
    rows = load_training_rows(splits, config.recipe, DropLedger.start(), config.read)
    for bin_id in splits["train"] + splits["val"]:  # what is read from now on, is read from memory
        (bucket / f"bin-images/{bin_id}.jpg").unlink(missing_ok=True)
    from bintally.checkpoint import save_checkpoint
    from bintally.model import build_model

    first = tmp_path / "first"
    save_checkpoint(first, build_model(config.recipe.model, num_classes=6, image_size=32), config.recipe, {})
    leave_a_search(run_dir, first)
    leave_finals_of_another_winner(run_dir, first, recipe_at(config.recipe, {LR: 5e-3}))

    with heard(say) as news:
        setup = TrialSetup.of(config, run_dir, news, at_once=1, place=str(run_dir))
        conclude(config, setup, rows, splits["test"], run_dir, 2)
    results = json.loads((run_dir / "results.json").read_text())
    final = results["final"]
    assert (run_dir / "final-1" / "seed0" / "checkpoint").is_dir()
    assert list(final["seeds"]) == ["0", "1"]
    best = min(final["seeds"], key=lambda seed: final["seeds"][seed]["val_nll"])
    assert final["kept"] == f"seed{best}"
    kept = load_checkpoint(run_dir / "checkpoint")
    assert kept.version == load_checkpoint(run_dir / "final" / f"seed{best}" / "checkpoint").version
    assert kept.recipe == read_recipe(run_dir / "best.json")
    assert (kept.recipe.seed, kept.recipe.optim.lr) == (int(best), 1e-3)
    assert kept.metrics["val_nll"] == final["seeds"][best]["val_nll"] == final["kept_metrics"]["val_nll"]
    assert kept.calibration is not None
    assert kept.calibration.num_images == final["kept_metrics"]["val_num_images"]
    tested = [final["seeds"][seed]["test"] for seed in ("0", "1")]
    assert tested[0]["accuracy"] < 1
    assert tested[0]["num_images"] == tested[1]["num_images"] > 30
    assert final["test"]["accuracy"]["n"] == 2
    assert final["test"]["accuracy"]["mean"] == pytest.approx((tested[0]["accuracy"] + tested[1]["accuracy"]) / 2)
    assert "±" in (run_dir / "report.html").read_text()

    records = read_records(run_dir / "final" / TRIALS_FILE)
    assert sorted((one.point["seed"], one.epoch) for one in records) == [(0, 1), (0, 2), (1, 1), (1, 2)]
    folders = sorted(path.name for path in (run_dir / "final/trials").iterdir())
    for bin_id in splits["test"]:
        (bucket / f"bin-images/{bin_id}.jpg").unlink(missing_ok=True)
    with heard(say) as news:
        conclude(config, replace(setup, news=news), rows, splits["test"], run_dir, 2)  # as a resumed search does
    assert read_records(run_dir / "final" / TRIALS_FILE) == records
    assert sorted(path.name for path in (run_dir / "final/trials").iterdir()) == folders
    assert json.loads((run_dir / "results.json").read_text()) == results
