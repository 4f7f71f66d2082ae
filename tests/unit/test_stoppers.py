"""When a search ends, by a budget; and who learns what from its trials."""

import math
import pickle
from dataclasses import replace
from pathlib import Path

import pytest

from bintally.recipes import smoke
from data.args import ReadArgs, ResourceArgs
from train.figures import DIVERGED
from tune.config import AshaConfig, BudgetConfig, Sampler, SearchConfig
from tune.generators import ListedPoints, SuggestedPoints
from tune.objective import SCORE
from tune.optuna_search import build_searcher
from tune.record import TRIALS_FILE, EpochRecord, append_record
from tune.rungs import Asha, bracket_of, build_scheduler
from tune.space import LR, Choice, Interval, SearchSpace
from tune.stoppers import EndTrials, spent_on

NO_LIMIT = BudgetConfig(trials=9)


def result(epoch: int, score: float = 1.0) -> dict[str, float]:
    return {"epoch": epoch, SCORE: score}


def config_of(sampler: Sampler = "tpe", *, max_epochs: int = 9) -> SearchConfig:
    return SearchConfig(
        recipe=replace(smoke(), max_epochs=max_epochs),
        space=SearchSpace(dimensions={LR: Interval(low=1e-4, high=1e-1, log=True)}),
        budget=NO_LIMIT,
        sampler=sampler,
        resources=ResourceArgs(),
        read=ReadArgs(),
    )


@pytest.mark.parametrize(
    ("budget", "num_epochs", "elapsed_s", "words"),
    [
        (NO_LIMIT, 10**6, 1e9, None),
        (BudgetConfig(trials=9, epochs=5), 4, 1e9, None),
        (BudgetConfig(trials=9, epochs=5), 6, 0.0, "6 epochs have run, and max_total_epochs is 5"),
        (BudgetConfig(trials=9, time_s=60), 10**6, 59.9, None),
        (BudgetConfig(trials=9, time_s=60), 0, 60.0, "time_budget_s 60 is over"),
        (BudgetConfig(trials=9, time_s=60, epochs=5), 5, 60.0, "5 epochs have run, and max_total_epochs is 5"),
    ],
)
def test_which_budget_is_spent(budget: BudgetConfig, num_epochs: int, elapsed_s: float, words: str | None) -> None:
    assert spent_on(budget, num_epochs=num_epochs, elapsed_s=elapsed_s) == words


def test_trials_end_with_the_epoch_that_spends_the_budget(tmp_path: Path) -> None:
    end = EndTrials(BudgetConfig(trials=9, epochs=3), tmp_path / TRIALS_FILE)
    assert not end.spent
    assert not end("a", result(1))
    assert not end("b", result(1))
    assert not end("b", result(1))  # a restarted trial reports its newest epoch once more
    assert end("a", result(2))
    assert end("b", result(2))  # it was in that epoch when the budget was spent
    assert end.spent
    assert not end.stop_all()  # Tune would end trials in mid-epoch


def test_a_resumed_search_goes_on_counting(tmp_path: Path) -> None:
    for number in (1, 2, 2):
        record = EpochRecord(
            trial_id="a", point={}, epoch=number, checkpoint_path="", metrics={"val_nll": 1.0}, ended=0.0
        )
        append_record(tmp_path / TRIALS_FILE, record)
    end = EndTrials(BudgetConfig(trials=9, epochs=3), tmp_path / TRIALS_FILE)
    assert not end.spent
    assert end("b", result(1))


def test_what_tune_has_stored_is_the_newest_one_of_this_process(tmp_path: Path) -> None:
    old = EndTrials(BudgetConfig(trials=9, epochs=1), tmp_path / TRIALS_FILE)
    assert old("a", result(1))
    stored = pickle.dumps({"stopper": old, "generator": ListedPoints([], 1, old, 0)})
    new = EndTrials(BudgetConfig(trials=9, epochs=1), tmp_path / TRIALS_FILE)
    restored = pickle.loads(stored)  # noqa: S301  # our own
    assert restored["stopper"] is new
    assert restored["generator"].end is new
    assert not new.spent


def test_no_time_is_left(tmp_path: Path) -> None:
    end = EndTrials(BudgetConfig(trials=9, time_s=1e-9), tmp_path / TRIALS_FILE)
    assert end("a", result(1))


def test_a_diverged_trial_ends_even_if_it_is_the_first_at_its_rung(tmp_path: Path) -> None:
    end = EndTrials(NO_LIMIT, tmp_path / TRIALS_FILE)
    assert end("a", result(1, DIVERGED))
    assert not end("b", result(1, -0.9))


def test_no_trial_begins_on_a_spent_budget(tmp_path: Path) -> None:
    end = EndTrials(BudgetConfig(trials=2, epochs=1), tmp_path / TRIALS_FILE)
    generators = ListedPoints([{LR: 0.1}], 1, end, 0), SuggestedPoints(build_searcher(config_of()), 1, end)
    assert not generators[0].is_finished()
    end("a", result(1))
    for generator in generators:
        assert generator.is_finished()
        assert generator.next_trial() is None


def test_points_that_are_left_are_in_the_state_that_tune_stores(tmp_path: Path) -> None:
    end = EndTrials(NO_LIMIT, tmp_path / TRIALS_FILE)
    state = ListedPoints([{LR: 0.1}, {LR: 0.2}], 1, end, 0).get_state()
    assert state["_points_to_evaluate"] == [{LR: 0.1}, {LR: 0.2}]
    assert "end" not in state
    other = ListedPoints([], 1, end, 0)
    other.set_state(state | {"_finished": True})  # by a budget that the resumed search has anew
    assert not other.is_finished()


# ASHA


def test_brackets_are_dealt_out_by_number_and_longer_ladders_more_often() -> None:
    dealt = [bracket_of(number, [3, 2, 1]) for number in range(900)]
    assert dealt == [bracket_of(number, [3, 2, 1]) for number in range(900)]
    assert 540 < dealt.count(0) < 660  # e^2 / (1 + e + e^2) of them: 599
    assert dealt.count(1) > dealt.count(2) > 40
    assert {bracket_of(number, [4]) for number in range(9)} == {0}


def test_asha_looks_as_far_as_the_longest_trial() -> None:
    config = config_of()
    longest = replace(config, space=SearchSpace(dimensions={"max_epochs": Choice(values=(3, 27))}))
    for one, max_t in ((config, 9), (longest, 27)):
        scheduler = build_scheduler(one)
        assert isinstance(scheduler, Asha)
        assert scheduler._max_t == max_t  # noqa: SLF001  # Ray's, and not public
    assert not isinstance(build_scheduler(replace(config, asha=AshaConfig(enabled=False))), Asha)


# what Optuna is told


def suggested_after(sampler: Sampler) -> float:
    """Mean logarithm of the rates that follow, after low ones were stopped early with good scores and high ones ran to
    their end with worse ones."""
    searcher = build_searcher(config_of(sampler))
    for number in range(24):
        rate = searcher.suggest(f"t{number}")[LR]
        epoch, score = (9, 1.1) if rate > 3e-3 else (1, 1.0)
        searcher.on_trial_complete(f"t{number}", result(epoch, score + abs(math.log10(rate) + 2.5) / 100))
    return sum(math.log10(searcher.suggest(f"n{number}")[LR]) for number in range(16)) / 16


def test_bohb_follows_those_that_came_far_and_tpe_those_with_the_best_last_score() -> None:
    assert suggested_after("tpe") < math.log10(3e-3) < suggested_after("bohb")


@pytest.mark.parametrize("sampler", ["tpe", "bohb"])
def test_the_first_points_that_optuna_suggests_are_the_seeds(sampler: Sampler) -> None:
    first, again = build_searcher(config_of(sampler)), build_searcher(config_of(sampler))
    points = [first.suggest(str(number)) for number in range(8)]
    assert points == [again.suggest(str(number)) for number in range(8)]


@pytest.mark.parametrize("sampler", ["tpe", "bohb"])
def test_a_trial_that_failed_or_was_told_twice_is_no_fault(sampler: Sampler) -> None:
    searcher = build_searcher(config_of(sampler))
    for trial_id in ("a", "b", "c"):
        assert searcher.suggest(trial_id)
    searcher.on_trial_complete("a", error=True)
    searcher.on_trial_complete("b", result(1, DIVERGED))
    searcher.on_trial_complete("b", result(2))
    searcher.on_trial_complete("c", result(9))
    assert searcher.suggest("d")
