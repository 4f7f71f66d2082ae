"""Figures of parts of the photos: dark and bright, blurred and sharp, small and large, judged by people."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from bintally.errors import ConfigError
from bintally.scores import confusion_of, figures_of
from train.evaluate_figures import Scored

THIRDS: Final = {
    "brightness": ("darkest third", "middle third", "brightest third"),
    "sharpness": ("most blurred third", "middle third", "sharpest third"),
    "size": ("smallest third", "middle third", "largest third"),
}
REVIEWED: Final = {
    "countable": "reviewed_checked.json",
    "doubtful": "reviewed_semi_invalid.json",
    "not countable": "reviewed_invalid.json",
}
"""Lists of bins that people judged by their photos: file numbers, so that 523 is the bin '00523'."""


def slice_figures(scored: Scored, reviewed: dict[str, frozenset[str]] | None) -> list[dict[str, Any]]:
    """One JSON-ready row per slice that holds a photo; thirds are those of the photos scored here."""
    return [
        {"by": by, "slice": name, "num_images": int(chosen.sum()), **_figures(scored, chosen)}
        for by, name, chosen in _slices(scored, reviewed)
        if chosen.any()
    ]


def read_reviewed(folder: Path) -> dict[str, frozenset[str]]:
    """The ids of each judgement.

    Raises:
        ConfigError: a list is missing or no list of numbers.
    """
    return {judgement: _read_list(folder / name) for judgement, name in REVIEWED.items()}


def _read_list(path: Path) -> frozenset[str]:
    try:
        numbers = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"reviewed: {path} cannot be read: {error}") from None
    if not isinstance(numbers, list) or not all(type(number) is int for number in numbers):
        raise ConfigError(f"reviewed: {path} is no list of numbers")
    return frozenset(f"{number:05d}" for number in numbers)


def _slices(scored: Scored, reviewed: dict[str, frozenset[str]] | None) -> Iterator[tuple[str, str, np.ndarray]]:
    measured = {"brightness": scored.brightness, "sharpness": scored.sharpness, "size": scored.num_pixels}
    for by, values in measured.items():
        third = np.searchsorted(np.quantile(values, [1 / 3, 2 / 3]), values, side="left")
        for number, name in enumerate(THIRDS[by]):
            yield by, name, third == number
    for judgement, ids in (reviewed or {}).items():
        yield "people's review", judgement, np.array([bin_id in ids for bin_id in scored.ids])


def _figures(scored: Scored, chosen: np.ndarray) -> dict[str, float]:
    counts = scored.counts[chosen]
    figures = figures_of(confusion_of(counts, scored.counted[chosen], scored.num_classes))
    return {name: float(figures[name]) for name in ("accuracy", "within_one", "rmse")} | {
        "mean_expected": float(counts.mean())
    }
