"""A distribution over counts, and the one number that stands for it: which one is best depends on the measure."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int64


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """What a counter says of a batch of photos."""

    distribution: Float[np.ndarray, "batch classes"]
    """Probability of each count 0..classes-1; rows sum to 1."""

    @property
    def counted(self) -> Int64[np.ndarray, " batch"]:
        """The most probable count: right most often. The lowest one of several."""
        counted: np.ndarray = self.distribution.argmax(axis=1)
        return counted

    @property
    def expected(self) -> Float[np.ndarray, " batch"]:
        """Mean of the distribution, in items."""
        mean: np.ndarray = self.distribution @ np.arange(self.distribution.shape[1], dtype=np.float64)
        return mean

    @property
    def rounded_mean(self) -> Int64[np.ndarray, " batch"]:
        """The count nearest to the mean, the higher of two: the least root mean square error of whole numbers."""
        nearest: np.ndarray = np.floor(self.expected + 0.5).astype(np.int64)
        return nearest

    @property
    def median(self) -> Int64[np.ndarray, " batch"]:
        """The lowest count that half of the probability does not exceed: the least mean absolute error."""
        below_half: np.ndarray = self.distribution.cumsum(axis=1, dtype=np.float64)[:, :-1] < 0.5
        median: np.ndarray = below_half.sum(axis=1)
        return median
