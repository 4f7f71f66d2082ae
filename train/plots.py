"""Pictures of an evaluation."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

RIGHT, WRONG = "#1b7f3b", "#b3261e"
LINE, SECOND, FAINT = "#2c6fb0", "#d08a2e", "#a9b4c0"
CURVE_SIZE: Final = (4.8, 3.6)  # inches; narrow enough to be read on a phone


def plot_confusion(confusion: np.ndarray, path: Path, *, title: str) -> None:
    """Confusion matrix: expected counts down, counted across, shaded by share of the row."""
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    figure = Figure(figsize=(6, 5.4), layout="constrained")
    axes = figure.subplots()
    shade = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (expected, counted), number in np.ndenumerate(confusion):
        color = "white" if shares[expected, counted] > 0.5 else "black"
        axes.text(counted, expected, f"{number:,}", ha="center", va="center", color=color)
    ticks = range(len(confusion))
    axes.set(xlabel="counted", ylabel="expected", xticks=ticks, yticks=ticks)
    axes.set_title(title, fontsize=10)
    figure.colorbar(shade, label="share of the bins with that expected count")
    figure.savefig(path, dpi=120)


def plot_sheet(
    photos: Sequence[np.ndarray],
    answers: Sequence[tuple[int, int, float]],
    path: Path,
    *,
    title: str,
    notes: Sequence[str] = (),
) -> None:
    """Photos with (expected, counted, probability of the counted) above each, wrong ones in red; notes above those."""
    columns = 8
    rows = -(-len(photos) // columns)
    figure = Figure(figsize=(1.6 * columns, 1.9 * rows + 0.4), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    above = [f"{note}\n" for note in notes] or [""] * len(photos)
    for axes, photo, note, (expected, counted, probability) in zip(grid.flat, photos, above, answers, strict=False):
        axes.imshow(photo)
        axes.set_anchor("N")  # so that the lines above photos of different shapes stand in a row
        color = RIGHT if expected == counted else WRONG
        axes.set_title(f"{note}expected {expected}\ncounted {counted} ({probability:.0%})", fontsize=8, color=color)
    figure.suptitle(title)
    figure.savefig(path, dpi=120)


def plot_risk_coverage(curve: Sequence[tuple[float, float]], path: Path, *, title: str) -> None:
    """Share of mistakes among the counted photos, by the share of photos that are counted and not left to people."""
    coverage, risk = np.asarray(curve).T
    figure = Figure(figsize=CURVE_SIZE, layout="constrained")
    axes = figure.subplots()
    axes.plot(coverage, risk, color=LINE, linewidth=2)
    axes.fill_between(coverage, risk, color=LINE, alpha=0.12, linewidth=0)
    axes.set(xlabel="most confident photos that are kept", ylabel="mistakes among them", xlim=(0, 1), ylim=(0, None))
    _as_percent(axes)
    axes.set_title(title, fontsize=10)
    figure.savefig(path, dpi=140)


def plot_reliability(curves: Mapping[str, Sequence[tuple[float, float, int]]], path: Path, *, title: str) -> None:
    """Accuracy by confidence, of (confidence, accuracy, photos) per bin; larger dots are of more photos.

    Args:
        curves: the bins by the name of the curve.
        path: where to draw.
        title: above the figure.
    """
    figure = Figure(figsize=CURVE_SIZE, layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle="--")
    for (name, bins), color in zip(curves.items(), (LINE, SECOND), strict=False):
        confidence, accuracy, number = np.asarray(bins, float).T
        axes.plot(confidence, accuracy, color=color, linewidth=1, alpha=0.6)
        axes.scatter(confidence, accuracy, s=12 + 160 * number / number.sum(), color=color, label=name, alpha=0.85)
    axes.set(xlabel="confidence: probability of the count", ylabel="share counted right", xlim=(0, 1), ylim=(0, 1))
    _as_percent(axes)
    axes.legend(frameon=False, loc="upper left")
    axes.set_title(title, fontsize=10)
    figure.savefig(path, dpi=140)


def plot_recall(
    curves: Mapping[str, Sequence[tuple[float, float]]], budgets: Sequence[float], path: Path, *, title: str
) -> None:
    """Share of the wrong records found by the share of all records that people count again, beside a random order.

    Args:
        curves: (share counted, share found) by the name of the curve.
        budgets: shares at which the first curve has its value written.
        path: where to draw.
        title: above the figure.
    """
    figure = Figure(figsize=CURVE_SIZE, layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle="--", label="random order")
    for number, ((name, points), color) in enumerate(zip(curves.items(), (LINE, SECOND), strict=False)):
        counted, found = np.asarray(points, float).T
        axes.plot(counted, found, color=color, linewidth=2, label=name)
        for budget in budgets if number == 0 else ():
            height = float(np.interp(budget, counted, found))
            axes.plot(budget, height, "o", color=color, markersize=5, zorder=3)
            axes.annotate(f"{height:.0%}", (budget, height), (6, -11), textcoords="offset points", fontsize=8)
    axes.set(xlabel="records counted again, worst first", ylabel="wrong records found", xlim=(0, 1), ylim=(0, 1))
    _as_percent(axes)
    axes.legend(frameon=False, loc="lower right")
    axes.set_title(title, fontsize=10)
    figure.savefig(path, dpi=140)


def _as_percent(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1, decimals=0))
