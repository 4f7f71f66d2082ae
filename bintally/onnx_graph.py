"""A counter as an ONNX graph: uint8 photos in any number in, log-probabilities of the counts out, weights inside.

Float32 graphs give the probabilities of PyTorch to some 1e-6. The 8-bit ones are QDQ: uint8 activations whose ranges
come from calibration photos, int8 weights with a scale per channel. What is left in float32, and why:

    before the first convolution   bytes become normalised floats there; they have 8 bits as they are
    the last layer and the head    next to no work, and their rounding would be that of the answer
    norms over groups and layers   ONNX Runtime has no 8-bit kernel for them, and its quantiser fails at them

So 8 bits pay where convolutions follow each other, as in ResNets, or are large, as in ConvNeXt. Where a norm or an
activation without an 8-bit kernel stands behind every small layer (small_cnn, mobilenet_v3), turning numbers back and
forth costs what the arithmetic saves.
"""

import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from bintally.errors import ExportError
from bintally.model import Counter

if TYPE_CHECKING:
    import onnx  # only exporting needs it

IMAGES: Final = "images"
LOG_PROBABILITIES: Final = "log_probabilities"
CALIBRATION_BATCH: Final = 8

_WEIGHTED: Final = ("Conv", "Gemm", "MatMul")
_QUANTISED: Final = (*_WEIGHTED, "Add", "Relu", "MaxPool", "Mul", "GlobalAveragePool")

Photos = UInt8[np.ndarray, "batch size size 3"]
Answer = Callable[[Photos], Float[np.ndarray, "batch classes"]]
"""Photos to the probability of each count."""


class _Answering(nn.Module):
    """The counter with the reading of its outputs."""

    def __init__(self, model: Counter) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model.log_probabilities(self.model(images))


def export_graph(model: Counter, image_size: int) -> bytes:
    """Write a counter as an ONNX graph of float32, in some 10 s.

    Args:
        model: in evaluation mode, on the CPU.
        image_size: height and width in pixels of the photos that it will be given.

    Returns:
        A serialised ONNX model with the input `images`, uint8 (batch, image_size, image_size, 3), and the output
        `log_probabilities`, float32 (batch, classes).

    Raises:
        ExportError: the network has something that ONNX lacks, or its weights exceed the 2 GB of one file.
    """
    _onnx_runtime()  # the exporter may import it, too
    example = torch.zeros(2, image_size, image_size, 3, dtype=torch.uint8)
    try:
        with _silent():
            program: Any = torch.onnx.export(
                _Answering(model).eval(),
                (example,),
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                input_names=[IMAGES],
                output_names=[LOG_PROBABILITIES],
                verbose=False,
            )
        graph: onnx.ModelProto = program.model_proto
        for node in graph.graph.node:
            node.ClearField("metadata_props")  # where on this machine the code lies
            node.ClearField("doc_string")
        serialised: bytes = graph.SerializeToString()
    except Exception as error:  # the exporter raises what it likes, protobuf a ValueError beyond 2 GB
        raise ExportError(f"{type(error).__name__}: {_first_line(error)}") from error
    return serialised


def quantise_graph(graph: bytes, photos: Photos) -> bytes:
    """Put a float32 graph into 8 bits.

    Args:
        graph: as `export_graph` gives it.
        photos: like those that it will be given; some 250 tell the ranges of its activations.

    Raises:
        ExportError: nothing in the graph can be put into 8 bits, or ONNX Runtime fails at it.
    """
    _onnx_runtime()
    import onnx
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]  # has no types
        def __init__(self) -> None:
            self._batches = iter(range(0, len(photos), CALIBRATION_BATCH))

        def get_next(self) -> dict[str, np.ndarray] | None:
            begin = next(self._batches, None)
            return None if begin is None else {IMAGES: photos[begin : begin + CALIBRATION_BATCH]}

    model = onnx.load_model_from_string(graph)
    kept = _kept_in_float(model)
    with tempfile.TemporaryDirectory(prefix="bintally-") as folder:
        path = Path(folder) / "int8.onnx"
        try:
            with _silent():
                quantization.quantize_static(
                    model,
                    path,
                    Reader(),
                    quant_format=quantization.QuantFormat.QDQ,
                    op_types_to_quantize=list(_QUANTISED),
                    nodes_to_exclude=kept,
                    per_channel=True,
                    activation_type=quantization.QuantType.QUInt8,
                    weight_type=quantization.QuantType.QInt8,
                )
            return path.read_bytes()
        except Exception as error:  # as above
            raise ExportError(f"{type(error).__name__}: {_first_line(error)}") from error


def _kept_in_float(model: "onnx.ModelProto") -> list[str]:
    """Names of the nodes before the first layer with weights, and from the last one on.

    Raises:
        ExportError: there is nothing between them.
    """
    nodes = model.graph.node
    places = [place for place, node in enumerate(nodes) if node.op_type in _WEIGHTED]
    if len(places) < 2:
        raise ExportError("there is no layer but the last one to put into 8 bits")
    return [node.name for node in (*nodes[: places[0]], *nodes[places[-1] :])]


def open_graph(graph: bytes) -> Answer:
    """A graph that answers, by ONNX Runtime on one CPU thread that sleeps while it waits.

    Raises:
        ExportError: there is no ONNX Runtime, as in images of others, or the bytes are no graph that it can run.
    """
    try:
        onnxruntime = _onnx_runtime()
    except ImportError as error:
        raise ExportError(f"ONNX Runtime cannot be imported: {error}") from None
    options = onnxruntime.SessionOptions()
    # Replicas are what uses several cores; threads that wait for work by spinning take it from them.
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    options.log_severity_level = 4  # errors are raised, and need not stand on the terminal, too
    try:
        session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors have no common class
        raise ExportError(f"ONNX Runtime {onnxruntime.__version__} cannot load it: {_first_line(error)}") from error

    def answer(photos: Photos) -> Float[np.ndarray, "batch classes"]:
        (log_probabilities,) = session.run([LOG_PROBABILITIES], {IMAGES: photos})
        probabilities: np.ndarray = np.exp(log_probabilities)
        return probabilities

    return answer


def _onnx_runtime() -> ModuleType:
    """ONNX Runtime, which no other module may import before: its wheels report to Microsoft unless told not to."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read once, as it is imported
    import onnxruntime

    module: ModuleType = onnxruntime
    return module


@contextmanager
def _silent() -> Iterator[None]:
    """Keep to ourselves what the exporter and the quantiser say of their own workings."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "")
