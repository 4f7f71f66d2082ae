"""Watches one training worker at under 1 % of its time: phases, step times, tensors of sampled steps, the machine.

>>> with Monitor(model, device, num_classes=6) as monitor:
...     for epoch in range(1, num_epochs + 1):
...         for batch in monitor.steps(batches):
...             with monitor.phase("forward"): ...
...             with monitor.phase("backward"): ...
...             monitor.after_backward()
...             with monitor.phase("optimizer"): ...
...             monitor.after_step(loss_sum, num_rows)
...         with monitor.phase("validation"):
...             for batch in monitor.alive(val_batches): ...
...         metrics["health"] = monitor.epoch_summary(epoch, val_loss=val_loss, val_confusion=val_confusion)
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from train.health_record import EpochHealth, StepSample
from train.phase_clock import MONITOR, PhaseClock, summarize_durations
from train.step_sampler import StepSampler
from train.tensor_stats import finite
from train.usage import INTERVAL_S, Probe, ProcessProbe, UsageSampler

FIRST_STEPS: Final = 10  # all of them are sampled, for the rules of the initialisation
MAX_SAMPLES: Final = 32  # of an epoch; beyond that every second one is left out
_END: Final = object()
T = TypeVar("T")


class Monitor:
    """Collects what the health rules and the profile need; one per training worker, used as a context manager.

    Times are the host's. A GPU works behind the host, so on a GPU only the sampled steps, in which each phase waits for
    it, tell how long a phase takes there (`EpochHealth.sampled_phases`). No other step is ever synchronised.
    """

    def __init__(
        self,
        model: nn.Module,
        device: torch.device,
        *,
        num_classes: int,
        every: int = 50,
        steps_done: int = 0,
        launched: float | None = None,
        stalled_s: float = 1800.0,
        on_stall: Callable[[int, float], None] | None = None,
        activations: bool = True,
        probe: Probe | None = None,
        interval_s: float = INTERVAL_S,
    ) -> None:
        """Nothing is hooked or started yet.

        Args:
            model: the network itself, not what DDP or torch.compile made of it.
            device: where it is.
            num_classes: counts 0..num_classes-1.
            every: steps between two sampled ones; doubled when an epoch has more than MAX_SAMPLES of them.
            steps_done: optimiser steps of the run before this worker started, where it was resumed.
            launched: when the run was started, by `time.time()`; None is now.
            stalled_s: seconds without a sign of life after which `on_stall` is called, once per stall.
            on_stall: gets the steps done so far and the seconds; runs in the monitor's own thread.
            activations: False without forward hooks, which torch.compile would trace.
            probe: where samples of the machine come from; None looks at this process and its GPU.
            interval_s: seconds between these.
        """
        self._device = device
        self._clock = PhaseClock(self._synchronize)
        self._sampler = StepSampler(model, device, lambda: self.phase(MONITOR), activations=activations)
        self._every, self._steps_done, self._step = every, steps_done, steps_done
        self._launched = time.time() if launched is None else launched
        self._startup_s: float | None = None
        self._stalled_s, self._on_stall, self._told = stalled_s, on_stall, 0.0
        self._sampling = False
        self._usage = UsageSampler(probe or ProcessProbe(device), self._watch, interval_s)
        self._num_classes = num_classes
        self._begin_epoch()

    def _begin_epoch(self) -> None:
        self._first_step, self._gap, self._gap_step, self._first_wait_s = self._step + 1, 0.0, self._step, 0.0
        self._durations: list[float] = []
        self._samples: list[StepSample] = []
        self._class_rows = np.zeros(self._num_classes, dtype=np.int64)
        self._clock.reset()

    def __enter__(self) -> "Monitor":
        self._clock.reset()
        self._usage.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._usage.__exit__()
        self._sampler.end()

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Charge the block to one of `train.phase_clock.PHASES`; inside another phase it stops that one's clock."""
        return self._clock.phase(name)

    def steps(self, batches: Iterable[T]) -> Iterator[T]:
        """The batches of a training epoch; one step lasts from asking for a batch until asking for the next."""
        iterator = iter(batches)
        while True:
            began, spent = self._begin_step()
            with self.phase("wait"):
                batch = next(iterator, _END)
            if batch is _END:
                self._end_sampling()
                return
            if not self._durations:
                self._first_wait_s = time.perf_counter() - began
            yield batch  # type: ignore[misc]  # it is not _END
            self._end_step(began, spent)

    def alive(self, batches: Iterable[T]) -> Iterator[T]:
        """The same batches, each a sign of life; for a validation, which is no stall however long it takes."""
        for batch in batches:
            self._clock.charge()
            yield batch

    def see_counts(self, counts: np.ndarray) -> None:
        """Count a training batch's rows by label, on the host before they are copied; negative is padding."""
        self._class_rows += np.bincount(counts[counts >= 0], minlength=self._num_classes)

    def after_backward(self) -> None:
        """Between backward and clipping. In a sampled step it computes statistics of the gradients, without a sync."""
        if self._sampling:
            with self.phase(MONITOR):
                self._sampler.after_backward()

    def after_step(self, loss_sum: Tensor, num_rows: int) -> None:
        """After the optimiser's step. Only a sampled step reads anything from the device.

        Args:
            loss_sum: summed loss of this worker's real rows; stays on the device.
            num_rows: how many these are.
        """
        self._sampler.add_loss(loss_sum, num_rows)
        if self._sampling:
            with self.phase(MONITOR):
                self._samples.append(self._sampler.sample(self._step + 1))

    def epoch_summary(
        self, epoch: int, *, val_loss: float | None = None, val_confusion: Sequence[Sequence[int]] | None = None
    ) -> dict[str, Any]:
        """What was seen since the last summary, JSON-ready (`EpochHealth`), and begin anew. Costs one host sync.

        What follows it, as the checkpoint of this epoch, is counted in the next one.

        Args:
            epoch: its number, from 1.
            val_loss: mean per row.
            val_confusion: validation rows by expected (outer) and counted (inner) number.
        """
        train_loss = self._sampler.mean_loss()
        self._clock.charge()
        self._note_gap()
        health = EpochHealth(
            epoch=epoch,
            first_step=self._first_step,
            wall_s=sum(self._clock.totals.values()),
            device=self._device.type,
            phases=dict(self._clock.totals),
            sampled_phases=dict(self._clock.sampled),
            first_wait_s=self._first_wait_s,
            startup_s=self._startup_s,
            longest_gap_s=self._clock.longest_gap_s,
            gap_step=self._gap_step,
            steps=summarize_durations(self._durations, self._first_step),
            samples=self._samples,
            class_rows=self._class_rows.tolist(),
            usage=self._usage.drain(),
            train_loss=train_loss,
            val_loss=None if val_loss is None else finite(val_loss),
            val_confusion=None if val_confusion is None else [list(map(int, row)) for row in val_confusion],
        )
        self._startup_s = None
        self._begin_epoch()
        return health.to_dict()

    def _begin_step(self) -> tuple[float, float]:
        if len(self._samples) >= MAX_SAMPLES:
            self._every *= 2
            self._samples = self._samples[:FIRST_STEPS] + self._samples[FIRST_STEPS::2]
        step = self._step + 1
        self._sampling = step <= FIRST_STEPS or step % self._every == 0
        if self._sampling:
            with self.phase(MONITOR):
                self._synchronize()  # what earlier steps left in the GPU's queue is not this step's
                self._sampler.begin(inputs=step <= FIRST_STEPS)
        began = self._clock.charge()
        self._clock.synced = self._sampling
        return began, self._clock.totals.get(MONITOR, 0.0)

    def _end_step(self, began: float, spent: float) -> None:
        ended = self._clock.charge()
        self._durations.append(ended - began - (self._clock.totals.get(MONITOR, 0.0) - spent))
        self._step += 1
        if self._step == self._steps_done + 1:
            self._startup_s = time.time() - self._launched
        self._end_sampling()
        self._note_gap()

    def _end_sampling(self) -> None:
        self._sampling = self._clock.synced = False
        self._sampler.end()

    def _note_gap(self) -> None:
        if self._clock.longest_gap_s > self._gap:
            self._gap, self._gap_step = self._clock.longest_gap_s, self._step

    def _synchronize(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def _watch(self) -> None:
        """Runs in the sampler's thread, so that it notices a training that hangs."""
        mark = self._clock.mark
        silent_s = time.perf_counter() - mark
        if self._on_stall and silent_s > self._stalled_s and mark != self._told:
            self._told = mark
            self._on_stall(self._step, silent_s)
