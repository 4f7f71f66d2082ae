"""Epochs of a training for TensorBoard and MLflow, written by the driver as they are reported.

A tracker that fails, as when its server or its disk is gone, is told once, and the training goes on without it.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

from bintally.config import Recipe
from bintally.errors import ConfigError
from data.progress import say

TrackerName = Literal["tensorboard", "mlflow"]
EXPERIMENT: Final = "bintally"
T = TypeVar("T")


Tracker = Callable[[int, Mapping[str, float]], None]
"""Takes an epoch and its figures."""


class _Attempts:
    """Does things with a tracker until one fails."""

    def __init__(self, name: TrackerName) -> None:
        self._name = name
        self._failed = False

    def __call__(self, do: Callable[[], T]) -> T | None:
        """What it gives; None if it fails, or an earlier attempt did."""
        if self._failed:
            return None
        try:
            return do()
        except Exception as error:  # noqa: BLE001  # a tracker's client raises what it likes
            self._failed = True
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            say(f"track {self._name} failed, and the run goes on without it: {reason}")
            return None


def check_trackers(names: Sequence[TrackerName]) -> None:
    """Refuse what is not installed.

    Raises:
        ConfigError: names the extra to install.
    """
    if "mlflow" in names and find_spec("mlflow") is None:
        raise ConfigError("track mlflow needs an extra: pip install 'bintally[mlflow]'")


@contextmanager
def tracked(
    names: Sequence[TrackerName], run_dir: Path, recipe: Recipe, *, run: str | None = None
) -> Iterator[list[Tracker]]:
    """The chosen trackers, open. A run that goes on in its folder goes on in its record.

    Args:
        names: which ones.
        run_dir: folder of the run, for TensorBoard's events, and MLflow's files unless MLFLOW_TRACKING_URI is set.
        recipe: recorded as the run's parameters.
        run: one of several runs in that folder, as the trials of a search, which are one experiment.
    """
    makers = {"tensorboard": _tensorboard, "mlflow": _mlflow}
    with ExitStack() as stack:
        trackers: list[Tracker] = []
        for name in names:
            attempt = _Attempts(name)
            tracker = attempt(partial(stack.enter_context, makers[name](run_dir, recipe, run, attempt)))
            trackers += [tracker] if tracker else []
        yield trackers


def figures_of(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The plain numbers of a report."""
    return {name: float(value) for name, value in metrics.items() if isinstance(value, int | float)}


def flat_fields(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted name."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= flat_fields(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


@contextmanager
def _tensorboard(run_dir: Path, recipe: Recipe, run: str | None, attempt: _Attempts) -> Iterator[Tracker]:
    from tensorboardX import SummaryWriter

    writer = SummaryWriter(str(run_dir / "tensorboard" / (run or "")))
    writer.add_text("recipe", "\n".join(f"- {name}: {value}" for name, value in flat_fields(asdict(recipe)).items()))

    def write(epoch: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            writer.add_scalar(name, value, epoch)
        writer.flush()

    try:
        yield lambda epoch, figures: attempt(lambda: write(epoch, figures))
    finally:
        attempt(writer.close)


@contextmanager
def _mlflow(run_dir: Path, recipe: Recipe, run: str | None, attempt: _Attempts) -> Iterator[Tracker]:
    # Since 3.x MLflow wants a database; for a run on one machine its files do, and need nothing installed.
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param

    client = MlflowClient(tracking_uri=os.environ.get("MLFLOW_TRACKING_URI", f"file:{run_dir / 'mlflow'}"))
    name, of = (run_dir.name, EXPERIMENT) if run is None else (run, f"{EXPERIMENT} {run_dir.name}")
    experiment = client.get_experiment_by_name(of)
    experiment_id = experiment.experiment_id if experiment else client.create_experiment(of)
    earlier = client.search_runs([experiment_id], f"attributes.run_name = '{name}'", max_results=1)
    run_id = earlier[0].info.run_id if earlier else client.create_run(experiment_id, run_name=name).info.run_id
    if not earlier:
        params = [Param(field, str(value)) for field, value in flat_fields(asdict(recipe)).items()]
        client.log_batch(run_id, params=params)

    def write(epoch: int, figures: Mapping[str, float]) -> None:
        now_ms = int(time.time() * 1000)
        client.log_batch(run_id, [Metric(name, value, now_ms, epoch) for name, value in figures.items()])

    try:
        yield lambda epoch, figures: attempt(lambda: write(epoch, figures))
    except BaseException:
        attempt(lambda: client.set_terminated(run_id, status="KILLED"))
        raise
    attempt(lambda: client.set_terminated(run_id))
