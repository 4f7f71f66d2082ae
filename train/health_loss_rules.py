"""Rules about the course of the loss; all of them need several epochs or windows of steps."""

from collections.abc import Sequence
from statistics import mean
from typing import Final

from train.health_config import HealthConfig
from train.health_record import EpochHealth
from train.health_rules import Finding, History, Rule


def loss_not_decreasing(history: History, config: HealthConfig) -> Finding | None:
    """The training loss never fell, or rose again well above its best. Needs twice `loss_patience` windows."""
    windows, size = loss_windows(history, config), config.loss_patience
    means = [mean(loss for _, _, loss in windows[at : at + size]) for at in range(len(windows) - size + 1)]
    if len(means) <= size or (best := min(means[:-size])) < config.loss_floor:
        return None
    fallen, risen = 1 - min(means[size:]) / means[0], means[-1] / best - 1
    if risen > config.loss_rise:
        epoch, step, _ = windows[-size]
        saw = f"the training loss rose from {best:.3f} at its best to {means[-1]:.3f}"
        return _not_falling(saw, epoch, step, risen, config.loss_rise)
    if fallen < config.loss_fall:
        epoch, step, _ = windows[0]
        saw = f"the training loss went from {means[0]:.3f} to {means[-1]:.3f} in {len(windows)} windows"
        return _not_falling(saw, epoch, step, fallen, config.loss_fall)
    return None


def _not_falling(saw: str, epoch: int, step: int, value: float, threshold: float) -> Finding:
    return Finding(
        rule="loss_not_decreasing",
        severity="stop",
        saw=saw,
        epoch=epoch,
        step=step,
        advice="try a learning rate 10 times lower if it rises, or higher if it stays; check labels and photos",
        value=value,
        threshold=threshold,
    )


def loss_windows(history: History, config: HealthConfig) -> list[tuple[int, int, float]]:
    """Mean training loss per window, as (epoch, last step, loss): parts of long epochs, whole short ones."""
    return [window for epoch in history for window in _windows_of(epoch, config.loss_window_steps)]


def _windows_of(epoch: EpochHealth, num_steps: int) -> list[tuple[int, int, float]]:
    losses = [(sample, sample.loss) for sample in epoch.samples if sample.loss is not None]
    if epoch.steps.num < 2 * num_steps or not losses:
        whole = epoch.train_loss
        return [] if whole is None else [(epoch.epoch, epoch.last_step, whole)]
    windows, loss_sum, seen = [], 0.0, 0
    for sample, loss in losses:
        loss_sum, seen = loss_sum + loss * sample.num_steps, seen + sample.num_steps
        if seen >= num_steps:
            windows.append((epoch.epoch, sample.step, loss_sum / seen))
            loss_sum, seen = 0.0, 0
    return windows


def overfit(history: History, config: HealthConfig) -> Finding | None:
    """The validation loss is well above the training loss and above its own best, epoch after epoch."""
    run: list[tuple[EpochHealth, float]] = []
    best = float("inf")
    for epoch, train, val in _losses(history):
        best = min(best, val)
        gap = (val - train) / max(train, 1e-9)
        fits_too_well = gap > config.overfit_ratio and val > best + config.overtraining_delta
        run = [*run, (epoch, gap)] if fits_too_well else []
        if len(run) == config.overfit_patience:
            return Finding(
                rule="overfit",
                severity="warn",
                saw=f"the validation loss of {val:.3f} is {gap:.0%} above the training loss of {train:.3f} and above"
                f" its best of {best:.3f}",
                epoch=run[0][0].epoch,
                step=None,
                advice="more data or augmentation, more weight decay, a smaller network, or fewer epochs (patience)",
                value=gap,
                threshold=config.overfit_ratio,
            )
    return None


def overtraining(history: History, config: HealthConfig) -> Finding | None:
    """The training or the validation loss has got no better for many epochs."""
    trains = [(epoch.epoch, epoch.train_loss) for epoch in history if epoch.train_loss is not None]
    vals = [(epoch.epoch, epoch.val_loss) for epoch in history if epoch.val_loss is not None]
    for name, losses, patience in (
        ("training", trains, config.overtraining_train_epochs),
        ("validation", vals, config.overtraining_val_epochs),
    ):
        best_epoch, best, idle = _idle_epochs(losses, config.overtraining_delta)
        if idle >= patience:
            return Finding(
                rule="overtraining",
                severity="stop",
                saw=f"the {name} loss is no better than the {best:.3f} of epoch {best_epoch}, {idle} epochs later",
                epoch=best_epoch,
                step=None,
                advice="stop here; of the checkpoints the best is kept. Next time set patience or fewer epochs",
                value=float(idle),
                threshold=float(patience),
            )
    return None


def _idle_epochs(losses: Sequence[tuple[int, float]], delta: float) -> tuple[int, float, int]:
    """The last epoch that was better by delta than all before, its loss, and how many epochs followed."""
    best_at, best = 0, float("inf")
    for at, (_, loss) in enumerate(losses):
        if loss < best - delta:
            best_at, best = at, loss
    return (losses[best_at][0], best, len(losses) - 1 - best_at) if losses else (0, best, 0)


def _losses(history: History) -> list[tuple[EpochHealth, float, float]]:
    return [
        (epoch, epoch.train_loss, epoch.val_loss)
        for epoch in history
        if epoch.train_loss is not None and epoch.val_loss is not None
    ]


LOSS_RULES: Final[tuple[Rule, ...]] = (loss_not_decreasing, overfit, overtraining)
