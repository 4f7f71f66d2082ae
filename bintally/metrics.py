"""Metrics as mergeable sums: tallies of batches, workers or shards add up to the tally of the whole."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, kw_only=True, slots=True)
class CountTally:
    """What a set of predictions got right, as sums."""

    confusion: Int64[Tensor, "expected counted"]
    """Rows: expected count, columns: counted (the most probable count)."""
    nll_sum: float
    """Sum of the negative log-likelihood of the expected count, in nats."""

    @classmethod
    def empty(cls, num_classes: int) -> "CountTally":
        """A tally of nothing, the zero of `+`."""
        return cls(confusion=torch.zeros(num_classes, num_classes, dtype=torch.int64), nll_sum=0.0)

    @classmethod
    def of(cls, logits: Float[Tensor, "batch classes"], counts: Int64[Tensor, " batch"]) -> "CountTally":
        """Tally one batch. Costs one host synchronisation."""
        num_classes = logits.shape[1]
        nll = F.cross_entropy(logits.float(), counts, reduction="sum")
        cells = counts * num_classes + logits.argmax(dim=1)
        confusion = torch.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)
        return cls(confusion=confusion.cpu(), nll_sum=float(nll))

    def __add__(self, other: "CountTally") -> "CountTally":
        return CountTally(confusion=self.confusion + other.confusion, nll_sum=self.nll_sum + other.nll_sum)

    def to_vector(self) -> Tensor:
        """Flat float64 sums, for one all-reduce over workers."""
        return torch.cat([self.confusion.flatten().double(), torch.tensor([self.nll_sum]).double()])

    @classmethod
    def from_vector(cls, vector: Tensor) -> "CountTally":
        """The inverse of `to_vector`."""
        num_classes = int((vector.numel() - 1) ** 0.5)
        return cls(
            confusion=vector[:-1].round().long().reshape(num_classes, num_classes).cpu(),
            nll_sum=float(vector[-1]),
        )

    @property
    def num_images(self) -> int:
        """How many predictions were tallied."""
        return int(self.confusion.sum())

    def summary(self) -> dict[str, Any]:
        """Figures of the whole tally; JSON-ready.

        accuracy, within_one and the *_accuracy baselines are shares (0..1), rmse and mae are in items, nll in nats per
        image. Keys under `per_count` are counts as strings.

        Raises:
            ValueError: nothing was tallied.
        """
        n = self.num_images
        if n == 0:
            raise ValueError("no images were tallied; is the split empty?")
        num_classes = len(self.confusion)
        confusion = self.confusion.double()
        levels = torch.arange(num_classes, dtype=torch.float64)
        error = (levels[None, :] - levels[:, None]).abs()
        per_row = confusion.sum(dim=1)
        return {
            "num_images": n,
            "accuracy": float(confusion.diagonal().sum()) / n,
            "within_one": float(confusion[error <= 1].sum()) / n,
            "rmse": float(((confusion * error**2).sum() / n).sqrt()),
            "mae": float((confusion * error).sum() / n),
            "nll": self.nll_sum / n,
            "majority_accuracy": float(per_row.max()) / n,
            "random_accuracy": 1 / num_classes,
            "per_count": {
                str(count): {
                    "num_images": int(per_row[count]),
                    "accuracy": float(confusion[count, count] / per_row[count]),
                    "rmse": float(((confusion[count] * error[count] ** 2).sum() / per_row[count]).sqrt()),
                }
                for count in range(num_classes)
                if per_row[count] > 0
            },
        }
