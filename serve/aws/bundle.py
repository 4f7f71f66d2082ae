"""model.tar.gz: one file for every SageMaker host, the same bytes each time.

config.yaml, deployment.py      for AWS's Ray Serve image
code/inference.py               for AWS's PyTorch image
code/requirements.txt           what AWS's images lack; they install it when they start
code/wheels/                    the packages themselves, for endpoints without internet
code/bintally/, code/serve/     our code: an image needs none of it, and cannot have another version of it
checkpoint/                     the weights, and the graphs of train/accelerate.py where there are some
model.json                      what the model is, for people
"""

import gzip
import hashlib
import io
import json
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any, Final

import bintally
from bintally.checkpoint import CALIBRATION_FILE, CONFIG_FILE, METRICS_FILE
from bintally.errors import ConfigError
from bintally.model import WEIGHTS_FILE
from bintally.runtime_record import GRAPH_FILES, RUNTIME_FILE
from serve.container.app import PROXY_PREFIX
from serve.container.invocation import CHECKPOINT_DIR
from serve.predictor import Predictor

SUFFIX: Final = ".tar.gz"
HOSTED_DIR: Final = Path(__file__).with_name("hosted")
SERVE_DIR: Final = Path(__file__).parents[1]
CORE_DIR: Final = Path(bintally.__file__).parent
SERVE_MODULES: Final = ("__init__", "bodies", "predictor", "problems", "schema", "settings")
CHECKPOINT_FILES: Final = (WEIGHTS_FILE, CONFIG_FILE, METRICS_FILE)
OPTIONAL_FILES: Final = (CALIBRATION_FILE, RUNTIME_FILE, *GRAPH_FILES.values())

PINNED: Final = ("simplejpeg", "jaxtyping")
"""What decodes, and what no image of AWS's has: as installed here."""
GRAPH_RUNTIME: Final = "onnxruntime"
PRESENT: Final = ("fastapi", "safetensors")
"""What AWS's Ray Serve image has in a version that does; its PyTorch image lacks it."""

RAY_IMAGE_ENVIRONMENT: Final = {"RAYSERVE_BACKEND_URL": f"http://127.0.0.1:8000{PROXY_PREFIX}"}
"""Of a container of AWS's Ray Serve image: /ping asks the model, not Ray's proxy. Other images do not heed it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Bundle:
    """A packed model."""

    path: Path
    sha256: str
    """Of the file."""
    num_bytes: int
    version: str
    """Of the weights, as answers name it."""


def pack(checkpoint: Path, out: Path, wheels: Path | None = None) -> Bundle:
    """Pack a checkpoint once its model has counted a photo here.

    Args:
        checkpoint: its folder.
        out: the file to write, whole or not at all.
        wheels: folder with the packages of requirements.txt for the image's Python, to be installed without internet.

    Raises:
        CheckpointError: the checkpoint is missing or damaged, or its model gives no probabilities.
        ConfigError: a name makes no sense, or the file cannot be written.
    """
    if not out.name.endswith(SUFFIX):
        raise ConfigError(f"out must end with {SUFFIX}, which SageMaker goes by, not {out}")
    predictor = Predictor.load(checkpoint)
    members = dict(_members(checkpoint, predictor, wheels))
    partial = out.with_name(f".{out.name}.partial")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            write_tarball(members, file)
        with partial.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        partial.replace(out)
    except OSError as error:
        raise ConfigError(f"out: {out} cannot be written: {error.strerror}") from None
    finally:
        with suppress(OSError):
            partial.unlink()
    return Bundle(path=out, sha256=digest, num_bytes=out.stat().st_size, version=predictor.version)


def write_tarball(members: Mapping[str, bytes | Path], file: IO[bytes]) -> None:
    """Write members, by path, so that nothing but their paths and bytes decides what comes out."""
    with (
        gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=file, mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for name, content in sorted(members.items()):
            entry = tarfile.TarInfo(name)  # owner 0, time 0, mode 644
            entry.size = content.stat().st_size if isinstance(content, Path) else len(content)
            with content.open("rb") if isinstance(content, Path) else io.BytesIO(content) as source:
                tar.addfile(entry, source)


def _members(checkpoint: Path, predictor: Predictor, wheels: Path | None) -> Iterator[tuple[str, bytes | Path]]:
    for name in CHECKPOINT_FILES:
        yield f"{CHECKPOINT_DIR}/{name}", checkpoint / name
    optional = [name for name in OPTIONAL_FILES if (checkpoint / name).exists()]
    for name in optional:
        yield f"{CHECKPOINT_DIR}/{name}", checkpoint / name
    card = {name: value for name, value in predictor.card.items() if not name.startswith("runtime")}  # of this machine
    yield "model.json", (json.dumps(card, indent=2) + "\n").encode()
    for path in _sources(HOSTED_DIR):
        yield str(path.relative_to(HOSTED_DIR)), path
    for path in _sources(CORE_DIR):
        yield f"code/bintally/{path.name}", path
    for path in (*(SERVE_DIR / f"{name}.py" for name in SERVE_MODULES), *_sources(SERVE_DIR / "container")):
        yield f"code/serve/{path.relative_to(SERVE_DIR)}", path
    yield "code/requirements.txt", _requirements(with_graphs=RUNTIME_FILE in optional, offline=wheels is not None)
    for path in _wheels(wheels) if wheels else ():
        yield f"code/wheels/{path.name}", path


def _sources(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.suffix in (".py", ".yaml")]


def _wheels(folder: Path) -> list[Path]:
    found = sorted(folder.glob("*.whl"))
    if not found:
        raise ConfigError(f"wheels: {folder} holds no .whl; fill it by `pip download`, as docs/sagemaker.md tells")
    return found


def _requirements(*, with_graphs: bool, offline: bool) -> bytes:
    pinned = (*PINNED, GRAPH_RUNTIME) if with_graphs else PINNED
    lines = ["--no-index", "--find-links wheels"] if offline else []
    lines += [f"{name}=={version(name)}" for name in pinned]
    return "\n".join([*lines, *PRESENT, ""]).encode()


def read_bundle(path: Path) -> Bundle:
    """A file that `pack` has written.

    Raises:
        ConfigError: it is none.
    """
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        with gzip.open(path) as unzipped:
            while unzipped.read(2**20):  # to the checksum behind it, which tarfile does not ask for
                pass
            unzipped.seek(0)
            with tarfile.open(fileobj=unzipped) as tar:
                card: Any = tar.extractfile("model.json")  # None, if it is a folder, has no read: AttributeError
                version_packed = str(json.load(card)["version"])
    except EOFError:
        raise ConfigError(f"bundle: {path} is cut short; pack or copy it again") from None
    except (gzip.BadGzipFile, zlib.error, tarfile.TarError, KeyError, ValueError, TypeError, AttributeError):
        raise ConfigError(f"bundle: {path} is none that `python serve/export.py --out` has written") from None
    except OSError as error:
        raise ConfigError(f"bundle: {path} cannot be read: {error.strerror or error}") from None
    return Bundle(path=path, sha256=digest, num_bytes=path.stat().st_size, version=version_packed)
