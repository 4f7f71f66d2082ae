"""The order in which an epoch visits the ids: a pure function of seed and epoch, whoever asks.

Positions in an order count ids, before any is dropped. So a position says where to go on after an interruption,
whatever was dropped before it and however many workers there are.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """Which ids an epoch visits, and in which order."""

    seed: int
    """Of the shuffle; the same seed gives the same order in every epoch of that number."""
    epoch_fraction: float = 1.0
    """Share of the ids that one epoch visits: a fresh one each epoch until all were visited."""
    balanced: bool = False
    """Visit every count equally often: rare ones several times an epoch, frequent ones in part."""

    def epoch_size(self, num_ids: int) -> int:
        """Number of ids that an epoch visits: never more than the share, so that ten tenths have no id in common."""
        return min(num_ids, max(1, int(num_ids * self.epoch_fraction + 1e-6)))  # 29 % of 100 are 28.999999999999996


def epoch_order(num_ids: int, sampling: Sampling, epoch: int) -> Int64[np.ndarray, " size"]:
    """Indices of the ids of one epoch (from 1), each at most once.

    All ids are shuffled, and the epochs take consecutive slices of that; when what is left is too short for an epoch,
    they are shuffled anew.
    """
    size = sampling.epoch_size(num_ids)
    slices = max(1, num_ids // max(1, size))
    shuffle, part = divmod(epoch - 1, slices)
    return _shuffled(np.arange(num_ids), sampling.seed, shuffle)[part * size : (part + 1) * size]


def balanced_order(counts: Int64[np.ndarray, " ids"], sampling: Sampling, epoch: int) -> Int64[np.ndarray, " size"]:
    """Indices of the ids of one epoch (from 1), every count as often as the others, give or take one.

    The ids of a count follow each other through shuffle after shuffle, without a gap between epochs; so none is visited
    a second time before the others of its count were. Counts take turns, and the next epoch goes on with the next one;
    so they are even over all epochs, too.

    Args:
        counts: of each id; a negative one means that the id is never visited.
        sampling: seed and size of the epoch.
        epoch: from 1.
    """
    classes = [np.flatnonzero(counts == count) for count in np.unique(counts[counts >= 0])]
    size = sampling.epoch_size(sum(len(members) for members in classes))
    chosen = [
        _window(
            members,
            _num_turns((epoch - 1) * size, number, len(classes)),
            _num_turns(epoch * size, number, len(classes)),
            sampling.seed,
        )
        for number, members in enumerate(classes)
    ]
    together = np.concatenate(chosen) if chosen else np.empty(0, np.int64)
    return _shuffled(together, sampling.seed, -epoch)


def _num_turns(num_ids: int, number: int, num_classes: int) -> int:
    """How many of so many ids a class has given, when the classes take turns."""
    return max(0, -(-(num_ids - number) // num_classes))


def _window(members: Int64[np.ndarray, " members"], start: int, stop: int, seed: int) -> Int64[np.ndarray, " size"]:
    """A part of the endless row of the members' shuffles."""
    shuffles = range(start // len(members), -(-stop // len(members)))
    row = [_shuffled(members, seed, shuffle) for shuffle in shuffles]
    first = shuffles.start * len(members)
    return np.concatenate(row)[start - first : stop - first] if start < stop else members[:0]


def _shuffled(values: Int64[np.ndarray, " values"], seed: int, number: int) -> Int64[np.ndarray, " values"]:
    """The values in the order of one numbered shuffle."""
    # A negative number is another series, so that mixing the classes is independent of shuffling each.
    return np.random.default_rng((seed, int(number < 0), abs(number))).permutation(values)
