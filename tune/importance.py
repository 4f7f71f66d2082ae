"""Which dimensions of a space mattered, by ranks alone: good for few trials, blind to what dimensions do together."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from tune.objective import Objective
from tune.space import Choice, SearchSpace
from tune.trials import TrialView

MIN_TRIALS: Final = 10
"""Below so many, the figures mean little."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Importance:
    """Of one dimension."""

    field: str
    share: float | None
    """Of the variance of the trials' ranks that it explains, 0 to 1; None if it cannot be told."""
    finding: str
    """Which values were better, in few words."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Importances:
    """Of all dimensions, by trials that are compared after the same number of epochs."""

    dimensions: tuple[Importance, ...]
    """The most important first."""
    num_trials: int
    epoch: int
    """Up to which their best scores were compared: the last that all of them reached."""

    def figures(self) -> dict[str, Any]:
        """JSON-ready."""
        shares = {one.field: {"share": one.share, "finding": one.finding} for one in self.dimensions}
        return {"num_trials": self.num_trials, "epoch": self.epoch, "dimensions": shares}


def importance_of(trials: Sequence[TrialView], space: SearchSpace, objective: Objective) -> Importances:
    """How much of the order of the trials each dimension explains.

    Of an interval, the square of the rank correlation (Spearman); of a choice, the variance of ranks between its values
    beside the whole variance, less what chance gives (epsilon squared). A trial that diverged ranks last.
    """
    alive = [one for one in trials if one.epochs]
    epoch = min((one.last_epoch for one in alive if one.state != "diverged"), default=0)
    compared = [one for one in trials if one.epochs or one.state == "diverged"]
    losses = np.array([_loss_until(one, epoch, objective) for one in compared])
    found = []
    for field, dimension in space.dimensions.items():
        values = [one.point.get(field) for one in compared]
        if isinstance(dimension, Choice):
            share, finding = _between(values, losses)
        else:
            share, finding = _correlation(np.array(values, float), losses)
        found.append(Importance(field=field, share=share, finding=finding))
    found.sort(key=lambda one: -1.0 if one.share is None else one.share, reverse=True)
    return Importances(dimensions=tuple(found), num_trials=len(compared), epoch=epoch)


def _loss_until(trial: TrialView, epoch: int, objective: Objective) -> float:
    losses = [objective.loss(one.metrics) for one in trial.epochs if one.epoch <= epoch]
    return min(losses, default=np.inf) if trial.state != "diverged" else np.inf


def ranks(values: np.ndarray) -> np.ndarray:
    """From 0, the least first; equal values share their mean rank."""
    below = (values[:, None] > values[None, :]).sum(axis=1)
    equal = (values[:, None] == values[None, :]).sum(axis=1)
    shared: np.ndarray = below + (equal - 1) / 2
    return shared


def _correlation(values: np.ndarray, losses: np.ndarray) -> tuple[float | None, str]:
    by_value, by_loss = ranks(values), ranks(losses)
    if len(values) < 3 or not by_value.std() or not by_loss.std():
        return None, "too few different trials"
    rho = float(np.corrcoef(by_value, by_loss)[0, 1])
    if abs(rho) < 0.2:
        return rho**2, f"no clear direction (rank correlation {rho:+.2f})"
    return rho**2, f"{'lower' if rho > 0 else 'higher'} was better (rank correlation {rho:+.2f} with the loss)"


def _between(values: Sequence[Any], losses: np.ndarray) -> tuple[float | None, str]:
    by_loss = ranks(losses)
    groups: dict[Any, list[float]] = defaultdict(list)
    for value, rank in zip(values, by_loss, strict=True):
        groups[value].append(float(rank))
    num_trials, num_groups = len(losses), len(groups)
    if num_groups == 1:
        return None, f"all trials have {next(iter(groups))}"
    if num_groups < 2 or num_trials <= num_groups or not by_loss.std():
        return None, "too few different trials"
    total = float(((by_loss - by_loss.mean()) ** 2).sum())
    within = sum(float(((np.array(one) - np.mean(one)) ** 2).sum()) for one in groups.values())
    share = max(0.0, 1 - (within / (num_trials - num_groups)) / (total / (num_trials - 1)))
    best = min(groups, key=lambda value: float(np.mean(groups[value])))
    return share, f"{best} was best on average (rank {np.mean(groups[best]) + 1:.1f} of {num_trials})"
