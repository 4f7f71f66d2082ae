"""Rules about what is learned: gradients, initialisation, loss, updates, units, classes. Pure functions of the history.

Each rule gets all epochs so far and gives the fault that it found, as of its first sign, or None.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import median
from typing import Final, Literal, Protocol

from train.health_config import HealthConfig
from train.health_record import EpochHealth, StepSample

Severity = Literal["warn", "stop"]
History = Sequence[EpochHealth]


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """A fault that a rule found."""

    rule: str
    severity: Severity
    """stop: going on is a waste, whatever comes; warn: worth a look."""
    saw: str
    """What was seen, in one sentence with its figures."""
    epoch: int
    """Since when."""
    step: int | None
    """Since which optimiser step of the run; None where the rule looks at whole epochs."""
    advice: str
    """What to change."""
    value: float | None
    """What was compared; None where it is not finite."""
    threshold: float
    """With what."""

    @property
    def since(self) -> str:
        """The epoch and, if known, the step."""
        return f"epoch {self.epoch}" + ("" if self.step is None else f", step {self.step}")


class Rule(Protocol):
    """A function that looks for one fault."""

    __name__: str

    def __call__(self, history: History, config: HealthConfig, /) -> Finding | None:
        """The fault as of its first sign; None without."""
        ...


Sign = tuple[int, StepSample, str, float]
"""A sample in which something was seen: its epoch, itself, where in the network, and the value."""


def vanishing_gradient(history: History, config: HealthConfig) -> Finding | None:
    """A stage gets next to no gradient, sample after sample."""

    def signs() -> Iterator[Sign | None]:
        for epoch, sample in _samples(history):
            small = [
                (stage.grad_abs_mean, name) for name, stage in sample.stages.items() if stage.grad_abs_mean is not None
            ]
            value, name = min(small, default=(1.0, ""))
            yield (epoch, sample, name, value) if value < config.vanishing_gradient else None

    sign = _lasting(signs(), config.vanishing_samples)
    if sign is None:
        return None
    epoch, sample, name, value = sign
    return Finding(
        rule="vanishing_gradient",
        severity="stop",
        saw=f"the mean absolute gradient of {name} stays below {config.vanishing_gradient:g} (first {value:.1e})",
        epoch=epoch,
        step=sample.step,
        advice="check the initialisation, use normalisation or residual layers, or raise the scale of the loss",
        value=value,
        threshold=config.vanishing_gradient,
    )


def exploding_tensor(history: History, config: HealthConfig) -> Finding | None:
    """The loss or a gradient is NaN or infinite, or the loss is beyond all reason."""
    for epoch in history:
        for sample in epoch.samples:
            bad = [name for name, stage in sample.stages.items() if stage.nonfinite_share > config.nonfinite_share]
            if bad:
                return _exploded(f"the gradient of {bad[0]} is NaN or infinite", epoch.epoch, sample.step, None, config)
            if sample.loss is None or sample.loss > config.exploded_loss:
                return _exploded_loss(sample.loss, epoch.epoch, sample.step, config)
        trained = epoch.steps.num > 0
        if trained and (epoch.train_loss is None or epoch.train_loss > config.exploded_loss):  # after the last sample
            return _exploded_loss(epoch.train_loss, epoch.epoch, None, config)
    return None


def _exploded_loss(loss: float | None, epoch: int, step: int | None, config: HealthConfig) -> Finding:
    what = "NaN or infinite" if loss is None else f"{loss:.1e} nats per row"
    return _exploded(f"the loss is {what}", epoch, step, loss, config)


def _exploded(saw: str, epoch: int, step: int | None, loss: float | None, config: HealthConfig) -> Finding:
    return Finding(
        rule="exploding_tensor",
        severity="stop",
        saw=saw,
        epoch=epoch,
        step=step,
        advice="lower the learning rate, lengthen the warm-up, or clip the gradient (optim.clip_norm)",
        value=loss,
        threshold=config.nonfinite_share if loss is None else config.exploded_loss,
    )


def poor_initialisation(history: History, config: HealthConfig) -> Finding | None:
    """In the first steps signals grow or shrink from layer to layer, or no stage gets a gradient worth the name."""
    for epoch, sample in _samples(history):
        if sample.step > config.init_steps:
            return None
        inner = dict(list(sample.input_variance.items())[1:])  # the first layer gets the photos
        if inner and (ratio := max(inner.values()) / max(min(inner.values()), 1e-30)) > config.init_variance_ratio:
            low, high = min(inner, key=inner.__getitem__), max(inner, key=inner.__getitem__)
            saw = f"the input of {high} varies {ratio:.1e} times as much as that of {low}"
            return _poor(saw, epoch, sample.step, ratio, config.init_variance_ratio)
        spreads = [stage.grad_spread for stage in sample.stages.values() if stage.grad_spread is not None]
        if spreads and max(spreads) < config.init_gradient_spread:
            saw = f"95th minus 5th percentile of the gradient is {max(spreads):.1e} at most, in any stage"
            return _poor(saw, epoch, sample.step, max(spreads), config.init_gradient_spread)
    return None


def _poor(saw: str, epoch: int, step: int, value: float, threshold: float) -> Finding:
    return Finding(
        rule="poor_initialisation",
        severity="warn",
        saw=saw,
        epoch=epoch,
        step=step,
        advice="scale the initial weights by the fan-in (Kaiming), or begin from pretrained weights",
        value=value,
        threshold=threshold,
    )


def update_ratio(history: History, config: HealthConfig) -> Finding | None:
    """A step changes weights beyond recognition, or an epoch's steps change them not at all."""
    for epoch in history:
        for sample in epoch.samples:
            for name, stage in sample.stages.items():
                if (stage.update_ratio or 0.0) > config.update_large:
                    return _updated(name, epoch.epoch, sample.step, stage.update_ratio or 0.0, config.update_large)
        for name in dict.fromkeys(name for sample in epoch.samples for name in sample.stages):
            seen = [sample.stages[name].update_ratio for sample in epoch.samples if name in sample.stages]
            ratios = [ratio for ratio in seen if ratio is not None]
            if len(ratios) >= config.update_samples and (value := median(ratios)) < config.update_small:
                return _updated(name, epoch.epoch, None, value, config.update_small)
    return None


def _updated(name: str, epoch: int, step: int | None, value: float, threshold: float) -> Finding:
    small = value < threshold
    return Finding(
        rule="update_ratio",
        severity="stop" if small else "warn",
        saw=f"a step changes the weights of {name} by {value:.2g} of their size",
        epoch=epoch,
        step=step,
        advice=f"{'raise' if small else 'lower'} the learning rate",
        value=value,
        threshold=threshold,
    )


def dead_units(history: History, config: HealthConfig) -> Finding | None:
    """Most units of a ReLU are never active."""

    def signs() -> Iterator[Sign | None]:
        for epoch, sample in _samples(history):
            value, name = max(((share, name) for name, share in sample.dead_share.items()), default=(0.0, ""))
            yield (epoch, sample, name, value) if value > config.dead_layer_share else None

    sign = _lasting(signs(), config.dead_samples)
    if sign is None:
        return None
    epoch, sample, name, value = sign
    return Finding(
        rule="dead_units",
        severity="warn",
        saw=f"{value:.0%} of the units of {name} are active in under 1 % of their values",
        epoch=epoch,
        step=sample.step,
        advice="lower the learning rate, lengthen the warm-up, check the biases, or use another activation",
        value=value,
        threshold=config.dead_layer_share,
    )


def class_imbalance(history: History, config: HealthConfig) -> Finding | None:
    """One count is much rarer than another, or mostly counted wrong epoch after epoch."""
    for epoch in history:
        if sum(epoch.class_rows) >= config.imbalance_rows:
            most, least = max(epoch.class_rows), min(epoch.class_rows)
            if most / max(1, least) > config.imbalance_ratio:
                rare = epoch.class_rows.index(least)
                saw = f"{least:,} training rows have the count {rare}, {most:,} the most frequent one"
                return _imbalanced(saw, epoch.epoch, most / max(1, least), config.imbalance_ratio)
    return _always_wrong(history[-config.class_error_epochs :], config)


def _always_wrong(history: History, config: HealthConfig) -> Finding | None:
    """A count that is mostly counted wrong in each of these epochs."""
    errors = [_class_errors(epoch.val_confusion or []) for epoch in history]
    if (
        len(history) < config.class_error_epochs
        or sum(map(sum, history[-1].val_confusion or [])) < config.imbalance_rows
    ):
        return None
    least = {count: min(epoch.get(count, 0.0) for epoch in errors) for count in errors[-1]}
    worst = max(least, key=least.__getitem__)
    if least[worst] <= config.class_error:
        return None
    saw = f"{errors[-1][worst]:.0%} of the validation rows of count {worst} are counted wrong"
    return _imbalanced(saw, history[0].epoch, errors[-1][worst], config.class_error)


def _class_errors(confusion: Sequence[Sequence[int]]) -> dict[int, float]:
    """Share of the rows of each count, as far as there are any, that are counted wrong."""
    return {count: 1 - row[count] / sum(row) for count, row in enumerate(confusion) if sum(row)}


def _imbalanced(saw: str, epoch: int, value: float, threshold: float) -> Finding:
    return Finding(
        rule="class_imbalance",
        severity="warn",
        saw=saw,
        epoch=epoch,
        step=None,
        advice="weigh rows by their count (loss.class_weights), visit counts equally (balanced), or find more of it",
        value=value,
        threshold=threshold,
    )


def _samples(history: History) -> Iterator[tuple[int, StepSample]]:
    return ((epoch.epoch, sample) for epoch in history for sample in epoch.samples)


def _lasting(signs: Iterable[Sign | None], num: int) -> Sign | None:
    """The first of `num` signs in a row."""
    for seen, run in groupby(signs, key=lambda sign: sign is not None):
        if seen and len(signs_in_a_row := [sign for sign in run if sign is not None]) >= num:
            return signs_in_a_row[0]
    return None


LEARNING_RULES: Final[tuple[Rule, ...]] = (
    exploding_tensor,
    vanishing_gradient,
    poor_initialisation,
    update_ratio,
    dead_units,
    class_imbalance,
)
