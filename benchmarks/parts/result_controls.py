"""How well counts are told without a look at the bins: by the size of the photo's file alone.

A row of the results that is no better than this has learnt nothing of what lies in the bins. That files tell anything
at all is due to the photos: full bins make larger JPEGs, and the further photos are scaled and chosen by their count.
"""

from collections import Counter
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Float, Int
from PIL import Image

from benchmarks.parts.abid_folder import source_of

NUM_NEIGHBOURS: Final = 25


def file_size_figures(splits: dict[str, dict[str, int]], photos_dir: Path) -> dict[str, Any]:
    """Of answering what most of the 25 nearest training photos hold, by width, height and bytes; of the test split.

    Args:
        splits: as from `counts_by_split`.
        photos_dir: where the photos lie.

    Returns:
        The figures of `outcome_figures`.
    """
    known, asked = (_measure(photos_dir, list(splits[split])) for split in ("train", "test"))
    scale = known.std(axis=0)
    counts = np.array(list(splits["train"].values()))
    answers = [_vote(known / scale, counts, one) for one in asked / scale]
    return outcome_figures(photos_dir, list(splits["test"]), list(splits["test"].values()), answers)


def outcome_figures(photos_dir: Path, ids: list[str], expected: list[int], answered: list[int]) -> dict[str, Any]:
    """Figures of one answer per photo: over all, by the source of the photo, and by its count, JSON-ready."""
    counts, answers = np.array(expected), np.array(answered)
    right = counts == answers
    sources = np.array([source_of(photos_dir / f"{bin_id}.jpg") for bin_id in ids])
    return {
        "accuracy": float(right.mean()),
        "within_one": float((np.abs(counts - answers) <= 1).mean()),
        "rmse": float(np.sqrt(((counts - answers) ** 2).mean())),
        "by_source": {str(one): float(right[sources == one].mean()) for one in np.unique(sources)},
        "by_count": {str(one): float(right[counts == one].mean()) for one in np.unique(counts)},
    }


def _measure(photos_dir: Path, ids: list[str]) -> Float[np.ndarray, "images 3"]:
    """Logarithms of width, height and bytes, from the header of each photo."""
    rows = []
    for bin_id in ids:
        path = photos_dir / f"{bin_id}.jpg"
        with Image.open(path) as photo:
            rows.append((*photo.size, path.stat().st_size))
    return np.log(np.array(rows, dtype=np.float64))


def _vote(
    known: Float[np.ndarray, "images 3"], counts: Int[np.ndarray, " images"], one: Float[np.ndarray, " 3"]
) -> int:
    """The most frequent count among the nearest; of equally frequent ones the nearer."""
    nearest = np.argsort(((known - one) ** 2).sum(axis=1), kind="stable")[:NUM_NEIGHBOURS]
    (answer, _), *_ = Counter(counts[nearest].tolist()).most_common()
    return int(answer)
