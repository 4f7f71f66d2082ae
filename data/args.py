"""Flags that the commands share, and how they override a recipe."""

import math
import re
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from decimal import Decimal
from itertools import count
from pathlib import Path
from typing import ClassVar, Final, Literal

from pydantic import ConfigDict

from bintally.config import Recipe
from bintally.errors import ConfigError
from bintally.source_config import DataConfig, Resize, SplitBy

_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/")  # of one slash, too: pathlib drops the second


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceArgs:
    """Where the bins lie. What is not given stays as the recipe has it."""

    source: str | None = None
    """s3://bucket[/prefix], read anonymously, or file:///absolute/folder. Default: s3://aft-vbi-pds."""
    endpoint_url: str | None = None
    """Another S3 server than AWS, for example http://127.0.0.1:9000."""
    region: str | None = None
    """Region of the bucket. Default: us-east-1."""
    signed: bool = False
    """Sign requests with the AWS credentials of the environment."""
    ids: str | None = None
    """Which bins: all, range:1-1000, file:PATH (a line per id, or a manifest) or list:00001,00002. Default: all."""
    unpadded: bool = False
    """Take un-padded ids, too."""
    labels: Path | None = None
    """Folder of the challenge's official lists; their counts replace those of the records."""
    split_by: SplitBy | None = None
    """How ids are split: grouped, official (needs --labels) or hash. Default: grouped."""
    max_count: int | None = None
    """Leave out bins that hold more items than this. Default: 5."""
    max_images: int | None = None
    """Use this many ids of the bucket, chosen by a stable hash. Default: all."""
    image_size: int | None = None
    """Height and width in pixels that photos are resized to. Default: the recipe's."""
    resize: Resize | None = None
    """squash or letterbox. Default: the recipe's."""
    fast_decode: bool = False
    """Decode large JPEGs at half their size."""

    def apply(self, recipe: Recipe) -> Recipe:
        """The recipe with these flags.

        Raises:
            ConfigError: a value is out of range.
        """
        return replace(recipe, data=self.override(recipe.data))

    def override(self, data: DataConfig) -> DataConfig:
        """The data config with these flags; paths become absolute, since workers run in another folder.

        Raises:
            ConfigError: a value is out of range.
        """
        given = {name: value for name, value in asdict(self).items() if value is not None and value is not False}
        if self.ids is not None and self.ids.startswith("file:"):
            given["ids"] = f"file:{Path(self.ids.removeprefix('file:')).resolve()}"
        if self.labels is not None:
            given["labels"] = str(self.labels.resolve())
        return replace(data, **given)


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadArgs:
    """How the bucket is read; nothing of it changes a result."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    max_dropped: str = "1%"
    """Stop when a larger share of the ids read than this, such as 1% or 0.01, is lost to faults (broken or missing
    objects)."""
    stream: bool = False
    """Read the rows from the bucket anew each epoch, even if they would fit into memory."""
    cache: Path | None = None
    """Folder on each node's disk that keeps what was fetched, for later epochs and other trials."""
    cache_gb: float = 100.0
    """Size that the cache never exceeds; all of ABID's bins of up to 5 items take 22 GB."""

    def max_faults(self, num_ids: int) -> int:
        """How many of so many ids may be lost.

        Raises:
            ConfigError: max_dropped is no share.
        """
        number, percent, rest = self.max_dropped.strip().partition("%")
        try:
            share = Decimal(number) / (100 if percent else 1)  # as a float, 29% of 100 would be 28
            is_share = not rest and 0 <= share <= 1
        except ArithmeticError:
            is_share = False
        if not is_share:
            raise ConfigError(f"max_dropped must be a share as 1% or 0.01, not {self.max_dropped!r}")
        return int(num_ids * share)

    def resolve(self) -> "ReadArgs":
        """The same, checked, with an absolute cache folder, as a resumed search needs it.

        Raises:
            ConfigError: a value is out of range.
        """
        self.max_faults(0)
        if not 0 < self.cache_gb < math.inf:
            raise ConfigError(f"cache_gb must be more than 0, not {self.cache_gb}")
        return self if self.cache is None else replace(self, cache=self.cache.resolve())


@dataclass(frozen=True, kw_only=True, slots=True)
class ResourceArgs:
    """What the work may use."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    num_workers: int = 1
    """Training workers per trial; each takes an equal share of the global batch."""
    min_workers: int | None = None
    """Go on with as few workers as this when nodes are lost, and with more again at a checkpoint after nodes have come.
    Default: always num_workers."""
    use_gpu: bool = False
    """Train on GPUs."""
    gpus_per_worker: float = 1.0
    """With --use-gpu; less than 1 lets trainings of one worker each share a GPU: at 0.25, four of them do."""
    num_cpus: int | None = None
    """Logical CPUs of a Ray started here (default: the machine's cores); without meaning if RAY_ADDRESS is set."""
    checkpoint_s: float = 600.0
    """Seconds between checkpoints within an epoch, beside those at its end: what a fault costs at most."""
    on_health: Literal["warn", "stop"] = "warn"
    """What happens when a training looks unwell (see health.json): say so, or stop it."""
    stalled_s: float = 1800.0
    """Seconds without a sign of life after which a training is said to hang."""

    def resolve(self) -> "ResourceArgs":
        """The same, checked.

        Raises:
            ConfigError: a value is out of range.
        """
        for name in ("checkpoint_s", "stalled_s"):
            if not getattr(self, name) > 0:  # NaN is not, either
                raise ConfigError(f"{name} must be more than 0, not {getattr(self, name)}")
        if self.min_workers is not None and not 1 <= self.min_workers <= self.num_workers:
            raise ConfigError(
                f"min_workers must lie between 1 and num_workers {self.num_workers}, not be {self.min_workers}"
            )
        if not 0 < self.gpus_per_worker <= 1:
            raise ConfigError(f"gpus_per_worker must lie above 0 and at most at 1, not {self.gpus_per_worker}")
        if self.gpus_per_worker < 1 and self.num_workers > 1:
            raise ConfigError(
                f"gpus_per_worker {self.gpus_per_worker} needs num_workers 1: two workers of a training cannot talk to"
                " each other (NCCL) on one GPU"
            )
        return self


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelArgs:
    """Which network. What is not given stays as the recipe has it."""

    backbone: str | None = None
    """`small_cnn`, or a classification model of torchvision such as `resnet34`. Default: the recipe's."""
    weights: str | None = None
    """A name of the backbone's torchvision enum such as IMAGENET1K_V1, a local file, or a checkpoint folder of the
    same backbone. Default: the recipe's."""

    def apply(self, recipe: Recipe) -> Recipe:
        """The recipe with these flags; another backbone begins from scratch unless weights are given."""
        backbone = self.backbone or recipe.model.backbone
        inherited = recipe.model.weights if backbone == recipe.model.backbone else None
        weights = absolute_weights(self.weights or inherited)
        return replace(recipe, model=replace(recipe.model, backbone=backbone, weights=weights))


def absolute_weights(weights: str | None) -> str | None:
    """The same weights where workers run, which is another folder; a name of published ones stays as it is."""
    return str(Path(weights).resolve()) if weights and Path(weights).exists() else weights


def is_remote(place: str, flag: str) -> bool:
    """Whether a place is s3://bucket/prefix, and no folder.

    Raises:
        ConfigError: it looks like an address, but not like that.
    """
    if not _SCHEME.match(place):
        return False
    try:
        DataConfig(source=place)
        is_folder = place.startswith("s3://") and place.rstrip("/").count("/") > 2  # not a whole bucket
    except ConfigError:
        is_folder = False
    if not is_folder:
        raise ConfigError(f"{flag} must be a folder or s3://bucket/prefix, not {place!r}")
    return True


def new_run_dir(run_dir: Path | None, verb: str) -> Path:
    """Make the folder of a run: the given one, or a new one under runs/; absolute, since workers change directory.

    Raises:
        ConfigError: the folder cannot be made, or is an address.
    """
    if run_dir is not None and _SCHEME.match(str(run_dir)):
        raise ConfigError(f"run_dir must be a folder for this command, not {str(run_dir)!r}")
    try:
        if run_dir is None:
            return _make_new_folder(Path("runs").resolve() / f"{verb}-{datetime.now().astimezone():%Y%m%d-%H%M%S}")
        absolute = run_dir.resolve()
        absolute.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"run_dir cannot be made: {error}") from None
    return absolute


def _make_new_folder(path: Path) -> Path:
    """The folder itself or, if a run of the same second has it, one with -2, -3 and so on behind its name."""
    for number in count(1):
        chosen = path if number == 1 else path.with_name(f"{path.name}-{number}")
        try:
            chosen.mkdir(parents=True)
        except FileExistsError:
            continue
        break
    return chosen
