"""runtime.json of a checkpoint folder: which graphs were verified, by what, and which is to be used."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from bintally.errors import CheckpointError

RuntimeName = Literal["onnx_int8", "onnx_fp32", "eager"]
GraphName = Literal["onnx_int8", "onnx_fp32"]

RUNTIME_FILE: Final = "runtime.json"
GRAPH_FILES: Final[dict[GraphName, str]] = {"onnx_int8": "model.int8.onnx", "onnx_fp32": "model.onnx"}
"""Fastest first: the order of falling back, before eager."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GraphRecord:
    """A graph that was verified."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    sha256: str
    """Of its file."""
    probed: list[list[float]]
    """Probabilities that it gave for `probe_photos`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RuntimeRecord:
    """What runtime.json holds."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    model_version: str
    """Of the weights that the graphs were made of."""
    chosen: RuntimeName
    """What to count by."""
    why: str
    """One line: what the choice rests on."""
    graphs: dict[GraphName, GraphRecord]
    """Those that passed; the files in the folder."""
    refused: dict[GraphName, str]
    """Why others are not in the folder."""
    measured: dict[str, Any] = field(default_factory=dict)
    """Figures of the check, for people."""

    def __post_init__(self) -> None:
        if self.chosen != "eager" and self.chosen not in self.graphs:
            raise ValueError(f"chosen {self.chosen} is not among the graphs")


_RECORD: Final = TypeAdapter(RuntimeRecord)


def read_runtime_record(path: Path, version: str) -> RuntimeRecord:
    """Read runtime.json of a checkpoint folder.

    Raises:
        CheckpointError: it is missing, damaged, or of other weights than these.
    """
    file = path / RUNTIME_FILE
    try:
        record = _RECORD.validate_json(file.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"{file} is not there") from None
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}") from None
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(map(str, fault["loc"]))
        raise CheckpointError(f"{file} is damaged ({place}{': ' if place else ''}{fault['msg']})") from None
    if record.model_version != version:
        raise CheckpointError(f"{file} is of the weights {record.model_version}, not {version}")
    return record


def write_runtime(path: Path, record: RuntimeRecord, graphs: Mapping[GraphName, bytes]) -> None:
    """Store graphs and their record in a checkpoint folder, in place of those that were there.

    A reader sees runtime.json with its own graphs, or no runtime.json. A full disk leaves what was there before.

    Raises:
        CheckpointError: they could not be written.
    """
    contents = {GRAPH_FILES[name]: graph for name, graph in graphs.items()}
    contents[RUNTIME_FILE] = (json.dumps(asdict(record), indent=2, allow_nan=False) + "\n").encode()  # the last one
    partials = {name: path / f".{name}.{os.getpid()}.partial" for name in contents}
    try:
        for name, partial in partials.items():
            partial.write_bytes(contents[name])
        (path / RUNTIME_FILE).unlink(missing_ok=True)
        for stale in GRAPH_FILES.values():
            (path / stale).unlink(missing_ok=True)
        for name, partial in partials.items():
            partial.replace(path / name)
    except OSError as error:
        raise CheckpointError(f"the graphs of {path} could not be written: {error}") from error
    finally:
        for partial in partials.values():
            partial.unlink(missing_ok=True)
