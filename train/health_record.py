"""What a worker's monitor saw in one epoch, as plain values: the input of every health rule and of the profile."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import TypeAdapter


@dataclass(frozen=True, kw_only=True, slots=True)
class StageSample:
    """Gradients and update of one stage of the network at one sampled step, before clipping."""

    grad_abs_mean: float | None
    """Mean absolute gradient over the stage's elements; None if it is not finite."""
    grad_spread: float | None
    """95th minus 5th percentile of the gradient of the stage's largest weight; None if it is not finite."""
    nonfinite_share: float
    """Share of the stage's tensors whose gradient holds NaN or infinity."""
    update_ratio: float | None
    """Mean |dW| / mean |W| of the stage's largest weight in this step; None if it is not finite, or W was zero."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepSample:
    """The tensors of one sampled step."""

    step: int
    """Optimiser steps of the run so far, from 1."""
    loss: float | None
    """Mean loss per row over the steps since the sample before; None if it is not finite."""
    num_steps: int
    """How many steps that were."""
    grad_norm: float | None
    """Of all parameters together, before clipping; None if it is not finite."""
    stages: dict[str, StageSample]
    """By stage, from the input to the output."""
    input_variance: dict[str, float]
    """Variance of what went into each convolution and linear layer, from the input to the output;
    empty after the first steps, whose initialisation it is to judge."""
    dead_share: dict[str, float]
    """Share of each ReLU's units that were next to never active."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Durations:
    """Seconds of the epoch's steps: wait for data and computation, without the monitor's own work."""

    num: int
    mean_s: float
    std_s: float
    median_s: float
    longest: list[tuple[int, float]]
    """The 64 longest ones as (step, seconds), longest first."""
    histogram: dict[str, int]
    """Steps by bin; bin k holds those of 10^(k/20) to 10^((k+1)/20) seconds, so that epochs add up."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """The machine during the epoch, by samples at a fixed interval; long epochs are thinned by averaging."""

    seconds: list[float]
    """Since the monitor started."""
    cpu: list[float]
    """Share of the cores that this process may use that it kept busy, 0..1."""
    memory: list[float]
    """Share of the memory in use: of the GPU what torch has allocated; without one, of the RAM what the process holds
    privately."""
    gpu: list[float]
    """Share of the time in which the GPU computed, 0..1; empty without one."""
    gpu_p5: float | None = None
    """5th percentile of the samples of the GPU's use before thinning."""
    gpu_p95: float | None = None
    """95th percentile of the same."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochHealth:
    """One epoch of one worker."""

    epoch: int
    """From 1."""
    first_step: int
    """Of the run; the epoch's first, from 1."""
    wall_s: float
    """From the start of the epoch to its summary."""
    device: str
    """`cpu` or `cuda`."""
    phases: dict[str, float]
    """Seconds by phase as the host spent them; they add up to `wall_s`."""
    sampled_phases: dict[str, float]
    """The same over the sampled steps alone; on a GPU these waited for it, so they tell where its time goes."""
    first_wait_s: float
    """How long the epoch's first step waited for data."""
    startup_s: float | None
    """From the launch to the end of the first step; in the first epoch alone."""
    longest_gap_s: float
    """The longest time without any sign of life."""
    gap_step: int
    """Steps of the run before that gap."""
    steps: Durations
    samples: list[StepSample]
    class_rows: list[int]
    """Training rows by count."""
    usage: Usage
    train_loss: float | None = None
    """Mean per row; None if it is not finite."""
    val_loss: float | None = None
    """Mean per row; None if there was no validation or it is not finite."""
    val_confusion: list[list[int]] | None = None
    """Validation rows by expected (outer) and counted (inner) number."""

    @property
    def last_step(self) -> int:
        """Of the run; the epoch's last."""
        return self.first_step + self.steps.num - 1

    def to_dict(self) -> dict[str, Any]:
        """As plain values that JSON and Ray take."""
        return asdict(self)


_EPOCH = TypeAdapter(EpochHealth)


def read_epoch(values: Mapping[str, Any]) -> EpochHealth:
    """The inverse of `EpochHealth.to_dict`, also after a way through JSON.

    Raises:
        pydantic.ValidationError: a value is missing or of another type.
    """
    return _EPOCH.validate_python(values)
