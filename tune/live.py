"""The table of a running search: a view of its record, drawn anew as files and time move on. On a terminal only."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from tune.config import BudgetConfig
from tune.objective import Objective
from tune.record import EVENTS_FILE, TRIALS_FILE, EpochRecord, TrialEvent, read_events, read_records
from tune.space import describe_point, epochs_at
from tune.trials import State, TrialView, best_trial_id, follow_trials

_FRAME: Final = 8  # lines of the terminal that are not rows
_STYLE: Final[dict[State, str]] = {
    "waiting": "dim",
    "running": "cyan",
    "stopped early": "yellow",
    "out of budget": "yellow",
    "ended": "green",
    "diverged": "red",
    "failed": "red",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class LiveView:
    """What the table is about, besides its record."""

    folder: Path
    """Where the record lies."""
    title: str
    objective: Objective
    max_epochs: int
    """Of the longest trial."""
    at_once: int
    """Trials side by side."""
    budget: BudgetConfig


def on_terminal() -> bool:
    """Whether somebody watches: only then there is a table, and otherwise a line for each epoch."""
    return sys.stdout.isatty() and sys.stderr.isatty()


@contextmanager
def live_table(view: LiveView) -> Iterator[None]:
    """Show the table below the lines of progress until the search ends; nothing if nobody watches."""
    console = Console()
    if not on_terminal() or console.is_dumb_terminal:
        yield
        return
    watch = _Watch(view)

    def draw() -> RenderableType:
        return render(view, *watch.read(), now=time.time(), max_rows=max(3, console.height - _FRAME))

    # Live writes what others print above its table, so that the two never mix.
    with Live(console=console, get_renderable=draw, refresh_per_second=2):
        yield


class _Watch:
    """The record, read again when it has grown."""

    def __init__(self, view: LiveView) -> None:
        self._paths = view.folder / TRIALS_FILE, view.folder / EVENTS_FILE
        self._sizes: tuple[int, ...] = ()
        self._read: tuple[list[EpochRecord], list[TrialEvent]] = ([], [])

    def read(self) -> tuple[list[EpochRecord], list[TrialEvent]]:
        """Epochs and events so far."""
        sizes = tuple(path.stat().st_size if path.exists() else 0 for path in self._paths)
        if sizes != self._sizes:
            self._sizes = sizes
            self._read = read_records(self._paths[0]), read_events(self._paths[1])
        return self._read


def render(
    view: LiveView, records: Sequence[EpochRecord], events: Sequence[TrialEvent], *, now: float, max_rows: int = 40
) -> RenderableType:
    """Header, a row for each trial (of very many, those that matter now), and what was left out."""
    trials = follow_trials(records, events, now=now)
    shown, hidden = _choose(trials, view, max_rows)
    table = Table(box=None, padding=(0, 1), header_style="bold", pad_edge=False)
    metric = view.objective.metric.removeprefix("val_")
    for name in ("", "trial", "point", "state"):
        table.add_column(name, justify="right" if name == "trial" else "left", overflow="fold")
    for name in ("epoch", metric, f"best {metric}", "accuracy", "images/s", "left"):
        table.add_column(name, justify="right", no_wrap=True)
    best_id = best_trial_id(trials, view.objective)
    for trial in shown:
        style = "bold green" if trial.trial_id == best_id else _STYLE[trial.state] if trial.state != "running" else ""
        table.add_row(*table_row(trial, view, now, is_best=trial.trial_id == best_id), style=style)
    lines: list[RenderableType] = [Text(header(view, trials, events, now), style="bold"), table]
    num_unseen = view.budget.trials - len(trials)
    unseen = ([f"{num_unseen} waiting"] if num_unseen > 0 else []) + [f"{hidden} more that are over"] * (hidden > 0)
    legend = "* is the best so far" if best_id else ""
    return Group(*lines, Text("; ".join(filter(None, [*unseen, legend])), style="dim"))


def table_row(trial: TrialView, view: LiveView, now: float, *, is_best: bool) -> list[str]:
    """The cells of one trial."""
    best, newest = trial.best(view.objective), trial.epochs[-1] if trial.epochs else None
    max_epochs = epochs_at(trial.point, view.max_epochs)
    left = time_left_of(trial, max_epochs, now)
    return [
        "*" if is_best else "",
        str(trial.number),
        describe_point(trial.point),
        describe_state(trial),
        f"{trial.last_epoch}/{max_epochs}",
        "" if newest is None else _number(newest.metrics[view.objective.metric]),
        "" if best is None else _number(best.metrics[view.objective.metric]),
        "" if newest is None else f"{newest.metrics['val_accuracy']:.1%}",
        "" if newest is None else f"{newest.metrics['images_per_s']:,.0f}",
        "" if left is None else format_left(left),
    ]


def describe_state(trial: TrialView) -> str:
    """The state with its epoch or reason."""
    if trial.state in ("stopped early", "out of budget"):
        return f"{trial.state} after epoch {trial.last_epoch}"
    return f"{trial.state}: {_shortened(trial.reason)}" if trial.reason else trial.state


def header(view: LiveView, trials: Sequence[TrialView], events: Sequence[TrialEvent], now: float) -> str:
    """Done and total, epochs, time gone and time left, in one line."""
    num_over = sum(one.state not in ("waiting", "running") for one in trials)
    begun = max((one.at for one in events if one.what == "session"), default=now)
    epochs = sum(len(one.epochs) for one in trials)
    parts = [
        f"{view.title}: {num_over} of {view.budget.trials} ended",
        f"{epochs} epochs run",
        f"{format_left(now - begun)} elapsed",
    ]
    left = time_left(view, trials, begun, now)
    return ", ".join(parts) + ("" if left is None else f", about {format_left(left)} left")


def time_left_of(trial: TrialView, max_epochs: int, now: float) -> float | None:
    """Seconds until a running trial ends if nothing stops it; None before its first epoch."""
    if trial.state != "running" or trial.epoch_s is None:
        return None
    begun = max(trial.epochs[-1].ended, trial.spans[-1][0])  # of the epoch that runs
    return max(0.0, (max_epochs - trial.last_epoch) * trial.epoch_s - (now - begun))


def time_left(view: LiveView, trials: Sequence[TrialView], begun: float, now: float) -> float | None:
    """Seconds until the search ends, as far as trials that are over tell how long others take; None before any epoch.

    Waiting trials are taken to run as many epochs as those that are over did on average, after as long a start.
    """
    timed = [one for one in trials if one.epoch_s is not None]
    if not timed:
        return None
    epoch_s = sum(one.epoch_s or 0.0 for one in timed) / len(timed)
    over = [one for one in trials if one.state not in ("waiting", "running")]
    epochs = sum(one.last_epoch for one in over) / len(over) if over else view.max_epochs
    starts = [max(0.0, one.epochs[0].ended - one.spans[0][0] - (one.epoch_s or 0.0)) for one in timed if one.spans]
    whole_s = epochs * epoch_s + (sum(starts) / len(starts) if starts else 0.0)
    running = [one for one in trials if one.state == "running"]
    rest = [_rest_of(one, view, whole_s, now) for one in running]
    num_waiting = max(0, view.budget.trials - len(over) - len(running))
    limits = [max([(sum(rest) + num_waiting * whole_s) / view.at_once, *rest])]
    if view.budget.time_s is not None:
        limits.append(max(0.0, view.budget.time_s - (now - begun)))
    if view.budget.epochs is not None:
        limits.append(max(0, view.budget.epochs - sum(one.last_epoch for one in trials)) * epoch_s / view.at_once)
    return min(limits)


def _rest_of(trial: TrialView, view: LiveView, whole_s: float, now: float) -> float:
    """Seconds until a running trial ends, which takes `whole_s` from its start if it has ended no epoch yet."""
    left = time_left_of(trial, epochs_at(trial.point, view.max_epochs), now)
    return max(0.0, whole_s - (now - trial.spans[-1][0])) if left is None else left


def format_left(seconds: float) -> str:
    """As 0:42, 12:05 or 3:20:00."""
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _choose(trials: Sequence[TrialView], view: LiveView, max_rows: int) -> tuple[list[TrialView], int]:
    """The trials to show, in order, and how many are not: first those that run, then the best, then the newest."""
    best_id = best_trial_id(trials, view.objective)
    urgent = sorted(trials, key=lambda one: (one.state != "running", one.trial_id != best_id, -one.number))
    shown = sorted(urgent[:max_rows], key=lambda one: one.number)
    return shown, len(trials) - len(shown)


def _number(value: float) -> str:
    return f"{value:.4g}"


def _shortened(reason: str, limit: int = 60) -> str:
    return reason if len(reason) <= limit else f"{reason[: limit - 3]}..."
