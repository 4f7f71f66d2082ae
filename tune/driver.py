"""The search itself: rows once, trials side by side under ASHA, then `tune.conclude`."""

from contextlib import suppress
from pathlib import Path
from pickle import UnpicklingError

from data.drops import DropLedger
from data.ingest import list_splits, load_training_rows, needs_counts
from data.progress import say
from data.session import ray_session
from train.news import heard
from train.run import keep_drops
from train.trainer import check_fits, check_model, check_rows, trainings_at_once
from train.turns import cluster_resources
from tune.conclude import check_ended, conclude
from tune.config import SearchConfig
from tune.live import LiveView, live_table
from tune.record import EpochRecord, begin_session
from tune.samplers import recipes_to_check, settled
from tune.trial import TrialSetup, allow_again, write_trial_reports
from tune.tuner import build_tuner


def search(config: SearchConfig, run_dir: Path, *, resume: bool = False, place: str | None = None) -> EpochRecord:
    """Run or resume a search; the best epoch of the best trial.

    Leaves in the run folder: best.json, checkpoint/, report.html, curves.png, trials.jsonl, events.jsonl, results.json,
    drops.json and, of the trainings at the end, final/.

    Args:
        config: what to search.
        run_dir: where the driver works.
        resume: go on with what is there.
        place: where the run lies for users and workers, s3://bucket/prefix; None is `run_dir`.

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
        slots = trainings_at_once(cluster_resources(), config.resources)
        at_once = min(slots, config.budget.trials)
        num_ids = len(splits["train"]) + len(splits["val"])
        ledger = DropLedger.start(max_faults=config.read.max_faults(num_ids))
        hungriest = next((recipe for recipe in recipes if needs_counts(recipe)), config.recipe)
        rows = load_training_rows(splits, hungriest, ledger, config.read)
        for recipe in recipes:
            check_rows(recipe, config.resources, rows)
        with heard(say) as news:
            setup = TrialSetup.of(config, run_dir, news, at_once, place or str(run_dir))
            tuner = build_tuner(config, setup, rows, run_dir, at_once, resume=resume)
            say(f"{config.budget.trials} trials of {config.recipe.name}, {at_once} at a time, in {setup.place}")
            view = LiveView(
                folder=run_dir,
                title="search",
                objective=config.objective,
                max_epochs=config.max_epochs,
                at_once=at_once,
                budget=config.budget,
            )
            allow_again(setup.storage_path)
            begin_session(run_dir)
            # Tune reads the errors of failed trials back from its folder, where a full disk leaves halves of them.
            with live_table(view), suppress(EOFError, UnpicklingError):
                tuner.fit()
            write_trial_reports(setup.storage_path)
            keep_drops(rows, run_dir)
            ledger.check()
            check_ended(config, run_dir, setup.place)
            return conclude(config, setup, rows, splits["test"], run_dir, slots)
