"""The record of a bin: what becomes typed values, and what has which reason."""

import csv
import json
from pathlib import Path

import pytest

from bintally.errors import LabelError
from bintally.labels import BinRecord, Measure, parse_record
from data.drops import REASONS

ABID = Path(__file__).resolve().parents[3] / "shared" / "abid"

INCH = {"unit": "IN", "value": 7.5}
ITEM = {
    "asin": "B0169HEV5M",
    "height": {"unit": "IN", "value": 3.5},
    "length": {"unit": "IN", "value": 12},
    "name": "Patch cable &amp; clips",
    "normalizedName": "Patch cable & clips",
    "quantity": 2,
    "weight": {"unit": "pounds", "value": 5.45},
    "width": INCH,
}


def record(quantity: object, items: object = None) -> bytes:
    """A record of ABID; one item that makes the quantity up, unless items are given."""
    if items is None:
        items = {"B0169HEV5M": ITEM | {"quantity": quantity}}
    return json.dumps({"BIN_FCSKU_DATA": items, "EXPECTED_QUANTITY": quantity}, indent=4).encode()


def reason_of(data: bytes) -> str:
    with pytest.raises(LabelError) as caught:
        parse_record(data)
    return caught.value.reason


@pytest.mark.parametrize("quantity", [0, 1, 5, 209])
def test_a_whole_number_is_the_count(quantity: int) -> None:
    assert parse_record(record(quantity)).expected_quantity == quantity


def test_an_item_is_typed() -> None:
    (item,) = parse_record(record(2, {"X0001": ITEM})).items
    assert (item.fcsku, item.asin, item.name, item.quantity) == ("X0001", "B0169HEV5M", "Patch cable & clips", 2)
    assert (item.length, item.width) == (Measure(12.0, "IN"), Measure(7.5, "IN"))
    assert (item.height, item.weight) == (Measure(3.5, "IN"), Measure(5.45, "pounds"))
    assert item.length is not None
    assert isinstance(item.length.value, float)


def test_items_keep_their_order_and_add_up() -> None:
    items = {"B2": ITEM | {"quantity": 3}, "B1": ITEM | {"quantity": 4}}
    parsed = parse_record(record(7, items))
    assert [(item.fcsku, item.quantity) for item in parsed.items] == [("B2", 3), ("B1", 4)]


def test_an_empty_bin_has_no_items() -> None:
    assert parse_record(record(0, {})) == BinRecord(expected_quantity=0, items=())
    assert parse_record(record(0, {})).asins == frozenset()


def test_an_unpadded_record_has_its_name_from_name() -> None:
    item = {key: value for key, value in ITEM.items() if key != "normalizedName"}
    values = {"BIN_FCSKU_DATA": {"B1": item}, "EXPECTED_QUANTITY": 2, "image_fname": "523.jpg"}
    assert parse_record(json.dumps(values).encode()).items[0].name == "Patch cable &amp; clips"


def test_products_go_by_asin_and_without_one_by_fcsku() -> None:
    items = {"X1": ITEM | {"asin": "B1"}, "X2": ITEM | {"asin": "B1"}, "X3": ITEM | {"asin": None}}
    assert parse_record(record(6, items)).asins == {"B1", "X3"}


@pytest.mark.parametrize("name", ["asin", "length", "width", "height", "weight"])
def test_null_and_missing_are_none(name: str) -> None:
    missing = {key: value for key, value in ITEM.items() if key != name}
    for item in (ITEM | {name: None}, missing):
        assert getattr(parse_record(record(2, {"B1": item})).items[0], name) is None


@pytest.mark.parametrize("nothing", [None, "", 7, ["a"]])
def test_a_name_that_is_no_text_falls_back_and_then_is_none(nothing: object) -> None:
    (item,) = parse_record(record(2, {"B1": ITEM | {"normalizedName": nothing}})).items
    assert item.name == "Patch cable &amp; clips"
    (item,) = parse_record(record(2, {"B1": ITEM | {"normalizedName": nothing, "name": nothing}})).items
    assert item.name is None


@pytest.mark.parametrize(
    "measure",
    [
        *(7.5, "7.5 IN", [], {}, {"unit": "IN"}, {"value": 7.5}, INCH | {"value": "7.5"}, INCH | {"value": True}),
        *(INCH | {"unit": None}, INCH | {"value": None}),
    ],
)
def test_what_is_no_measure_is_none_and_costs_no_row(measure: object) -> None:
    assert parse_record(record(2, {"B1": ITEM | {"width": measure}})).items[0].width is None


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "label_not_json"),
        (b"<html></html>", "label_not_json"),
        (record(3)[:-10], "label_not_json"),
        (b"\xff\xfe\x00", "label_not_json"),
        pytest.param(b"[" * 100_000, "label_not_json", id="100,000 brackets"),
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
    ],
)
def test_what_gives_no_quantity_has_a_reason(data: bytes, reason: str) -> None:
    assert reason_of(data) == reason
    assert reason in REASONS


@pytest.mark.parametrize("items", [[], "B1", 3, {"B1": None}, {"B1": 2}, {"B1": []}, {"B1": {}}])
def test_items_that_cannot_be_read_are_a_bad_record(items: object) -> None:
    assert reason_of(record(2, items)) == "bad_record"


def test_a_record_without_items_is_bad_even_if_it_expects_none() -> None:
    assert reason_of(b'{"EXPECTED_QUANTITY": 0}') == "bad_record"
    assert reason_of(b'{"EXPECTED_QUANTITY": 0, "BIN_FCSKU_DATA": null}') == "bad_record"


@pytest.mark.parametrize("quantity", [None, -1, 1.0, True, "1"])
def test_an_item_needs_a_whole_quantity(quantity: object) -> None:
    assert reason_of(record(1, {"B1": ITEM | {"quantity": quantity}})) == "bad_record"


@pytest.mark.parametrize(("quantity", "items"), [(2, {"B1": 3}), (0, {"B1": 1}), (1, {}), (5, {"B1": 2, "B2": 2})])
def test_items_that_do_not_add_up_contradict_the_label(quantity: int, items: dict[str, int]) -> None:
    entries = {fcsku: ITEM | {"quantity": number} for fcsku, number in items.items()}
    assert reason_of(record(quantity, entries)) == "quantity_mismatch"


def test_messages_show_the_values() -> None:
    with pytest.raises(LabelError, match="EXPECTED_QUANTITY is -7"):
        parse_record(record(-7))
    with pytest.raises(LabelError, match="is 2, but the items add up to 3"):
        parse_record(record(2, {"B1": ITEM | {"quantity": 3}}))
    with pytest.raises(LabelError, match="item B1"):
        parse_record(record(2, {"B1": None}))


# The real records


@pytest.fixture(scope="module")
def real_records() -> dict[str, BinRecord]:
    if not ABID.is_dir():
        pytest.skip("the real ABID records are not on this machine")
    return {path.stem: parse_record(path.read_bytes()) for path in (ABID / "bucket" / "metadata").iterdir()}


def test_real_records_parse_and_agree_with_the_table_of_their_ids(real_records: dict[str, BinRecord]) -> None:
    with (ABID / "pairs.csv").open() as file:
        expected = {row["id"]: int(row["expected_quantity"]) for row in csv.DictReader(file)}
    assert {bin_id: record.expected_quantity for bin_id, record in real_records.items()} == expected


def test_real_items_have_names_asins_and_known_units(real_records: dict[str, BinRecord]) -> None:
    items = [item for record in real_records.values() for item in record.items]
    assert len(items) > 2_000
    assert all(item.name and item.asin and item.quantity > 0 for item in items)
    assert {side.unit for item in items for side in (item.length, item.width, item.height) if side} == {"IN"}
    assert {item.weight.unit for item in items if item.weight} == {"pounds"}


def test_a_real_padded_and_unpadded_record_under_one_number(real_records: dict[str, BinRecord]) -> None:
    assert real_records["00523"].asins == {"B0169HEV5M"}
    assert real_records["523"].asins == {"B000A8C5QE", "B0064LIWVS"}
