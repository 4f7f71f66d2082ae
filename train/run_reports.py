"""What is drawn and written of the epochs in a run folder once a training has ended."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bintally.config import Recipe
from train.health import write_findings
from train.profile_report import write_profile
from train.run_folder import HEALTH_FILE, METRICS_FILE, findings_of, read_epochs


def write_run_reports(run_dir: Path, recipe: Recipe) -> None:
    """Write curves.png, health.json and profile.html from the epochs in metrics.jsonl."""
    epochs = [epoch for epoch in read_epochs(run_dir / METRICS_FILE) if "diverged" not in epoch]
    if not epochs:
        return
    findings = findings_of(epochs[-1])
    plot_epochs(epochs, run_dir / "curves.png", title=recipe.name)
    write_findings(findings, run_dir / HEALTH_FILE)
    write_profile([epoch["health"] for epoch in epochs if "health" in epoch], findings, run_dir / "profile.html")


def plot_epochs(epochs: Sequence[dict[str, Any]], path: Path, *, title: str) -> None:
    """Loss, accuracy and learning rate over the epochs."""
    figure = Figure(figsize=(12, 3.8), layout="constrained")
    losses, accuracies, rates = figure.subplots(1, 3)
    numbers = [epoch["epoch"] for epoch in epochs]
    for name, label in (("train_loss", "training loss"), ("val_nll", "validation NLL")):
        losses.plot(numbers, [epoch[name] for epoch in epochs], marker="o", markersize=3, label=label)
    losses.set(xlabel="epoch", ylabel="nats per photo", ylim=(0, None))
    losses.legend()
    for name, label in (("val_accuracy", "right"), ("val_within_one", "within one")):
        accuracies.plot(numbers, [100 * epoch[name] for epoch in epochs], marker="o", markersize=3, label=label)
    accuracies.set(xlabel="epoch", ylabel="validation photos (%)", ylim=(0, 100))
    accuracies.legend()
    rates.plot(numbers, [epoch["lr"] for epoch in epochs], marker="o", markersize=3)
    rates.set(xlabel="epoch", ylabel="learning rate at the end of the epoch", ylim=(0, None))
    for axes in (losses, accuracies, rates):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.suptitle(title)
    figure.savefig(path, dpi=110)
