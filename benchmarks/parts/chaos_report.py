"""The rows of a chaos run, as a page and as the table of docs/operations.md."""

from collections.abc import Mapping
from importlib.resources import files
from typing import Any, Final

from data.report_html import Html, paragraph, section, table, text, tiles

_COLUMNS: Final = ("fault", "survived", "lost", "repeated epochs", "outage, s", "what was done, and what happened")
_WIDE: Final = "#faults table { min-width: 60rem; } .scroll td { max-width: 40rem; }"  # on a phone it scrolls


def not_survived(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The faults after which something was not as without them."""
    return [name for name, row in rows.items() if not row.get("recovered") and "skipped" not in row]


def format_rows(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """The table, in Markdown."""
    lines = [_COLUMNS, ["---"] * len(_COLUMNS), *([name, *_cells(row)] for name, row in rows.items())]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def render_page(rows: Mapping[str, Mapping[str, Any]], about: Mapping[str, Any]) -> str:
    """The page; it needs nothing but itself.

    Args:
        rows: as in the JSON file, of the faults that were done so far.
        about: `machine` and `method`, as there.
    """
    bad, done = set(not_survived(rows)), [row for row in rows.values() if "skipped" not in row]
    worst = max((row["outage_s"] for row in rows.values() if row.get("outage_s") is not None), default=0.0)
    figures = {
        "faults survived": f"{len(done) - len(bad)} of {len(done)}",
        "ids or requests lost": str(sum(row.get("lost", 0) for row in rows.values())),
        "longest outage": f"{worst:.0f} s",
    }
    cells = [
        [
            Html(f'<span class="tag">{text(name)}</span>') if name in bad else name,
            *_cells(row),
            f"{'quick, ' if row['quick'] else ''}{row['seed']}",
            f"{row['load_at_start']:.0f}",
            row["began"],
            f"{row['took_s']:.0f}",
        ]
        for name, row in rows.items()
    ]
    shown = table((*_COLUMNS, "seed", "load", "began", "took, s"), cells, label="Faults", numeric=(2, 3, 4, 7, 9))
    facts = ", ".join(f"{name} {value}" for name, value in about["machine"].items())
    style = files("data").joinpath("report.css").read_text()
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Chaos run</title><style>{style}{_WIDE}</style></head><body>"
        f'<header><h1>What a fault costs</h1><p class="where">{text(facts)}</p></header><main>'
        + section("faults", "Faults", tiles(figures), shown)
        + section("method", "How it was measured", paragraph(text(about["method"])))
        + "</main><footer><p>Made by <code>benchmarks/chaos.py</code>. The same figures: <code>chaos.json</code> beside"
        " this page; the log of each command in the folder of its fault.</p></footer></body></html>\n"
    )


def _cells(row: Mapping[str, Any]) -> list[str]:
    for name, survived in (("failed", "no"), ("skipped", "-")):
        if name in row:
            return [survived, "-", "-", "-", f"{name}: {row[name]}"]
    repeated, outage_s = row["repeated_epochs"], row["outage_s"]
    return [
        "yes" if row["recovered"] else "no",
        str(row["lost"]),
        "-" if repeated is None else str(repeated),
        "-" if outage_s is None else f"{outage_s:.0f}",
        row["told"],
    ]
