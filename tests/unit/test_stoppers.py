"""When a search ends, by a budget; and who learns what from its trials."""

import math
import pickle
import random
from dataclasses import replace
from pathlib import Path

import pytest
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from bintally.recipes import smoke
from data.args import ReadArgs, ResourceArgs
from train.figures import DIVERGED
from tune.callbacks import RecordEpochs
from tune.config import AshaConfig, BudgetConfig, Sampler, SearchConfig
from tune.generators import ListedPoints, SuggestedPoints
from tune.objective import SCORE, Objective
from tune.optuna_search import build_searcher
from tune.record import EVENTS_FILE, TRIALS_FILE, EpochRecord, TrialEvent, append_record, read_events
from tune.rungs import Asha, bracket_of, build_scheduler
from tune.space import LR, Choice, Interval, SearchSpace
from tune.stoppers import EndTrials, spent_on

NO_LIMIT = BudgetConfig(trials=9)
NO_EVENTS = Path("/nowhere/events.jsonl")


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


FIGURES = ("val_accuracy", "val_within_one", "val_rmse", "val_mae", "val_num_images", "train_loss", "images_per_s")


def ends_of(
    tmp_path: Path, epochs: list[tuple[int, bool]], *, max_epochs: int = 9, own: int | None = None
) -> list[str]:
    """What the record says of the ends of trials whose last epoch, ended by the search or by itself, is this one.

    The budget is spent with the last of them.
    """
    path = tmp_path / TRIALS_FILE
    end = EndTrials(BudgetConfig(trials=9, epochs=len(epochs)), path)
    record = RecordEpochs(path, objective=Objective(), max_epochs=9, num_trials=9, place="", end=end)
    point = {} if own is None else {"max_epochs": own}
    for number, (epoch, is_done) in enumerate(epochs):
        trial = Trial("trial", config=point, trial_id=f"a_{number:05d}", stub=True)
        started = TrialEvent(what="started", at=1.0, trial_id=trial.trial_id, point=point)
        append_record(tmp_path / EVENTS_FILE, started)
        told = {**dict.fromkeys(FIGURES, 1.0), **result(epoch), "val_nll": 1.0, "epoch_s": 1.0}
        by_budget = end(trial.trial_id, told)
        told["done"] = is_done or by_budget
        record.on_trial_result(0, [], trial, told)
        trial.update_last_result(told)
        record.on_trial_complete(0, [], trial)
    return [one.what for one in read_events(tmp_path / EVENTS_FILE) if one.what != "started"]


def test_the_record_tells_early_stops_from_the_end_of_the_budget(tmp_path: Path) -> None:
    assert ends_of(tmp_path, [(1, True), (9, True), (3, False), (2, False)]) == ["stopped", "ended", "ended", "budget"]


def test_a_trial_that_ran_all_epochs_of_its_own_was_not_stopped(tmp_path: Path) -> None:
    assert ends_of(tmp_path, [(1, True), (2, True), (2, True)], own=2) == ["stopped", "ended", "ended"]


def test_no_time_is_left(tmp_path: Path) -> None:
    end = EndTrials(BudgetConfig(trials=9, time_s=1e-9), tmp_path / TRIALS_FILE)
    assert end("a", result(1))


def test_a_diverged_trial_ends_even_if_it_is_the_first_at_its_rung(tmp_path: Path) -> None:
    end = EndTrials(NO_LIMIT, tmp_path / TRIALS_FILE)
    assert end("a", result(1, DIVERGED))
    assert not end("b", result(1, -0.9))


def test_no_trial_begins_on_a_spent_budget(tmp_path: Path) -> None:
    end = EndTrials(BudgetConfig(trials=2, epochs=1), tmp_path / TRIALS_FILE)
    generators = ListedPoints([{LR: 0.1}], 1, end, 0), SuggestedPoints(build_searcher(config_of(), NO_EVENTS), 1, end)
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
        scheduler = build_scheduler(one, Path("trials.jsonl"))
        assert isinstance(scheduler, Asha)
        assert scheduler._max_t == max_t  # noqa: SLF001  # Ray's, and not public
    assert not isinstance(build_scheduler(replace(config, asha=AshaConfig(enabled=False)), Path("trials.jsonl")), Asha)


class Search:
    """Three trials at a time under ASHA, each with its level of the score; what was decided after each epoch."""

    def __init__(self, path: Path) -> None:
        self.path = path
        asha = AshaConfig(grace_epochs=1, reduction_factor=2, brackets=2)
        self.asha = build_scheduler(replace(config_of(), asha=asha), path)
        self.asha.set_search_properties(SCORE, "min")
        self.decided: dict[tuple[str, int], str] = {}

    def begin(self, trial_id: str) -> Trial:
        trial = Trial("trial", config={}, trial_id=trial_id, stub=True)
        self.asha.on_trial_add(None, trial)
        return trial

    def report(self, trial: Trial, epoch: int) -> str:
        nll = random.Random(f"{trial.trial_id} {epoch}").random() / epoch  # noqa: S311
        decided = self.asha.on_trial_result(None, trial, result(epoch, nll))
        record = EpochRecord(
            trial_id=trial.trial_id, point={}, epoch=epoch, checkpoint_path="x", metrics={"val_nll": nll}, ended=0.0
        )
        append_record(self.path, record)
        self.decided[trial.trial_id, epoch] = decided
        return decided

    def run(self, running: dict[str, int], waiting: list[str], most: int) -> tuple[dict[str, int], list[str]]:
        """So many epochs more; the newest epochs of the trials that run then, and who still waits."""
        trials = {trial_id: self.begin(trial_id) for trial_id in running}
        for trial_id in reversed(running):  # a restarted trial reports its newest epoch again, in whatever order
            if running[trial_id] and self.report(trials[trial_id], running[trial_id]) == TrialScheduler.STOP:
                del trials[trial_id]
        running = {trial_id: running[trial_id] for trial_id in trials}
        for number in range(most):
            while waiting and len(running) < 3:
                trial_id = waiting.pop(0)
                running[trial_id], trials[trial_id] = 0, self.begin(trial_id)
            if not running:
                break
            trial_id = next(iter(running))
            epoch = running.pop(trial_id) + 1
            if self.report(trials[trial_id], epoch) != TrialScheduler.STOP or number == most - 1:
                running[trial_id] = epoch  # behind the others; of a trial's stop just before a kill Tune knows nothing
        return running, waiting


@pytest.mark.parametrize("killed_after", range(1, 24, 3))
def test_asha_decides_after_a_kill_as_without_it(tmp_path: Path, killed_after: int) -> None:
    ids = [f"a_{number:05d}" for number in range(9)]
    whole = Search(tmp_path / "whole.jsonl")
    assert whole.run({}, list(ids), 1_000) == ({}, [])
    assert len(set(whole.decided.values())) == 2
    assert len(whole.decided) > 24
    hurt = Search(tmp_path / "hurt.jsonl")
    running, waiting = hurt.run({}, list(ids), killed_after)
    resumed = Search(tmp_path / "hurt.jsonl")
    assert resumed.run(running, waiting, 1_000) == ({}, [])
    assert hurt.decided | resumed.decided == whole.decided


# what Optuna is told


def suggested_after(sampler: Sampler) -> float:
    """Mean logarithm of the rates that follow, after low ones were stopped early with good scores and high ones ran to
    their end with worse ones."""
    searcher = build_searcher(config_of(sampler), NO_EVENTS)
    for number in range(24):
        rate = searcher.suggest(f"t{number}")[LR]
        epoch, score = (9, 1.1) if rate > 3e-3 else (1, 1.0)
        searcher.on_trial_complete(f"t{number}", result(epoch, score + abs(math.log10(rate) + 2.5) / 100))
    return sum(math.log10(searcher.suggest(f"n{number}")[LR]) for number in range(16)) / 16


def test_bohb_follows_those_that_came_far_and_tpe_those_with_the_best_last_score() -> None:
    assert suggested_after("tpe") < math.log10(3e-3) < suggested_after("bohb")


@pytest.mark.parametrize("sampler", ["tpe", "bohb"])
def test_the_first_points_that_optuna_suggests_are_the_seeds(sampler: Sampler) -> None:
    first, again = build_searcher(config_of(sampler), NO_EVENTS), build_searcher(config_of(sampler), NO_EVENTS)
    points = [first.suggest(str(number)) for number in range(8)]
    assert points == [again.suggest(str(number)) for number in range(8)]


@pytest.mark.parametrize("sampler", ["tpe", "bohb"])
def test_a_trial_that_tune_forgot_goes_on_with_the_point_it_began_with(tmp_path: Path, sampler: Sampler) -> None:
    begun = {LR: 0.0123}
    append_record(tmp_path / EVENTS_FILE, TrialEvent(what="waiting", at=1.0, trial_id="a_00001", point=begun))
    searcher, other = (
        build_searcher(config_of(sampler), tmp_path / EVENTS_FILE),
        build_searcher(config_of(sampler), NO_EVENTS),
    )
    assert searcher.suggest("a_00000") == other.suggest("a_00000")
    assert other.suggest("a_00001") != begun
    assert searcher.suggest("a_00001") == begun
    assert searcher.suggest("a_00002") == other.suggest("a_00002")  # no number of the sampler's is lost or drawn twice
    searcher.on_trial_complete("a_00001", result(9, 0.5))
    best = searcher._ot_study.best_trial  # noqa: SLF001  # Ray's, and not public
    assert (best.value, best.params) == (0.5, begun)


@pytest.mark.parametrize("sampler", ["tpe", "bohb"])
def test_a_trial_that_failed_or_was_told_twice_is_no_fault(sampler: Sampler) -> None:
    searcher = build_searcher(config_of(sampler), NO_EVENTS)
    for trial_id in ("a", "b", "c"):
        assert searcher.suggest(trial_id)
    searcher.on_trial_complete("a", error=True)
    searcher.on_trial_complete("b", result(1, DIVERGED))
    searcher.on_trial_complete("b", result(2))
    searcher.on_trial_complete("c", result(9))
    assert searcher.suggest("d")
