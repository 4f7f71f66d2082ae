"""Figures of the page of a search: one idea each, narrow enough to be read on a phone."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter

from data.report_plots import ACCENT, INK, MUTED, WARN, save_figure
from tune.config import SearchConfig
from tune.costs import running_over_time
from tune.objective import Objective
from tune.record import TrialEvent
from tune.space import Choice, Dimension, Value
from tune.trials import TrialView, best_trial_id

_SIZE: Final = (5.2, 3.5)  # inches
_SHORT: Final = {"optim.lr": "learning rate", "optim.global_batch_size": "batch size"}
_COLORS: Final = colormaps["viridis_r"]  # the best is dark


def draw_search(
    config: SearchConfig, trials: Sequence[TrialView], events: Sequence[TrialEvent], at_once: int, folder: Path
) -> dict[str, Path]:
    """Draw every figure as <name>.png; their paths by name."""
    objective, max_epochs = config.objective, config.max_epochs
    accuracy = Objective(metric="val_accuracy", mode="max")
    figures: dict[str, Callable[[Axes], None]] = {
        "objective": lambda axes: draw_curves(axes, trials, objective, objective, max_epochs),
        "accuracy": lambda axes: draw_curves(axes, trials, accuracy, objective, max_epochs),
        "space": lambda axes: draw_space(axes, trials, config.space.dimensions, objective),
        "running": lambda axes: draw_running(axes, events, at_once),
    }
    return {name: save_figure(draw, folder / f"{name}.png", _SIZE) for name, draw in figures.items()}


def draw_curves(
    axes: Axes, trials: Sequence[TrialView], shown: Objective, objective: Objective, max_epochs: int
) -> None:
    """A figure over the epochs of every trial; where a curve ends early, how."""
    best_id = best_trial_id(trials, objective)
    values = []
    for trial in trials:
        numbers = [one.epoch for one in trial.epochs]
        curve = [one.metrics[shown.metric] for one in trial.epochs]
        values += curve
        is_best = trial.trial_id == best_id
        color = ACCENT if is_best else MUTED
        axes.plot(numbers, curve, color=color, linewidth=2.4 if is_best else 1.1, zorder=3 if is_best else 2)
        if not numbers:
            continue
        if marker := {"stopped early": "x", "diverged": "v", "failed": "v"}.get(trial.state):
            mark = WARN if marker == "v" else INK
            axes.scatter(numbers[-1:], curve[-1:], marker=marker, s=26, color=mark, zorder=4, linewidths=1.3)
        else:
            axes.scatter(numbers[-1:], curve[-1:], marker="o", s=14, color=color, zorder=4)
    axes.set(xlabel="epoch", ylabel=_label(shown.metric), xlim=(0.7, max_epochs + 0.3))
    if values:
        axes.set_ylim(*_limits(np.array(values), shown))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if "accuracy" in shown.metric or "within_one" in shown.metric:
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    handles = [
        Line2D([], [], color=ACCENT, linewidth=2.4, label="best trial"),
        Line2D([], [], color=INK, marker="x", linestyle="", label="stopped early"),
    ]
    if any(one.state in ("diverged", "failed") for one in trials):
        handles.append(Line2D([], [], color=WARN, marker="v", linestyle="", label="diverged or failed"))
    axes.legend(handles=handles, frameon=False, ncols=3, loc="lower right", bbox_to_anchor=(1, 1), fontsize=9)


def _limits(values: np.ndarray, shown: Objective) -> tuple[float, float]:
    """From the best value to the worst but for outliers, which would press all curves together."""
    worst, best = (95, 0) if shown.mode == "min" else (5, 100)
    ends = np.percentile(values, [worst, best])
    margin = 0.06 * max(float(np.ptp(ends)), 1e-6 + 0.05 * float(np.abs(ends).max()))
    return float(ends.min()) - margin, float(ends.max()) + margin


def draw_space(axes: Axes, trials: Sequence[TrialView], dimensions: dict[str, Dimension], objective: Objective) -> None:
    """Parallel coordinates: a line per trial through its values and its score, the best in the darkest colour."""
    scores = {one.trial_id: best.metrics[objective.metric] for one in trials if (best := one.best(objective))}
    heights = score_heights(scores, objective)
    best_id = best_trial_id(trials, objective)
    for trial in sorted(trials, key=lambda one: heights.get(one.trial_id, -1.0)):
        height = heights.get(trial.trial_id)
        ys = [place(trial.point.get(name), one) for name, one in dimensions.items()] + [height or 0.0]
        style: dict[str, Any] = (
            {"color": WARN, "linestyle": ":"} if height is None else {"color": _COLORS(0.05 + 0.9 * height)}
        )
        axes.plot(range(len(ys)), ys, linewidth=2.8 if trial.trial_id == best_id else 1.2, alpha=0.9, **style)
    for at, dimension in enumerate(dimensions.values()):
        _draw_scale(axes, at, {place(value, dimension): _tick(value) for value in scale_of(dimension)})
    worst_first = sorted(scores.values(), key=lambda value: objective.loss({objective.metric: value}), reverse=True)
    ends = {0.0: worst_first[0], 1.0: worst_first[-1]} if worst_first else {}
    _draw_scale(axes, len(dimensions), {height: _tick(value) for height, value in ends.items()})
    names = [_SHORT.get(name, name.rpartition(".")[2].replace("_", " ")) for name in dimensions]
    axes.set_xticks(range(len(names) + 1), [*names, f"best {_label(objective.metric)}"], wrap=True)
    axes.set(ylim=(-0.06, 1.06), xlim=(-0.35, len(names) + 0.45))
    axes.set_yticks([])
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.tick_params(axis="x", length=0)


def _draw_scale(axes: Axes, at: int, ticks: dict[float, str]) -> None:
    axes.axvline(at, ymin=0.05, ymax=0.95, color=INK, linewidth=0.8, zorder=1)
    for height, words in ticks.items():
        axes.annotate(
            words,
            (at, height),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
            color=INK,
            bbox={"boxstyle": "round,pad=0.12", "facecolor": "white", "edgecolor": "none", "alpha": 0.8},
            zorder=5,
        )


def score_heights(scores: dict[str, float], objective: Objective) -> dict[str, float]:
    """Where each score lies, 0 the worst and 1 the best, by rank: scores lie close together near the best."""
    order = sorted(scores, key=lambda one: objective.loss({objective.metric: scores[one]}), reverse=True)
    return {trial_id: place / max(1, len(order) - 1) if len(order) > 1 else 1.0 for place, trial_id in enumerate(order)}


def place(value: Value, dimension: Dimension) -> float:
    """Where a value lies on its dimension, 0 to 1."""
    if isinstance(dimension, Choice):
        values = list(dimension.values)
        return (values.index(value) + 0.5) / len(values) if value in values else 0.5
    assert isinstance(value, int | float)
    if dimension.log:
        return math.log(value / dimension.low) / math.log(dimension.high / dimension.low)
    return (value - dimension.low) / (dimension.high - dimension.low)


def scale_of(dimension: Dimension) -> list[Value]:
    """The values to write beside a dimension."""
    if isinstance(dimension, Choice):
        return list(dimension.values)
    middle = math.sqrt(dimension.low * dimension.high) if dimension.log else (dimension.low + dimension.high) / 2
    return [dimension.low, middle, dimension.high]


def draw_running(axes: Axes, events: Sequence[TrialEvent], at_once: int) -> None:
    """Trials that run at a time, beside how many can."""
    steps = running_over_time(events)
    if not steps:
        axes.annotate("no begins and ends are recorded", (0.5, 0.5), xycoords="axes fraction", ha="center")
        return
    minutes = [(at - steps[0][0]) / 60 for at, _ in steps]
    axes.fill_between(minutes, [number for _, number in steps], step="post", color=ACCENT, alpha=0.35, linewidth=0)
    axes.step(minutes, [number for _, number in steps], where="post", color=ACCENT, linewidth=1.4)
    axes.axhline(at_once, color=WARN, linewidth=1.2, linestyle="--")
    axes.annotate(
        f"slots: {at_once}", (1, at_once), xycoords=("axes fraction", "data"), ha="right", va="bottom", color=WARN
    )
    axes.set(xlabel="minutes since the start", ylabel="running trials", ylim=(0, at_once * 1.15 + 0.1))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    if minutes[-1] > 0:
        axes.set_xlim(0, minutes[-1])


def _tick(value: Value) -> str:
    return f"{value:.3g}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def _label(metric: str) -> str:
    words = metric.replace("val_", "validation ").replace("_", " ")
    return words.replace("nll", "NLL").replace("rmse", "RMSE").replace("mae", "MAE")
