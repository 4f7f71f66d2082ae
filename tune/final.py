"""After a search: its winner trained in full by several seeds, on the same rows; the best on validation is kept.

    final/seed7/checkpoint   the best epoch of one seed        final/test.json   what the test split says of each
    final/trials.jsonl       every epoch of every seed         final/tune/...    Tune's own state, to resume from
    final/recipe.json        the winner they are of

The test split chooses nothing: it is counted once for each checkpoint, after the choice is made. A resumed search may
find another winner: the trainings of the one before are set aside then, as final-1.
"""

import filecmp
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Final

from ray import tune as ray_tune
from ray.tune import FailureConfig, RunConfig, TuneConfig, Tuner
from ray.tune.search import BasicVariantGenerator

from bintally.checkpoint import CALIBRATION_FILE, load_checkpoint, write_calibration
from bintally.config import Recipe
from bintally.model import WEIGHTS_FILE
from data.progress import say
from data.s3_folder import exists, local_copy
from data.training_rows import TrainingRows
from train.bootstrap import Bootstrap
from train.evaluate_calibrate import fit_calibration, tell_calibration
from train.evaluate_many import count_split, count_stored
from train.model_card import CARD_FILE, write_model_card
from train.run import keep_checkpoint
from tune.callbacks import RecordEpochs, TrackTrials
from tune.config import BudgetConfig, SearchConfig
from tune.final_folder import FOLDER, begin_final, state_of
from tune.live import LiveView, live_table
from tune.record import EVENTS_FILE, TRIALS_FILE, EpochRecord, begin_session, read_events, read_records
from tune.slots import Slots, num_ahead
from tune.space import describe_point, recipe_at
from tune.trial import TrialSetup, allow_again, run_trial, write_trial_reports
from tune.trials import ended_ids, follow_trials

TEST_FILE: Final = "test.json"
SEED: Final = "seed"
SPREAD: Final = ("accuracy", "rmse", "nll")


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A checkpoint that may be kept: the best epoch of a seed, or of the search's best trial."""

    name: str
    """As seed7, or search."""
    recipe: Recipe
    record: EpochRecord
    """Its best epoch on validation."""
    checkpoint_dir: Path


def train_seeds(
    config: SearchConfig, setup: TrialSetup, winner: Recipe, rows: TrainingRows, run_dir: Path, at_once: int
) -> bool:
    """Train the winner by each seed, as many at once as fit; whether all came to an end, and none was interrupted.

    Done ones are not repeated, and one that was interrupted goes on with its newest checkpoint.
    """
    folder = begin_final(winner, run_dir)
    seeds = seeds_of(winner, config.final_seeds)
    say(f"final: {winner.name} at the best point, {winner.max_epochs} epochs, by {len(seeds)} seeds")
    slots = Slots(folder=folder, number=min(at_once, len(seeds)))
    setup = setup.within(FOLDER, winner, slots)
    tuner = _build_tuner(config, setup, rows, folder)
    view = LiveView(
        folder=folder,
        title="final",
        objective=config.objective,
        max_epochs=winner.max_epochs,
        at_once=slots.number,
        budget=BudgetConfig(trials=len(seeds)),
    )
    allow_again(setup.storage_path)
    begin_session(folder)
    with live_table(view):
        tuner.fit()
    write_trial_reports(setup.storage_path)
    return len(ended_ids(read_events(folder / EVENTS_FILE))) == len(seeds)


def seeds_of(winner: Recipe, number: int) -> list[int]:
    """The recipe's own seed and those that follow it."""
    return list(range(winner.seed, winner.seed + number))


def _build_tuner(config: SearchConfig, setup: TrialSetup, rows: TrainingRows, folder: Path) -> Tuner:
    winner = setup.recipe
    trainable = ray_tune.with_resources(
        ray_tune.with_parameters(run_trial, setup=setup, rows=rows),
        {"node:__internal_head__": 0.001},  # as in a search
    )
    state = state_of(folder)
    if Tuner.can_restore(str(state)):
        return Tuner.restore(str(state), trainable=trainable, resume_errored=True)
    seeds = seeds_of(winner, config.final_seeds)
    record = RecordEpochs(
        folder / TRIALS_FILE,
        objective=config.objective,
        max_epochs=winner.max_epochs,
        num_trials=len(seeds),
        place=setup.place,
        label="final training",
    )
    return Tuner(
        trainable,
        param_space={SEED: ray_tune.grid_search(seeds)},
        tune_config=TuneConfig(
            metric=config.objective.metric,
            mode=config.objective.mode,
            search_alg=BasicVariantGenerator(max_concurrent=setup.slots.number + num_ahead(setup.slots.number)),
        ),
        run_config=RunConfig(
            name=state.name,
            storage_path=str(state.parent),
            failure_config=FailureConfig(max_failures=1),
            callbacks=[record, TrackTrials(config.track, folder.parent, winner)],
            verbose=0,
        ),
    )


def find_candidates(config: SearchConfig, winner: Recipe, run_dir: Path) -> list[Candidate]:
    """The best kept epoch of each seed, whose checkpoint is copied to its folder; of seeds that failed, none."""
    folder = run_dir / FOLDER
    candidates = []
    for trial in follow_trials(read_records(folder / TRIALS_FILE), read_events(folder / EVENTS_FILE)):
        best = best_kept(trial.epochs, config)
        if best is None:
            say(f"final: {describe_point(trial.point)} has no checkpoint: {trial.state} {trial.reason}")
            continue
        recipe = recipe_at(winner, trial.point)
        target = folder / f"seed{recipe.seed}" / "checkpoint"
        with local_copy(best.checkpoint_path, "checkpoint") as source:
            keep_with_card(source, target, recipe, best)
        candidates.append(Candidate(name=f"seed{recipe.seed}", recipe=recipe, record=best, checkpoint_dir=target))
    return sorted(candidates, key=lambda one: one.recipe.seed)


def keep_with_card(source: Path, target: Path, recipe: Recipe, record: EpochRecord) -> None:
    """Copy a checkpoint with its card, unless it is there."""
    kept, weights = target / WEIGHTS_FILE, source / WEIGHTS_FILE
    if (target / CARD_FILE).exists() and filecmp.cmp(kept, weights, shallow=False):  # the card is written last
        return
    keep_checkpoint(source, target)
    write_model_card(target, recipe, {"epoch": record.epoch, **record.metrics})


def best_kept(records: Sequence[EpochRecord], config: SearchConfig) -> EpochRecord | None:
    """The best epoch of those whose checkpoint is still there: Train keeps the best by NLL, and the newest."""
    best_first = sorted(records, key=lambda one: config.objective.loss(one.metrics))  # S3 is asked but a few times
    return next((one for one in best_first if one.checkpoint_path and exists(one.checkpoint_path)), None)


def choose(candidates: Sequence[Candidate], found: Candidate, config: SearchConfig) -> Candidate:
    """The best on validation; of equals the retrained one."""
    return min([*candidates, found], key=lambda one: config.objective.loss(one.record.metrics))


def tell_choice(chosen: Candidate, candidates: Sequence[Candidate], found: Candidate, config: SearchConfig) -> str:
    """Which one is kept and why, honestly where training it again did not help."""
    metric = config.objective.metric
    value, searched = chosen.record.metrics[metric], found.record.metrics[metric]
    if chosen is not found:
        return (
            f"kept: {chosen.name}, the best of {len(candidates)} on validation ({metric} {value:.4g};"
            f" the search's best trial {searched:.4g})"
        )
    if not candidates:
        return f"kept: the search's best trial ({metric} {searched:.4g}), since no final training left a checkpoint"
    best = min((one.record for one in candidates), key=lambda one: config.objective.loss(one.metrics))
    return (
        f"kept: the search's best trial ({metric} {searched:.4g}): no final training was better on validation"
        f" (best {best.metrics[metric]:.4g}). It is the best of {config.budget.trials} trials on these photos, so its"
        " figure flatters; the final trainings show what its recipe is worth"
    )


def calibrate(chosen_dir: Path, rows: TrainingRows, config: SearchConfig) -> None:
    """Fit the kept checkpoint's calibration on the validation rows, unless it has one."""
    if (chosen_dir / CALIBRATION_FILE).exists():
        return
    checkpoint = load_checkpoint(chosen_dir)
    counted = count_stored(rows.val, rows.spec, [checkpoint], use_gpu=config.resources.use_gpu)
    fitted = fit_calibration(counted.probabilities[0], counted.counts, checkpoint, checkpoint.recipe.data, "val")
    tell_calibration(fitted)
    write_calibration(chosen_dir, fitted)


def score_test(
    candidates: Sequence[Candidate], chosen: Candidate, ids: Sequence[str], config: SearchConfig, run_dir: Path
) -> dict[str, Any]:
    """The figures of each seed, and of what is kept, on the test split; counted once for each, then read back.

    Raises:
        SourceError: the split cannot be read.
    """
    path = run_dir / FOLDER / TEST_FILE
    figures: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    loaded = {one.name: load_checkpoint(one.checkpoint_dir) for one in [*candidates, chosen]}
    checkpoints = {
        name: one for name, one in loaded.items() if figures.get(name, {}).get("model_version") != one.version
    }
    if not checkpoints:
        return figures
    say(f"final: counting {len(ids):,} ids of the test split by {len(checkpoints)} checkpoints")
    counted = count_split(ids, [*checkpoints.values()], config.read, "test", use_gpu=config.resources.use_gpu)
    figures |= {
        name: {**counted.figures(number, Bootstrap()), "model_version": one.version}
        for number, (name, one) in enumerate(checkpoints.items())
    }
    partial = path.with_suffix(".tmp")  # a reader never sees half of it
    partial.write_text(json.dumps(figures, indent=2) + "\n")
    partial.replace(path)
    return figures


def summarise_final(
    candidates: Sequence[Candidate], chosen: Candidate, test: dict[str, Any] | None, told: str
) -> dict[str, Any]:
    """The end of a search, JSON-ready; `test` is None where it was not counted."""
    seeds = {
        str(one.recipe.seed): {
            "epoch": one.record.epoch,
            **one.record.metrics,
            "test": None if test is None else test.get(one.name),
        }
        for one in candidates
    }
    scored = [test[one.name] for one in candidates] if test else []
    validated = [{name: one.record.metrics[f"val_{name}"] for name in SPREAD} for one in candidates]
    return {
        "kept": chosen.name,
        "why": told,
        "kept_metrics": {"epoch": chosen.record.epoch, **chosen.record.metrics},
        "kept_test": None if test is None else test.get(chosen.name),
        "seeds": seeds,
        "val": spread_of(validated),
        "test": spread_of(scored),
    }


def spread_of(figures: Sequence[dict[str, float]]) -> dict[str, Any] | None:
    """Mean, standard deviation (None of one alone) and number, by figure; None of no figures."""
    if not figures:
        return None
    columns = {name: [one[name] for one in figures] for name in SPREAD}
    return {
        name: {"mean": mean(values), "std": stdev(values) if len(values) > 1 else None, "n": len(values)}
        for name, values in columns.items()
    }


def describe_spread(spread: dict[str, Any]) -> str:
    """In one line for people."""

    def one(name: str, style: str) -> str:
        values = spread[name]
        beside = "" if values["std"] is None else f" ± {values['std']:{style}}"
        return f"{name} {values['mean']:{style}}{beside}"

    number = spread["accuracy"]["n"]
    note = "one seed" if number == 1 else f"mean ± standard deviation of {number} seeds"
    return f"{one('accuracy', '.1%')}, {one('rmse', '.3f')}, {one('nll', '.3f')} ({note})"
