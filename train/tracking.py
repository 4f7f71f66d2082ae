"""Epochs of a training for TensorBoard and MLflow, written by the driver as they are reported."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Literal

from bintally.config import Recipe
from bintally.errors import ConfigError

TrackerName = Literal["tensorboard", "mlflow"]
EXPERIMENT: Final = "bintally"


Tracker = Callable[[int, Mapping[str, float]], None]
"""Takes an epoch and its figures."""


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
        yield [stack.enter_context(makers[name](run_dir, recipe, run)) for name in names]


def figures_of(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The plain numbers of a report."""
    return {name: float(value) for name, value in metrics.items() if isinstance(value, int | float)}


@contextmanager
def _tensorboard(run_dir: Path, recipe: Recipe, run: str | None) -> Iterator[Tracker]:
    from tensorboardX import SummaryWriter

    with SummaryWriter(str(run_dir / "tensorboard" / (run or ""))) as writer:
        writer.add_text("recipe", "\n".join(f"- {name}: {value}" for name, value in _flat(asdict(recipe)).items()))

        def write(epoch: int, figures: Mapping[str, float]) -> None:
            for name, value in figures.items():
                writer.add_scalar(name, value, epoch)
            writer.flush()

        yield write


@contextmanager
def _mlflow(run_dir: Path, recipe: Recipe, run: str | None) -> Iterator[Tracker]:
    # Since 3.x MLflow wants a database; for a run on one machine its files do, and need nothing installed.
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=os.environ.get("MLFLOW_TRACKING_URI", f"file:{run_dir / 'mlflow'}"))
    name, of = (run_dir.name, EXPERIMENT) if run is None else (run, f"{EXPERIMENT} {run_dir.name}")
    experiment = client.get_experiment_by_name(of)
    experiment_id = experiment.experiment_id if experiment else client.create_experiment(of)
    earlier = client.search_runs([experiment_id], f"attributes.run_name = '{name}'", max_results=1)
    run_id = earlier[0].info.run_id if earlier else client.create_run(experiment_id, run_name=name).info.run_id
    if not earlier:
        for field, value in _flat(asdict(recipe)).items():
            client.log_param(run_id, field, value)

    def write(epoch: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            client.log_metric(run_id, name, value, step=epoch)

    try:
        yield write
    except BaseException:
        client.set_terminated(run_id, status="KILLED")
        raise
    client.set_terminated(run_id)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted name."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat
