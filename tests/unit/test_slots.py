"""Which trial gets a slot, and when, as the record of a search tells it."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tune.record import (
    EVENTS_FILE,
    TRIALS_FILE,
    EpochRecord,
    TrialEvent,
    What,
    append_record,
    begin_session,
    read_events,
)
from tune.slots import NeverBegunError, Slots, is_its_turn


def events_of(*told: tuple[What, int]) -> list[TrialEvent]:
    session = TrialEvent(what="session", at=0.0)
    return [session, *(TrialEvent(what=what, at=1.0, trial_id=f"ab_{number:05d}") for what, number in told)]


@pytest.mark.parametrize(
    ("told", "turn"),
    [
        ([], False),  # the two before it still have to begin
        ([("started", 0)], False),
        ([("started", 0), ("waiting", 1)], False),
        ([("started", 0), ("started", 1)], False),  # both slots are held
        ([("started", 0), ("started", 1), ("ended", 0)], True),
        ([("started", 0), ("failed", 1)], True),
        ([("started", 0), ("started", 1), ("waiting", 0)], False),  # it was killed, and has the slot again first
        ([("started", 0), ("started", 1), ("stopped", 0), ("started", 3)], False),
    ],
)
def test_a_trial_begins_in_its_order_and_when_a_slot_is_free(told: list[tuple[What, int]], turn: bool) -> None:
    assert is_its_turn("ab_00002", events_of(*told, ("waiting", 2)), slots=2) == turn


def test_a_trial_that_starts_again_does_not_wait_for_itself() -> None:
    assert is_its_turn("ab_00000", events_of(("started", 0)), slots=1)


def test_no_slot_is_held_by_what_a_killed_session_left() -> None:
    events = [*events_of(("started", 0), ("started", 1)), *events_of(("waiting", 1), ("waiting", 0))]
    assert is_its_turn("ab_00000", events, slots=1)
    assert not is_its_turn("ab_00001", events, slots=1)


def test_trials_that_ask_at_once_never_share_a_slot(tmp_path: Path) -> None:
    begin_session(tmp_path)
    slots = Slots(folder=tmp_path, number=3)

    def run(number: int) -> None:
        trial_id = f"ab_{number:05d}"
        slots.wait(trial_id, {})
        append_record(tmp_path / EVENTS_FILE, TrialEvent(what="ended", at=time.time(), trial_id=trial_id))

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(run, range(12)))
    running: set[str] = set()
    most = 0
    for event in read_events(tmp_path / EVENTS_FILE)[1:]:
        (running.add if event.what == "started" else running.remove)(event.trial_id)
        most = max(most, len(running))
    begun = [one.trial_id for one in read_events(tmp_path / EVENTS_FILE) if one.what == "started"]
    assert begun == [f"ab_{number:05d}" for number in range(12)]
    assert 1 <= most <= 3


def test_on_a_spent_budget_only_what_had_begun_goes_on(tmp_path: Path) -> None:
    begin_session(tmp_path)
    slots = Slots(folder=tmp_path, number=1, max_total_epochs=1)
    assert slots.begin("ab_00000", {})
    record = EpochRecord(trial_id="ab_00000", point={}, epoch=1, checkpoint_path="", metrics={}, ended=0.0)
    append_record(tmp_path / TRIALS_FILE, record)
    with pytest.raises(NeverBegunError):
        slots.begin("ab_00001", {})
    begin_session(tmp_path)
    assert slots.begin("ab_00000", {})
