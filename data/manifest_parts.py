"""The unfinished manifest: part files beside the target, each written whole or not at all, and merged at the end.

<target>.parts/begun.json     which bins they are of
<target>.parts/000017.parquet some rows, in any order
<target>.parts/lock           held while a command writes here
"""

import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from bintally.errors import ConfigError
from data.held_folder import check_begun, clear_leftovers, held, note_begun, replacing

SCHEMA: Final = pa.schema(
    {
        "id": pa.string(),
        "count": pa.int32(),  # EXPECTED_QUANTITY; null if the record cannot be used
        "num_products": pa.int32(),
        "asins": pa.list_(pa.string()),  # of each product, in the order of the record; the FCSKU where it has none
        "quantities": pa.list_(pa.int32()),
        "names": pa.list_(pa.string()),
        "reason": pa.string(),  # why the bin would be dropped, as in the drop table; null if its record is good
        "detail": pa.string(),  # the reason, for people
        "record_bytes": pa.int32(),  # null if there is no record
    }
)
MERGE_ROWS: Final = 50_000  # rows in memory while merging, and in a row group of the manifest

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Parts:
    """The folder of part files of one target; open while its lock is held."""

    target: Path
    folder: Path

    @classmethod
    @contextmanager
    def open(cls, target: Path, of: dict[str, Any]) -> Iterator[Self]:
        """Make the folder or go on with it.

        Args:
            target: the manifest to be.
            of: which bins it is of; a folder that was begun for others is refused.

        Raises:
            ConfigError: somebody writes there, it is of other bins, the target is done, or nothing can be written.
        """
        folder = target.with_name(f"{target.name}.parts")
        parts = cls(target, folder)
        with held(folder, flag="out"):
            try:
                parts._begin(of)
                yield parts
            finally:
                if folder.exists() and not parts._paths():  # nothing to go on with, nothing to be refused for
                    parts.remove()

    def done_ids(self) -> set[str]:
        """The ids that need not be fetched again."""
        return {bin_id for path in self._paths() for bin_id in pq.read_table(path, columns=["id"])["id"].to_pylist()}

    def add(self, rows: Sequence[Row]) -> None:
        """Write one more part file, under its name only when it is whole."""
        numbers = [int(path.stem) for path in self._paths()]
        path = self.folder / f"{max(numbers, default=-1) + 1:06d}.parquet"
        with replacing(path, flag="out") as partial:
            pq.write_table(pa.Table.from_pylist(list(rows), schema=SCHEMA), partial)

    def merge(self, ids: Sequence[str], failed: dict[str, str]) -> dict[str, int]:
        """Write the manifest: a row per id, sorted, those that could not be fetched as `fetch_failed`.

        Returns:
            Number of rows by reason, most frequent first.
        """
        reasons: Counter[str] = Counter()
        paths = self._paths()
        parts = pads.dataset(paths, format="parquet") if paths else pads.dataset(SCHEMA.empty_table())
        with (
            replacing(self.target, flag="out") as partial,
            pq.ParquetWriter(partial, SCHEMA, compression="zstd") as writer,
        ):
            for start in range(0, len(ids), MERGE_ROWS):
                block = ids[start : start + MERGE_ROWS]
                inside = (pads.field("id") >= block[0]) & (pads.field("id") <= block[-1])  # skips other parts unread
                rows = parts.to_table(filter=inside & pads.field("id").isin(block))
                lost = [_failed_row(bin_id, failed[bin_id]) for bin_id in block if bin_id in failed]
                table = pa.concat_tables([rows, pa.Table.from_pylist(lost, schema=SCHEMA)])
                assert table.num_rows == len(block), "each id has one row"
                writer.write_table(table.sort_by("id"))
                reasons.update(table["reason"].drop_null().to_pylist())
        return dict(reasons.most_common())

    def remove(self) -> None:
        """Delete the folder once the manifest needs it no more; a kill leaves all of it or nothing to go on with."""
        trash = self.folder.with_name(f"{self.folder.name}.old")
        shutil.rmtree(trash, ignore_errors=True)
        self.folder.rename(trash)
        shutil.rmtree(trash)

    def _begin(self, of: dict[str, Any]) -> None:
        clear_leftovers(self.folder)
        if self._paths():
            check_begun(self.folder, of, flag="out")
        elif self.target.exists():
            raise ConfigError(f"out {self.target} exists already: delete it, or choose another name")
        else:
            note_begun(self.folder, of)

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("*.parquet"))


def _failed_row(bin_id: str, detail: str) -> Row:
    return {"id": bin_id, "reason": "fetch_failed", "detail": detail}
