"""The photos of an ABID folder as one bucket of links, labelled by the official lists."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bintally.errors import ConfigError
from bintally.source_config import DataConfig
from data.split import is_padded

PAIRS: Final = "bucket/bin-images"
EXTRA: Final = "extra/images"
LISTS: Final = "lists"
SPLITS: Final = ("train", "val", "test")

Mix = dict[int, int]
"""Number of photos by count."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LinkedBucket:
    """A bucket whose photos are links; without records, since the extra photos have none."""

    folder: Path
    labels: Path
    num_pairs: int
    """Padded ids from the pairs, those without a listed count, too; un-padded ids are other bins, and stay out."""
    num_extra: int

    @property
    def photos_dir(self) -> Path:
        """Where the links lie."""
        return self.folder / "bin-images"

    def describe(self) -> str:
        """What the photos are, in a sentence for the page."""
        return (
            f"{self.num_pairs:,} padded ids of ABID's pairs and {self.num_extra:,} further photos, whose mix of counts"
            " is not natural; of these, the photos with a count of 0 to 5 on the official lists, split in blocks of 64"
            " neighbouring ids (grouped)."
        )

    def data(self, max_images: int | None = None) -> DataConfig:
        """The grouped split; whatever is on no list, as bins of more than five items, is left out."""
        return DataConfig(source=f"file://{self.folder}", labels=str(self.labels), max_images=max_images)


def link_bucket(abid_dir: Path, folder: Path) -> LinkedBucket:
    """Lay out bin-images/<id>.jpg as links; links of an earlier call are made anew.

    Raises:
        ConfigError: a part of the ABID folder is missing.
    """
    abid_dir, photos_dir = abid_dir.resolve(), folder.resolve() / "bin-images"
    for part in (PAIRS, EXTRA, LISTS):
        if not (abid_dir / part).is_dir():
            raise ConfigError(f"abid must be a folder with {PAIRS}, {EXTRA} and {LISTS}; {abid_dir} has no {part}")
    pairs = {path.name: path for path in (abid_dir / PAIRS).glob("*.jpg") if is_padded(path.stem)}
    extra = {path.name: path for path in (abid_dir / EXTRA).glob("*.jpg") if is_padded(path.stem)}
    photos_dir.mkdir(parents=True, exist_ok=True)
    for link in photos_dir.iterdir():
        if link.is_symlink():
            link.unlink()
    chosen = extra | pairs  # a pair wins: its photo has the size of the bucket
    for name, path in chosen.items():
        (photos_dir / name).symlink_to(path)
    return LinkedBucket(
        folder=folder.resolve(),
        labels=abid_dir / LISTS,
        num_pairs=len(pairs),
        num_extra=len(chosen) - len(pairs),
    )


def source_of(photo: Path) -> str:
    """Whether the photo that this link leads to is one of the `pairs` or an `extra` one."""
    return "extra" if photo.readlink().parts[-3:-1] == tuple(EXTRA.split("/")) else "pairs"


def counts_by_split(data: DataConfig) -> dict[str, dict[str, int]]:
    """Id to count of the photos of each split, by the rule and the lists that trainings use.

    Raises:
        ConfigError: a split is empty, or the lists cannot be read.
    """
    from data.ingest import list_splits
    from data.official import listed_counts

    assert data.labels is not None
    splits = list_splits(data, needed=("train", "val", "test"))
    return {
        split: {bin_id: count for bin_id, count in listed_counts(ids, data.labels).items() if count <= data.max_count}
        for split, ids in splits.items()
    }


def class_mix(splits: dict[str, dict[str, int]]) -> dict[str, Mix]:
    """How many photos of each count every split holds."""
    return {split: dict(sorted(Counter(counts.values()).items())) for split, counts in splits.items()}


def source_mix(ids: Iterable[str], photos_dir: Path) -> dict[str, int]:
    """How many of these photos come from where."""
    return dict(sorted(Counter(source_of(photos_dir / f"{bin_id}.jpg") for bin_id in ids).items()))
