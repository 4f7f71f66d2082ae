"""Does a photo agree with the record's expected quantity? Thresholds, verdicts, the recount queue, and what they find.

p(match) is the calibrated probability of the expected quantity. Below one threshold a record is called a mismatch,
above another a match; what lies between, limits included, is for people. So is what would be a match and lies outside
the range that is told of the photo (bintally/calibration.py), since nobody believes both. The limits are fitted on
photos whose records are taken as right, so that each keeps a promise on photos like those, whatever the model:

- of right records, at most `false_alarms` are called mismatches (split conformal prediction: the rank among n + 1);
- of records that are off by one or two, at most `misses` are called matches. A photo has up to four of these, so what
  is exchangeable is the photo: conformal risk control (Angelopoulos et al. 2022, arXiv 2208.02814), which counts one
  photo more, all of whose wrong records are missed.

A good model could keep both promises with crossed thresholds, and with any one limit between them. Then both become
the mismatch threshold: the allowed false alarms are spent, the fewest wrong records pass, nothing is left to review.
Matches that the range takes away are fewer misses, and no mismatches, so it breaks no promise.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal

import numpy as np
from jaxtyping import Bool, Float, Int
from pydantic import ConfigDict

from bintally.scores import Counts, Probabilities

FALSE_ALARMS: Final = 0.02
MISSES: Final = 0.05
MAX_SLIP: Final = 2  # items by which a wrong record is off
BUDGETS: Final = (0.05, 0.1, 0.2)  # shares of the records that people count again
CURVE_STEPS: Final = 100

Decision = Literal["match", "mismatch", "review"]
Reason = Literal["agrees", "disagrees", "unsure", "outside_range", "above_max_count", "not_calibrated"]
Ranges = tuple[Int[np.ndarray, " images"], Int[np.ndarray, " images"]]
"""The least and the largest count of each photo's range, as `Calibration.ranges` gives them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifyThresholds:
    """Limits of p(match), and what they promise."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    mismatch: float
    """A record below it is a mismatch; 0, which none is below, if the photos were too few."""
    match: float
    """A record above it is a match; 1, which none is above, if the photos were too few."""
    false_alarms: float = FALSE_ALARMS
    """Right records that may be called mismatches, as a share of these."""
    misses: float = MISSES
    """Records off by one or two that may be called matches, as a share of these."""

    def __post_init__(self) -> None:
        if not 0 <= self.mismatch <= self.match <= 1:
            raise ValueError(f"mismatch and match must lie in 0..1 in this order, not {self.mismatch}, {self.match}")
        if not (0 < self.false_alarms < 1 and 0 < self.misses < 1):
            raise ValueError(
                f"false_alarms and misses must lie between 0 and 1, not {self.false_alarms}, {self.misses}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What a photo says of a record."""

    decision: Decision
    p_match: float | None
    """Probability of the expected quantity; None where the model knows none."""
    reason: Reason
    """For programs; it stays the same when the sentence changes."""
    sentence: str
    """The reason for people."""


def fit_verify(
    calibrated: Probabilities, counts: Counts, *, false_alarms: float = FALSE_ALARMS, misses: float = MISSES
) -> VerifyThresholds:
    """The widest limits that keep both promises; of no photo, those by which everything is for people."""
    num_classes = calibrated.shape[1]
    right = np.sort(match_probabilities(calibrated, counts))
    wrong = np.sort(calibrated[_slips(counts, num_classes)])
    num_alarms = math.floor((len(right) + 1) * false_alarms)
    mismatch = float(right[num_alarms - 1]) if num_alarms else 0.0
    most = min(2 * MAX_SLIP, num_classes - 1)  # wrong records that one photo can have
    num_missed = math.floor((len(wrong) + most) * misses) - most
    match = float(wrong[-1 - num_missed]) if 0 <= num_missed < len(wrong) else 1.0
    return VerifyThresholds(mismatch=mismatch, match=max(match, mismatch), false_alarms=false_alarms, misses=misses)


def verify(
    calibrated_row: Float[np.ndarray, " classes"],
    expected_quantity: int,
    thresholds: VerifyThresholds | None,
    within: tuple[int, int] | None,
) -> Verdict:
    """Compare one record with what the model says of its photo.

    Args:
        calibrated_row: probability of each count 0..max_count.
        expected_quantity: items by the record.
        thresholds: None if none were fitted: then everything is for people.
        within: the least and the largest count of the photo's range; None if there is none.

    Raises:
        ValueError: the expected quantity is negative.
    """
    if expected_quantity < 0:
        raise ValueError(f"expected_quantity must be 0 or more, not {expected_quantity}")
    max_count = len(calibrated_row) - 1
    if expected_quantity > max_count:
        why = f"The record expects {expected_quantity} items, and this model counts up to {max_count}."
        return Verdict(decision="review", p_match=None, reason="above_max_count", sentence=why)
    p_match = float(calibrated_row[expected_quantity])
    chance = f"The photo shows the expected {expected_quantity} with a probability of {percent(p_match)}"
    if thresholds is None:
        why = f"{chance}, but no thresholds were fitted for this model."
        return Verdict(decision="review", p_match=p_match, reason="not_calibrated", sentence=why)
    if p_match < thresholds.mismatch:
        why = f"{chance}, below the limit of a mismatch ({percent(thresholds.mismatch)})."
        return Verdict(decision="mismatch", p_match=p_match, reason="disagrees", sentence=why)
    if p_match > thresholds.match and within is not None and not within[0] <= expected_quantity <= within[1]:
        why = f"{chance}, enough for a match, but it lies outside the range, {within[0]} to {within[1]}."
        return Verdict(decision="review", p_match=p_match, reason="outside_range", sentence=why)
    if p_match > thresholds.match:
        why = f"{chance}, above the limit of a match ({percent(thresholds.match)})."
        return Verdict(decision="match", p_match=p_match, reason="agrees", sentence=why)
    why = f"{chance}: too much for a mismatch, too little for a match."
    return Verdict(decision="review", p_match=p_match, reason="unsure", sentence=why)


def percent(probability: float) -> str:
    """For people, to a tenth of a percent, but never rounded to certainty."""
    if probability < 0.001:
        return "under 0.1 %"
    return "over 99.9 %" if probability > 0.999 else f"{probability:.1%}"


def match_probabilities(calibrated: Probabilities, expected: Counts) -> Float[np.ndarray, " images"]:
    """p(match) of each record; NaN where more is expected than the model counts."""
    num_images, num_classes = calibrated.shape
    known = expected < num_classes
    taken = calibrated[np.arange(num_images), np.where(known, expected, 0)].astype(np.float64)
    return np.where(known, taken, np.nan)


def discrepancies(calibrated: Probabilities, expected: Counts) -> Float[np.ndarray, " images"]:
    """By how many items photo and record are expected to differ: the mean of |count - expected|."""
    distance = np.abs(np.arange(calibrated.shape[1]) - expected[:, None])
    total: np.ndarray = (calibrated * distance).sum(axis=1, dtype=np.float64)
    return total


def recount_order(calibrated: Probabilities, expected: Counts) -> Int[np.ndarray, " images"]:
    """The rows of a recount queue, those to count first in front.

    The least p(match) leads, of equal ones the largest discrepancy, then the order given. Records of more than the
    model counts come last, since it can say little of them; they are ordered by their discrepancy, too.
    """
    order: np.ndarray = np.lexsort((-discrepancies(calibrated, expected), match_probabilities(calibrated, expected)))
    return order


def tamper(counts: Counts, share: float, seed: int, *, max_count: int) -> Counts:
    """Records of which this share is wrong: off by one or two within 0..max_count, each way alike.

    Raises:
        ValueError: with max_count 0 no record can be wrong.
    """
    if max_count < 1:
        raise ValueError(f"max_count must be 1 or more, not {max_count}")
    random = np.random.default_rng(seed)
    rows = random.choice(len(counts), round(share * len(counts)), replace=False)
    lots = (1 - random.random((len(rows), max_count + 1))) * _slips(counts[rows], max_count + 1)
    records = counts.copy()
    records[rows] = lots.argmax(axis=1)
    return records


def _slips(counts: Counts, num_classes: int) -> Bool[np.ndarray, "images classes"]:
    """The wrong expectations that are off by MAX_SLIP at most."""
    distance = np.abs(np.arange(num_classes) - counts[:, None])
    near: np.ndarray = (distance > 0) & (distance <= MAX_SLIP)
    return near


def verify_figures(
    calibrated: Probabilities,
    records: Counts,
    truth: Counts,
    thresholds: VerifyThresholds | None,
    ranges: Ranges | None,
) -> dict[str, Any]:
    """How well wrong records are found; JSON-ready, None for what is not defined.

    `auroc` is the chance that a wrong record has less p(match) than a right one. By share of the recount queue that
    people count: which share of the wrong records it holds (`recall`), and which share of it is wrong (`precision`).
    `decisions` are shares of all records; of the right ones called mismatches; of the wrong ones called matches.

    Args:
        calibrated: probability of each count, a row per photo.
        records: expected quantities that are audited, each in 0..max_count.
        truth: those that are taken as right.
        thresholds: None leaves out the decisions.
        ranges: outside of which no record is a match; None if there are none.
    """
    wrong = records != truth
    p_match = match_probabilities(calibrated, records)
    low, high = (0, calibrated.shape[1]) if ranges is None else ranges
    may_match = (low <= records) & (records <= high)
    found = [0, *np.cumsum(wrong[recount_order(calibrated, records)]).tolist()]
    num_images, num_wrong = len(wrong), int(wrong.sum())
    counted = {budget: round(budget * num_images) for budget in BUDGETS}
    shown = [step / CURVE_STEPS for step in range(CURVE_STEPS + 1)]
    return {
        "num_images": num_images,
        "num_wrong": num_wrong,
        "auroc": _auroc(p_match[wrong], p_match[~wrong]),
        "recall": {str(budget): _share(found[number], num_wrong) for budget, number in counted.items()},
        "precision": {str(budget): _share(found[number], number) for budget, number in counted.items()},
        "curve": [[share, found[round(share * num_images)] / num_wrong] for share in shown] if num_wrong else [],
        "decisions": None if thresholds is None else _decision_figures(p_match, wrong, thresholds, may_match),
    }


def _decision_figures(
    p_match: np.ndarray, wrong: np.ndarray, thresholds: VerifyThresholds, may_match: np.ndarray
) -> dict[str, float | None]:
    alarm, passed = p_match < thresholds.mismatch, (p_match > thresholds.match) & may_match
    return {
        "match": _mean(passed),
        "review": _mean(~alarm & ~passed),
        "mismatch": _mean(alarm),
        "false_alarms": _mean(alarm[~wrong]),
        "misses": _mean(passed[wrong]),
    }


def _auroc(low: np.ndarray, high: np.ndarray) -> float | None:
    """The chance that one of the low is less than one of the high; a tie is half of it."""
    if not len(low) or not len(high):
        return None
    ordered = np.sort(high)
    above = len(high) - (np.searchsorted(ordered, low, "left") + np.searchsorted(ordered, low, "right")) / 2
    return float(above.mean() / len(high))


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _mean(holds: Bool[np.ndarray, " images"]) -> float | None:
    return float(holds.mean()) if len(holds) else None
