"""Post-training static quantisation of a graph to 8 bits: weights by channel, activations by calibration.

Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference", arXiv:1712.05877. Convolutions but the first, and matrix products, compute in int8 (weights
signed and symmetric, activations unsigned), everything between them in float32.
"""

import contextlib
import io
import tempfile
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnxruntime
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)

from mien_server.backends.onnx_prelu import replace_prelu
from mien_server.models.interface import ArrayF32

_OPERATORS = ["Conv", "Gemm", "MatMul"]
_PERCENTILE = 99.999
"""The share of an activation's values, in percent, that its 256 steps span; the rest is cut off.

docs/backends.md has the figures.
"""
_ERRORS_ONLY = 3


def quantise_graph(model: bytes, pixels: ArrayF32, batch: int) -> bytes:
    """The graph in int8.

    Args:
        model: a serialised graph in float32 with one input.
        pixels: what to calibrate on, [n, 3, H, W]: inputs of the graph, as varied as they will be.
        batch: rows that the graph takes at once, which must divide n; 0: any number.
    """
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        simple, result = Path(folder) / "simple.onnx", Path(folder) / "int8.onnx"
        prepared = _folded(model, simple)
        first = _first_convolution(prepared)
        onnx.save(prepared, simple)
        quantize_static(
            simple,
            result,
            _Pixels(pixels, batch or 1),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=_OPERATORS,
            nodes_to_exclude=first,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.Percentile,
            # A step at a time: the activations of all of them would fill the memory.
            extra_options={"CalibPercentile": _PERCENTILE, "CalibStridedMinMax": 1},
        )
        return result.read_bytes()


class _Pixels(CalibrationDataReader):  # type: ignore[misc]  # untyped
    """Hands out some rows at a time."""

    def __init__(self, pixels: ArrayF32, batch: int) -> None:
        self._pixels = pixels.reshape(-1, batch, *pixels.shape[1:])
        self._waiting: Iterator[ArrayF32] = iter(self._pixels)

    def __len__(self) -> int:
        return len(self._pixels)

    def set_range(self, start_index: int, end_index: int) -> None:
        """From now on, hands out these steps."""
        self._waiting = iter(self._pixels[start_index:end_index])

    def get_next(self) -> dict[str, ArrayF32] | None:
        """The next input, or None at the end."""
        rows = next(self._waiting, None)
        return None if rows is None else {PIXELS: rows}


PIXELS = "pixels"
"""What the input of a quantised graph is called."""


def _folded(model: bytes, scratch: Path) -> onnx.ModelProto:
    """The graph with its constants computed, batch norms in the convolutions before them, and no PReLU."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(scratch)
    onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    folded = onnx.load(scratch)
    replace_prelu(folded)
    # Or the quantiser advises to do just this.
    folded.metadata_props.add(key="onnx.quant.pre_process", value="onnxruntime.quant")
    (pixels,) = folded.graph.input
    for node in folded.graph.node:
        for index, name in enumerate(node.input):
            if name == pixels.name:
                node.input[index] = PIXELS
    pixels.name = PIXELS
    return folded


def _first_convolution(model: onnx.ModelProto) -> list[str]:
    """Its name; it is given one if need be. With three input channels int8 is no faster, and loses most."""
    for index, node in enumerate(model.graph.node):
        node.name = node.name or f"node_{index}"
    return [node.name for node in model.graph.node if node.op_type == "Conv"][:1]
