"""A search and its rows become a Tuner, new or restored."""

from pathlib import Path
from typing import Final

from ray import tune as ray_tune
from ray.tune import FailureConfig, RunConfig, TuneConfig, Tuner
from ray.tune.search import SearchAlgorithm

from data.training_rows import TrainingRows
from tune.callbacks import KeepState, RecordEpochs, TrackTrials
from tune.config import SearchConfig
from tune.generators import ListedPoints, SuggestedPoints
from tune.kept_state import mend_state
from tune.objective import SCORE
from tune.record import EVENTS_FILE, TRIALS_FILE
from tune.rungs import build_scheduler
from tune.samplers import listed_points
from tune.slots import num_ahead
from tune.stoppers import EndTrials
from tune.trial import TrialSetup, run_trial

EXPERIMENT: Final = "tune"  # folder of Tune's own state in the run folder


def build_tuner(
    config: SearchConfig, setup: TrialSetup, rows: TrainingRows, run_dir: Path, at_once: int, *, resume: bool
) -> Tuner:
    """What runs the trials of a settled search.

    Args:
        config: the search.
        setup: what its trials share.
        rows: what all trials read.
        run_dir: where they leave what they find.
        at_once: how many may run side by side.
        resume: go on with the state that Tune left there, if it left any.
    """
    trainable = ray_tune.with_resources(
        ray_tune.with_parameters(run_trial, setup=setup, rows=rows),
        # No CPU: the drivers would eat the whole CPUs that Ray Data waits for.
        {"node:__internal_head__": 0.001},
    )
    end = EndTrials(config.budget, run_dir / TRIALS_FILE)  # also what a restored Tuner heeds
    mend_state(run_dir / EXPERIMENT)
    if resume and Tuner.can_restore(str(run_dir / EXPERIMENT)):
        return Tuner.restore(str(run_dir / EXPERIMENT), trainable=trainable, resume_errored=True)
    record = RecordEpochs(
        run_dir / TRIALS_FILE,
        objective=config.objective,
        max_epochs=config.max_epochs,
        num_trials=config.budget.trials,
        place=setup.place,
        end=end,
    )
    track = TrackTrials(config.track, run_dir, config.recipe)
    return Tuner(
        trainable,
        param_space=dict.fromkeys(config.space.dimensions),  # the values come from the generator
        tune_config=TuneConfig(
            metric=SCORE,
            mode="min",
            num_samples=config.budget.trials,
            scheduler=build_scheduler(config, run_dir / TRIALS_FILE),
            search_alg=_generator(config, run_dir, at_once, end),
        ),
        run_config=RunConfig(
            name=EXPERIMENT,
            storage_path=str(run_dir),
            failure_config=FailureConfig(max_failures=1),
            callbacks=[record, track, KeepState(run_dir / EXPERIMENT)],
            stop=end,
            verbose=0,
        ),
    )


def _generator(config: SearchConfig, run_dir: Path, at_once: int, end: EndTrials) -> SearchAlgorithm:
    points = listed_points(config)
    if points is not None:
        # A trial that Tune began cannot be put off to the session in which a budget of time starts anew.
        ahead = num_ahead(at_once) if config.budget.time_s is None else 0
        return ListedPoints(points, at_once, end, ahead)
    from tune.optuna_search import build_searcher  # an extra, which other samplers do without

    return SuggestedPoints(build_searcher(config, run_dir / EVENTS_FILE), at_once, end)
