"""How Ray Train splits what is streamed: into exact batches for as many workers as there are at each of its starts."""

from collections.abc import Mapping
from typing import Any

from ray.data import DataIterator, Dataset
from ray.train import DataConfig

from data.pipeline import BatchStream, execution_options


class WorkerBatches(DataConfig):
    """Takes datasets of undecoded photos, and gives the workers their parts of the streams' batches."""

    def __init__(self, streams: Mapping[str, BatchStream]) -> None:
        """For the workers of one training.

        Args:
            streams: by the names that the trainer's datasets have.
        """
        super().__init__(execution_options=execution_options())
        self._streams = streams

    def configure(
        self,
        datasets: dict[str, Dataset],
        world_size: int,
        *args: Any,  # noqa: ANN401  # Ray's
        **kwargs: Any,  # noqa: ANN401
    ) -> list[dict[str, DataIterator]]:
        """Called by Train for each dataset when a group of workers has started."""
        batches = {name: self._streams[name].batches(photos, world_size) for name, photos in datasets.items()}
        return super().configure(batches, world_size, *args, **kwargs)
