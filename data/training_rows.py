"""What trainings read, as values that can be sent to any process: ids by split, and the rows if they are stored."""

from dataclasses import dataclass
from typing import Any, Final

from ray.data import Dataset

from bintally.config import Recipe
from data.blocks import FetchSpec
from data.clock import EpochClock
from data.decode import Share
from data.feed import FeedSpec
from data.order import Sampling
from data.pipeline import EpochOrder, IdTable, stream_batches
from data.stored import StoredRows

VAL_BATCH_FACTOR: Final = 4  # validation keeps no gradients, so larger batches fit


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitRows:
    """The rows of one split: what to read, and the rows themselves if they are kept in memory."""

    ids: IdTable
    stored: StoredRows | None = None

    def feed(
        self, spec: FetchSpec, share: Share, sampling: Sampling | None = None, clock: EpochClock | None = None
    ) -> tuple[FeedSpec, Dataset | None]:
        """What a worker opens, and the plan that Ray Train has to split for it, if there is one."""
        feed = FeedSpec(share=share, sampling=sampling, clock=clock, stored=self.stored)
        if self.stored is not None:
            return feed, None
        return feed, stream_batches(self.ids, spec, EpochOrder(sampling=sampling, clock=clock), share)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingRows:
    """The rows that trainings read. Can be sent to any process."""

    train: SplitRows
    val: SplitRows
    spec: FetchSpec
    clock: EpochClock
    num_train: int
    """Usable training rows; an upper bound while streaming, when counts are not known yet."""
    class_rows: tuple[int, ...] | None = None
    """Usable training rows by count, from 0 to max_count; None while streaming, unless the recipe needs them."""

    def feeds(self, recipe: Recipe, *, num_workers: int, training: str) -> tuple[dict[str, FeedSpec], dict[str, Any]]:
        """Feeds of one training by split, and the plans that Ray Train has to split among its workers.

        Args:
            recipe: batch size and sampling.
            num_workers: that share each batch.
            training: a name that no other training under the same clock has.
        """
        size = recipe.optim.global_batch_size
        train_feed, train_plan = self.train.feed(
            self.spec,
            Share(global_batch_size=size, num_workers=num_workers),
            sampling_of(recipe),
            self.clock.of(training),
        )
        val_share = Share(global_batch_size=VAL_BATCH_FACTOR * size, num_workers=num_workers)
        val_feed, val_plan = self.val.feed(self.spec, val_share)
        plans = {"train": train_plan, "val": val_plan}
        return {"train": train_feed, "val": val_feed}, {name: plan for name, plan in plans.items() if plan is not None}


def sampling_of(recipe: Recipe) -> Sampling:
    """How a recipe's epochs visit the training rows."""
    return Sampling(seed=recipe.seed, epoch_fraction=recipe.epoch_fraction, balanced=recipe.balanced)
