"""The search itself: rows once, trials side by side under ASHA, then `tune.conclude`."""

from pathlib import Path
from typing import Any, Final

from ray import tune as ray_tune
from ray.tune import FailureConfig, RunConfig, TuneConfig, Tuner
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search import BasicVariantGenerator

from data.drops import DropLedger
from data.ingest import list_splits, load_training_rows
from data.progress import say
from data.session import ray_session
from data.training_rows import TrainingRows
from train.run import keep_drops
from train.trainer import check_fits, check_model, check_rows, cluster_resources, trainings_at_once
from tune.callbacks import KeepRungs, RecordEpochs, TrackTrials
from tune.conclude import check_ended, conclude
from tune.config import SearchConfig
from tune.live import LiveView, live_table
from tune.record import TRIALS_FILE, EpochRecord, begin_session
from tune.space import Choice, Dimension
from tune.trial import TrialSetup, run_trial

EXPERIMENT: Final = "tune"  # folder of Tune's own state in the run folder


def search(config: SearchConfig, run_dir: Path, *, resume: bool = False) -> EpochRecord:
    """Run or resume a search; the best epoch of the best trial.

    Leaves in the run folder: best.json, checkpoint/, report.html, curves.png, trials.jsonl, events.jsonl, results.json,
    drops.json and, of the trainings at the end, final/.

    Raises:
        BinTallyError: the source, the cluster or every trial failed.
        KeyboardInterrupt: the user stopped it; the run folder can be resumed.
    """
    check_model(config.recipe)
    splits = list_splits(config.recipe.data)
    for point in config.points():
        check_fits(point, config.resources, len(splits["train"]))  # before Ray starts; again when the rows are known
    with ray_session(config.resources.num_cpus):
        slots = trainings_at_once(cluster_resources(), config.resources)
        at_once = min(slots, config.budget.trials)
        num_ids = len(splits["train"]) + len(splits["val"])
        ledger = DropLedger.start(max_faults=config.read.max_faults(num_ids))
        rows = load_training_rows(splits, config.recipe, ledger, config.read)
        for point in config.points():
            check_rows(point, config.resources, rows)
        tuner = _build_tuner(config, rows, run_dir, at_once, resume=resume)
        say(f"{config.budget.trials} trials of {config.recipe.name}, {at_once} at a time, in {run_dir}")
        view = LiveView(
            folder=run_dir,
            title="search",
            objective=config.objective,
            max_epochs=config.recipe.max_epochs,
            at_once=at_once,
            budget=config.budget,
        )
        begin_session(run_dir)
        with live_table(view):
            tuner.fit()
        keep_drops(rows, run_dir)
        ledger.check()
        check_ended(config, run_dir)
        return conclude(config, rows, splits["test"], run_dir, slots)


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
            callbacks=[record, KeepRungs(scheduler), TrackTrials(config.track, run_dir, config.recipe)],
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
