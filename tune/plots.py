"""Pictures of a search."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from tune.objective import Objective
from tune.record import EpochRecord, best_record
from tune.space import describe_point


def plot_curves(records: Sequence[EpochRecord], path: Path, *, objective: Objective, max_epochs: int) -> None:
    """Validation NLL and accuracy per trial over its epochs; the best trial on top, in black."""
    trials: dict[str, list[EpochRecord]] = defaultdict(list)
    for record in sorted(records, key=lambda record: record.epoch):
        trials[record.trial_id].append(record)
    best_id = best_record(records, objective).trial_id
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    nll_axes, accuracy_axes = figure.subplots(1, 2)
    for trial_id, epochs in trials.items():
        is_best = trial_id == best_id
        label = describe_point(epochs[0].point) + (" (best)" if is_best else "")
        style = {"color": "black", "linewidth": 2.4, "zorder": 3} if is_best else {"linewidth": 1.2}
        numbers = [record.epoch for record in epochs]
        nlls = [record.metrics["val_nll"] for record in epochs]
        nll_axes.plot(numbers, nlls, marker="o", markersize=3, label=label, **style)
        accuracies = [100 * record.metrics["val_accuracy"] for record in epochs]
        accuracy_axes.plot(numbers, accuracies, marker="o", markersize=3, **style)
    finite = [nll for record in records if (nll := record.metrics["val_nll"]) < 1e3] or [1.0]
    nll_axes.set(xlabel="epoch", ylabel="validation NLL (nats)", ylim=(0, 1.05 * max(finite)))
    accuracy_axes.set(xlabel="epoch", ylabel="validation accuracy (%)", ylim=(0, 100))
    for axes in (nll_axes, accuracy_axes):
        axes.set_xlim(0.5, max_epochs + 0.5)
        axes.grid(alpha=0.3)
    figure.legend(loc="outside right center", fontsize=8, title="trials")
    figure.suptitle("Learning curves of all trials; a curve that ends early was stopped by ASHA")
    figure.savefig(path, dpi=120)
