"""Figures of the profile: where the time went, how even the steps are, what the machine did."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from data.report_plots import ACCENT, MUTED, SPLIT_COLORS, WARN, save_figure
from train.health_record import EpochHealth
from train.phase_clock import BINS_PER_DECADE, PHASES

PHASE_COLORS: Final = dict(
    zip(
        PHASES,
        ("#d08a2e", "#ecc48c", "#2c6fb0", "#173f66", "#8db8e0", "#4f8f6b", "#7d5ba6", "#c3ccd5", "#b4541a"),
        strict=True,
    )
)
_SIZE: Final = (6.4, 3.4)  # inches


def draw_profile(history: Sequence[EpochHealth], folder: Path) -> dict[str, Path]:
    """Draw every figure as <name>.png; their paths by name."""
    figures: dict[str, Callable[[Axes], None]] = {
        "phases": lambda axes: draw_phases(axes, history),
        "steps": lambda axes: draw_steps(axes, history),
        "usage": lambda axes: draw_usage(axes, history),
    }
    return {name: save_figure(draw, folder / f"{name}.png", _SIZE) for name, draw in figures.items()}


def draw_phases(axes: Axes, history: Sequence[EpochHealth]) -> None:
    """Seconds of each epoch, stacked by phase."""
    epochs = [epoch.epoch for epoch in history]
    floor = [0.0] * len(history)
    for phase in (name for name in PHASES if any(epoch.phases.get(name) for epoch in history)):
        seconds = [epoch.phases.get(phase, 0.0) for epoch in history]
        axes.bar(epochs, seconds, bottom=floor, color=PHASE_COLORS[phase], width=0.8, label=phase)
        floor = [low + more for low, more in zip(floor, seconds, strict=True)]
    axes.set(xlabel="epoch", ylabel="seconds")
    axes.set_xlim(min(epochs) - 0.6, max(epochs) + 0.6)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _legend_beside(axes)


def draw_steps(axes: Axes, history: Sequence[EpochHealth]) -> None:
    """Steps of all epochs by their time, in bins of equal ratio."""
    bins = step_bins(history)
    if not bins:
        axes.annotate("no steps", (0.5, 0.5), xycoords="axes fraction", ha="center")
        return
    lefts = [10 ** (number / BINS_PER_DECADE) for number in bins]
    widths = [left * (10 ** (1 / BINS_PER_DECADE) - 1) for left in lefts]
    axes.bar(lefts, list(bins.values()), width=widths, align="edge", color=ACCENT, edgecolor="white", linewidth=0.5)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: format_s(seconds)))
    axes.xaxis.set_minor_formatter(FuncFormatter(_minor_label))
    axes.tick_params(axis="x", which="minor", labelsize=8)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="time per step, wait for data included", ylabel="steps")
    median = median_step_s(history)
    axes.axvline(median, color=WARN, linewidth=1.5)
    axes.annotate(f" median {format_s(median)}", (median, 0.95), xycoords=("data", "axes fraction"), color=WARN)


def _minor_label(seconds: float, _: int) -> str:
    """1, 2 and 5 of each decade are as many as fit."""
    return format_s(seconds) if f"{seconds:e}"[0] in "25" else ""


def median_step_s(history: Sequence[EpochHealth]) -> float:
    """Of all steps, to the width of a bin (12 %): the middle of the bin that holds it; 0 without steps."""
    bins = step_bins(history)
    seen, half = 0, sum(bins.values()) / 2
    for number, count in sorted(bins.items()):
        seen += count
        if seen >= half:
            return float(10 ** ((number + 0.5) / BINS_PER_DECADE))
    return 0.0


def step_bins(history: Sequence[EpochHealth]) -> Counter[int]:
    """Steps of all epochs by bin, as in `Durations.histogram`."""
    bins: Counter[int] = Counter()
    for epoch in history:
        bins.update({int(number): count for number, count in epoch.steps.histogram.items()})
    return bins


def draw_usage(axes: Axes, history: Sequence[EpochHealth]) -> None:
    """Shares of CPU, memory and GPU in use over time."""
    for name, color in zip(("cpu", "memory", "gpu"), (ACCENT, MUTED, SPLIT_COLORS[2]), strict=True):
        seconds, shares = usage_over_time(history, name)
        if shares:
            axes.plot(seconds, shares, color=color, linewidth=1.4, label={"cpu": "CPU", "gpu": "GPU"}.get(name, name))
    axes.set(xlabel="seconds since the start", ylabel="in use", ylim=(0, 1.02), xlim=(0, None))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    _legend_beside(axes)


def usage_over_time(history: Sequence[EpochHealth], name: str) -> tuple[list[float], list[float]]:
    """The samples of all epochs; a worker that was started again goes on where its predecessor ended."""
    seconds: list[float] = []
    shares: list[float] = []
    offset = 0.0
    for epoch in history:
        values = getattr(epoch.usage, name)
        if not values:
            continue
        times = epoch.usage.seconds[: len(values)]
        if seconds and times[0] + offset < seconds[-1]:
            offset = seconds[-1]
        seconds += [time + offset for time in times]
        shares += values
    return seconds, shares


def format_s(seconds: float) -> str:
    """Seconds in the unit that needs the fewest digits."""
    if seconds < 1:
        return f"{seconds * 1e3:.3g} ms"
    return f"{seconds:.3g} s" if seconds < 1000 else f"{seconds / 60:,.0f} min"


def _legend_beside(axes: Axes) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1), reverse=True)
