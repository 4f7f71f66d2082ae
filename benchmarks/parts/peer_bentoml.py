"""BentoML as its docs have it: a service with a batchable API that takes files.

CHECKPOINT=... bentoml serve benchmarks.parts.peer_bentoml:Counter --port PORT
"""

import os
from pathlib import Path
from typing import Any

import bentoml

from benchmarks.parts.served_model import Bare


@bentoml.service(workers=1, traffic={"timeout": 60})
class Counter:
    """A worker."""

    def __init__(self) -> None:
        self._bare = Bare(os.environ["CHECKPOINT"])

    @bentoml.api(batchable=True, max_batch_size=8)  # type: ignore[untyped-decorator]  # not installed where mypy runs
    def count(self, photos: list[Path]) -> list[dict[str, Any]]:
        """Photos to counts."""
        return self._bare.count([self._bare.decode(photo.read_bytes()) for photo in photos])
