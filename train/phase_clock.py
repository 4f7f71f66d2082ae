"""Where the host's time goes: one clock that is always in exactly one phase; and how long the steps took."""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from train.health_record import Durations

OTHER: Final = "other"
MONITOR: Final = "monitor"  # the monitor's own work, so that its cost is always on show
PHASES: Final = ("wait", "copy", "forward", "backward", "optimizer", "validation", "checkpoint", OTHER, MONITOR)
MAX_LONGEST: Final = 64
BINS_PER_DECADE: Final = 20  # of the histogram of step times


@dataclass(slots=True)
class PhaseClock:
    """Seconds by phase. A phase inside another stops the outer one, so the seconds add up to the time that passed."""

    sync: Callable[[], None]
    """Waits for the device."""
    synced: bool = False
    """Whether phases wait for the device before they change: true in sampled steps."""
    totals: dict[str, float] = field(default_factory=dict)
    sampled: dict[str, float] = field(default_factory=dict)
    """The part of `totals` that passed while `synced`."""
    current: str = OTHER
    mark: float = field(default_factory=time.perf_counter)
    """When the current phase was last charged: the newest sign of life."""
    longest_gap_s: float = 0.0
    """The longest time between two charges."""

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Charge the time of the block to a phase."""
        assert name in PHASES, name
        outer = self.current
        self._switch(name)
        try:
            yield
        finally:
            self._switch(outer)

    def _switch(self, name: str) -> None:
        if self.synced:
            self.sync()
        self.charge()
        self.current = name

    def charge(self) -> float:
        """Charge the current phase up to now; the time now."""
        now = time.perf_counter()
        passed = now - self.mark
        self.totals[self.current] = self.totals.get(self.current, 0.0) + passed
        if self.synced:
            self.sampled[self.current] = self.sampled.get(self.current, 0.0) + passed
        self.longest_gap_s = max(self.longest_gap_s, passed)
        self.mark = now
        return now

    def reset(self) -> None:
        """Begin anew from now."""
        self.totals, self.sampled, self.longest_gap_s, self.mark = {}, {}, 0.0, time.perf_counter()


def summarize_durations(seconds: Sequence[float], first_step: int) -> Durations:
    """Figures, histogram and longest steps of an epoch; zeros without any."""
    if not seconds:
        return Durations(num=0, mean_s=0.0, std_s=0.0, median_s=0.0, longest=[], histogram={})
    bins = Counter(math.floor(math.log10(max(s, 1e-6)) * BINS_PER_DECADE) for s in seconds)
    longest = sorted(enumerate(seconds, first_step), key=lambda pair: -pair[1])[:MAX_LONGEST]
    return Durations(
        num=len(seconds),
        mean_s=float(np.mean(seconds)),
        std_s=float(np.std(seconds)),
        median_s=float(np.median(seconds)),
        longest=longest,
        histogram={str(number): count for number, count in sorted(bins.items())},
    )
