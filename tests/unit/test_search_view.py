"""What a search shows while it runs and when it has ended, from records as a search writes them."""

import io
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from bintally.recipes import smoke
from data.args import ReadArgs, ResourceArgs
from tune.config import BudgetConfig, SearchConfig
from tune.costs import busy_share, costs_of, running_over_time
from tune.importance import importance_of
from tune.live import LiveView, describe_state, format_left, render
from tune.objective import Objective
from tune.record import EVENTS_FILE, EpochRecord, TrialEvent, What, append_record, read_events
from tune.report import write_report
from tune.space import BATCH_SIZE, LR, Choice, Interval, SearchSpace
from tune.trials import TrialView, ended_ids, follow_trials

START = 1_800_000_000.0
RATES = (3e-4, 8e-4, 2e-3, 5e-3, 9e-3, 2e-2, 6e-2, 1e-3, 4e-3, 6e-3, 3e-3, 7e-4)
STOPPED = (2, 2, 6, 12, 12, 2, 1, 2, 6, 12, 2, 2)
HOSTILE = '</td><script>alert(1)</script>"&'


def make_search(num_trials: int = 12) -> tuple[SearchConfig, list[EpochRecord], list[TrialEvent]]:
    """Two trials at a time; 30 s to start and 20 s per epoch; trial 6 diverges, trial 5 fails, the best is trial 4."""
    config = SearchConfig(
        recipe=replace(smoke(), max_epochs=12),
        space=SearchSpace(
            dimensions={LR: Interval(low=1e-4, high=1e-1, log=True), BATCH_SIZE: Choice(values=(16, 32))}
        ),
        budget=BudgetConfig(trials=num_trials),
        resources=ResourceArgs(num_workers=2),
        read=ReadArgs(),
    )
    records, events = [], [TrialEvent(what="session", at=START)]
    free = [START + 2, START + 2]
    for number in range(num_trials):
        slot = free.index(min(free))
        trial_id, point = f"ab12c_{number:05d}", {LR: RATES[number], BATCH_SIZE: (16, 32)[number % 2]}
        events.append(TrialEvent(what="started", at=free[slot], trial_id=trial_id, point=point))
        level = 0.6 + 0.5 * abs(RATES[number] - 9e-3) ** 0.25
        num_epochs = STOPPED[number]
        for epoch in range(1, num_epochs + 1):
            nll = level + 1.4 / epoch
            diverged = number == 6
            records.append(
                EpochRecord(
                    trial_id=trial_id,
                    point=point,
                    epoch=epoch,
                    checkpoint_path="" if diverged else f"/runs/{trial_id}/{epoch}",
                    metrics={
                        "val_nll": 1e30 if diverged else nll,
                        "val_accuracy": 0.0 if diverged else 0.75 - nll / 5,
                        "val_rmse": 1e30 if diverged else nll / 2,
                        "images_per_s": 1234.0,
                        "epoch_s": 20.0,
                    },
                    ended=free[slot] + 30 + 20 * epoch,
                )
            )
        free[slot] += 31 + 20 * num_epochs
        what: What = "ended" if num_epochs == 12 else "stopped"
        what = {6: "diverged", 5: "failed"}.get(number, what)  # type: ignore[assignment]
        reason = {6: "the gradient is not finite since batch 3", 5: f"out of memory {HOSTILE}"}.get(number, "")
        events.append(TrialEvent(what=what, at=free[slot], trial_id=trial_id, point=point, reason=reason))
    return config, records, sorted(events, key=lambda one: one.at)


def view_of(config: SearchConfig) -> LiveView:
    return LiveView(
        folder=Path("runs/x"),
        title="search",
        objective=config.objective,
        max_epochs=config.recipe.max_epochs,
        at_once=2,
        budget=config.budget,
    )


def drawn(
    config: SearchConfig, records: Sequence[EpochRecord], events: Sequence[TrialEvent], now: float, max_rows: int = 40
) -> list[str]:
    console = Console(width=160, file=io.StringIO())
    console.print(render(view_of(config), records, events, now=now, max_rows=max_rows))
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def until(now: float, records: Sequence[EpochRecord], events: Sequence[TrialEvent]) -> tuple[list, list]:  # type: ignore[type-arg]
    return [one for one in records if one.ended <= now], [one for one in events if one.at <= now]


def results_of(config: SearchConfig, trials: Sequence[TrialView], events: Sequence[TrialEvent]) -> dict[str, object]:
    costs = costs_of(trials, max_epochs=12, num_workers=2, price_per_hour=2.5)
    best = min((one for trial in trials for one in trial.epochs), key=lambda one: one.metrics["val_nll"])
    seed = {"epoch": 11, "val_accuracy": 0.61, "val_nll": 0.91, "val_rmse": 0.7, "test": None}
    tested = {"accuracy": 0.6, "rmse": 0.71, "nll": 0.93}
    spread = {name: {"mean": value, "std": 0.01, "n": 2} for name, value in tested.items()}
    return {
        "best": {"trial_id": best.trial_id, "point": best.point, "epoch": best.epoch, **best.metrics},
        "num_trials": config.budget.trials,
        "num_begun": len(trials),
        "num_stopped_early": 6,
        "epochs_run": costs.epochs_run,
        "epochs_without_early_stopping": 144,
        "costs": costs.figures(),
        "at_once": 2,
        "busy_share": busy_share(events, 2, 12),
        "importance": importance_of(trials, config.space, config.objective).figures(),
        "final": {
            "costs": costs.figures(),
            "kept": "seed1",
            "why": "kept: seed1, the best of 2 on validation (val_nll 0.91; the search's best trial 0.95)",
            "kept_metrics": seed,
            "kept_test": tested,
            "seeds": {"0": {**seed, "test": tested}, "1": {**seed, "test": tested}},
            "val": spread,
            "test": spread,
        },
    }


def test_the_table_of_a_running_search() -> None:
    config, records, events = make_search()
    now = START + 320
    lines = drawn(config, *until(now, records, events), now)
    assert lines[0].startswith("search: 3 of 12 ended, 23 epochs run, ")
    assert "5:20 elapsed, about " in lines[0]
    rows = {int(found[1]): line for line in lines if (found := re.match(r"[* ]\s+(\d+)  ", line))}
    assert list(rows) == [0, 1, 2, 3, 4]
    assert "lr 0.0003, batch 16" in rows[0]
    assert "stopped early after epoch 2" in rows[0]
    assert "running" in rows[3]
    assert "10/12" in rows[3]
    assert [line[0] for line in rows.values()].count("*") == 1
    assert lines[-1] == "7 waiting; * is the best so far"


def test_the_table_tells_why_a_trial_is_over() -> None:
    config, records, events = make_search()
    lines = drawn(config, records, events, START + 3000)
    assert lines[0].startswith("search: 12 of 12 ended, 60 epochs run")
    text = "\n".join(lines)
    assert "diverged: the gradient is not finite since batch 3" in text
    assert "failed: out of memory" in text
    assert "1e+30" not in text
    assert "waiting" not in text


def test_of_many_trials_those_that_run_and_the_best_are_shown() -> None:
    config, records, events = make_search()
    now = START + 750
    lines = drawn(config, *until(now, records, events), now, max_rows=4)
    text = "\n".join(lines)
    assert text.count("running") == 2
    assert text.count("*") == 2  # the row and the legend
    assert "more that are over" in lines[-1]


def test_before_the_first_epoch_nothing_is_guessed() -> None:
    config, records, events = make_search()
    now = START + 10
    lines = drawn(config, *until(now, records, events), now)
    assert lines[0] == "search: 0 of 12 ended, 0 epochs run, 0:10 elapsed"
    assert "0/12" in lines[2]


def left_s(config: SearchConfig, records: Sequence[EpochRecord], events: Sequence[TrialEvent], now: float) -> int:
    """The seconds that the header says are left."""
    header = drawn(config, *until(now, records, events), now)[0]
    minutes, seconds = re.search(r"about (\d+):(\d+) left", header).groups()  # type: ignore[union-attr]
    return 60 * int(minutes) + int(seconds)


def test_time_left_ends_with_the_search() -> None:
    config, records, events = make_search()
    end = max(one.at for one in events)
    lefts = [left_s(config, records, events, now) for now in (START + 320, START + 600, end)]
    assert lefts[0] > lefts[1] > lefts[2] == 0
    assert lefts[0] == pytest.approx(end - START - 320, rel=0.6)


def test_time_left_falls_while_the_last_trial_has_no_epoch_yet() -> None:
    config, records, events = make_search()
    last = max(one.at for one in events if one.what == "started")
    first, second = (left_s(config, records, events, last + gone) for gone in (1, 5))
    assert first - second == 4


def test_a_limit_of_time_limits_what_is_left() -> None:
    config, records, events = make_search()
    config = replace(config, budget=BudgetConfig(trials=12, time_s=330))
    now = START + 320
    assert "about 0:10 left" in drawn(config, *until(now, records, events), now)[0]


@pytest.mark.parametrize(("seconds", "words"), [(0, "0:00"), (61.4, "1:01"), (12_000, "3:20:00"), (-5, "0:00")])
def test_durations_are_short(seconds: float, words: str) -> None:
    assert format_left(seconds) == words


def test_a_trial_of_a_killed_session_waits_until_it_is_started_again() -> None:
    _, records, events = make_search(2)
    killed = [*events[:3], TrialEvent(what="session", at=START + 1000)]
    states = [(one.state, one.spans) for one in follow_trials(records[:3], killed)]
    assert [state for state, _ in states] == ["waiting", "waiting"]
    assert all(end < START + 200 for _, spans in states for _, end in spans)  # with the last sign of life
    assert ended_ids(killed) == set()
    assert ended_ids(events) == {"ab12c_00000", "ab12c_00001"}
    again = TrialEvent(what="started", at=START + 1010, trial_id="ab12c_00000", point={})
    trials = follow_trials(records[:3], [*killed, again], now=START + 1020)
    assert [one.state for one in trials] == ["running", "waiting"]
    assert trials[0].spans[-1] == (START + 1010, START + 1020)


def test_events_survive_a_kill_in_the_middle_of_a_line(tmp_path: Path) -> None:
    _, _, events = make_search(2)
    path = tmp_path / EVENTS_FILE
    for event in events[:2]:
        append_record(path, event)
    path.write_bytes(path.read_bytes()[:-5])
    append_record(path, events[2])
    assert read_events(path) == [events[0], events[2]]


def test_saved_is_what_early_stopping_did_not_run() -> None:
    _, records, events = make_search()
    costs = costs_of(follow_trials(records, events), max_epochs=12, num_workers=2, price_per_hour=2.0)
    stopped = [epochs for number, epochs in enumerate(STOPPED) if epochs < 12 and number not in (5, 6)]
    assert costs.epochs_run == sum(STOPPED) - 1  # the epoch that diverged was none
    assert costs.epochs_saved == sum(12 - epochs for epochs in stopped)
    assert costs.worker_hours_saved == pytest.approx(2 * 20 * costs.epochs_saved / 3600)
    assert costs.worker_hours == pytest.approx(2 * sum(31 + 20 * epochs for epochs in STOPPED) / 3600)
    assert costs.figures()["cost"] == pytest.approx(2 * costs.worker_hours)
    assert costs.unit == "CPU-worker-hours"


def test_what_a_budget_did_not_run_is_not_saved() -> None:
    _, records, events = make_search()
    events = [replace(one, what="budget") if one.what == "stopped" else one for one in events]
    trials = follow_trials(records, events)
    costs = costs_of(trials, max_epochs=12, num_workers=2)
    assert (costs.epochs_saved, costs.worker_hours_saved) == (0, 0)
    assert describe_state(trials[0]) == "out of budget after epoch 2"
    assert ended_ids(events) == {one.trial_id for one in trials}


def test_a_trial_with_epochs_of_its_own_saves_no_more_than_those() -> None:
    _, records, events = make_search(1)
    events = [replace(one, point={**one.point, "max_epochs": 3}) for one in events]
    (trial,) = follow_trials([], events)
    trial = replace(trial, epochs=tuple(records))
    assert trial.last_epoch == 2
    assert costs_of([trial], max_epochs=12, num_workers=1).epochs_saved == 1


def test_epochs_that_the_space_varies_are_shown_as_the_longest_and_of_each_trial(tmp_path: Path) -> None:
    config, records, events = make_search(2)
    space = SearchSpace(dimensions={**config.space.dimensions, "max_epochs": Interval(low=2, high=12, whole=True)})
    config = replace(config, recipe=replace(smoke(), max_epochs=1), space=space)
    records = [replace(one, point={**one.point, "max_epochs": 4}) for one in records]
    events = [replace(one, point={**one.point, "max_epochs": 4}) for one in events]
    trials = follow_trials(records, events)
    write_report(config, trials, events, results_of(config, trials, events), tmp_path)
    assert "up to 12 epochs each" in (tmp_path / "report.html").read_text()
    rows = drawn(config, records[:1], events[:3], START + 60)[2:4]
    assert "1/4" in rows[0]


def test_without_a_price_there_is_no_money() -> None:
    figures = costs_of([], max_epochs=2, num_workers=1, use_gpu=True).figures()
    assert (figures["cost"], figures["cost_saved"], figures["unit"]) == (None, None, "GPU-hours")


def event(what: What, at: float, trial_id: str = "") -> TrialEvent:
    return TrialEvent(what=what, at=at, trial_id=trial_id)


def test_busy_is_the_share_of_slots_that_were_taken_while_trials_waited() -> None:
    events = [
        event("session", 0),
        event("started", 2, "a"),
        event("started", 4, "b"),
        event("ended", 8, "a"),
        event("started", 10, "c"),  # the last: nobody waits any more
        event("ended", 12, "b"),
        event("ended", 20, "c"),
    ]
    assert busy_share(events, 2, 3) == pytest.approx((0 * 2 + 1 * 2 + 2 * 4 + 1 * 2) / (2 * 10))
    assert running_over_time(events) == [(0, 0), (2, 1), (4, 2), (8, 1), (10, 2), (12, 1), (20, 0)]


def test_a_trial_that_waits_for_a_slot_is_shown_but_holds_none() -> None:
    events = [event("session", 0), event("waiting", 0, "a"), event("started", 2, "a"), event("waiting", 4, "b")]
    trials = follow_trials([], events, now=10)
    assert [(one.state, one.spans) for one in trials] == [("running", ((2, 10),)), ("waiting", ())]
    assert ended_ids(events) == set()
    over = [*events, event("ended", 10, "a"), event("started", 11, "b"), event("ended", 20, "b")]
    assert busy_share(over, 1, 2) == pytest.approx(8 / 11)
    assert costs_of(follow_trials([], over), max_epochs=1, num_workers=1).worker_hours == pytest.approx(17 / 3600)


def test_a_trial_that_was_killed_holds_no_slot_until_it_begins_again() -> None:
    events = [event("session", 0), event("started", 2, "a"), event("waiting", 5, "a"), event("started", 7, "a")]
    assert follow_trials([], events, now=9)[0].spans == ((2, 5), (7, 9))


def test_slots_are_neither_busy_nor_idle_while_nobody_waits() -> None:
    events = [event("session", 0), event("started", 1, "a"), event("ended", 9, "a")]
    assert busy_share(events[1:], 2, 1) is None


def test_the_night_between_two_sessions_is_not_idle_time() -> None:
    day = [event("session", 0), event("started", 0, "a"), event("ended", 10, "a"), event("started", 10, "b")]
    next_day = [
        event("session", 9000),
        event("started", 9000, "b"),
        event("ended", 9010, "b"),
        event("ended", 9011, "x"),
    ]
    assert busy_share([*day, *next_day], 1, 3) == pytest.approx(20 / 21)
    assert (10, 0) in running_over_time([*day, *next_day])


def test_the_dimension_that_orders_the_trials_is_the_important_one() -> None:
    config, records, events = make_search()
    records = [replace(one, metrics={**one.metrics, "val_nll": one.point[LR]}) for one in records]
    found = importance_of(follow_trials(records, events), config.space, config.objective)
    assert [one.field for one in found.dimensions] == [LR, BATCH_SIZE]
    assert found.dimensions[0].share == pytest.approx(1, abs=0.25)  # but for the one that diverged
    assert "lower was better" in found.dimensions[0].finding
    assert found.epoch == 2


def test_a_choice_that_orders_the_trials_is_important() -> None:
    config, records, events = make_search()
    records = [replace(one, metrics={**one.metrics, "val_accuracy": float(one.point[BATCH_SIZE])}) for one in records]
    objective = Objective(metric="val_accuracy", mode="max")
    found = importance_of(follow_trials(records, events), config.space, objective)
    assert found.dimensions[0].field == BATCH_SIZE
    assert found.dimensions[0].share == pytest.approx(0.8, abs=0.25)
    assert found.dimensions[0].finding.startswith("32 was best")


@pytest.mark.parametrize("num_trials", [0, 1, 2])
def test_of_too_few_trials_nothing_is_claimed(num_trials: int) -> None:
    config, records, events = make_search(max(1, num_trials))
    found = importance_of(follow_trials(records, events)[:num_trials], config.space, config.objective)
    assert [one.share for one in found.dimensions] == [None, None]


def test_the_page_needs_nothing_but_itself(tmp_path: Path) -> None:
    config, records, events = make_search()
    trials = follow_trials(records, events)
    folder = tmp_path / "trials" / f"train-{trials[4].trial_id}"
    folder.mkdir(parents=True)
    (folder / "profile.html").touch()
    write_report(config, trials, events, results_of(config, trials, events), tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert set(re.findall(r'(?:src|href)="([^"#][^":]*)', page)) == {
        "data",
        "trials/train-ab12c_00004/",
        "trials/train-ab12c_00004/profile.html",
    }
    assert page.count("<img") == page.count('alt="') == 4
    assert "60.0% ± 1.0%" in page
    assert "4 (best)" in page
    assert "1e+30" not in page


def test_a_page_of_one_trial_without_a_final(tmp_path: Path) -> None:
    config, records, events = make_search(1)
    trials = follow_trials(records, events)
    results = {**results_of(config, trials, events), "final": None}
    write_report(config, trials, events, results, tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "until the final trainings have ended" in page
    assert "this means little" in page
    write_report(replace(config, final_seeds=0), trials, events, results, tmp_path)
    assert "There was no final training" in (tmp_path / "report.html").read_text()


def test_money_is_shown_for_a_price_alone(tmp_path: Path) -> None:
    config, records, events = make_search()
    trials = follow_trials(records, events)
    results = results_of(config, trials, events)
    write_report(config, trials, events, results, tmp_path)
    assert "at 2.5 an hour" in (tmp_path / "report.html").read_text()
    results["costs"] = costs_of(trials, max_epochs=12, num_workers=2).figures()
    write_report(config, trials, events, results, tmp_path)
    assert "an hour" not in (tmp_path / "report.html").read_text()
