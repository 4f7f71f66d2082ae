"""The search itself: rows once, trials side by side under ASHA, the best checkpoint at the end."""

import json
import time
from pathlib import Path
from typing import Any

from bintally.config import write_recipe
from bintally.errors import RunError
from data.drops import DropLedger
from data.ingest import list_splits, load_training_rows, needs_counts
from data.progress import say
from data.session import ray_session
from train.figures import has_diverged
from train.model_card import write_model_card
from train.news import heard
from train.run import describe, keep_checkpoint, keep_drops
from train.trainer import check_fits, check_model, check_rows, cluster_resources, trainings_at_once
from tune.config import SearchConfig
from tune.plots import plot_curves
from tune.record import TRIALS_FILE, EpochRecord, best_record, read_records
from tune.samplers import recipes_to_check, settled
from tune.space import describe_point, recipe_at
from tune.stoppers import spent_on
from tune.trial import TrialSetup, write_trial_reports
from tune.tuner import build_tuner


def search(config: SearchConfig, run_dir: Path, *, resume: bool = False) -> EpochRecord:
    """Run or resume a search; the best epoch of the best trial.

    Leaves in the run folder: best.json, checkpoint/, curves.png, trials.jsonl, results.json and drops.json.

    Raises:
        BinTallyError: the source, the cluster or every trial failed.
        KeyboardInterrupt: the user stopped it; the run folder can be resumed.
    """
    config = settled(config)
    recipes = recipes_to_check(config)
    for model in dict.fromkeys(recipe.model for recipe in recipes):
        check_model(next(recipe for recipe in recipes if recipe.model == model))
    splits = list_splits(config.recipe.data)
    for recipe in recipes:
        check_fits(recipe, config.resources, len(splits["train"]))  # before Ray starts; again when the rows are known
    with ray_session(config.resources.num_cpus):
        at_once = min(trainings_at_once(cluster_resources(), config.resources), config.budget.trials)
        num_ids = len(splits["train"]) + len(splits["val"])
        ledger = DropLedger.start(max_faults=config.read.max_faults(num_ids))
        hungriest = next((recipe for recipe in recipes if needs_counts(recipe)), config.recipe)
        rows = load_training_rows(splits, hungriest, ledger, config.read)
        for recipe in recipes:
            check_rows(recipe, config.resources, rows)
        with heard(say) as news:
            setup = TrialSetup(
                recipe=config.recipe,
                resources=config.resources,
                objective=config.objective,
                storage_path=run_dir / "trials",
                news=news,
            )
            tuner = build_tuner(config, setup, rows, run_dir, at_once, resume=resume)
            say(f"{config.budget.trials} trials of {config.recipe.name}, {at_once} at a time, in {run_dir}")
            started = time.monotonic()
            results = tuner.fit()
            elapsed_s = time.monotonic() - started
        write_trial_reports(setup.storage_path)
        keep_drops(rows, run_dir)
        ledger.check()
    records = read_records(run_dir / TRIALS_FILE)
    if records:
        plot_curves(records, run_dir / "curves.png", objective=config.objective, max_epochs=config.max_epochs)
    outcomes = [results[index] for index in range(len(results))]
    spent = spent_on(config.budget, num_epochs=len(records), elapsed_s=elapsed_s)
    num_ended = sum(bool(one.error) or _ran_out(one.metrics) for one in outcomes)
    if num_ended < (len(outcomes) if spent else config.budget.trials):
        say(f"interrupted; go on with: python tune/search.py --resume --run-dir {run_dir}")
        raise KeyboardInterrupt
    if not records:
        raise RunError(f"no trial reported an epoch; the first failed with: {_last_line(outcomes[0].error)}")
    if spent:
        say(f"ended by its budget: {spent}; {config.budget.trials - num_ended} trials never began")
    best = best_record(records, config.objective)
    if not best.checkpoint_path or has_diverged(best.metrics):
        raise RunError("all trials diverged; choose lower bounds of --lr")
    return _keep_best(config, records, run_dir, num_failed=len(results.errors))


def _keep_best(config: SearchConfig, records: list[EpochRecord], run_dir: Path, *, num_failed: int) -> EpochRecord:
    """Write what a search is for: the recipe and the checkpoint of its best epoch."""
    best = best_record(records, config.objective)
    winner = recipe_at(config.recipe, best.point)
    write_recipe(winner, run_dir / "best.json")
    target = keep_checkpoint(Path(best.checkpoint_path), run_dir / "checkpoint")
    write_model_card(target, winner, {"epoch": best.epoch, **best.metrics})
    epochs_run, epochs_in_full = len(records), config.budget.trials * config.max_epochs
    results = {
        "best": {"trial_id": best.trial_id, "point": best.point, "epoch": best.epoch, **best.metrics},
        "num_trials": config.budget.trials,
        "num_failed": num_failed,
        "epochs_run": epochs_run,
        "epochs_without_early_stopping": epochs_in_full,
    }
    (run_dir / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    say(f"best: {describe_point(best.point)}, epoch {best.epoch}")
    say(f"      {describe(best.metrics)}")
    say(f"{epochs_run} epochs run; without early stopping {epochs_in_full}")
    say(f"recipe, checkpoint and curves: {run_dir}")
    return best


def _ran_out(metrics: dict[str, Any] | None) -> bool:
    return bool(metrics and metrics.get("done"))


def _last_line(error: Exception | None) -> str:
    return str(error).strip().splitlines()[-1] if error else "no error"
