"""The pictures and the page of an evaluation: which photos are shown, drawn, and written."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image

from bintally.scores import nll_of
from bintally.source_config import DataConfig
from bintally.verify import BUDGETS
from data.bucket import open_bucket
from data.progress import say
from data.report_photos import ShownPhoto, load_photos
from train.evaluate_figures import Scored
from train.evaluate_page import Mistake, render_page
from train.plots import plot_confusion, plot_recall, plot_reliability, plot_risk_coverage, plot_sheet

SHEET_SIZE: Final = 40
NUM_WORST: Final = 32


def write_report(summary: dict[str, Any], scored: Scored, data: DataConfig, run_dir: Path) -> None:
    """Draw confusion, risk-coverage, reliability, recall, sheet and worst as PNG, and write report.html."""
    sample, worst = sample_rows(len(scored.ids)), worst_rows(scored)
    say("drawing the figures")
    photos = load_photos(open_bucket(data), {scored.ids[row] for row in [*sample, *worst]})
    charts = _draw_charts(summary, run_dir)
    split = summary["split"]
    _draw_sheet(scored, sample, photos, run_dir / "sheet.png", title=f"{split} split: expected and counted")
    if worst:
        title = f"{split} split: mistakes with the least probability for the expected count"
        _draw_sheet(scored, worst, photos, run_dir / "worst.png", title=title, with_notes=True)
    mistakes = [_mistake(scored, row, photos) for row in worst]
    (run_dir / "report.html").write_text(render_page(summary, charts, mistakes), encoding="utf-8")


def sample_rows(num_images: int) -> list[int]:
    """Rows spread evenly: neighbours are often one bin."""
    return list(range(0, num_images, -(-num_images // SHEET_SIZE)))


def worst_rows(scored: Scored) -> list[int]:
    """The mistakes with the least probability for the expected count, worst first."""
    wrong = np.flatnonzero(scored.counted != scored.counts)
    order = np.argsort(-nll_of(scored.probabilities, scored.counts)[wrong], kind="stable")
    rows: list[int] = wrong[order][:NUM_WORST].tolist()
    return rows


def _mistake(scored: Scored, row: int, photos: dict[str, ShownPhoto]) -> Mistake:
    expected, counted, bin_id = int(scored.counts[row]), int(scored.counted[row]), scored.ids[row]
    return Mistake(
        bin_id=bin_id,
        expected=expected,
        counted=counted,
        probability_expected=float(scored.probabilities[row, expected]),
        probability_counted=float(scored.probabilities[row, counted]),
        photo=photos.get(bin_id),
    )


def _draw_charts(summary: dict[str, Any], run_dir: Path) -> dict[str, Path]:
    """Each figure's path by name."""
    charts = {name: run_dir / f"{name}.png" for name in ("confusion", "risk_coverage", "reliability", "recall")}
    title = (
        f"{summary['split']} split, {summary['num_images']:,} images: accuracy {summary['accuracy']:.1%},"
        f" majority class {summary['majority_accuracy']:.1%}"
    )
    plot_confusion(np.array(summary["confusion"]), charts["confusion"], title=title)
    risk = summary["risk_coverage"]
    plot_risk_coverage(risk["curve"], charts["risk_coverage"], title=f"risk and coverage, AURC {risk['aurc']:.3f}")
    curves = {f"as counted, ECE {summary['ece']:.1%}": _bins(summary["reliability"])}
    if summary["calibration"]:
        curves[f"calibrated, ECE {summary['calibration']['ece']:.1%}"] = _bins(summary["calibration"]["reliability"])
    plot_reliability(curves, charts["reliability"], title="accuracy by confidence")
    found = {
        f"{float(share):.0%} of {row['num_images']:,} records wrong": row["curve"]
        for share, row in summary["audit"]["tampered"].items()
        if row["curve"]
    }
    plot_recall(found, BUDGETS, charts["recall"], title="wrong records found by the recount queue")
    return charts


def _bins(rows: Sequence[dict[str, float | int]]) -> list[tuple[float, float, int]]:
    return [(row["confidence"], row["accuracy"], int(row["num_images"])) for row in rows]


def _draw_sheet(
    scored: Scored,
    rows: Sequence[int],
    photos: dict[str, ShownPhoto],
    path: Path,
    *,
    title: str,
    with_notes: bool = False,
) -> None:
    shown = [row for row in rows if scored.ids[row] in photos]
    pixels = [np.asarray(Image.open(io.BytesIO(photos[scored.ids[row]].jpeg))) for row in shown]
    answers = [
        (int(scored.counts[row]), int(scored.counted[row]), float(scored.probabilities[row].max())) for row in shown
    ]
    notes = [
        f"{scored.ids[row]}: p({scored.counts[row]}) = {scored.probabilities[row, scored.counts[row]]:.1%}"
        for row in shown
    ]
    if shown:  # the bucket may have gone away since it was counted
        plot_sheet(pixels, answers, path, title=title, notes=notes if with_notes else ())
