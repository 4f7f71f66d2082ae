"""How a checkpoint counts on this machine: by its 8-bit graph, its float32 graph, or PyTorch.

    model.onnx         the network in float32, for ONNX Runtime
    model.int8.onnx    the same in 8 bits
    runtime.json       which of them were verified, by what, which is to be used, and their hashes

`train/accelerate.py` writes these files into the checkpoint folder, runtime.json last. Only graphs that passed its
checks are there. A graph is used if its hash, its weights' version and its answers to some fixed photos are those of
that day; the answers tell apart a CPU whose 8-bit sums saturate (x86 without VNNI). Nothing here is ever unpickled.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
from jaxtyping import Float

from bintally.checkpoint import Checkpoint
from bintally.errors import CheckpointError, ExportError
from bintally.onnx_graph import Answer, Photos, open_graph
from bintally.runtime_record import (
    GRAPH_FILES,
    RUNTIME_FILE,
    GraphName,
    GraphRecord,
    RuntimeName,
    RuntimeRecord,
    read_runtime_record,
)

PROBE_TOLERANCE: Final = 0.02
"""How far a probability may be from that of the same graph on another CPU, whose sums round otherwise."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Runtime:
    """Counts photos."""

    name: RuntimeName
    """By what."""
    reason: str
    """One line for the log: why by this one."""
    answer: Answer

    def predict(self, images: Photos) -> Float[np.ndarray, "batch classes"]:
        """Probability of each count 0..max_count, as `Checkpoint.predict` gives it."""
        return self.answer(images)


def load_runtime(
    path: Path, checkpoint: Checkpoint, choice: Literal["auto", "onnx_int8", "onnx_fp32", "eager"] = "auto"
) -> Runtime:
    """Make a checkpoint ready to count.

    Args:
        path: its folder.
        checkpoint: what was loaded from there.
        choice: auto takes what runtime.json says was chosen, and if that cannot be used, the next of onnx_fp32 and
            eager; the reason says then what is wrong. Any other is taken or refused.

    Raises:
        CheckpointError: the graph that was asked for is not there or cannot be used.
    """
    if choice == "eager":
        return _eager(checkpoint, "it was asked for")
    remedy = f"`python train/accelerate.py --checkpoint {path}` makes and checks the graphs"
    try:
        record = read_runtime_record(path, checkpoint.version)
        if choice != "auto":
            return Runtime(name=choice, reason="it was asked for", answer=_open(path, checkpoint, record, choice))
    except CheckpointError as error:
        if choice != "auto":
            raise CheckpointError(f"no {choice}: {error}; {remedy}") from None
        return _eager(checkpoint, f"{error}; {remedy}")
    return _first_usable(path, checkpoint, record, remedy)


def _first_usable(path: Path, checkpoint: Checkpoint, record: RuntimeRecord, remedy: str) -> Runtime:
    if record.chosen == "eager":
        return _eager(checkpoint, record.why)
    names = list(GRAPH_FILES)
    faults: list[str] = []
    for name in names[names.index(record.chosen) :]:
        try:
            answer = _open(path, checkpoint, record, name)
        except CheckpointError as error:
            faults.append(str(error))
        else:
            return Runtime(name=name, reason="; ".join([*faults, remedy]) if faults else record.why, answer=answer)
    return _eager(checkpoint, "; ".join([*faults, remedy]))


def _eager(checkpoint: Checkpoint, reason: str) -> Runtime:
    return Runtime(name="eager", reason=reason, answer=checkpoint.predict)


def _open(path: Path, checkpoint: Checkpoint, record: RuntimeRecord, name: GraphName) -> Answer:
    """The graph, if it is what was verified, and answers as it did then.

    Raises:
        CheckpointError: it is not there, or is not the same any more.
    """
    file = path / GRAPH_FILES[name]
    if name not in record.graphs:
        reason = record.refused.get(name, "it was not made")
        raise CheckpointError(f"{file} is not there, as {reason}")
    try:
        graph = file.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read ({error.strerror})") from None
    if hashlib.sha256(graph).hexdigest() != record.graphs[name].sha256:
        raise CheckpointError(f"{file} is not the graph that {RUNTIME_FILE} tells of (another SHA-256)")
    try:
        answer = open_graph(graph)
        probed = probe(answer, checkpoint.recipe.data.image_size)
    except ExportError as error:
        raise CheckpointError(f"{file}: {error}") from None
    difference = _difference(probed, record.graphs[name].probed)
    if not difference <= PROBE_TOLERANCE:  # NaN is not, either
        raise CheckpointError(
            f"{file} answers otherwise here than where it was checked (off by {difference:.3g}), as 8 bits do"
            " on a CPU without VNNI"
        )
    return answer


def probe(answer: Answer, image_size: int) -> Float[np.ndarray, "photos classes"]:
    """What a graph answers to `probe_photos`.

    Raises:
        ExportError: it cannot count them, or answers NaN.
    """
    try:
        probabilities = answer(probe_photos(image_size))
    except Exception as error:  # ONNX Runtime's errors have no common class
        raise ExportError(f"it cannot count photos of {image_size} px: {str(error).splitlines()[0]}") from error
    if not np.isfinite(probabilities).all():
        raise ExportError("it answers NaN")
    return probabilities


def probe_photos(image_size: int) -> Photos:
    """Four fixed pictures of waves of different lengths, the same wherever they are made."""
    rows, columns, colours = np.indices((image_size, image_size, 3)) * np.array([2, 3, 40]).reshape(3, 1, 1, 1)
    return np.stack([(step * (rows + columns) + colours) % 256 for step in (0, 1, 4, 16)]).astype(np.uint8)


def _difference(probed: np.ndarray, before: list[list[float]]) -> float:
    """The largest one; infinite if there are others in number."""
    if [len(row) for row in before] != [probed.shape[1]] * len(probed):
        return float("inf")
    return float(np.abs(probed - np.array(before)).max())


def record_graph(graph: bytes, answer: Answer, image_size: int) -> GraphRecord:
    """What later loads are checked by, of a graph that `open_graph` has opened.

    Raises:
        ExportError: the graph cannot count, or answers NaN.
    """
    return GraphRecord(
        sha256=hashlib.sha256(graph).hexdigest(), probed=probe(answer, image_size).astype(float).tolist()
    )
