"""The label of a bin: EXPECTED_QUANTITY of its inventory record.

It is what the inventory system believes, not what a person counted in the photo.
"""

import json

from bintally.errors import LabelError


def parse_count(record: bytes) -> int:
    """The expected quantity in `metadata/<id>.json`.

    Raises:
        LabelError: with reason `label_not_json`, `no_quantity` or `bad_quantity`.
    """
    try:
        values = json.loads(record)
    except (ValueError, RecursionError) as error:
        raise LabelError("label_not_json", str(error)) from None
    if not isinstance(values, dict) or values.get("EXPECTED_QUANTITY") is None:
        raise LabelError("no_quantity", "the record has no EXPECTED_QUANTITY")
    quantity = values["EXPECTED_QUANTITY"]
    if isinstance(quantity, bool) or not isinstance(quantity, int) or quantity < 0:
        raise LabelError("bad_quantity", f"EXPECTED_QUANTITY is {quantity!r}")
    return quantity
