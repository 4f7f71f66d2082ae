"""The loaded models of a server, by name, and where they come from: folders or S3."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

from bintally.errors import CheckpointError
from bintally.model import WEIGHTS_FILE
from serve.predictor import Predictor
from serve.settings import RuntimeChoice, Settings, split_location

_HOW: Final = "name a checkpoint folder, or s3://bucket/prefix, as its location"


def load_models(settings: Settings, device: str = "cpu") -> dict[str, Predictor]:
    """All models of the settings, by name, on a device of PyTorch's.

    Raises:
        CheckpointError: one is missing, damaged, or has other weights than its version says.
    """
    return {name: load_model(location, settings.runtime, device) for name, location in settings.locations.items()}


def load_model(location: str, runtime: RuntimeChoice = "auto", device: str = "cpu") -> Predictor:
    """One model, from where it lies.

    Raises:
        CheckpointError: it is missing, damaged, or has other weights than its version says.
    """
    place, version = split_location(location)
    try:
        with local_folder(place) as folder:
            if version is not None:
                _check_version(folder, version)
            return Predictor.load(folder, runtime, device)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; {_HOW}") from None


@contextmanager
def local_folder(place: str) -> Iterator[Path]:
    """The folder of a checkpoint on this machine, meanwhile; what lies in S3 is copied.

    Credentials, region and endpoint of S3 are those of the environment (AWS_*).

    Raises:
        CheckpointError: there is nothing in S3, or it may not be read.
    """
    if not place.startswith("s3://"):
        yield Path(place).expanduser().absolute()
        return
    with TemporaryDirectory(prefix="bintally-model-") as folder:
        try:
            _copy(place, Path(folder))
        except (BaseError, OSError) as error:
            raise CheckpointError(f"{place} cannot be read: {str(error).strip().splitlines()[0]}") from None
        yield Path(folder)


def _copy(place: str, folder: Path) -> None:
    store = S3Store.from_url(place, client_options={"allow_http": True})
    files = [one for page in obstore.list(store) for one in page if "/" not in one["path"]]
    if not files:
        raise CheckpointError(f"there is no checkpoint at {place}")
    for one in files:
        with (folder / Path(one["path"]).name).open("wb") as file:
            for chunk in obstore.get(store, one["path"]).stream(min_chunk_size=10_000_000):
                file.write(chunk)


def _check_version(folder: Path, version: str) -> None:
    try:
        with (folder / WEIGHTS_FILE).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"no checkpoint at {folder}: {error}") from None
    if not digest.startswith(version):
        raise CheckpointError(f"{folder} has the weights {digest[: len(version)]}, not {version} as its location says")
