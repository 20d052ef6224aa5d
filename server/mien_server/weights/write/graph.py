"""Gives a new version folder its graph: what its network computes, for a server without PyTorch.

It is an ONNX file that holds no weights but says where in the weights' file each of them is, so that there is
one copy of them, and one fingerprint, whatever runs them. For the networks that mien installs it is made of
one that mien carries, for others PyTorch exports it.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from mien_server.backends.devices import NO_PYTORCH, has_pytorch
from mien_server.backends.openvino import ARCHITECTURE, HEADER, header_digest
from mien_server.backends.weights_file import GRAPH, LoadError, first_names, read_tensors
from mien_server.models.interface import CROP_SIDE, AnyFamily, ArrayF32
from mien_server.models.roles import EMBEDDER
from mien_server.weights.known_graphs import known_graph, layout_of


def write_graph(family: AnyFamily, weights: Path, side: int = CROP_SIDE) -> bool:
    """Writes the graph of a network beside its weights.

    Args:
        family: of the network.
        weights: its safetensors file.
        side: of the crops that an embedder sees, in pixels; detectors take any.

    Returns:
        whether there is one: a network that decides by what it sees which operators to run has none.

    Raises:
        LoadError: the weights are not the network's, or not finite; or PyTorch is needed and not there.
    """
    model = known_graph(family.name)
    model = _exported(family, weights, side) if model is None else _filled(model, family, weights)
    if model is None:
        return False
    _point_into(model, weights)
    for key, value in ((ARCHITECTURE, family.name), (HEADER, header_digest(weights))):
        model.metadata_props.add(key=key, value=value)
    path = weights.with_name(GRAPH)
    path.write_bytes(model.SerializeToString(deterministic=True))
    return True


def _exported(family: AnyFamily, weights: Path, side: int) -> onnx.ModelProto | None:
    """The graph of a network with its weights in it, made with PyTorch."""
    if not has_pytorch():
        raise LoadError(f"no graph of architecture {family.name!r} can be made: {NO_PYTORCH}")
    from mien_server.backends.checkpoint import check_finite, load_network
    from mien_server.weights.write.export import export

    network = load_network(family, weights)
    check_finite(network, _damaged(weights))
    if not getattr(network, "CAPTURABLE", True):
        return None
    size = family.role.inputs[0].dims[1:] if family.role is not EMBEDDER else (side, side)
    return onnx.ModelProto.FromString(export(network, *size))


def _filled(model: onnx.ModelProto, family: AnyFamily, weights: Path) -> onnx.ModelProto:
    """A known graph with the weights in it."""
    parts = read_tensors(weights, layout_of(model), family.name)
    bad = []
    for tensor in model.graph.initializer:
        values = _floats(parts.pop(tensor.name))
        if not np.isfinite(values).all():
            bad.append(tensor.name)
        tensor.raw_data = values.tobytes()
    if bad:
        raise LoadError(f"NaN or infinity in {first_names(bad)}: {_damaged(weights)}")
    return model


def _floats(part: dict[str, Any]) -> ArrayF32:
    """A tensor of a safetensors file in float32, flat."""
    if part["dtype"] == "BF16":  # the upper half of a float32
        return (np.frombuffer(part["data"], "<u2").astype("<u4") << 16).view("<f4")
    types = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}
    return np.frombuffer(part["data"], types[part["dtype"]]).astype("<f4", copy=False)


def _damaged(weights: Path) -> str:
    return f"{weights} is damaged, import the checkpoint again"


def _point_into(model: onnx.ModelProto, weights: Path) -> None:
    """Has a graph refer to a safetensors file for every tensor that stands there as it is."""
    data = weights.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    entries = json.loads(data[8:start])
    for tensor in model.graph.initializer:
        if tensor.name not in entries:
            continue
        low, high = entries[tensor.name]["data_offsets"]
        if data[start + low : start + high] != tensor.raw_data:
            continue  # it stands there in another type
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        where = {"location": weights.name, "offset": start + low, "length": high - low}
        for key, value in where.items():
            tensor.external_data.add(key=key, value=str(value))
