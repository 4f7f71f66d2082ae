"""Which runtime a checkpoint is counted by: what graphs have to show on validation photos, and the choice."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Bool, Float, Int

from bintally.runtime_record import GraphName, RuntimeName

MIN_AGREEMENT: Final = 0.99
MAX_ACCURACY_LOSS: Final = 0.003
MAX_DIFFERENCE: Final = 1e-4
"""Of a float32 graph's probabilities; sums in another order give some 1e-6."""

_ROUNDING: Final = 1e-9  # 0.866 - 0.863 is more than 0.003 in floats


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """What a runtime showed."""

    accuracy: float
    """Share of the photos that it counted as their labels say."""
    agreement: float
    """Share of the photos that it counted as PyTorch did in float32."""
    max_difference: float
    """The largest one between its probabilities and PyTorch's."""
    cpu_ms: dict[int, float]
    """Milliseconds of CPU per photo, by batch size."""
    num_bytes: int
    """Of its file."""

    @property
    def mean_ms(self) -> float:
        """Over the batch sizes."""
        return sum(self.cpu_ms.values()) / len(self.cpu_ms)


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What follows from the trials."""

    chosen: RuntimeName
    why: str
    """One line."""
    refused: dict[GraphName, str]
    """Graphs that may not be used, each with its reason."""


def make_trial(
    probabilities: Float[np.ndarray, "photos classes"],
    reference: Float[np.ndarray, "photos classes"],
    counts: Int[np.ndarray, " photos"],
    *,
    cpu_ms: dict[int, float],
    num_bytes: int,
) -> Trial:
    """Compare what a runtime answered with PyTorch's answers and the labels. An answer that is NaN is wrong."""
    sound: Bool[np.ndarray, " photos"] = np.isfinite(probabilities).all(axis=1)
    counted = np.where(sound, np.nan_to_num(probabilities).argmax(axis=1), -1)
    return Trial(
        accuracy=float((counted == counts).mean()),
        agreement=float((counted == reference.argmax(axis=1)).mean()),
        max_difference=float(np.nan_to_num(np.abs(probabilities - reference), nan=1.0, posinf=1.0).max()),
        cpu_ms=cpu_ms,
        num_bytes=num_bytes,
    )


def judge(trials: Mapping[RuntimeName, Trial], failed: Mapping[GraphName, str]) -> Verdict:
    """Refuse what answers otherwise than PyTorch, and take the fastest of the rest; of equally fast ones the exacter.

    Args:
        trials: of eager, and of the graphs that there are.
        failed: why there are no others.
    """
    eager = trials["eager"]
    refused = dict(failed)
    for name, find_fault in _FAULTS.items():
        if name in trials and (reason := find_fault(trials[name], eager)):
            refused[name] = reason
    exactest_first: tuple[RuntimeName, ...] = ("eager", *_FAULTS)
    passed = [name for name in exactest_first if name in trials and name not in refused]
    chosen = min(passed, key=lambda name: trials[name].mean_ms)
    return Verdict(chosen=chosen, why=_describe(chosen, trials, refused), refused=refused)


def _fault_of_fp32(trial: Trial, _eager: Trial) -> str | None:
    if trial.max_difference <= MAX_DIFFERENCE:
        return None
    return f"its probabilities are up to {trial.max_difference:.2g} off those of PyTorch; {MAX_DIFFERENCE:g} is allowed"


def _fault_of_int8(trial: Trial, eager: Trial) -> str | None:
    if trial.agreement < MIN_AGREEMENT:
        return f"it agrees with PyTorch on {trial.agreement:.1%} of the photos; {MIN_AGREEMENT:.0%} are needed"
    loss = eager.accuracy - trial.accuracy
    if loss > MAX_ACCURACY_LOSS + _ROUNDING:
        return f"it loses {100 * loss:.2f} points of accuracy; {100 * MAX_ACCURACY_LOSS:.1f} are allowed"
    return None


_FAULTS: Final[dict[GraphName, Callable[[Trial, Trial], str | None]]] = {
    "onnx_fp32": _fault_of_fp32,
    "onnx_int8": _fault_of_int8,
}


def _describe(chosen: RuntimeName, trials: Mapping[RuntimeName, Trial], refused: Mapping[GraphName, str]) -> str:
    taken, eager = trials[chosen], trials["eager"]
    what = "no graph that passed is faster"
    if chosen != "eager":
        what = (
            f"{taken.mean_ms:.3g} ms of CPU per photo, eager {eager.mean_ms:.3g}; agrees with it on"
            f" {taken.agreement:.1%} of the val photos, accuracy {taken.accuracy:.1%} beside {eager.accuracy:.1%}"
        )
    return "; ".join([what, *(f"{name} refused: {reason}" for name, reason in refused.items())])
