"""What a fault of `benchmarks/chaos.py` is given, and what it gives back."""

from dataclasses import dataclass
from pathlib import Path


class NotHereError(Exception):
    """A fault cannot be done on this machine; the message says why. Its row is skipped."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChaosSetup:
    """What every fault is run with."""

    seed: int
    """Decides the moment of each fault and what it hits; of the searches, points, weights and order."""
    work_dir: Path
    """Folder of this fault alone; it exists and is kept."""
    quick: bool
    """Shorter outages and fewer requests: shows that it runs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FaultRow:
    """What one fault cost."""

    name: str
    """The fault, as in `--only`."""
    recovered: bool
    """It ended as without the fault, and left nothing behind."""
    lost: int
    """Ids that no worker saw, or requests that never got a count, although clients sent them again."""
    repeated_epochs: int | None
    """Epochs of a trial that were done more than once; None where there are no epochs."""
    outage_s: float | None
    """Seconds from the fault to the next progress; None if nothing stood still."""
    told: str
    """What was done and what happened, in a line."""
