"""Faults that a server makes on purpose: seeded, so that the same requests meet the same faults in every run.

Each answer to a key meets a fault or not by hash(seed, key, how often the key was asked for): a client that asks again
is served in the end.
"""

from collections import Counter
from dataclasses import dataclass, field
from enum import Enum
from hashlib import blake2b


class Fault(Enum):
    """What is done to one answer."""

    SLOW_DOWN = "slow_down"
    """503 SlowDown instead of the object."""
    RESET = "reset"
    """The connection is reset in the middle of the body."""
    STALL = "stall"
    """Half of the body, then silence for a while, then the rest."""
    SHORT = "short"
    """A right Content-Length, half of the body, and a clean end of the connection."""
    WRONG_LENGTH = "wrong_length"
    """A Content-Length of half the body, which comes whole: a client that trusts it takes half an object for all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Faults:
    """How often which fault happens; shares of all answers, which add up to 1 at most."""

    faults_seed: int = 0
    """The same seed gives the same faults for the same requests."""
    slow_down_rate: float = 0.0
    """503 SlowDown."""
    reset_rate: float = 0.0
    """Connections reset in mid-body."""
    stall_rate: float = 0.0
    """Answers that pause in mid-body for stall_s."""
    stall_s: float = 5.0
    """Seconds of silence."""
    short_rate: float = 0.0
    """Bodies that end early under a right Content-Length."""
    wrong_length_rate: float = 0.0
    """Whole bodies under half their Content-Length."""

    def __post_init__(self) -> None:
        rates = [rate for _, rate in self.rates]
        if min(rates) < 0 or sum(rates) > 1:
            raise ValueError(f"rates must be shares that add up to 1 at most, not {rates}")

    @property
    def rates(self) -> list[tuple[Fault, float]]:
        """Each fault with its rate."""
        return [(fault, getattr(self, f"{fault.value}_rate")) for fault in Fault]

    def to_flags(self) -> list[str]:
        """The command line of these faults."""
        names = ("faults_seed", "stall_s", *(f"{fault.value}_rate" for fault in Fault))
        return [text for name in names for text in (f"--{name.replace('_', '-')}", str(getattr(self, name)))]


@dataclass(frozen=True, slots=True)
class FaultPlan:
    """Which answer meets which fault; counts how often each target was asked for."""

    faults: Faults
    _num_asked: Counter[str] = field(default_factory=Counter)

    def next_fault(self, target: str) -> Fault | None:
        """The fault of the next answer to a target, a path with its query."""
        attempt = self._num_asked[target]
        self._num_asked[target] += 1
        return fault_of(self.faults, target, attempt)


def fault_of(faults: Faults, target: str, attempt: int) -> Fault | None:
    """The fault of one attempt, counted from 0."""
    digest = blake2b(f"{faults.faults_seed}\n{target}\n{attempt}".encode(), digest_size=8).digest()
    position = int.from_bytes(digest, "big") / 2**64
    for fault, rate in faults.rates:
        if position < rate:
            return fault
        position -= rate
    return None
