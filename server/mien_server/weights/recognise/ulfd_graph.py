"""ULFD's graphs, made to see canvases of any size: what decodes their boxes for one size is taken out.

The public graphs (Linzaer's version-RFB-320.onnx, version-slim-640.onnx and so on, and copies of them) end
in eight convolutions, two for each of four grids, whose values stand side by side in two tensors. What
follows has the priors of one size of canvas in it. It is left out here, and `models.ulfd` does it for any
size.

Where that size is no multiple of a grid's step, the graphs were trained with priors that do not lie where
the network looks: they are spread over the canvas, 60 pixels apart where its points are 64 apart (of 240),
and none is larger than the canvas. The last convolutions learnt to make up for that by what is right in the
middle of the canvas, wherever the face is; so as much is added to their biases. Without it, RFB-320 puts
faces of more than 60 pixels on square canvases of 320 too low, by 8 % of their height, against where it
sees them on one of 320x240; with it, too high by 1.5 %.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from mien_server.models.interface import ArrayF32, Normalisation
from mien_server.models.ulfd import CENTRE, SIDES, SIZE, priors
from mien_server.weights.errors import WeightsError
from mien_server.weights.recognise.graph_builder import IR_VERSION, finished
from mien_server.weights.recognise.onnx_weights import Array, constants
from mien_server.weights.recognise.recognised import Recognised

_INPUT = Normalisation("RGB", (127, 127, 127), 1 / 128)
_BUCKETS = (320, 640)
"""Of faces beyond its largest prior it finds parts, too: on larger canvases that are whole portraits."""
_SCORES, _BOXES = 2, 4
"""Values for each prior."""
_BODY = {"Conv", "Relu", "BatchNormalization", "Concat", "Add", "Mul", "Constant", "Identity"}
"""Operators that see canvases of any size, and are the same in every version of ONNX since they look so."""
_NHWC = (0, 2, 3, 1)
_TOLERANCE = 1e-4
"""Of boxes in units of the canvas."""


class _Parts(NamedTuple):
    """A graph by what is looked at here.

    Attributes:
        input: the name of the canvases.
        height, width: theirs, in pixels; -1: any.
        outputs: names, of the scores and of the boxes.
        makers: the node that gives each tensor.
        values: constants by name.
    """

    input: str
    height: int
    width: int
    outputs: tuple[str, str]
    makers: Mapping[str, onnx.NodeProto]
    values: Mapping[str, Array]


class _Heads(NamedTuple):
    """The convolutions that give values of all priors, one for each grid, and the tensor that joins them."""

    convolutions: list[onnx.NodeProto]
    joined: str


def ulfd(graph: onnx.GraphProto, path: Path) -> Recognised | None:  # noqa: ARG001 - as of other kinds
    """Linzaer's ULFD, RFB and slim, such as version-RFB-320.onnx, decoded or not."""
    try:
        weights = of_any_size(graph)
    except WeightsError:
        return None
    kept = onnx.ModelProto.FromString(weights).graph.initializer
    return Recognised(
        title="a ULFD detector, which places no landmarks",
        backend="onnxruntime",
        architecture="ulfd",
        weights=weights,
        tensors=len(kept),
        parameters=sum(math.prod(tensor.dims) for tensor in kept),
        normalisation=_INPUT,
        license="MIT",
        landmarks=False,
        buckets=_BUCKETS,
        notes=("what decodes its boxes was taken out of the graph, which now sees any canvas",),
    )


def read_ulfd(data: bytes) -> bytes:
    """As `of_any_size`, of an ONNX file.

    Raises:
        WeightsError: it is none, or another graph.
    """
    try:
        return of_any_size(onnx.ModelProto.FromString(data).graph)
    except DecodeError as error:
        raise WeightsError(f"the detector's graph is no ONNX file: {error}") from error


def of_any_size(graph: onnx.GraphProto) -> bytes:
    """The same network, from canvases [N, 3, H, W] to probabilities [N, P, 2] and offsets [N, P, 4].

    H and W are multiples of 32. On a canvas of the given graph's size the probabilities are the same, and the
    boxes, decoded by `models.ulfd`, but for how far priors lie from where they would be in the middle.

    Raises:
        WeightsError: it is another graph, or its priors are others than ULFD's.
    """
    parts = _parts(graph)
    scores, boxes = (_heads(graph, parts, values) for values in (_SCORES, _BOXES))
    _check_scores(graph, parts, scores.joined)
    _check_boxes(graph, parts, boxes.joined)
    ends = [node.output[0] for node in (*scores.convolutions, *boxes.convolutions)]
    body = _between(graph, parts, ends)
    if others := sorted({node.op_type for node in body} - _BODY):
        raise WeightsError(f"its layers are not ULFD's: {', '.join(others)}")
    weights = {
        name: parts.values[name] for node in body for name in node.input if name in parts.values
    }
    if parts.height > 0:
        for node, (step, sides) in zip(boxes.convolutions, SIDES.items(), strict=True):
            _make_up(node, step, sides, parts, weights)
    return _model(parts.input, body, weights, scores.convolutions, boxes.convolutions)


def _parts(graph: onnx.GraphProto) -> _Parts:
    makers = {name: node for node in graph.node for name in node.output}
    values = constants(graph) | {
        node.output[0]: numpy_helper.to_array(node.attribute[0].t)
        for node in graph.node
        if node.op_type == "Constant" and node.attribute[0].HasField("t")
    }
    inputs = [each for each in graph.input if each.name not in values]
    shapes = [_dims(each) for each in (*inputs, *graph.output)]
    match shapes:
        case [[_, 3, height, width], [_, _, a], [_, _, b]] if {a, b} == {_SCORES, _BOXES}:
            names = {_dims(each)[-1]: each.name for each in graph.output}
            return _Parts(
                inputs[0].name, height, width, (names[_SCORES], names[_BOXES]), makers, values
            )
    raise WeightsError("it has not the two outputs of ULFD, [N, P, 2] and [N, P, 4]")


def _dims(value: onnx.ValueInfoProto) -> list[int]:
    """A tensor's shape; -1: any size."""
    return [dim.dim_value or -1 for dim in value.type.tensor_type.shape.dim]


def _heads(graph: onnx.GraphProto, parts: _Parts, values: int) -> _Heads:
    """Those that give so many values for each prior."""
    wanted = [len(sides) * values for sides in SIDES.values()]
    for node in graph.node:
        if node.op_type != "Concat" or len(node.input) != len(wanted):
            continue
        convolutions = [_convolution(parts, name) for name in node.input]
        if [_channels(parts, each) for each in convolutions] == wanted:
            return _Heads([each for each in convolutions if each], node.output[0])
    raise WeightsError(f"it has not the four convolutions of ULFD that give {values} values each")


def _convolution(parts: _Parts, name: str) -> onnx.NodeProto | None:
    """The one whose channels a tensor has, put last and reshaped."""
    for operator in ("Reshape", "Transpose"):
        node = parts.makers.get(name)
        if node is None or node.op_type != operator:
            return None
        if operator == "Transpose" and tuple(_attribute(node, "perm")) != _NHWC:
            return None
        name = node.input[0]
    node = parts.makers.get(name)
    return node if node is not None and node.op_type == "Conv" else None


def _channels(parts: _Parts, node: onnx.NodeProto | None) -> int:
    """How many a convolution with known weights and bias gives; 0 of any other."""
    if node is None or len(node.input) != 3 or any(n not in parts.values for n in node.input[1:]):
        return 0
    return int(parts.values[node.input[1]].shape[0])


def _attribute(node: onnx.NodeProto, name: str) -> Sequence[int]:
    return next((each.ints for each in node.attribute if each.name == name), ())


def _between(
    graph: onnx.GraphProto, parts: _Parts, ends: Iterable[str], start: str = ""
) -> list[onnx.NodeProto]:
    """The nodes that lead to tensors, in order; from one on, if it is named."""
    wanted, kept = set(ends), set()
    while wanted:
        name = wanted.pop()
        if name != start and name in parts.makers and name not in kept:
            kept.add(name)
            wanted.update(parts.makers[name].input)
    return [node for node in graph.node if not kept.isdisjoint(node.output)]


def _tail(graph: onnx.GraphProto, parts: _Parts, start: str, end: str, given: ArrayF32) -> Array:
    """What a graph makes of values [1, P, n] of a tensor on the way to an output."""
    nodes = _between(graph, parts, [end], start)
    if not nodes:
        return given
    read = {name for node in nodes for name in node.input}
    part = helper.make_graph(
        nodes,
        "tail",
        [helper.make_tensor_value_info(start, TensorProto.FLOAT, given.shape)],
        [helper.make_tensor_value_info(end, TensorProto.FLOAT, None)],
        [tensor for tensor in graph.initializer if tensor.name in read],
    )
    # What the graph was made for is not known here: its Slice and Softmax tell by how they look.
    inside = any(len(each.input) > 1 for each in nodes if each.op_type == "Slice")
    model = helper.make_model(
        part, opset_imports=[helper.make_opsetid("", 13 if inside else 9)], ir_version=IR_VERSION
    )
    try:
        return np.asarray(next(iter(ReferenceEvaluator(model).run([end], {start: given}))))
    except Exception as error:  # whatever operators that ULFD has not do
        raise WeightsError(f"what follows its convolutions is not ULFD's: {error}") from error


def _check_scores(graph: onnx.GraphProto, parts: _Parts, joined: str) -> None:
    """Raises WeightsError unless the scores are the softmax of the convolutions' values, or these."""
    given = _some(_count(parts), _SCORES)
    found = _tail(graph, parts, joined, parts.outputs[0], given)
    powers = np.exp(given)
    shares = powers / powers.sum(axis=2, keepdims=True)
    if not any(_equal(found, wanted) for wanted in (shares, given)):
        raise WeightsError("its scores are not made as ULFD's are")


def _check_boxes(graph: onnx.GraphProto, parts: _Parts, joined: str) -> None:
    """Raises WeightsError unless the boxes are decoded by ULFD's priors, or not at all."""
    given = _some(_count(parts), _BOXES)
    found = _tail(graph, parts, joined, parts.outputs[1], given)
    if _equal(found, given):
        return
    if parts.height < 0:
        raise WeightsError("it decodes boxes of canvases of any size, as no ULFD does")
    centres, sizes = trained_priors(parts.height, parts.width)
    middle = centres + given[..., :2] * CENTRE * sizes
    half = np.exp(given[..., 2:] * SIZE) * sizes / 2
    if not _equal(found, np.concatenate([middle - half, middle + half], axis=2)):
        raise WeightsError("its priors are others than ULFD's")


def trained_priors(height: int, width: int) -> tuple[ArrayF32, ArrayF32]:
    """Centres and sizes [P, 2] of the priors that ULFD was trained with, in units of the canvas."""
    centres, sizes = [], []
    for step, sides in SIDES.items():
        down, across = (
            (np.arange(count) + 0.5) / count for count in (-(-height // step), -(-width // step))
        )
        y, x, side = np.meshgrid(down, across, np.array(sides), indexing="ij")
        centres.append(np.stack([x, y], axis=-1).reshape(-1, 2))
        sizes.append(np.stack([side / width, side / height], axis=-1).reshape(-1, 2))
    whole = np.minimum(np.concatenate(sizes), 1)
    return np.concatenate(centres).astype(np.float32), whole.astype(np.float32)


def _count(parts: _Parts) -> int:
    """How many priors its canvases have."""
    return len(priors(*((240, 320) if parts.height < 0 else (parts.height, parts.width))))


def _some(count: int, values: int) -> ArrayF32:
    """Values [1, count, values] as a network might give them."""
    return np.random.default_rng(0).standard_normal((1, count, values)).astype(np.float32)


def _equal(found: Array, wanted: Array) -> bool:
    return found.shape == wanted.shape and bool(np.allclose(found, wanted, 0, _TOLERANCE))


def _make_up(
    node: onnx.NodeProto, step: int, sides: Sequence[int], parts: _Parts, weights: dict[str, Array]
) -> None:
    """Has a convolution give offsets from `models.ulfd.priors`, not from those that it was trained with."""
    weight, bias = (weights[name].copy() for name in node.input[1:])
    for number, side in enumerate(sides):
        for axis, size in enumerate((parts.width, parts.height)):
            share = min(1.0, size / side)
            beyond = -(-size // step) * step - size
            centre = number * _BOXES + axis
            weight[centre] *= share
            bias[centre] = bias[centre] * share - beyond / 2 / (CENTRE * side)
            bias[centre + 2] += math.log(share) / SIZE
    weights |= dict(zip(node.input[1:], (weight, bias), strict=True))


def _model(
    canvases: str,
    body: list[onnx.NodeProto],
    weights: dict[str, Array],
    scores: Sequence[onnx.NodeProto],
    boxes: Sequence[onnx.NodeProto],
) -> bytes:
    nodes, added = list(body), {}
    for convolutions, values in ((scores, _SCORES), (boxes, _BOXES)):
        shape = f"of {values}"
        added[shape] = np.array([0, -1, values], np.int64)
        rows = []
        for node in convolutions:
            last = f"{node.output[0]} last"
            rows.append(f"{node.output[0]} rows")
            nodes.append(helper.make_node("Transpose", [node.output[0]], [last], perm=_NHWC))
            nodes.append(helper.make_node("Reshape", [last, shape], [rows[-1]]))
        nodes.append(helper.make_node("Concat", rows, [f"all {values}"], axis=1))
    nodes.append(helper.make_node("Softmax", [f"all {_SCORES}"], ["scores"], axis=2))
    nodes.append(helper.make_node("Identity", [f"all {_BOXES}"], ["offsets"]))
    constant = {node.output[0] for node in body if node.op_type == "Constant"}
    graph = helper.make_graph(
        nodes,
        "ulfd",
        [helper.make_tensor_value_info(canvases, TensorProto.FLOAT, ["n", 3, "h", "w"])],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", "p", values])
            for name, values in (("scores", _SCORES), ("offsets", _BOXES))
        ],
        [
            numpy_helper.from_array(np.ascontiguousarray(value), name)
            for name, value in (weights | added).items()
            if name not in constant
        ],
    )
    return finished(graph)
