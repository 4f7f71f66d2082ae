"""Figures of the report: one idea each, narrow enough to be read on a phone."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter, StrMethodFormatter

from data.findings import Findings
from data.summary import BLURRED_SHARPNESS, DARK_LUMA, Bins

INK, MUTED, ACCENT, WARN = "#1d2733", "#a9b4c0", "#2c6fb0", "#b4541a"
SPLIT_COLORS: Final = ("#2c6fb0", "#d08a2e", "#4f8f6b")
_SIZE: Final = (4.8, 3.0)  # inches; 346 points wide, so that a font of 10 is still one of 9 on a phone
_MAX_DOTS: Final = 4000
_STYLE: Final[dict[Any, Any]] = {
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "xtick.color": INK,
    "ytick.color": INK,
}


def draw_all(findings: Findings, bins: Bins, run_dir: Path) -> dict[str, Path]:
    """Draw every figure as <name>.png; their paths by name."""
    figures: dict[str, Callable[[Axes], None]] = {
        "counts": lambda axes: draw_counts(axes, findings),
        "sizes": lambda axes: draw_sizes(axes, bins),
        "bytes": lambda axes: draw_bytes(axes, bins),
        "brightness": lambda axes: draw_with_threshold(axes, bins.luma, DARK_LUMA, "mean brightness, 0 to 255", "dark"),
        "sharpness": lambda axes: draw_with_threshold(
            axes, bins.sharpness, BLURRED_SHARPNESS, "variance of the Laplacian", "blurred"
        ),
        "products": lambda axes: draw_products(axes, findings),
        "neighbours": lambda axes: draw_neighbours(axes, findings),
        "splits": lambda axes: draw_splits(axes, findings),
    }
    return {name: save_figure(draw, run_dir / f"{name}.png", _SIZE) for name, draw in figures.items()}


def save_figure(draw: Callable[[Axes], None], path: Path, size: tuple[float, float]) -> Path:
    """Draw one figure in the style of the pages, of a size in inches; its path."""
    import matplotlib as mpl

    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        axes.spines[["top", "right"]].set_visible(False)
        draw(axes)
        figure.savefig(path, dpi=160)
    return path


def draw_counts(axes: Axes, findings: Findings) -> None:
    """Bins by count; the rare high ones, above the 99.5th percentile, stand in the last bar."""
    counts = findings.counts
    numbers = np.repeat(list(counts.bins_by_count), list(counts.bins_by_count.values()))
    last = max(int(np.percentile(numbers, 99.5)), counts.max_count + 1)
    shown = np.bincount(np.minimum(numbers, last), minlength=last + 1)
    colors = [ACCENT if count <= counts.max_count else MUTED for count in range(last + 1)]
    axes.bar(range(last + 1), shown, color=colors, width=0.85)
    axes.set(xlabel=f"items in the bin, by its record (last bar: {last} or more)", ylabel="bins")
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    for color, label in ((ACCENT, f"0 to {counts.max_count}: used"), (MUTED, "more: filtered out")):
        axes.bar(0, 0, color=color, label=label)
    _legend_above(axes)


def draw_sizes(axes: Axes, bins: Bins) -> None:
    """Width against height; of a large bucket, every n-th photo."""
    step = -(-len(bins.ids) // _MAX_DOTS)
    axes.scatter(bins.width[::step], bins.height[::step], s=10, alpha=0.35, color=ACCENT, linewidths=0)
    side = min(float(bins.width.max()), float(bins.height.max()))
    axes.plot((0, side), (0, side), color=MUTED, linewidth=1, linestyle="--")
    axes.annotate("square", (side, side), ha="right", va="bottom", color=INK, fontsize=9)
    axes.set(xlabel="width, pixels", ylabel="height, pixels", xlim=(0, None), ylim=(0, None))


def draw_bytes(axes: Axes, bins: Bins) -> None:
    """Bytes per photo."""
    axes.hist(bins.photo_bytes / 1e3, bins=40, color=ACCENT)
    mean = float(bins.photo_bytes.mean()) / 1e3
    axes.axvline(mean, color=WARN, linewidth=1.5)
    axes.annotate(f" mean {mean:.1f} kB", (mean, 0.95), xycoords=("data", "axes fraction"), color=WARN)
    axes.set(xlabel="kB per photo", ylabel="photos")


def draw_with_threshold(axes: Axes, values: np.ndarray, threshold: float, label: str, verdict: str) -> None:
    """A histogram with the part below the threshold in another colour."""
    least, most = min(float(values.min()), threshold), max(float(values.max()), threshold)
    width = max(most - least, 1.0) / 40
    below, above = np.floor((least - threshold) / width), np.floor((most - threshold) / width) + 1
    edges = threshold + width * np.arange(below, above + 1)  # bars begin at the threshold, so that none holds both
    axes.hist(values[values >= threshold], bins=list(edges), color=ACCENT)
    axes.hist(values[values < threshold], bins=list(edges), color=WARN, label=f"{verdict}: below {threshold:g}")
    axes.set(xlabel=label, ylabel="photos")
    _legend_above(axes)


def draw_products(axes: Axes, findings: Findings) -> None:
    """Products by the number of bins that hold them."""
    by_bins = findings.products.products_by_bins or {0: 0}
    last = min(max(by_bins), 12)
    shown = dict.fromkeys(range(1, last + 1), 0)
    for number, products in by_bins.items():
        shown[min(max(number, 1), last)] = shown.get(min(max(number, 1), last), 0) + products
    axes.bar(list(shown), list(shown.values()), color=ACCENT, width=0.85)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel=f"bins that hold the product (last bar: {last} or more)", ylabel="products")


def draw_neighbours(axes: Axes, findings: Findings) -> None:
    """Same-bin pairs by the difference of their counts."""
    pairs = findings.neighbours.pairs_by_difference
    differences = range(-8, 9)
    shown = dict.fromkeys(differences, 0)
    for value, number in pairs.items():
        shown[int(np.clip(value, -8, 8))] += number
    axes.bar(list(shown), list(shown.values()), color=[ACCENT if abs(v) == 1 else MUTED for v in shown], width=0.85)
    axes.set(xlabel="items more in the second bin (outermost bars: 8 or more)", ylabel="pairs that share a product")
    axes.set_xticks(range(-8, 9, 2))


def draw_splits(axes: Axes, findings: Findings) -> None:
    """Share of each class in each split."""
    classes = np.arange(findings.counts.max_count + 1)
    width = 0.8 / max(len(findings.mix_by_split), 1)
    for number, (split, mix) in enumerate(findings.mix_by_split.items()):
        bins = np.array([mix.get(int(count), 0) for count in classes])
        axes.bar(
            classes + (number - (len(findings.mix_by_split) - 1) / 2) * width,
            bins / max(bins.sum(), 1),
            width,
            label=split,
            color=_color(number),
        )
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set(xlabel="items in the bin", ylabel="share of the split's bins", xticks=classes)
    _legend_above(axes)


def _legend_above(axes: Axes) -> None:
    """Beside the bars: finding the best place among them takes long, and there may be none."""
    axes.legend(frameon=False, ncols=3, loc="lower right", bbox_to_anchor=(1, 1))


def _color(number: int) -> str:
    return SPLIT_COLORS[number % len(SPLIT_COLORS)]


def draw_sheet(photos: Sequence[np.ndarray], captions: Sequence[str], path: Path, *, title: str) -> None:
    """Photos side by side with a caption each."""
    columns = 4
    rows = max(-(-len(photos) // columns), 1)
    figure = Figure(figsize=(2.2 * columns, 2.1 * rows + 0.4), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for axes, photo, caption in zip(grid.flat, photos, captions, strict=False):
        axes.imshow(photo)
        axes.set_title(caption, fontsize=8, color=INK)
    figure.suptitle(title)
    figure.savefig(path, dpi=110)
