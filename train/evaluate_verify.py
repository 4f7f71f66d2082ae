"""What an audit by the model is worth: records made wrong on purpose, and how early the recount queue finds them."""

from collections.abc import Callable
from typing import Any, Final

import numpy as np

from bintally.calibration import TOLD, Calibration
from bintally.verify import MAX_SLIP, tamper, verify_figures

SHARES: Final = (0.02, 0.05)
"""Of the records that are made wrong."""
NUM_SEEDS: Final = 20
"""Draws of the wrong records; the figures are means over these."""


def audit_figures(probabilities: np.ndarray, counts: np.ndarray, calibration: Calibration | None) -> dict[str, Any]:
    """Figures of `verify_figures` by share of wrong records, JSON-ready.

    Without a calibration the probabilities are taken as they come; without thresholds nothing is decided.
    """
    thresholds = None if calibration is None else calibration.verify
    calibrated = probabilities if calibration is None else calibration.apply(probabilities)
    ranges = None if calibration is None else calibration.ranges(calibrated, TOLD)
    max_count = probabilities.shape[1] - 1

    def draws(share: float) -> list[dict[str, Any]]:
        records = (tamper(counts, share, seed, max_count=max_count) for seed in range(NUM_SEEDS))
        return [verify_figures(calibrated, one, counts, thresholds, ranges) for one in records]

    return {
        "num_seeds": NUM_SEEDS,
        "max_slip": MAX_SLIP,
        "thresholds": None
        if thresholds is None
        else {
            "mismatch": thresholds.mismatch,
            "match": thresholds.match,
            "false_alarms": thresholds.false_alarms,
            "misses": thresholds.misses,
        },
        "tampered": {str(share): _over_draws(draws(share)) for share in SHARES},
    }


def _over_draws(figures: list[dict[str, Any]]) -> dict[str, Any]:
    """The mean of each figure, and of the main ones the sample standard deviation; the photos stay the same."""
    spread = [{name: one[name] for name in ("auroc", "recall", "precision")} for one in figures]
    fixed = {name: figures[0][name] for name in ("num_images", "num_wrong")}
    means: dict[str, Any] = _combine(figures, np.mean)
    return means | fixed | {"sd": _combine(spread, lambda values: np.std(values, ddof=1))}


def _combine(figures: list[Any], of: Callable[[list[float]], Any]) -> Any:  # noqa: ANN401  # JSON
    """One JSON value from several of the same shape, number by number; what is not defined stays None."""
    first = figures[0]
    if isinstance(first, dict):
        return {key: _combine([one[key] for one in figures], of) for key in first}
    if isinstance(first, list):
        return [_combine(list(values), of) for values in zip(*figures, strict=True)]
    return None if first is None else float(of(figures))
