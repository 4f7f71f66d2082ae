"""Searches on a small Ray: which points are tried, when they end, and what a resumed search remembers."""

from pathlib import Path

import pytest
from ray import tune as ray_tune
from ray.tune import RunConfig, TuneConfig, Tuner
from ray.tune.search.optuna import OptunaSearch

from bintally.checkpoint import load_checkpoint
from bintally.config import read_recipe
from bintally.recipes import smoke
from data.args import ReadArgs, ResourceArgs, SourceArgs
from data.session import ray_session
from tune.config import AshaConfig, BudgetConfig, SearchConfig
from tune.driver import search
from tune.generators import SuggestedPoints
from tune.objective import SCORE, Objective
from tune.optuna_search import build_searcher
from tune.record import EVENTS_FILE, TRIALS_FILE, best_record, read_events, read_records
from tune.space import BATCH_SIZE, LR, Choice, Interval, Point, SearchSpace, recipe_at
from tune.stoppers import EndTrials

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(400)]

NUM_TAUGHT = 11  # TPE draws the first ten at random
NUM_TRIALS = 3


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
    searcher = build_searcher(config)
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
