"""The search itself: rows once, trials side by side under ASHA, the best checkpoint at the end."""

import json
from pathlib import Path
from typing import Any, Final

from ray import tune as ray_tune
from ray.tune import FailureConfig, RunConfig, TuneConfig, Tuner
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search import BasicVariantGenerator

from bintally.config import write_recipe
from bintally.errors import RunError
from data.drops import DropLedger
from data.ingest import list_splits, load_training_rows
from data.progress import say
from data.session import ray_session
from data.training_rows import TrainingRows
from train.model_card import write_model_card
from train.run import describe, keep_checkpoint, keep_drops
from train.trainer import check_fits, check_model, check_rows, cluster_resources, trainings_at_once
from tune.callbacks import KeepRungs, RecordEpochs
from tune.config import SearchConfig
from tune.plots import plot_curves
from tune.record import TRIALS_FILE, EpochRecord, best_record, read_records
from tune.space import Choice, Dimension, describe_point, recipe_at
from tune.trial import TrialSetup, run_trial

EXPERIMENT: Final = "tune"  # folder of Tune's own state in the run folder


def search(config: SearchConfig, run_dir: Path, *, resume: bool = False) -> EpochRecord:
    """Run or resume a search; the best epoch of the best trial.

    Leaves in the run folder: best.json, checkpoint/, curves.png, trials.jsonl, results.json and drops.json.

    Raises:
        BinTallyError: the source, the cluster or every trial failed.
        KeyboardInterrupt: the user stopped it; the run folder can be resumed.
    """
    check_model(config.recipe)
    splits = list_splits(config.recipe.data)
    for point in config.points():
        check_fits(point, config.resources, len(splits["train"]))  # before Ray starts; again when the rows are known
    with ray_session(config.resources.num_cpus):
        at_once = min(trainings_at_once(cluster_resources(), config.resources), config.budget.trials)
        num_ids = len(splits["train"]) + len(splits["val"])
        ledger = DropLedger.start(max_faults=config.read.max_faults(num_ids))
        rows = load_training_rows(splits, config.recipe, ledger, config.read)
        for point in config.points():
            check_rows(point, config.resources, rows)
        tuner = _build_tuner(config, rows, run_dir, at_once, resume=resume)
        say(f"{config.budget.trials} trials of {config.recipe.name}, {at_once} at a time, in {run_dir}")
        results = tuner.fit()
        keep_drops(rows, run_dir)
        ledger.check()
    records = read_records(run_dir / TRIALS_FILE)
    if records:
        plot_curves(records, run_dir / "curves.png", objective=config.objective, max_epochs=config.recipe.max_epochs)
    outcomes = [results[index] for index in range(len(results))]
    if sum(bool(one.error) or _ran_out(one.metrics) for one in outcomes) < config.budget.trials:
        say(f"interrupted; go on with: python tune/search.py --resume --run-dir {run_dir}")
        raise KeyboardInterrupt
    if not records:
        raise RunError(f"no trial reported an epoch; the first failed with: {_last_line(outcomes[0].error)}")
    if not best_record(records, config.objective).checkpoint_path:
        raise RunError("all trials diverged; choose lower bounds of --lr")
    return _keep_best(config, records, run_dir, num_failed=len(results.errors))


def _build_tuner(config: SearchConfig, rows: TrainingRows, run_dir: Path, at_once: int, *, resume: bool) -> Tuner:
    setup = TrialSetup(
        recipe=config.recipe,
        resources=config.resources,
        storage_path=run_dir / "trials",
    )
    trainable = ray_tune.with_resources(
        ray_tune.with_parameters(run_trial, setup=setup, rows=rows),
        # No CPU: the drivers would eat the whole CPUs that Ray Data waits for.
        {"node:__internal_head__": 0.001},
    )
    if resume and Tuner.can_restore(str(run_dir / EXPERIMENT)):
        return Tuner.restore(str(run_dir / EXPERIMENT), trainable=trainable, resume_errored=True)
    max_epochs = config.recipe.max_epochs
    scheduler = ASHAScheduler(
        time_attr="epoch",
        max_t=max_epochs,
        grace_period=config.asha.grace_epochs or max(1, max_epochs // 6),
        reduction_factor=config.asha.reduction_factor,
        brackets=config.asha.brackets,
    )
    record = RecordEpochs(
        run_dir / TRIALS_FILE, objective=config.objective, max_epochs=max_epochs, num_trials=config.budget.trials
    )
    return Tuner(
        trainable,
        param_space={field: _domain(one) for field, one in config.space.dimensions.items()},
        tune_config=TuneConfig(
            metric=config.objective.metric,
            mode=config.objective.mode,
            num_samples=config.budget.trials,
            scheduler=scheduler,
            # Tune knows nothing of the workers: more trials than fit would wait for one another for ever. The limit
            # must stand here: TuneConfig's own is ignored beside an explicit generator.
            search_alg=BasicVariantGenerator(max_concurrent=at_once, random_state=config.recipe.seed),
        ),
        run_config=RunConfig(
            name=EXPERIMENT,
            storage_path=str(run_dir),
            failure_config=FailureConfig(max_failures=1),
            callbacks=[record, KeepRungs(scheduler)],
            verbose=0,
        ),
    )


def _domain(dimension: Dimension) -> Any:  # noqa: ANN401  # Tune's domains
    if isinstance(dimension, Choice):
        return ray_tune.choice(list(dimension.values))
    if dimension.whole:
        draw = ray_tune.lograndint if dimension.log else ray_tune.randint
        return draw(int(dimension.low), int(dimension.high) + 1)
    draw = ray_tune.loguniform if dimension.log else ray_tune.uniform
    return draw(dimension.low, dimension.high)


def _keep_best(config: SearchConfig, records: list[EpochRecord], run_dir: Path, *, num_failed: int) -> EpochRecord:
    """Write what a search is for: the recipe and the checkpoint of its best epoch."""
    best = best_record(records, config.objective)
    winner = recipe_at(config.recipe, best.point)
    write_recipe(winner, run_dir / "best.json")
    target = keep_checkpoint(Path(best.checkpoint_path), run_dir / "checkpoint")
    write_model_card(target, winner, {"epoch": best.epoch, **best.metrics})
    epochs_run, epochs_in_full = len(records), config.budget.trials * config.recipe.max_epochs
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
