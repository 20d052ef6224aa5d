"""Reads an ONNX file and refuses what must not, or cannot, be run. Nothing of it is executed here."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import numpy_helper

from mien_server.backends.instance import Computes
from mien_server.backends.onnx_prelu import replace_prelu
from mien_server.backends.precision import Precision
from mien_server.backends.weights_file import LoadError, first_names, read_weights

_DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
"""Operators that onnxruntime itself has: quantised graphs use some of com.microsoft's."""
_INT8_OPERATORS = frozenset(
    {"QuantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger"}
)
_FLOATS = {onnx.TensorProto.FLOAT: np.float32, onnx.TensorProto.FLOAT16: np.float16}
_MIN_IR_VERSION = 4


@dataclass(frozen=True, slots=True)
class Graph:
    """An ONNX model that may be run.

    Attributes:
        model: serialised.
        input: the name of its only input, [N, channels, H, W] float32.
        channels: 3 or 1; 0: it does not say.
        batch: rows that it always takes at once; 0: any number.
        height, width: of the only image that it takes; 0: any size.
        precision: what most of it computes in.
    """

    model: bytes
    input: str
    channels: int
    batch: int
    height: int
    width: int
    precision: Computes


def read_graph(path: Path, *, without_prelu: bool = True) -> Graph:
    """Reads and checks a model.

    Args:
        path: of the file.
        without_prelu: whether to replace PReLU by what onnxruntime computes faster.

    Raises:
        LoadError: it is no ONNX model, too large, keeps data in other files, has operators of its own,
            other inputs than one image, or a weight that is not a finite number.
    """
    try:
        model = onnx.ModelProto.FromString(read_weights(path))
    except (OSError, DecodeError) as error:
        raise LoadError(f"{path} cannot be read as ONNX ({error}): import it again") from error
    if not model.graph.node:
        raise LoadError(f"{path} is no ONNX model: its graph is empty")
    _check_operators(path, model)
    for graph in _graphs(model):
        _check_tensors(path, graph)
    _fix_inputs(model)
    if without_prelu:
        replace_prelu(model)
    name, (batch, channels, height, width) = _image_input(path, model.graph)
    serialised = model.SerializeToString()
    return Graph(serialised, name, channels, batch, height, width, _precision(model))


def check_fits(
    path: Path, graph: Graph, precision: Precision, sides: Sequence[int], channels: int = 3
) -> None:
    """Compares a graph with what its configuration asks for.

    Args:
        path: of its file.
        graph: what was read from it.
        precision: to compute in.
        sides: of the square images to expect.
        channels: that they have.

    Raises:
        LoadError: it computes in another precision, or takes no such images.
    """
    _check_precision(path, graph.precision, precision)
    if graph.channels not in (0, channels):
        raise LoadError(
            f"{path} takes images of {graph.channels} channels, and channel_order gives it {channels}:"
            " GREY has one, RGB and BGR have three"
        )
    _check_sides(path, graph, sides)


def _check_precision(weights: Path, found: Computes, wanted: Precision) -> None:
    if wanted in ("auto", found):
        return
    fix = "set precision auto"
    if wanted == "int8":
        fix += ", or quantise it with `mien-server models quantize`"
    raise LoadError(f"precision {wanted} is set, but {weights} computes in {found}: {fix}")


def _check_sides(weights: Path, graph: Graph, sides: Sequence[int]) -> None:
    for side in sides:
        if graph.height not in (0, side) or graph.width not in (0, side):
            fixed = f"{graph.width or 'any'}x{graph.height or 'any'}"
            raise LoadError(
                f"{weights} takes images of {fixed} pixels only, not of {side}x{side}: a detector's"
                " buckets and an analyser's input must be that size, an embedder must take crops of 112x112"
            )


def _check_operators(path: Path, model: onnx.ModelProto) -> None:
    own = {function.domain for function in model.functions}
    nodes = [node for graph in _graphs(model) for node in graph.node]
    if any(node.op_type == "Loop" for node in nodes):
        raise LoadError(
            f"{path} has a loop, which may never end: no network of this kind needs one"
        )
    if foreign := sorted({node.domain for node in nodes} - own - _DOMAINS):
        raise LoadError(
            f"{path} needs operators of {', '.join(foreign)}: only those of ONNX and onnxruntime run here"
        )


def _check_tensors(path: Path, graph: onnx.GraphProto | onnx.FunctionProto) -> None:
    bad = []
    for tensor in _tensors(graph):
        if tensor.external_data or tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise LoadError(
                f"{path} keeps tensor {tensor.name!r} in another file: export it in one, by"
                " torch.onnx.export(…, external_data=False) or onnx.save(onnx.load(old), new), and import it"
            )
        if tensor.data_type not in _FLOATS:
            continue
        try:
            values = numpy_helper.to_array(tensor)
        except (ValueError, TypeError) as error:
            raise LoadError(f"{path}: tensor {tensor.name!r} is malformed: {error}") from error
        if not np.isfinite(values).all():
            bad.append(tensor.name)
    if bad:
        raise LoadError(
            f"NaN or infinity in {first_names(bad)}: {path} is damaged, import it again"
        )


def _fix_inputs(model: onnx.ModelProto) -> None:
    """Leaves only what a run must be given: older exporters list weights as inputs, quantisers old ones."""
    weights = {tensor.name for tensor in model.graph.initializer}
    read = {name for graph in _graphs(model) for node in graph.node for name in node.input}
    inputs = [each for each in model.graph.input if each.name in read - weights]
    if len(inputs) < len(model.graph.input):
        del model.graph.input[:]
        model.graph.input.extend(inputs)
        # Before version 4 of the format, weights had to be listed.
        model.ir_version = max(model.ir_version, _MIN_IR_VERSION)


def _image_input(path: Path, graph: onnx.GraphProto) -> tuple[str, tuple[int, int, int, int]]:
    """The input's name, and batch, channels, height and width where they are fixed, else 0."""
    if len(graph.input) == 1:
        tensor = graph.input[0].type.tensor_type
        dims = [max(dim.dim_value, 0) for dim in tensor.shape.dim]
        if tensor.elem_type == onnx.TensorProto.FLOAT and len(dims) == 4 and dims[1] in (0, 1, 3):
            batch, channels, height, width = dims
            return graph.input[0].name, (batch, channels, height, width)
    found = ", ".join(_described(each) for each in graph.input) or "none"
    raise LoadError(
        f"{path} takes {found}; it must take one image, float32 [N, 3, H, W], or [N, 1, H, W] of grey"
    )


def _described(value: onnx.ValueInfoProto) -> str:
    tensor = value.type.tensor_type
    dims = ", ".join(str(dim.dim_value or dim.dim_param or "?") for dim in tensor.shape.dim)
    kind = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
    return f"{value.name} {kind} [{dims}]"


def _precision(model: onnx.ModelProto) -> Computes:
    operators = {node.op_type for graph in _graphs(model) for node in graph.node}
    if operators & _INT8_OPERATORS:
        return "int8"
    counts: dict[int, int] = dict.fromkeys(_FLOATS, 0)
    for tensor in model.graph.initializer:
        if tensor.data_type in counts:
            counts[tensor.data_type] += math.prod(tensor.dims)
    half, single = counts[onnx.TensorProto.FLOAT16], counts[onnx.TensorProto.FLOAT]
    return "fp16" if half > single else "fp32"


def _graphs(model: onnx.ModelProto) -> Iterator[onnx.GraphProto | onnx.FunctionProto]:
    """The graph, the functions that it may call, and the branches and loop bodies in any of them."""
    waiting: list[onnx.GraphProto | onnx.FunctionProto] = [model.graph, *model.functions]
    while waiting:
        graph = waiting.pop()
        yield graph
        for node in graph.node:
            for attribute in node.attribute:
                waiting += attribute.graphs
                if attribute.HasField("g"):
                    waiting.append(attribute.g)


def _tensors(graph: onnx.GraphProto | onnx.FunctionProto) -> Iterator[onnx.TensorProto]:
    """The weights of a graph and the constants in its nodes."""
    if isinstance(graph, onnx.GraphProto):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)
