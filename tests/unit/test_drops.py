"""Dropped ids: each counted once, told with its reason, and too many faults stop a run."""

import re

import pytest

from bintally.errors import BinTallyError, TooManyFaultsError
from data.drops import FILTERS, REASONS, _Ledger, check_faults, format_table


def test_the_ledger_counts_an_id_once_however_often_it_is_told() -> None:
    ledger = _Ledger()
    for _ in range(3):  # a retried task, or further epochs
        ledger.record({"00001": "missing_image", "00002": "missing_label"})
    assert ledger.record({"00003": "missing_label"}) == {"missing_label": 2, "missing_image": 1}
    assert ledger.table() == {"missing_label": 2, "missing_image": 1}


def test_the_last_reason_of_an_id_counts() -> None:
    ledger = _Ledger()
    ledger.record({"00001": "fetch_failed"})
    ledger.record({"00001": "not_an_image"})
    assert ledger.table() == {"not_an_image": 1}


def test_the_table_begins_with_the_most_frequent_reason() -> None:
    ledger = _Ledger()
    ledger.record({"1": "fetch_failed", "2": "no_quantity", "3": "count_above_max", "4": "no_quantity"})
    ledger.record({"5": "count_above_max", "6": "count_above_max"})
    assert list(ledger.table().items()) == [("count_above_max", 3), ("no_quantity", 2), ("fetch_failed", 1)]


def test_the_ledger_tells_why_ids_were_dropped() -> None:
    ledger = _Ledger()
    ledger.record({"1": "fetch_failed", "2": "no_quantity"})
    assert ledger.reasons(["2", "3", "1"]) == {"1": "fetch_failed", "2": "no_quantity"}
    assert ledger.reasons([]) == {}


def test_an_empty_ledger() -> None:
    assert _Ledger().table() == {}
    assert _Ledger().record({}) == {}


def test_ids_that_look_like_numbers_are_different_ids() -> None:
    assert _Ledger().record({"523": "missing_image", "00523": "missing_image"}) == {"missing_image": 2}


# check_faults


@pytest.mark.parametrize("max_faults", [0, 1, 5])
def test_as_many_faults_as_allowed_are_taken_and_one_more_is_not(max_faults: int) -> None:
    check_faults({"missing_image": max_faults}, max_faults)
    with pytest.raises(TooManyFaultsError):
        check_faults({"missing_image": max_faults + 1}, max_faults)


def test_faults_of_all_reasons_are_added_up() -> None:
    table = {"missing_image": 2, "fetch_failed": 1}
    check_faults(table, 3)
    with pytest.raises(TooManyFaultsError):
        check_faults(table, 2)


def test_filters_are_no_faults() -> None:
    filtered = dict.fromkeys(FILTERS, 1_000_000)
    check_faults(filtered, 0)
    with pytest.raises(TooManyFaultsError, match="1 ids are lost to faults"):
        check_faults(filtered | {"truncated_image": 1}, 0)


@pytest.mark.parametrize("table", [{}, {"missing_image": 10**9}])
def test_without_a_limit_any_number_of_faults_is_taken(table: dict[str, int]) -> None:
    check_faults(table, None)


def test_the_error_tells_what_was_lost_what_is_allowed_and_what_to_do() -> None:
    table = {"count_above_max": 77, "missing_image": 1_234, "not_an_image": 5}
    text = "1,239 ids are lost to faults (1,234 missing_image, 5 not_an_image), and --max-dropped allows 1,000;"
    with pytest.raises(TooManyFaultsError, match=re.escape(text)) as caught:
        check_faults(table, 1_000)
    assert "count_above_max" not in str(caught.value)
    assert isinstance(caught.value, BinTallyError)


@pytest.mark.parametrize("reason", sorted(REASONS.keys() - FILTERS))
def test_every_reason_but_the_filters_is_a_fault(reason: str) -> None:
    with pytest.raises(TooManyFaultsError, match=reason):
        check_faults({reason: 1}, 0)


# format_table


def test_the_table_for_people_explains_each_reason() -> None:
    text = format_table(dict.fromkeys(REASONS, 2), 1_000)
    assert text.startswith(f"dropped {2 * len(REASONS)} of 1,000 ids:")
    assert all(reason in text and why in text for reason, why in REASONS.items())
    assert len(text.splitlines()) == 1 + len(REASONS)


def test_the_table_for_people_keeps_its_order_and_groups_digits() -> None:
    head, first, second = format_table({"count_above_max": 12_345, "fetch_failed": 1}, 535_234).splitlines()
    assert head == "dropped 12,346 of 535,234 ids:"
    assert first.split()[:2] == ["12,345", "count_above_max"]
    assert second.split()[:2] == ["1", "fetch_failed"]
    assert first.index(REASONS["count_above_max"]) == second.index(REASONS["fetch_failed"])


def test_nothing_dropped_is_said_in_one_line() -> None:
    assert format_table({}, 1_000) == "dropped 0 of 1,000 ids"


def test_filters_have_an_explanation() -> None:
    assert set(REASONS) >= FILTERS
