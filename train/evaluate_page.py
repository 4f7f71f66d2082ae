"""The page of an evaluation: conclusions first, and what each figure is a figure of. It needs nothing but itself."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import data.report_html
from bintally.verify import percent
from data.report_html import bullets, paragraph, photo, section, text, tiles
from data.report_photos import ShownPhoto
from train.evaluate_chapters import (
    answer_section,
    calibration_section,
    count_section,
    published_section,
    risk_section,
    slice_section,
)
from train.evaluate_verify_page import audit_section

_STYLE: Final = Path(data.report_html.__file__).with_name("report.css")
_WIDE: Final = "#published table { min-width: 52rem; }"  # on a phone it scrolls, instead of one word per line
_CHAPTERS: Final = {
    "short": "In short",
    "published": "Published results",
    "counts": "Per count",
    "answers": "Ways to answer",
    "risk": "Risk and coverage",
    "calibration": "Calibration",
    "audit": "Wrong records",
    "slices": "Slices",
    "worst": "Worst mistakes",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Mistake:
    """A photo that was counted wrong."""

    bin_id: str
    expected: int
    counted: int
    probability_expected: float
    probability_counted: float
    photo: ShownPhoto | None
    """None if it cannot be read any more."""


def render_page(summary: dict[str, Any], charts: Mapping[str, Path], worst: Sequence[Mistake]) -> str:
    """The whole page.

    Args:
        summary: as in metrics.json.
        charts: drawn figures by name.
        worst: the worst mistakes, worst first.
    """
    chapters = [
        short_section(summary),
        published_section(summary),
        count_section(summary, charts),
        answer_section(summary),
        risk_section(summary, charts),
        calibration_section(summary, charts),
        audit_section(summary, charts),
        slice_section(summary),
        worst_section(worst),
    ]
    links = "".join(f'<li><a href="#{anchor}">{text(title)}</a></li>' for anchor, title in _CHAPTERS.items())
    made = f"{datetime.now().astimezone():%d %B %Y, %H:%M}"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Evaluation: {text(summary['model_version'])} on {text(summary['split'])}</title>"
        f"<style>{_STYLE.read_text()}{_WIDE}</style></head><body>"
        f'<header><h1>How well it counts</h1><p class="where">{_where(summary)}, {made}</p>'
        f'<nav aria-label="Chapters"><ul>{links}</ul></nav></header><main>{"".join(chapters)}</main>'
        "<footer><p>Made by <code>train/evaluate.py</code>. All figures: <code>metrics.json</code> beside this page;"
        " every prediction: <code>predictions/</code> (Parquet) and <code>predictions.csv</code>. Photos belong to the"
        " owner of the bucket; those of ABID are CC BY-NC-SA 3.0 US.</p></footer></body></html>\n"
    )


def _where(summary: dict[str, Any]) -> str:
    return (
        f"model <code>{text(summary['model_version'])}</code> (recipe {text(summary['recipe'])},"
        f" {text(summary['backbone'])}, {summary['image_size']} px) on the <b>{text(summary['split'])}</b> split by"
        f" {text(summary['split_by'])} of <code>{text(summary['source'])}</code>, counts 0 to {summary['max_count']} by"
        f" the {text(summary['labels'])}: {summary['num_images']:,} photos of {summary['num_ids']:,} ids"
    )


def short_section(summary: dict[str, Any]) -> str:
    """The figures that everybody asks for, with their intervals."""
    intervals = summary["intervals"]

    styles = {
        "accuracy": ("accuracy", ".1%"),
        "within_one": ("within one", ".1%"),
        "rmse": ("RMSE, items", ".2f"),
        "mae": ("MAE, items", ".2f"),
        "quadratic_kappa": ("quadratic kappa", ".2f"),
        "nll": ("NLL, nats", ".3f"),
    }
    figures = {
        f"{title} ({intervals[name][0]:{style}} to {intervals[name][1]:{style}})": f"{summary[name]:{style}}"
        for name, (title, style) in styles.items()
    } | {
        "calibration error (ECE)": f"{summary['ece']:.1%}",
        f"always answering {summary['majority_count']}": f"{summary['majority_accuracy']:.1%}",
    }
    facts = [
        (
            f"In brackets: 95 % intervals, by {intervals['num_resamples']:,} resamples of {intervals['num_blocks']:,}"
            f" blocks of {intervals['block_ids']} neighbouring ids, since neighbours are often one bin."
        ),
        _majority_fact(summary),
        _leak_fact(summary),
        (
            "A label is what the record says, not what a person counted: some mistakes are the record's, and some"
            " photos can be counted by nobody."
        ),
    ]
    return section("short", "In short", tiles(figures), bullets(facts))


def _majority_fact(summary: dict[str, Any]) -> str:
    low = summary["intervals"]["accuracy"][0]
    verdict = "The model is surely better" if low > summary["majority_accuracy"] else "The model is not surely better"
    return (
        f"{verdict} than answering {summary['majority_count']} for every photo, which scores"
        f" <b>{summary['majority_accuracy']:.1%}</b> with an RMSE of {summary['majority_rmse']:.2f}."
    )


def _leak_fact(summary: dict[str, Any]) -> str:
    if summary["split"] in ("train", "all"):
        return "<b>The model was trained on photos that are scored here</b>: on new ones it will be worse."
    return {
        "grouped": "The split keeps neighbouring ids together, so hardly any bin was seen in training.",
        "official": "The official split leaks: about half of its photos show a bin that is in the training list, too.",
        "hash": "A split by hash leaks: about four in ten photos show a bin that training has seen.",
    }[summary["split_by"]]


def worst_section(worst: Sequence[Mistake]) -> str:
    """Photos of the mistakes that cost most."""
    if not worst:
        return section("worst", "Worst mistakes", paragraph("Not one photo was counted wrong."))
    intro = "The model gave the expected count the least probability here. Can you see how many there are?"
    figures = "".join(
        photo(
            one.photo,
            alt=f"Bin {one.bin_id}; expected {one.expected}, counted {one.counted}",
            caption=(
                f"<b>{text(one.bin_id)}</b><br>expected {one.expected} ({percent(one.probability_expected)})<br>"
                f'<span class="tag">counted {one.counted}</span> ({percent(one.probability_counted)})'
            ),
        )
        for one in worst
    )
    return section("worst", "Worst mistakes", paragraph(intro), f'<div class="photos">{figures}</div>')
