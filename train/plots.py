"""Pictures of an evaluation."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

RIGHT, WRONG = "#1b7f3b", "#b3261e"


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
    photos: Sequence[np.ndarray], answers: Sequence[tuple[int, int, float]], path: Path, *, title: str
) -> None:
    """Photos with (expected, counted, probability of the counted) below each, wrong ones in red."""
    columns = 8
    rows = -(-len(photos) // columns)
    figure = Figure(figsize=(1.6 * columns, 1.9 * rows + 0.4), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for axes, photo, (expected, counted, probability) in zip(grid.flat, photos, answers, strict=False):
        axes.imshow(photo)
        color = RIGHT if expected == counted else WRONG
        axes.set_title(f"expected {expected}\ncounted {counted} ({probability:.0%})", fontsize=8, color=color)
    figure.suptitle(title)
    figure.savefig(path, dpi=120)
