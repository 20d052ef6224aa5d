"""Gives a new version folder its graph: what its network computes, for a server without PyTorch.

It is an ONNX file that holds no weights but says where in the weights' file each of them is, so that there is
one copy of them, and one fingerprint, whatever runs them.
"""

import io
import json
import warnings
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from mien_server.backends.checkpoint import check_finite, load_network
from mien_server.backends.openvino import ARCHITECTURE, HEADER, header_digest
from mien_server.backends.weights_file import GRAPH
from mien_server.models.interface import AnyFamily

_OPSET = 17
_TRACED_SIDE = 160
"""Of a picture that stands for pictures of all sizes while a network is traced that takes any."""


def write_graph(family: AnyFamily, weights: Path) -> bool:
    """Writes the graph of a network beside its weights.

    Args:
        family: of the network.
        weights: its safetensors file.

    Returns:
        whether there is one: a network that decides by what it sees which operators to run has none.

    Raises:
        LoadError: the weights are not the network's, or not finite.
    """
    network = load_network(family, weights)
    check_finite(network, f"{weights} is damaged, import the checkpoint again")
    if not getattr(network, "CAPTURABLE", True):
        return False
    model = onnx.ModelProto.FromString(export(network, *family.role.inputs[0].dims[1:]))
    _point_into(model, weights)
    for key, value in ((ARCHITECTURE, family.name), (HEADER, header_digest(weights))):
        model.metadata_props.add(key=key, value=value)
    path = weights.with_name(GRAPH)
    path.write_bytes(model.SerializeToString(deterministic=True))
    return True


def export(network: nn.Module, height: int, width: int, *, folded: bool = False) -> bytes:
    """A network, [N, 3, H, W] to its outputs, as an ONNX graph of any batch size.

    Args:
        network: in eval mode.
        height, width: of the only images that it takes, in pixels; -1: it takes any.
        folded: whether constants may be computed and layers be merged, so that the weights are no longer
            the network's.
    """
    pixels = _pictures(2, height, width, _TRACED_SIDE)
    others = _pictures(3, height, width, 2 * _TRACED_SIDE)
    outputs, other_outputs = _outputs(network, pixels), _outputs(network, others)
    names = [f"output{index}" for index in range(len(outputs))]
    pairs = zip(["pixels", *names], [pixels, *outputs], [others, *other_outputs], strict=True)
    file = io.BytesIO()
    with warnings.catch_warnings(), torch.inference_mode():
        # The exporter that replaces this one needs a package of its own and makes the same graph.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (pixels,),
            file,  # type: ignore[arg-type]  # this exporter takes files, too
            dynamo=False,
            input_names=["pixels"],
            output_names=names,
            dynamic_axes={name: _varying(one, other) for name, one, other in pairs},
            opset_version=_OPSET,
            training=torch.onnx.TrainingMode.EVAL if folded else torch.onnx.TrainingMode.PRESERVE,
            do_constant_folding=folded,
        )
    return file.getvalue()


def _pictures(count: int, height: int, width: int, side: int) -> Tensor:
    """Black pictures, of any side if the network takes any."""
    return torch.zeros(count, 3, side if height < 0 else height, side if width < 0 else width)


def _outputs(network: nn.Module, pixels: Tensor) -> list[Tensor]:
    with torch.inference_mode():
        found = network(pixels)
    return list(found) if isinstance(found, tuple) else [found]


def _varying(one: Tensor, other: Tensor) -> dict[int, str]:
    """Names for the axes along which two runs' tensors differ in size, the batch's among them."""
    sizes = enumerate(zip(one.shape, other.shape, strict=True))
    return {axis: f"axis{axis}" for axis, (a, b) in sizes if a != b}


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
