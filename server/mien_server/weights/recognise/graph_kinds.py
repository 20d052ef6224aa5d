"""The networks that are known by their ONNX graph.

To recognise another one, write a function like those here and add it to `GRAPHS`.
"""

import math
import re
from collections.abc import Callable
from pathlib import Path

import onnx
from onnx import shape_inference

from mien_server.models.interface import CROP_SIDE, Normalisation
from mien_server.weights.recognise.recognised import (
    ARCFACE_INPUT,
    INSIGHTFACE_LICENSE,
    NO_LICENSE,
    Recognised,
)
from mien_server.weights.recognise.ulfd_graph import ulfd

_SCRFD_INPUT = Normalisation("RGB", (127.5, 127.5, 127.5), 1 / 128)
_YUNET_INPUT = Normalisation("BGR", (0, 0, 0), 1)

_MIN_DIMENSIONS = 64
"""Networks on faces with fewer outputs tell age, gender or expression."""
_INSIGHTFACE = re.compile(r"w600k_|glintr|ms1mv|webface", re.IGNORECASE)
"""What the files of InsightFace's embedders are called. Others are somebody's own, of whatever licence."""
_SCRFD_OUTPUTS = [1] * 3 + [4] * 3 + [10] * 3
"""The last dimensions of scores, boxes and landmarks for each of the three strides."""
_YUNET_OUTPUTS = [1] * 6 + [4] * 3 + [10] * 3
"""Likewise of YuNet's, which has two kinds of scores."""


def embedder(graph: onnx.GraphProto, path: Path) -> Recognised | None:
    """Any network from one aligned crop to one embedding, such as InsightFace's w600k_mbf.onnx."""
    return embedder_of(graph, path) if _crop_side(graph) == CROP_SIDE else None


def embedder_of(graph: onnx.GraphProto, path: Path) -> Recognised | None:
    """A network from a square crop of any side to one embedding, which somebody says it is."""
    side = _crop_side(graph)
    if not side:
        return None
    inputs, outputs = _signature(graph)
    (shape,), (output,) = inputs.values(), outputs.values()
    # InsightFace's older graphs subtract and multiply themselves.
    own = {"Sub", "Mul"} <= {node.op_type for node in graph.node[:8]}
    return _onnx(
        "embedder",
        graph,
        path,
        title=f"an ONNX embedder of {output[1]} dimensions",
        normalisation=Normalisation("RGB", (0, 0, 0), 1) if own else ARCFACE_INPUT,
        dimensions=output[1],
        batch=max(shape[0], 0),
        side=side,
        license_=INSIGHTFACE_LICENSE if _INSIGHTFACE.match(path.name) else NO_LICENSE,
    )


def scrfd(graph: onnx.GraphProto, path: Path) -> Recognised | None:
    """InsightFace's SCRFD detectors with landmarks, such as det_10g.onnx and det_500m.onnx."""
    return _detector(
        "scrfd",
        graph,
        path,
        _SCRFD_OUTPUTS,
        title="an SCRFD detector with landmarks",
        normalisation=_SCRFD_INPUT,
        license_=INSIGHTFACE_LICENSE,
    )


def yunet(graph: onnx.GraphProto, path: Path) -> Recognised | None:
    """The OpenCV Zoo's YuNet, face_detection_yunet_2023mar.onnx."""
    return _detector(
        "yunet",
        graph,
        path,
        _YUNET_OUTPUTS,
        title="a YuNet detector",
        normalisation=_YUNET_INPUT,
        license_="MIT",
    )


def _detector(
    architecture: str,
    graph: onnx.GraphProto,
    path: Path,
    last_dims: list[int],
    *,
    title: str,
    normalisation: Normalisation,
    license_: str,
) -> Recognised | None:
    """A detector on square canvases, told by the last dimensions of its outputs, ascending."""
    inputs, outputs = _signature(graph)
    if len(inputs) != 1 or sorted(shape[-1] for shape in outputs.values() if shape) != last_dims:
        return None
    (shape,) = inputs.values()
    if len(shape) != 4 or shape[1] != 3 or shape[2] != shape[3]:
        return None
    return _onnx(
        architecture,
        graph,
        path,
        title=title,
        normalisation=normalisation,
        batch=max(shape[0], 0),
        side=max(shape[2], 0),
        license_=license_,
    )


def named(graph: onnx.GraphProto, path: Path, architecture: str) -> Recognised | None:
    """A graph on images that somebody says is of this family, or None where those here would know it."""
    inputs, _ = _signature(graph)
    if len(inputs) != 1 or architecture in ("embedder", "scrfd", "yunet", "ulfd"):
        return None
    (shape,) = inputs.values()
    if len(shape) != 4 or shape[1] != 3:
        return None
    return _onnx(
        architecture,
        graph,
        path,
        title=f"a graph for architecture {architecture!r}",
        normalisation=None,
        batch=max(shape[0], 0),
        license_=NO_LICENSE,
    )


GRAPHS: tuple[Callable[[onnx.GraphProto, Path], Recognised | None], ...] = (
    embedder,
    scrfd,
    yunet,
    ulfd,
)
"""Each looks at an ONNX graph and its file. A new model becomes what the first one recognises, if
`iresnet_graph` does not."""


def unknown_graph(graph: onnx.GraphProto) -> str:
    """What to say of a graph that none of them recognises."""
    inputs, outputs = (
        ", ".join(f"{name} {shape}" for name, shape in tensors.items())
        for tensors in _signature(graph)
    )
    hint = (
        " If it is an embedder, say by --window which part of the aligned face it sees"
        if _crop_side(graph)
        else ""
    )
    return (
        f"its graph takes {inputs} and gives {outputs}: neither an embedder ([N, 3, 112, 112] to [N, D])"
        " nor an SCRFD detector with landmarks (nine outputs) nor a YuNet (twelve) nor a ULFD (two)."
        f" InsightFace's landmark and age-and-gender models have no use here.{hint}"
    )


def _onnx(
    architecture: str,
    graph: onnx.GraphProto,
    path: Path,
    *,
    title: str,
    normalisation: Normalisation | None,
    batch: int,
    license_: str,
    side: int = 0,
    dimensions: int = 0,
) -> Recognised:
    return Recognised(
        title=title,
        backend="onnxruntime",
        architecture=architecture,
        weights=path,
        tensors=len(graph.initializer),
        parameters=sum(math.prod(tensor.dims) for tensor in graph.initializer),
        normalisation=normalisation,
        license=license_,
        dimensions=dimensions,
        batch=batch,
        side=side,
        notes=(f"its graph always takes {batch} at once",) if batch else (),
    )


def with_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model, its shapes inferred where its outputs do not say theirs."""
    shapes = [_shape(output) for output in model.graph.output]
    if all(shape and shape[-1] > 0 for shape in shapes):
        return model
    inferred: onnx.ModelProto = shape_inference.infer_shapes(model)
    return inferred


def _crop_side(graph: onnx.GraphProto) -> int:
    """The side of the crops of which a graph may make embeddings; 0 if it cannot be one that does."""
    inputs, outputs = _signature(graph)
    match [*inputs.values()], [*outputs.values()]:
        case [[_, 3, height, width]], [[_, dimensions]]:
            return height if height == width > 0 and dimensions >= _MIN_DIMENSIONS else 0
    return 0


def _signature(graph: onnx.GraphProto) -> tuple[dict[str, list[int]], dict[str, list[int]]]:
    """Names and shapes of the inputs and outputs; a dimension of any size is -1."""
    # Older exporters list weights among the inputs, quantisers some that nothing reads.
    given = {name for node in graph.node for name in node.input}
    given -= {tensor.name for tensor in graph.initializer}
    inputs = {each.name: _shape(each) for each in graph.input if each.name in given}
    return inputs, {each.name: _shape(each) for each in graph.output}


def _shape(value: onnx.ValueInfoProto) -> list[int]:
    return [
        dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else -1
        for dim in value.type.tensor_type.shape.dim
    ]
