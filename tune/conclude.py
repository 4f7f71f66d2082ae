"""What follows the last trial of a search: the best checkpoint, the final trainings, results.json and the report."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bintally.config import write_recipe
from bintally.errors import RunError
from data.progress import say
from data.s3_folder import local_copy
from data.training_rows import TrainingRows
from train.figures import has_diverged
from train.run import describe
from tune.config import SearchConfig
from tune.costs import Costs, busy_share, costs_of
from tune.final import (
    Candidate,
    best_kept,
    calibrate,
    choose,
    describe_spread,
    find_candidates,
    keep_with_card,
    score_test,
    summarise_final,
    tell_choice,
    train_seeds,
)
from tune.final_folder import FOLDER, are_of, in_full
from tune.importance import importance_of
from tune.plots import plot_curves
from tune.record import EVENTS_FILE, TRIALS_FILE, EpochRecord, TrialEvent, best_record, read_events, read_records
from tune.report import write_report
from tune.space import describe_point, recipe_at
from tune.stoppers import spent_on
from tune.trial import TrialSetup
from tune.trials import ended_ids, follow_trials

RESULTS_FILE = "results.json"


def check_ended(config: SearchConfig, run_dir: Path, place: str) -> None:
    """Tell a search that came to its end from one that was interrupted or found nothing.

    Raises:
        KeyboardInterrupt: the user stopped it; the run folder can be resumed.
        RunError: no trial left a checkpoint.
    """
    records, events = read_records(run_dir / TRIALS_FILE), read_events(run_dir / EVENTS_FILE)
    if records:
        plot_curves(records, run_dir / "curves.png", objective=config.objective, max_epochs=config.max_epochs)
    spent = budget_spent(config, records, events)
    begun, ended = {one.trial_id for one in events if one.what == "started"}, ended_ids(events)
    if len(begun - ended) if spent else len(ended) < config.budget.trials:
        raise interrupted(place)
    if not records:
        reason = next((one.reason for one in events if one.what == "failed"), "no reason was given")
        raise RunError(f"no trial reported an epoch; the first failed with: {reason}")
    if spent:
        say(f"ended by its budget: {spent}; {config.budget.trials - len(begun)} trials never began")
    best = best_record(records, config.objective)
    if not best.checkpoint_path or has_diverged(best.metrics):
        raise RunError("all trials diverged; choose lower bounds of --lr")


def interrupted(place: str) -> KeyboardInterrupt:
    """What to raise, having said how to go on."""
    say(f"interrupted; go on with: python tune/search.py --resume --run-dir {place}")
    return KeyboardInterrupt()


def budget_spent(config: SearchConfig, records: Sequence[EpochRecord], events: Sequence[TrialEvent]) -> str | None:
    """What the search had nothing left of to spend, in words; None if it had."""
    begun = max((one.at for one in events if one.what == "session"), default=0.0)
    last = max((one.at for one in events), default=0.0)
    return spent_on(config.budget, num_epochs=len(records), elapsed_s=last - begun)


def conclude(
    config: SearchConfig,
    setup: TrialSetup,
    rows: TrainingRows,
    test_ids: Sequence[str],
    run_dir: Path,
    at_once: int,
) -> EpochRecord:
    """Write what a search is for; with final trainings, first for its best trial, then anew. Needs the search's Ray.

    Raises:
        KeyboardInterrupt: the user stopped the final trainings; the run folder can be resumed.
        BinTallyError: nothing can be kept, or the test split cannot be read; what was written before stays.
    """
    best = best_kept(read_records(run_dir / TRIALS_FILE), config)
    if best is None:
        raise RunError(f"no checkpoint of any trial is left in {setup.place}")
    winner = recipe_at(config.recipe, best.point)
    say(f"best: {describe_point(best.point)}, epoch {best.epoch}")
    say(f"      {describe(best.metrics)}")
    with local_copy(best.checkpoint_path, "checkpoint") as checkpoint_dir:
        found = Candidate(name="search", recipe=winner, record=best, checkpoint_dir=checkpoint_dir)
        if not (config.final_seeds and (run_dir / "checkpoint").exists() and are_of(in_full(winner), run_dir)):
            _keep(found, run_dir)  # else a final training may lie there
        costs = write_outcome(config, best, run_dir, at_once, final=None)
        say(f"{costs.epochs_run} epochs run, {costs.epochs_saved} saved by early stopping; {_hours(costs)}")
        if config.final_seeds:
            _finish(config, setup, found, rows, test_ids, run_dir, at_once)
    say(f"recipe, checkpoint and curves: {setup.place}")
    say(f"report: {setup.place}/report.html")
    return best


def _finish(
    config: SearchConfig,
    setup: TrialSetup,
    found: Candidate,
    rows: TrainingRows,
    test_ids: Sequence[str],
    run_dir: Path,
    at_once: int,
) -> None:
    """Train the winner by several seeds, keep the best on validation, and count the test split."""
    winner = in_full(found.recipe)
    if not train_seeds(config, setup, winner, rows, run_dir, at_once):
        raise interrupted(setup.place)
    candidates = find_candidates(config, winner, run_dir)
    chosen = choose(candidates, found, config)
    told = tell_choice(chosen, candidates, found, config)
    say(told)
    checkpoint_dir = _keep(chosen, run_dir)
    calibrate(checkpoint_dir, rows, config)
    final = summarise_final(candidates, chosen, None, told)
    write_outcome(config, found.record, run_dir, at_once, final=final)  # should the test split be unreadable
    if not test_ids:
        say("the test split is empty, so nothing is counted on it")
        return
    test = score_test(candidates, chosen, test_ids, config, run_dir)
    final = summarise_final(candidates, chosen, test, told)
    if final["test"]:
        say(f"test split: {describe_spread(final['test'])}")
    kept = final["kept_test"]
    say(f"      kept: accuracy {kept['accuracy']:.1%}, rmse {kept['rmse']:.3f}, nll {kept['nll']:.3f}")
    write_outcome(config, found.record, run_dir, at_once, final=final)


def _keep(chosen: Candidate, run_dir: Path) -> Path:
    """Copy a checkpoint to where a server finds it, with its card, and its recipe beside it."""
    target = run_dir / "checkpoint"
    write_recipe(chosen.recipe, run_dir / "best.json")
    keep_with_card(chosen.checkpoint_dir, target, chosen.recipe, chosen.record)
    return target


def write_outcome(
    config: SearchConfig, best: EpochRecord, run_dir: Path, at_once: int, *, final: dict[str, Any] | None
) -> Costs:
    """Write results.json and report.html; `at_once` are the trainings that the cluster can run side by side."""
    slots = min(at_once, config.budget.trials)  # final trainings may be more than trials, and use the others
    events = read_events(run_dir / EVENTS_FILE)
    followed = follow_trials(read_records(run_dir / TRIALS_FILE), events)
    trials = [one for one in followed if one.spans or one.state != "waiting"]  # for a slot until the budget was spent
    costs = _costs(config, run_dir)
    results = {
        "best": {"trial_id": best.trial_id, "point": best.point, "epoch": best.epoch, **best.metrics},
        "objective": {"metric": config.objective.metric, "mode": config.objective.mode},
        "num_trials": config.budget.trials,
        "num_begun": len(trials),
        "num_failed": sum(one.state == "failed" for one in trials),
        "num_diverged": sum(one.state == "diverged" for one in trials),
        "num_stopped_early": sum(one.state == "stopped early" for one in trials),
        "epochs_run": costs.epochs_run,
        "num_out_of_budget": sum(one.state == "out of budget" for one in trials),
        "epochs_without_early_stopping": costs.epochs_run + costs.epochs_saved,
        "costs": costs.figures(),
        "at_once": slots,
        "busy_share": busy_share(events, slots, config.budget.trials),
        "importance": importance_of(trials, config.space, config.objective).figures(),
        "final": None if final is None else final | {"costs": _costs(config, run_dir / FOLDER).figures()},
    }
    (run_dir / RESULTS_FILE).write_text(json.dumps(results, indent=2) + "\n")
    write_report(config, trials, events, results, run_dir)
    return costs


def _costs(config: SearchConfig, folder: Path) -> Costs:
    """Of the trials whose record lies in a folder."""
    return costs_of(
        follow_trials(read_records(folder / TRIALS_FILE), read_events(folder / EVENTS_FILE)),
        max_epochs=config.max_epochs,
        num_workers=config.resources.num_workers
        * (config.resources.gpus_per_worker if config.resources.use_gpu else 1),
        use_gpu=config.resources.use_gpu,
        price_per_hour=config.price_per_hour,
    )


def _hours(costs: Costs) -> str:
    hours = f"{costs.worker_hours:.3g} {costs.unit}, {costs.worker_hours_saved:.3g} saved"
    if costs.price_per_hour is None:
        return hours
    money, saved = costs.price_per_hour * costs.worker_hours, costs.price_per_hour * costs.worker_hours_saved
    return f"{hours}; at {costs.price_per_hour:g} an hour {money:.4g}, {saved:.4g} saved"
