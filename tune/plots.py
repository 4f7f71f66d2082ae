"""Pictures of a search."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from tune.record import EpochRecord, best_record


def plot_curves(records: Sequence[EpochRecord], path: Path, *, max_epochs: int) -> None:
    """Validation NLL and accuracy per trial over its epochs; the best trial on top, in black."""
    trials: dict[str, list[EpochRecord]] = defaultdict(list)
    for record in sorted(records, key=lambda record: record.epoch):
        trials[record.trial_id].append(record)
    best_id = best_record(records).trial_id
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    nll_axes, accuracy_axes = figure.subplots(1, 2)
    for trial_id, epochs in trials.items():
        is_best = trial_id == best_id
        label = f"lr {epochs[0].lr:.1e}, batch {epochs[0].global_batch_size}" + (" (best)" if is_best else "")
        style = {"color": "black", "linewidth": 2.4, "zorder": 3} if is_best else {"linewidth": 1.2}
        numbers = [record.epoch for record in epochs]
        nll_axes.plot(numbers, [record.score for record in epochs], marker="o", markersize=3, label=label, **style)
        accuracies = [100 * record.metrics["val_accuracy"] for record in epochs]
        accuracy_axes.plot(numbers, accuracies, marker="o", markersize=3, **style)
    finite = [record.score for record in records if record.score < 1e3] or [1.0]
    nll_axes.set(xlabel="epoch", ylabel="validation NLL (nats)", ylim=(0, 1.05 * max(finite)))
    accuracy_axes.set(xlabel="epoch", ylabel="validation accuracy (%)", ylim=(0, 100))
    for axes in (nll_axes, accuracy_axes):
        axes.set_xlim(0.5, max_epochs + 0.5)
        axes.grid(alpha=0.3)
    figure.legend(loc="outside right center", fontsize=8, title="trials")
    figure.suptitle("Learning curves of all trials; a curve that ends early was stopped by ASHA")
    figure.savefig(path, dpi=120)
