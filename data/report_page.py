"""The page: what was found, in the order in which one asks. Says conclusions, leaves the figures to `Findings`."""

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Final

from data.drops import REASONS
from data.findings import FILTERS, Findings
from data.report_chapters import (
    Charts,
    count_section,
    imbalance_of,
    neighbour_section,
    photo_section,
    product_section,
    share_of,
)
from data.report_gallery import Photos, sample_section, suspect_section
from data.report_html import bullets, chart, paragraph, section, table, text, tiles

_STYLE: Final = Path(__file__).with_name("report.css")
_CHAPTERS: Final = {
    "short": "In short",
    "counts": "Counts",
    "photos": "Photos",
    "products": "Products",
    "samples": "Samples",
    "neighbours": "Same-bin pairs",
    "suspects": "Suspected labels",
    "drops": "Dropped",
    "splits": "Splits",
}


def render_page(findings: Findings, charts: Charts, photos: Photos, names: Mapping[str, str]) -> str:
    """The whole page; it needs nothing but itself.

    Args:
        findings: what to say.
        charts: drawn figures by name, as `data.report_plots.draw_all` leaves them.
        photos: the photos of `findings.shown_ids()`, as far as they can be read.
        names: product names by ASIN, as far as they are known.
    """
    chapters = [
        short_section(findings),
        count_section(findings, charts),
        photo_section(findings, charts),
        product_section(findings, charts, names),
        sample_section(findings, photos),
        neighbour_section(findings, charts, photos),
        suspect_section(findings, photos),
        drop_section(findings),
        split_section(findings, charts),
    ]
    links = "".join(f'<li><a href="#{anchor}">{text(title)}</a></li>' for anchor, title in _CHAPTERS.items())
    made = f"{datetime.now().astimezone():%d %B %Y, %H:%M}"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Data report: {text(findings.source)}</title><style>{_STYLE.read_text()}</style></head><body>"
        f'<header><h1>What is in the bucket</h1><p class="where"><code>{text(findings.source)}</code>, '
        f"{findings.num_ids:,} bins looked at, {made}</p>"
        f'<nav aria-label="Chapters"><ul>{links}</ul></nav></header><main>{"".join(chapters)}</main>'
        "<footer><p>Made by <code>data/report.py</code>. All figures: <code>report.json</code> beside this page. Photos"
        " belong to the owner of the bucket; those of ABID are CC BY-NC-SA 3.0 US.</p></footer></body></html>\n"
    )


def short_section(findings: Findings) -> str:
    """The figures that everybody asks for, and what follows from them."""
    counts, neighbours, photos = findings.counts, findings.neighbours, findings.photos
    figures = {
        "good bins": f"{findings.num_good:,}",
        "items, mean per bin": f"{counts.mean:.2f}",
        f"hold at most {counts.max_count}": share_of(counts.num_bins - counts.num_above_max, counts.num_bins),
        f"always answering {counts.majority_count} scores": f"{counts.majority_share:.1%}",
        "class imbalance": imbalance_of(findings),
        "lost to faults": f"{findings.num_faults:,}",
        "neighbours that share a product": f"{neighbours.share_sharing:.0%}",
        "suspected labels": f"{len(findings.suspects):,}",
    }
    facts = [
        (
            f"A model has to beat <b>{counts.majority_share:.1%}</b>: that is what answering {counts.majority_count}"
            f" for every bin of 0 to {counts.max_count} items scores."
        ),
        (
            f"<b>{share_of(counts.num_above_max, counts.num_bins)}</b> of the bins hold more than {counts.max_count}"
            f" items, the fullest {counts.largest:,}; training leaves them out."
        ),
        _leak_fact(findings),
        (
            f"<b>{share_of(photos.num_dark, findings.num_good)}</b> of the photos are dark and"
            f" <b>{share_of(photos.num_blurred, findings.num_good)}</b> blurred, by the limits stated below."
        ),
        _sum_fact(findings),
    ]
    return section("short", "In short", tiles(figures), bullets(facts))


def _leak_fact(findings: Findings) -> str:
    neighbours = findings.neighbours
    if not neighbours.num_sharing:
        return "No two consecutive ids share a product, so nothing here speaks against a random split."
    return (
        f"<b>{neighbours.share_sharing:.0%}</b> of consecutive ids share a product and <b>"
        f"{neighbours.share_differ_by_one:.0%}</b> of those differ by exactly one item: most likely one bin before and"
        " after a pick or stow. A random split would put the same bin on both sides."
    )


def _sum_fact(findings: Findings) -> str:
    number = findings.drops.get("quantity_mismatch", 0)
    if not number:
        return "The items of every readable record add up to its EXPECTED_QUANTITY."
    return f"In <b>{number:,}</b> records the items do not add up to EXPECTED_QUANTITY."


def drop_section(findings: Findings) -> str:
    """Why ids are not used; faults apart from filters."""
    if not findings.drops:
        return section("drops", "Dropped", paragraph("Every bin can be used; nothing is filtered out."))
    rows = [
        (
            reason,
            "filter" if reason in FILTERS else "fault",
            f"{number:,}",
            share_of(number, findings.num_ids),
            _meaning(reason),
        )
        for reason, number in findings.drops.items()
    ]
    intro = (
        f"Of {findings.num_ids:,} ids, <b>{findings.num_faults:,}</b> are lost to faults"
        f" ({share_of(findings.num_faults, findings.num_ids)}). A filter leaves out good bins on purpose. Faults are"
        " looked for first, so a broken bin counts as a fault whatever it holds."
    )
    listing = table(("reason", "kind", "ids", "share", "meaning"), rows, label="Dropped ids", numeric=(2, 3))
    return section("drops", "Dropped", paragraph(intro), listing)


def _meaning(reason: str) -> str:
    return REASONS.get(reason, "").removesuffix(" (a filter, not a fault)")


def split_section(findings: Findings, charts: Charts) -> str:
    """The class mix of each split."""
    classes = range(findings.counts.max_count + 1)
    rows = []
    for split, mix in findings.mix_by_split.items():
        used = sum(mix.get(count, 0) for count in classes)
        shares = [share_of(mix.get(count, 0), used) for count in classes]
        rows.append((split, f"{findings.ids_by_split[split]:,}", f"{sum(mix.values()):,}", f"{used:,}", *shares))
    head = ("split", "ids", "good", "used", *(f"{count}" for count in classes))
    caption = f"<b>Split: <code>{text(findings.split_by)}</code>.</b> Shares that differ much shift every score."
    alt = "Bar chart of the share of each count in each split"
    listing = table(head, rows, label="Class mix per split", numeric=range(1, len(head)))
    figure = f'<div class="lone">{chart(charts["splits"], alt=alt, caption=caption)}</div>'
    return section("splits", "Class mix per split", figure, listing)
