"""Lists and labels a whole bucket into one Parquet file, a row per bin.

    python data/manifest.py --source s3://aft-vbi-pds --out manifest.parquet

Columns: id, count, num_products, asins, quantities, names, reason (why the bin would be dropped, or null), detail,
record_bytes. Records alone are read, no photos. A run that was stopped, in whatever way, goes on where it was when the
same command is given again. Exit code 2, and no manifest, if more than max_failed of the records cannot be fetched;
if it is fewer, they are in the manifest as fetch_failed, and the same command tries them again.
"""

import shlex
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import tyro

from bintally.cli import readable_errors
from bintally.errors import ConfigError, SourceError, SourceUnreachableError
from bintally.source_config import DataConfig
from data.progress import say

BEGUN_WITH: Final = ("source", "endpoint_url", "ids", "unpadded", "max_images")  # a resumed run must agree on these


@dataclass(frozen=True, kw_only=True, slots=True)
class ManifestArgs:
    """Lists and labels a whole bucket into one Parquet file."""

    out: Path
    """The manifest, a .parquet file; unfinished parts lie in OUT.parts."""
    source: str = "s3://aft-vbi-pds"
    """s3://bucket[/prefix], or file:///absolute/folder."""
    endpoint_url: str | None = None
    """Another S3 server than AWS, for example http://127.0.0.1:9000."""
    region: str = "us-east-1"
    """Region of the bucket."""
    signed: bool = False
    """Sign requests with the AWS credentials of the environment."""
    ids: str = "all"
    """Which bins: all, range:1-1000, file:PATH (a line per id, or a manifest) or list:00001,00002."""
    unpadded: bool = False
    """Take un-padded ids, too."""
    max_images: int | None = None
    """Use this many ids, chosen by a stable hash. Default: all."""
    max_failed: float = 0.01
    """Largest share of records that may be impossible to fetch."""
    part_rows: int = 1000
    """Rows per part file; a kill loses at most so many, or those of the last ten seconds."""

    def __post_init__(self) -> None:
        if self.out.suffix != ".parquet":
            raise ConfigError(f"out must be a .parquet file, not {str(self.out)!r}")
        if not 0 <= self.max_failed <= 1:
            raise ConfigError(f"max_failed must be a share in [0, 1], not {self.max_failed}")
        if self.part_rows < 1:
            raise ConfigError(f"part_rows must be at least 1, not {self.part_rows}")

    def to_data(self) -> DataConfig:
        """Which bins, as the library takes it.

        Raises:
            ConfigError: a value is out of range.
        """
        path = self.ids.removeprefix("file:")
        return DataConfig(
            source=self.source,
            endpoint_url=self.endpoint_url,
            region=self.region,
            signed=self.signed,
            ids=self.ids if path == self.ids else f"file:{Path(path).resolve()}",
            unpadded=self.unpadded,
            max_images=self.max_images,
        )


def write_manifest(args: ManifestArgs) -> None:
    """Write the manifest, going on with the parts of an earlier run.

    Raises:
        ConfigError: the folder of parts is in use or of other bins, or the manifest exists.
        SourceError: the bucket cannot be listed or read, or more than max_failed of its records.
    """
    import asyncio

    from data.bucket import open_bucket
    from data.ids import choose_ids
    from data.manifest_fetch import Fetch
    from data.manifest_parts import Parts

    data = args.to_data()
    with Parts.open(args.out.resolve(), {name: getattr(data, name) for name in BEGUN_WITH}) as parts:
        ids = choose_ids(data)
        done = parts.done_ids()
        missing = [bin_id for bin_id in ids if bin_id not in done]
        num_before = len(ids) - len(missing)
        say(f"{num_before:,} records are here already, {len(missing):,} are to be fetched")
        fetch = Fetch(bucket=open_bucket(data), parts=parts, part_rows=args.part_rows, num_before=num_before)
        asyncio.run(fetch.run(missing))
        _check_failed(fetch.failed, args.max_failed * len(ids))
        reasons = parts.merge(ids, fetch.failed)
        say(f"{args.out}: {len(ids):,} rows; with a reason to be dropped: {reasons or 'none'}")
        if fetch.failed:
            say("the same command tries those again that are fetch_failed")
        else:
            parts.remove()


def _check_failed(failed: dict[str, str], most: float) -> None:
    if len(failed) > most:
        first = next(iter(failed.values()))
        raise SourceUnreachableError(f"{len(failed):,} records could not be fetched; the first: {first}")


def main() -> None:
    """Parse, then write the manifest; say how to go on if it ends early."""
    with readable_errors():
        args = tyro.cli(partial(ManifestArgs), description=__doc__)  # a partial: tyro boxes the errors of a class
        try:
            write_manifest(args)
        except (KeyboardInterrupt, SystemExit, SourceError):
            say(f"to go on: {shlex.join(['python', *sys.argv])}")
            raise


if __name__ == "__main__":
    main()
