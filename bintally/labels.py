"""The inventory record of a bin, parsed, typed and checked.

EXPECTED_QUANTITY is the label: what the inventory system believes, not what a person counted in the photo. Items that
do not add up to it make the record contradict itself, so such a row is dropped.
"""

import json
from dataclasses import dataclass
from typing import Any

from bintally.errors import LabelError


@dataclass(frozen=True, slots=True)
class Measure:
    """A length or weight as the record gives it."""

    value: float
    unit: str
    """`IN` for lengths, `pounds` for weights in all records seen."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """One product in a bin; what the record leaves out or sets to null is None."""

    fcsku: str
    """The key of the item; it may differ from the ASIN."""
    asin: str | None
    name: str | None
    """`normalizedName`, or `name` where that is missing, as in the un-padded records."""
    quantity: int
    length: Measure | None
    width: Measure | None
    height: Measure | None
    weight: Measure | None


@dataclass(frozen=True, kw_only=True, slots=True)
class BinRecord:
    """What the inventory system believes of one bin."""

    expected_quantity: int
    items: tuple[Item, ...]

    @property
    def asins(self) -> frozenset[str]:
        """The products in the bin."""
        return frozenset(item.asin or item.fcsku for item in self.items)


def parse_record(record: bytes) -> BinRecord:
    """The record in `metadata/<id>.json`.

    Raises:
        LabelError: with reason `label_not_json`, `no_quantity`, `bad_quantity`, `bad_record` (the items cannot be read)
            or `quantity_mismatch` (they do not add up to EXPECTED_QUANTITY).
    """
    try:
        values = json.loads(record)
    except (ValueError, RecursionError) as error:
        raise LabelError("label_not_json", str(error)) from None
    if not isinstance(values, dict) or values.get("EXPECTED_QUANTITY") is None:
        raise LabelError("no_quantity", "the record has no EXPECTED_QUANTITY")
    quantity = values["EXPECTED_QUANTITY"]
    if not _is_count(quantity):
        raise LabelError("bad_quantity", f"EXPECTED_QUANTITY is {quantity!r}")
    items = _parse_items(values.get("BIN_FCSKU_DATA"))
    total = sum(item.quantity for item in items)
    if total != quantity:
        raise LabelError("quantity_mismatch", f"EXPECTED_QUANTITY is {quantity}, but the items add up to {total}")
    return BinRecord(expected_quantity=quantity, items=items)


def _parse_items(values: object) -> tuple[Item, ...]:
    if not isinstance(values, dict):
        raise LabelError("bad_record", f"BIN_FCSKU_DATA is {type(values).__name__}, not an object")
    return tuple(_parse_item(fcsku, item) for fcsku, item in values.items())


def _parse_item(fcsku: str, item: Any) -> Item:  # noqa: ANN401  # JSON
    if not isinstance(item, dict) or not _is_count(item.get("quantity")):
        raise LabelError("bad_record", f"item {fcsku} has no whole quantity of 0 or more")
    return Item(
        fcsku=fcsku,
        asin=_text(item.get("asin")),
        name=_text(item.get("normalizedName")) or _text(item.get("name")),
        quantity=item["quantity"],
        length=_parse_measure(item.get("length")),
        width=_parse_measure(item.get("width")),
        height=_parse_measure(item.get("height")),
        weight=_parse_measure(item.get("weight")),
    )


def _parse_measure(measure: object) -> Measure | None:
    """None for null and for what is no measure: nothing that is counted depends on it."""
    if not isinstance(measure, dict):
        return None
    value, unit = measure.get("value"), measure.get("unit")
    if isinstance(value, bool) or not isinstance(value, int | float) or not isinstance(unit, str):
        return None
    return Measure(float(value), unit)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
