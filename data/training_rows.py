"""What trainings read, as values that can be sent to any process: ids by split, and the rows if they are stored."""

from dataclasses import dataclass
from typing import Final

from ray.data import Dataset

from bintally.config import Recipe
from data.blocks import FetchSpec
from data.clock import EpochClock
from data.feed import FeedSpec
from data.order import Sampling
from data.pipeline import BatchStream, EpochOrder, IdTable
from data.stored import StoredRows

VAL_BATCH_FACTOR: Final = 4  # validation keeps no gradients, so larger batches fit


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitRows:
    """The rows of one split: what to read, and the rows themselves if they are kept in memory."""

    ids: IdTable
    stored: StoredRows | None = None

    def feed(
        self, spec: FetchSpec, batch_size: int, sampling: Sampling | None = None, clock: EpochClock | None = None
    ) -> tuple[FeedSpec, tuple[BatchStream, Dataset] | None]:
        """What a worker opens, and the stream that Ray Train has to split for it, if there is one."""
        feed = FeedSpec(global_batch_size=batch_size, sampling=sampling, clock=clock, stored=self.stored)
        if self.stored is not None:
            return feed, None
        return feed, BatchStream.of(self.ids, spec, EpochOrder(sampling=sampling, clock=clock), batch_size)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingRows:
    """The rows that trainings read. Can be sent to any process."""

    train: SplitRows
    val: SplitRows
    spec: FetchSpec
    clock: EpochClock
    num_train: int
    """Usable training rows; an upper bound where counts are not known beforehand."""
    class_rows: tuple[int, ...] | None = None
    """Usable training rows by count, from 0 to max_count; None of a stream whose labels are in its records, unless the
    recipe needs them."""

    def num_ids_of_epoch(self, recipe: Recipe) -> int:
        """How many ids a recipe's epochs visit, with those that turn out to be unusable: the length of their order."""
        return sampling_of(recipe).epoch_size(self.num_train if recipe.balanced else self.train.ids.num_ids)

    def feeds(
        self, recipe: Recipe, *, training: str
    ) -> tuple[dict[str, FeedSpec], dict[str, tuple[BatchStream, Dataset]]]:
        """Feeds of one training by split, and the streams that Ray Train has to split among its workers.

        Args:
            recipe: batch size and sampling.
            training: a name that no other training under the same clock has.
        """
        size = recipe.optim.global_batch_size
        train, train_stream = self.train.feed(self.spec, size, sampling_of(recipe), self.clock.of(training))
        val, val_stream = self.val.feed(self.spec, VAL_BATCH_FACTOR * size)
        streams = {"train": train_stream, "val": val_stream}
        return {"train": train, "val": val}, {name: one for name, one in streams.items() if one is not None}


def sampling_of(recipe: Recipe) -> Sampling:
    """How a recipe's epochs visit the training rows."""
    return Sampling(seed=recipe.seed, epoch_fraction=recipe.epoch_fraction, balanced=recipe.balanced)
