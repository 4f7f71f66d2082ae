"""The leak report as one HTML page that needs nothing else: no script, no font, no picture."""

from html import escape
from typing import Any, Final

_STYLE: Final = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1d2433; }
h1 { font-size: 1.5rem; } p { max-width: 45rem; }
table { border-collapse: collapse; width: 100%; margin-top: 2rem; }
caption { text-align: left; font-weight: 600; padding: .5rem 0; }
th, td { text-align: left; padding: .4rem .8rem .4rem 0; border-top: 1px solid #d8dce6; font-weight: 400; }
thead th { border: 0; font-size: .85rem; color: #5a6478; } .number { text-align: right; }
.track { background: #eceff5; height: 1rem; position: relative; }
.bar { background: #f0b27a; height: 1rem; position: absolute; } .bar.sure { background: #c0392b; }
"""
_HEADS: Final = "".join(f'<th class="number">{name}</th>' for name in ("images", "siblings", "surely", "share"))


def render_page(report: dict[str, Any]) -> str:
    """The page of a report, given as in leaks.json."""
    source, faults = escape(report["source"]), report["faults"]
    unused = ", ".join(f"{count:,} {escape(reason)}" for reason, count in faults.items()) or "none"
    tables = "\n".join(_table(report["splits"], split) for split in ("test", "val"))
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Leaks between splits</title><style>{_STYLE}</style></head><body>
<h1>Leaks between the splits of {source}</h1>
<p>{report["num_images"]:,} of {report["num_ids"]:,} ids are used: those with a count of 0 to {report["max_count"]}.
Records that could not be used: {unused}.</p>
<p>Neighbouring ids are often one bin before and after a pick or a stow. An image leaks if a chain of neighbours, each
sharing at least one ASIN with the next, leads to an image in training. It leaks <em>surely</em> if the neighbours share
at least half of their ASINs. A model can remember such a bin, so a score on it says too much.</p>
{tables}
</body></html>
"""


def _table(splits: dict[str, Any], split: str) -> str:
    rows = "\n".join(_row(name, one[split]) for name, one in splits.items())
    return f"""<table><caption>{split.capitalize()} images with a sibling in training</caption>
<thead><tr><th>split by</th>{_HEADS}<th>share; dark red: surely</th></tr></thead>
<tbody>
{rows}
</tbody></table>"""


def _row(name: str, leak: dict[str, int]) -> str:
    num_images, num_siblings, num_sure = leak["num_images"], leak["num_siblings"], leak["num_sure"]
    share, sure = (100 * number / max(1, num_images) for number in (num_siblings, num_sure))
    numbers = "".join(f'<td class="number">{number:,}</td>' for number in (num_images, num_siblings, num_sure))
    return (
        f'<tr><th scope="row">{escape(name)}</th>{numbers}<td class="number">{share:.1f} %</td>'
        f'<td style="width: 40%"><div class="track"><div class="bar" style="width: {share:.2f}%"></div>'
        f'<div class="bar sure" style="width: {sure:.2f}%"></div></div></td></tr>'
    )
