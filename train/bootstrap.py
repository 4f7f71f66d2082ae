"""Intervals of figures by the bootstrap over blocks of neighbouring ids.

Neighbours are often one bin before and after a pick, so photos are no independent draws: resampling them one by one
would give intervals that are too narrow. Runs of one bin are 2 or 3 ids long, so blocks of 8 keep most of them whole.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from jaxtyping import Float, Int

from bintally.scores import Counts, figures_of

BLOCK_IDS: Final = 8
LEVEL: Final = 0.95


@dataclass(frozen=True, kw_only=True, slots=True)
class Bootstrap:
    """How often and from where."""

    num_resamples: int = 1000
    seed: int = 0


def find_blocks(ids: Sequence[str]) -> Int[np.ndarray, " images"]:
    """The number of each id's block, from 0 without gaps. An id that is no number is a block of its own."""
    names = [f"{len(one)}:{(int(one) - 1) // BLOCK_IDS}" if one.isdecimal() else f"id:{one}" for one in ids]
    blocks: np.ndarray = np.unique(np.asarray(names, np.str_), return_inverse=True)[1]
    return blocks


def intervals_of(
    ids: Sequence[str],
    counts: Counts,
    counted: Counts,
    nll: Float[np.ndarray, " images"],
    num_classes: int,
    bootstrap: Bootstrap,
) -> dict[str, Any]:
    """Percentile intervals of the figures, JSON-ready: {figure: [low, high]}, and by count below `per_count`.

    A figure is a function of sums over photos, so blocks are summed up once, and each resample adds up their sums.
    """
    blocks = find_blocks(ids)
    sums = _sum_blocks(blocks, counts, counted, nll, num_classes)
    random = np.random.default_rng(bootstrap.seed)
    drawn = np.stack([_resample(sums, random) for _ in range(bootstrap.num_resamples)])
    confusion = drawn[:, :-1].reshape(-1, num_classes, num_classes)
    figures = figures_of(confusion) | {"nll": drawn[:, -1] / confusion.sum(axis=(1, 2))}
    present = np.unique(counts).tolist()
    return {
        "level": LEVEL,
        "num_resamples": bootstrap.num_resamples,
        "seed": bootstrap.seed,
        "num_blocks": len(sums),
        "block_ids": BLOCK_IDS,
        **{name: _percentiles(values) for name, values in figures.items()},
        "per_count": {str(count): _count_intervals(confusion, count) for count in present},
    }


def _sum_blocks(
    blocks: np.ndarray, counts: np.ndarray, counted: np.ndarray, nll: np.ndarray, num_classes: int
) -> Float[np.ndarray, "blocks sums"]:
    """The flat confusion matrix of each block, and behind it the sum of its NLL."""
    num_blocks, num_cells = int(blocks.max()) + 1, num_classes**2
    cells = (blocks * num_classes + counts) * num_classes + counted
    confusions = np.bincount(cells, minlength=num_blocks * num_cells).reshape(num_blocks, num_cells)
    return np.column_stack([confusions, np.bincount(blocks, weights=nll, minlength=num_blocks)])


def _resample(sums: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """The sums of as many blocks as there are, drawn with replacement."""
    times = np.bincount(random.integers(len(sums), size=len(sums)), minlength=len(sums)).astype(np.float64)
    total: np.ndarray = times @ sums
    return total


def _count_intervals(confusion: np.ndarray, count: int) -> dict[str, list[float]]:
    """Of those resamples that hold the count; it occurs, so that most of them do."""
    row = confusion[confusion[:, count].sum(axis=1) > 0, count]
    total = row.sum(axis=1)
    squared = row @ (np.arange(confusion.shape[1]) - count) ** 2
    return {"accuracy": _percentiles(row[:, count] / total), "rmse": _percentiles(np.sqrt(squared / total))}


def _percentiles(values: np.ndarray) -> list[float]:
    low, high = np.percentile(values, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return [float(low), float(high)]
