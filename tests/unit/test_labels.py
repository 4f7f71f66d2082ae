"""The label of a bin: what counts as a count."""

import json

import pytest

from bintally.errors import LabelError
from data.labels import parse_count


def record(quantity: object) -> bytes:
    """A record of ABID, cut down."""
    return json.dumps({"BIN_FCSKU_DATA": {"B00": {"quantity": 3}}, "EXPECTED_QUANTITY": quantity}, indent=4).encode()


@pytest.mark.parametrize("quantity", [0, 1, 5, 209])
def test_a_whole_number_is_the_count(quantity: int) -> None:
    assert parse_count(record(quantity)) == quantity


def test_the_count_is_the_bins_not_the_sum_of_its_items() -> None:
    items = {"B00": {"quantity": 3}, "B01": {"quantity": 4}}
    assert parse_count(json.dumps({"BIN_FCSKU_DATA": items, "EXPECTED_QUANTITY": 2}).encode()) == 2


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "label_not_json"),
        (b"<html></html>", "label_not_json"),
        (record(3)[:-10], "label_not_json"),
        (b"\xff\xfe\x00", "label_not_json"),
        (b"{}", "no_quantity"),
        (b'{"expected_quantity": 3}', "no_quantity"),
        (b"[3]", "no_quantity"),
        (b"3", "no_quantity"),
        (b"null", "no_quantity"),
        (record(None), "no_quantity"),
        (record(-1), "bad_quantity"),
        (record(2.0), "bad_quantity"),
        (record(2.5), "bad_quantity"),
        (record(float("nan")), "bad_quantity"),
        (record(float("inf")), "bad_quantity"),
        (record(True), "bad_quantity"),
        (record(False), "bad_quantity"),
        (record("3"), "bad_quantity"),
        (record(""), "bad_quantity"),
        (record([3]), "bad_quantity"),
        pytest.param(b"[" * 100_000, "label_not_json", id="100,000 brackets"),
    ],
)
def test_anything_else_has_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(LabelError) as caught:
        parse_count(data)
    assert caught.value.reason == reason


def test_the_message_shows_the_value() -> None:
    with pytest.raises(LabelError, match="EXPECTED_QUANTITY is -7"):
        parse_count(record(-7))
