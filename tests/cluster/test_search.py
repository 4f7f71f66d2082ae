"""Searches on a small Ray: which points are tried, when they end, and what a resumed search remembers."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from ray import tune as ray_tune
from ray.tune import RunConfig, TuneConfig, Tuner
from ray.tune.schedulers import TrialScheduler
from ray.tune.search.optuna import OptunaSearch

from bintally.checkpoint import load_checkpoint
from bintally.config import read_recipe, with_settings
from bintally.recipes import smoke
from data.args import ReadArgs, ResourceArgs, SourceArgs
from data.session import ray_session
from tune.config import AshaConfig, BudgetConfig, SearchConfig
from tune.driver import search
from tune.generators import SuggestedPoints
from tune.objective import SCORE, Objective
from tune.optuna_search import build_searcher
from tune.record import EVENTS_FILE, TRIALS_FILE, best_record, read_events, read_records
from tune.rungs import Asha, bracket_of, build_scheduler
from tune.slots import number_of
from tune.space import BATCH_SIZE, LR, Choice, Interval, Point, SearchSpace, recipe_at
from tune.stoppers import EndTrials
from tune.trials import follow_trials

pytestmark = pytest.mark.cluster

NUM_TAUGHT = 11  # TPE draws the first ten at random
NUM_TRIALS = 3
NO_EVENTS = Path("/nowhere/events.jsonl")


def test_a_grid_ends_with_its_budget_and_is_judged_by_accuracy(
    synthetic_bucket: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    accuracy = Objective(metric="val_accuracy", mode="max")
    config = SearchConfig(
        recipe=SourceArgs(source=f"file://{synthetic_bucket}").apply(smoke()),
        space=SearchSpace(dimensions={LR: Interval(low=1e-3, high=1e-2, log=True), BATCH_SIZE: Choice(values=(8, 16))}),
        budget=BudgetConfig(trials=9, epochs=3),
        sampler="grid",
        grid_steps=2,
        objective=accuracy,
        asha=AshaConfig(enabled=False),
        final_seeds=0,
        resources=ResourceArgs(num_cpus=2),  # one trial at a time
        read=ReadArgs(max_dropped="20%"),
    )
    best = search(config, tmp_path)

    records = read_records(tmp_path / TRIALS_FILE)
    assert [record.epoch for record in records] == [1, 2, 1]
    assert [record.point for record in records[1:]] == config.space.grid(2)[:2]
    assert len({record.trial_id for record in records}) == 2
    assert best == best_record(records, accuracy)
    assert best.metrics["val_accuracy"] == max(record.metrics["val_accuracy"] for record in records)
    assert load_checkpoint(tmp_path / "checkpoint").metrics["val_accuracy"] == best.metrics["val_accuracy"]
    assert read_recipe(tmp_path / "best.json") == recipe_at(config.recipe, best.point)
    output = "".join(capsys.readouterr())
    assert "max_total_epochs is 3; 2 trials never began" in output
    assert "Last result" not in output  # how Tune tells of trials
    told = [one.what for one in read_events(tmp_path / EVENTS_FILE)]
    assert (told.count("waiting"), told.count("started")) == (3, 2)  # the third got ready in vain


def test_bohb_in_two_brackets_stops_whom_its_rungs_say(synthetic_bucket: Path, tmp_path: Path) -> None:
    config = SearchConfig(
        recipe=with_settings(SourceArgs(source=f"file://{synthetic_bucket}").apply(smoke()), ["max_epochs=3"]),
        space=SearchSpace(dimensions={LR: Interval(low=1e-5, high=1e-2, log=True)}),
        budget=BudgetConfig(trials=4),
        sampler="bohb",
        asha=AshaConfig(brackets=2),
        final_seeds=0,
        resources=ResourceArgs(num_cpus=4),
        read=ReadArgs(max_dropped="20%"),
    )
    best = search(config, tmp_path)
    records, events = read_records(tmp_path / TRIALS_FILE), read_events(tmp_path / EVENTS_FILE)
    trials = follow_trials(records, events)
    assert [number_of(one.trial_id) for one in trials] == [0, 1, 2, 3]
    assert [one.point for one in trials][:2] == [
        {LR: point[LR]} for point in map(build_searcher(config, NO_EVENTS).suggest, ("0", "1")) if point
    ]
    later = [one.last_epoch for one in trials if bracket_of(number_of(one.trial_id), [2, 1]) == 1]
    assert later == [3, 3]  # whose only rung is their last epoch
    # The record alone tells what ASHA decided live.
    asha = build_scheduler(config, tmp_path / TRIALS_FILE)
    assert isinstance(asha, Asha)
    asha.set_search_properties(SCORE, "min")
    stops = {trial_epoch for trial_epoch, decided in asha.decisions().items() if decided == TrialScheduler.STOP}
    assert stops == {(one.trial_id, one.last_epoch) for one in trials}
    assert all(one.state == ("ended" if one.last_epoch == 3 else "stopped early") for one in trials)
    assert load_checkpoint(tmp_path / "checkpoint").metrics["val_nll"] == best.metrics["val_nll"]


def test_tpe_with_little_time_finds_another_winner_when_it_goes_on(
    synthetic_bucket: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A session has time for one epoch of one trial; the first trial's rate learns nothing, the second's does."""
    rates = (1e-6, 3e-3)
    recipe = SourceArgs(source=f"file://{synthetic_bucket}").apply(smoke())

    def config_of(seed: int) -> SearchConfig:
        return SearchConfig(
            recipe=replace(recipe, seed=seed, epoch_fraction=0.5),
            space=SearchSpace(dimensions={LR: Choice(values=rates)}),
            budget=BudgetConfig(trials=2, time_s=2.0),
            sampler="tpe",
            final_seeds=1,
            resources=ResourceArgs(num_cpus=2),  # one trial at a time
            read=ReadArgs(max_dropped="20%"),
        )

    def first_rates(config: SearchConfig) -> tuple[object, ...]:
        return tuple(point[LR] for point in map(build_searcher(config, NO_EVENTS).suggest, ("0", "1")) if point)

    config = next(one for one in map(config_of, range(99)) if first_rates(one) == rates)
    for number, rate in enumerate(rates, start=1):
        best = search(config, tmp_path, resume=number == 2)
        assert "time_budget_s 2 is over" in "".join(capsys.readouterr())
        assert best.point == {LR: rate}
        assert [one.what for one in read_events(tmp_path / EVENTS_FILE)].count("budget") == number
        trained = load_checkpoint(tmp_path / f"final/seed{config.recipe.seed}/checkpoint").recipe
        assert (trained.optim.lr, trained.epoch_fraction) == (rate, 1.0)
        assert read_recipe(tmp_path / "best.json").optim.lr == rate
        results = json.loads((tmp_path / "results.json").read_text())
        assert (results["epochs_run"], results["costs"]["epochs_saved"]) == (number, 0)
        final = read_records(tmp_path / "final" / TRIALS_FILE)
        assert [one.epoch for one in final] == [1, 2]
        assert (
            final[results["final"]["seeds"][str(config.recipe.seed)]["epoch"] - 1].metrics["val_nll"]
            == (results["final"]["seeds"][str(config.recipe.seed)]["val_nll"])
        )
    assert (tmp_path / "final-1/test.json").exists()


def loss_at(point: Point) -> float:
    """Lowest at a learning rate of 0.01 and the smaller batch."""
    rate, size = point[LR], point[BATCH_SIZE]
    assert isinstance(rate, float)
    assert isinstance(size, int)
    return abs(rate - 0.01) + size / 1_000


def report_once(point: Point) -> None:
    """A trial of one epoch without a training."""
    ray_tune.report({SCORE: loss_at(point), "epoch": 1})


def taught(config: SearchConfig) -> OptunaSearch:
    """A searcher that has seen enough results to suggest by them."""
    searcher = build_searcher(config, NO_EVENTS)
    for number in range(NUM_TAUGHT):
        point = searcher.suggest(f"taught{number}")
        searcher.on_trial_complete(f"taught{number}", {SCORE: loss_at(point)})
    return searcher


def points_of(tuner: Tuner) -> list[Point]:
    """In the order in which they were tried."""
    results = tuner.fit()
    assert not results.errors
    by_id: dict[str, Point] = {one.metrics["timestamp"]: one.config for one in results if one.metrics and one.config}
    return [by_id[time] for time in sorted(by_id)]


def test_a_resumed_search_remembers_what_optuna_has_learnt(tmp_path: Path) -> None:
    config = SearchConfig(
        recipe=smoke(),
        space=SearchSpace(dimensions={LR: Interval(low=1e-4, high=1e-1, log=True), BATCH_SIZE: Choice(values=(8, 16))}),
        budget=BudgetConfig(trials=NUM_TRIALS, epochs=1),
        sampler="tpe",
        resources=ResourceArgs(),
        read=ReadArgs(),
    )
    uninterrupted, expected = taught(config), []
    for number in range(2):
        point = uninterrupted.suggest(str(number))
        uninterrupted.on_trial_complete(str(number), {SCORE: loss_at(point)})
        expected.append(point)

    with ray_session(num_cpus=2):
        # A budget of one epoch ends each life. Nobody writes the record from which the second would go on counting.
        end = EndTrials(config.budget, tmp_path / TRIALS_FILE)
        trainable = ray_tune.with_resources(report_once, {"node:__internal_head__": 0.001})
        first = Tuner(
            trainable,
            param_space={},
            tune_config=TuneConfig(
                metric=SCORE, mode="min", num_samples=NUM_TRIALS, search_alg=SuggestedPoints(taught(config), 1, end)
            ),
            run_config=RunConfig(name="tune", storage_path=str(tmp_path), stop=end, verbose=0),
        )
        assert points_of(first) == expected[:1]
        EndTrials(config.budget, tmp_path / TRIALS_FILE)
        assert points_of(Tuner.restore(str(tmp_path / "tune"), trainable=trainable)) == expected
