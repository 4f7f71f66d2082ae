"""Predictions on disk: Parquet parts, each written whole or not at all, so that a stopped run goes on where it was.

<folder>/begun.json          what was predicted by what
<folder>/part-00017.parquet  a row per bin, dropped ones too, with the reason
<folder>/lock                held while a command writes here
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from bintally.batch import COUNT, HEIGHT, ID, WIDTH
from data.held_folder import check_begun, clear_leftovers, held, note_begun, replacing

PROBABILITIES: Final = "probabilities"
FLIPPED: Final = "flipped"
BRIGHTNESS: Final = "brightness"
SHARPNESS: Final = "sharpness"
REASON: Final = "reason"
SCHEMA: Final = pa.schema(
    {
        ID: pa.string(),
        COUNT: pa.int64(),  # by the record or the official list; null if the bin was dropped, as all that follows
        PROBABILITIES: pa.list_(pa.float32()),  # of each count 0..max_count
        FLIPPED: pa.list_(pa.float32()),  # the same of the mirrored photo; null without --tta
        BRIGHTNESS: pa.float32(),  # mean, 0 black to 255 white, of the photo as the model sees it
        SHARPNESS: pa.float32(),  # variance of the Laplacian of the same
        WIDTH: pa.int64(),  # pixels of the file
        HEIGHT: pa.int64(),
        REASON: pa.string(),  # why the bin was dropped, as in the drop table; null if it was counted
    }
)


@dataclass(frozen=True, slots=True)
class PredictionParts:
    """The folder of the parts; open while its lock is held."""

    folder: Path

    @classmethod
    @contextmanager
    def open(cls, folder: Path, of: dict[str, Any]) -> Iterator["PredictionParts"]:
        """Make the folder or go on with it.

        Args:
            folder: for the parts alone.
            of: what they depend on, JSON-ready; a folder that was begun for anything else is refused.

        Raises:
            ConfigError: somebody writes there, it is of something else, or nothing can be written.
        """
        parts = cls(folder)
        with held(folder, flag="run_dir"):
            parts._begin(of)
            yield parts

    def read(self) -> pa.Table:
        """All rows, in no order."""
        tables = [pq.read_table(path, schema=SCHEMA) for path in self._paths()]
        return pa.concat_tables([SCHEMA.empty_table(), *tables])

    def add(self, rows: pa.Table) -> None:
        """Write one more part, under its name only when it is whole.

        Raises:
            ConfigError: it cannot be written, as when the disk is full.
        """
        numbers = [int(path.stem.removeprefix("part-")) for path in self._paths()]
        path = self.folder / f"part-{max(numbers, default=-1) + 1:05d}.parquet"
        with replacing(path, flag="run_dir") as partial:
            pq.write_table(rows, partial, compression="zstd")

    def _begin(self, of: dict[str, Any]) -> None:
        clear_leftovers(self.folder)
        if self._paths():
            check_begun(self.folder, of, flag="run_dir")
        else:
            note_begun(self.folder, of)

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("part-*.parquet"))
