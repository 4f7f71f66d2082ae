"""All figures of an evaluation from its predictions: one JSON-ready dict, the same as in metrics.json."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import torch

from bintally.batch import COUNT, HEIGHT, ID, WIDTH
from bintally.calibration import Calibration
from bintally.metrics import CountTally
from bintally.scores import DECODERS, Reliability, confusion_of, figures_of, nll_of, risk_by_coverage
from train.bootstrap import Bootstrap, intervals_of
from train.evaluate_parts import BRIGHTNESS, FLIPPED, PROBABILITIES, REASON, SHARPNESS
from train.evaluate_verify import audit_figures

CURVE_POINTS: Final = 100
COVERED: Final = (0.5, 0.7, 0.9, 1.0)
GOAL: Final = 0.9  # accuracy for which the coverage is told


@dataclass(frozen=True, kw_only=True, slots=True)
class Scored:
    """The counted photos, as arrays of equal length."""

    ids: list[str]
    counts: np.ndarray
    """Expected counts."""
    probabilities: np.ndarray
    """(images, classes)"""
    flipped: np.ndarray | None
    """Of the mirrored photos."""
    brightness: np.ndarray
    sharpness: np.ndarray
    num_pixels: np.ndarray
    """Width times height of the file."""

    @classmethod
    def of(cls, rows: pa.Table, num_classes: int) -> "Scored":
        """The rows that were counted; dropped ones are left out."""
        kept = rows.filter(pa.compute.is_null(rows[REASON]))

        def matrix(column: str) -> np.ndarray:
            values: np.ndarray = kept[column].combine_chunks().flatten().to_numpy(zero_copy_only=False)
            return values.reshape(-1, num_classes)

        return cls(
            ids=kept[ID].to_pylist(),
            counts=kept[COUNT].to_numpy(),
            probabilities=matrix(PROBABILITIES),
            flipped=None if not kept.num_rows or kept[FLIPPED].null_count else matrix(FLIPPED),
            brightness=kept[BRIGHTNESS].to_numpy(),
            sharpness=kept[SHARPNESS].to_numpy(),
            num_pixels=kept[WIDTH].to_numpy() * kept[HEIGHT].to_numpy(),
        )

    @property
    def counted(self) -> np.ndarray:
        """The most probable counts, which the server answers."""
        counted: np.ndarray = self.probabilities.argmax(axis=1)
        return counted

    @property
    def num_classes(self) -> int:
        """Counts that the model can answer."""
        return int(self.probabilities.shape[1])

    @property
    def averaged(self) -> np.ndarray | None:
        """Test-time augmentation: the mean of the probabilities of the photo and its mirror image."""
        return None if self.flipped is None else (self.probabilities + self.flipped) / 2


def figures_of_all(scored: Scored, calibration: Calibration | None, bootstrap: Bootstrap) -> dict[str, Any]:
    """Every figure but slices and published results, JSON-ready.

    The figures at the top are of the most probable count from the probabilities as they come, as the server gives it.
    """
    probabilities, counts = scored.probabilities, scored.counts
    nll = nll_of(probabilities, counts)
    confusion = confusion_of(counts, scored.counted, scored.num_classes)
    tally = CountTally(confusion=torch.from_numpy(confusion), nll_sum=float(nll.sum()))
    return tally.summary() | {
        "quadratic_kappa": float(figures_of(confusion)["quadratic_kappa"]),
        "ece": Reliability.of(probabilities, counts).ece,
        "majority_count": int(confusion.sum(axis=1).argmax()),
        "majority_rmse": _constant_rmse(counts),
        "confusion": confusion.tolist(),
        "decoders": decoder_figures(probabilities, counts),
        "tta": None if scored.averaged is None else tta_figures(scored.averaged, counts),
        "risk_coverage": risk_figures(probabilities, counts),
        "reliability": reliability_rows(probabilities, counts),
        "calibration": None if calibration is None else calibration_figures(probabilities, counts, calibration),
        "audit": audit_figures(probabilities, counts, calibration),
        "intervals": intervals_of(scored.ids, counts, scored.counted, nll, scored.num_classes, bootstrap),
    }


def _constant_rmse(counts: np.ndarray) -> float:
    """Of always answering the most frequent count, in items."""
    return float(np.sqrt(((counts - np.bincount(counts).argmax()) ** 2).mean()))


def decoder_figures(probabilities: np.ndarray, counts: np.ndarray) -> dict[str, dict[str, float]]:
    """The figures of each way to answer from one distribution."""
    confusions = {
        name: confusion_of(counts, decode(probabilities), probabilities.shape[1]) for name, decode in DECODERS.items()
    }
    return {
        name: {figure: float(value) for figure, value in figures_of(confusion).items()}
        for name, confusion in confusions.items()
    }


def tta_figures(averaged: np.ndarray, counts: np.ndarray) -> dict[str, Any]:
    """What the mirrored photo adds."""
    return {
        "nll": float(nll_of(averaged, counts).mean()),
        "ece": Reliability.of(averaged, counts).ece,
        "decoders": decoder_figures(averaged, counts),
    }


def risk_figures(probabilities: np.ndarray, counts: np.ndarray) -> dict[str, Any]:
    """How many mistakes are left when the least confident photos go to people."""
    risk = risk_by_coverage(probabilities.max(axis=1), probabilities.argmax(axis=1) == counts)
    num_images = len(risk)
    good = np.flatnonzero(1 - risk >= GOAL)
    shown = np.unique(np.linspace(0, num_images - 1, min(CURVE_POINTS, num_images)).round().astype(int))
    return {
        "aurc": float(risk.mean()),
        "accuracy_at": {str(share): 1 - float(risk[max(0, round(share * num_images) - 1)]) for share in COVERED},
        "coverage_at_90": float(good[-1] + 1) / num_images if len(good) else 0.0,
        "curve": [[float(at + 1) / num_images, float(risk[at])] for at in shown],
    }


def reliability_rows(probabilities: np.ndarray, counts: np.ndarray) -> list[dict[str, float | int]]:
    """The bins of confidence that hold a photo."""
    bins = Reliability.of(probabilities, counts)
    rows = zip(bins.num_images.tolist(), bins.confidence.tolist(), bins.accuracy.tolist(), strict=True)
    return [{"num_images": number, "confidence": sure, "accuracy": right} for number, sure, right in rows if number]


def calibration_figures(probabilities: np.ndarray, counts: np.ndarray, calibration: Calibration) -> dict[str, Any]:
    """What the stored calibration does to these photos."""
    calibrated = calibration.apply(probabilities)
    return {
        "temperature": calibration.temperature,
        "fitted_on": {
            "source": calibration.source,
            "split": calibration.split,
            "split_by": calibration.split_by,
            "num_images": calibration.num_images,
        },
        "nll": float(nll_of(calibrated, counts).mean()),
        "ece": Reliability.of(calibrated, counts).ece,
        "reliability": reliability_rows(calibrated, counts),
        "ranges": {
            target: _range_figures(calibrated, counts, calibration, target) for target in calibration.thresholds
        },
    }


def coverage_by_split(
    scored: Scored, calibration: Calibration, ids: Mapping[str, Sequence[str]]
) -> dict[str, dict[str, Any]]:
    """How often the ranges hold the expected count, for each split that holds a scored photo."""
    calibrated = calibration.apply(scored.probabilities)
    known = {split: frozenset(ids[split]) for split in ("train", "val", "test")}
    members = {split: np.array([bin_id in chosen for bin_id in scored.ids], bool) for split, chosen in known.items()}
    return {
        split: {
            "num_images": int(rows.sum()),
            "coverage": {
                target: _range_figures(calibrated[rows], scored.counts[rows], calibration, target)["coverage"]
                for target in calibration.thresholds
            },
        }
        for split, rows in members.items()
        if rows.any()
    }


def _range_figures(calibrated: np.ndarray, counts: np.ndarray, calibration: Calibration, target: str) -> dict[str, Any]:
    low, high = calibration.ranges(calibrated, target)
    covered = (low <= counts) & (counts <= high)
    return {
        "coverage": float(covered.mean()),
        "mean_width": float((high - low + 1).mean()),
        "share_single": float((low == high).mean()),
        "coverage_per_count": {str(count): float(covered[counts == count].mean()) for count in np.unique(counts)},
    }
