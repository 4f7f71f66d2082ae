"""Record tables and the order of the queue, which the page works out by itself."""

from collections.abc import Callable
from typing import Any

import numpy as np

from bintally.verify import match_probabilities, recount_order

OpenPage = Callable[..., Any]


TABLES = {  # text, quantities, rows that give none
    "plain": ("file,expected_quantity\na.jpg,3\n", {"a": 3}, 0),
    "excel": ("\ufeffFile;Notes;Qty\r\nA.JPG;x;3\r\n\r\n", {"a": 3}, 0),
    "tabs and folders": ("photo\tquantity\nbins/a.png\t0", {"a": 0}, 0),
    "no head": ("a.jpg,3\nb.jpg,4.0", {"a": 3, "b": 4}, 0),
    "quotes": ('file,quantity\n"a ""1"", b.jpg","7"', {'a "1", b': 7}, 0),
    "no quantities": ("file,quantity\na,-1\nb,1e3\nc,\nd,100001\n,4\ne", {}, 6),
    "twice": ("a,1\na.jpg,2", {"a": 1}, 1),
    "empty": ("", {}, 0),
}


def test_record_tables(open_page: OpenPage) -> None:
    script = """async (text) => {
        const { readRecords } = await import("/page/records.js");
        const { quantities, problems } = readRecords(text);
        return [Object.fromEntries(quantities), problems.length];
    }"""
    page = open_page()
    read = {name: tuple(page.evaluate(script, text)) for name, (text, _, _) in TABLES.items()}
    assert read == {name: (quantities, num_problems) for name, (_, quantities, num_problems) in TABLES.items()}


def test_the_order_is_that_of_the_core(open_page: OpenPage) -> None:
    random = np.random.default_rng(0)
    calibrated = random.dirichlet(np.full(6, 0.3), 40)
    calibrated[5:8] = calibrated[4]  # ties of p(match), parted by the discrepancy or not at all
    expected = random.integers(0, 9, 40)  # some above what the model counts
    p_match = match_probabilities(calibrated, expected)
    items = [
        {
            "state": "done",
            "place": place,
            "counted": {"probabilities": {str(count): p for count, p in enumerate(row)}},
            "verdict": {
                "expected_quantity": int(quantity),
                "p_match": None if np.isnan(p_match[place]) else float(p_match[place]),
            },
        }
        for place, (row, quantity) in enumerate(zip(calibrated.tolist(), expected, strict=True))
    ]
    script = """async (items) => {
        const { recountOrder } = await import("/page/records.js");
        return recountOrder(items).map((item) => item.place);
    }"""
    assert open_page().evaluate(script, items) == recount_order(calibrated, expected).tolist()
