"""Fit the calibration of a checkpoint on counted photos, and say where it may not be believed."""

import numpy as np

from bintally.calibration import COVERAGES, Calibration, fit_temperature, fit_thresholds, scale
from bintally.checkpoint import Checkpoint
from bintally.source_config import DataConfig
from bintally.verify import fit_verify
from data.progress import say


def fit_calibration(
    probabilities: np.ndarray, counts: np.ndarray, checkpoint: Checkpoint, data: DataConfig, split: str
) -> Calibration:
    """Temperature and thresholds of photos of a split, of which there must be one at least."""
    temperature = fit_temperature(probabilities, counts)
    calibrated = scale(probabilities, temperature)
    return Calibration(
        temperature=temperature,
        thresholds=fit_thresholds(calibrated, counts, COVERAGES),
        model_version=checkpoint.version,
        source=data.source,
        split=split,
        split_by=data.split_by,
        num_images=len(counts),
        verify=fit_verify(calibrated, counts),
    )


def tell_calibration(calibration: Calibration) -> None:
    """One line for people."""
    say(
        f"calibrated on {calibration.num_images:,} photos of the {calibration.split} split"
        f" ({calibration.split_by}): temperature {calibration.temperature:.3f}"
    )


def doubts_of(calibration: Calibration, data: DataConfig, split: str) -> list[str]:
    """Why the figures after calibration may be better than they will be on new photos, or worse."""
    doubts: list[str] = []
    if split in (calibration.split, "all"):
        doubts.append(f"it was fitted on photos of the {calibration.split} split, which are scored here, too")
    elif calibration.split_by != data.split_by:
        doubts.append(
            f"it was fitted on a split by {calibration.split_by}, and this is one by {data.split_by}:"
            " photos scored here may be among those of the fit"
        )
    if calibration.source != data.source:
        doubts.append(f"it was fitted on photos of {calibration.source}")
    if calibration.split_by == "hash":
        doubts.append("by hash, photos of the fit show bins that training has seen")
    return doubts
