"""Reads a version's weights: strictly, and never executing anything that the file contains."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from mien_server.backends.weights_file import Layout, LoadError, first_names, read_tensors
from mien_server.models.interface import AnyFamily, NoNetwork

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
}
"""Types of a safetensors file that are read."""


def load_network(family: AnyFamily, path: Path) -> nn.Module:
    """The family's network with the weights of a safetensors file, in float32.

    The network is built without storage and takes over the tensors read, so that the weights are in
    memory once.

    Raises:
        LoadError: the file is unreadable or no safetensors file, or its keys, shapes or types are not
            exactly the network's; or the family has no network in PyTorch.
    """
    try:
        with torch.device("meta"):
            network = family.network()
    except NoNetwork as error:
        raise LoadError(
            f"architecture {family.name!r} has no network in PyTorch ({error}): write backend:"
            ' "onnxruntime" in config.pbtxt'
        ) from error
    expected = network.state_dict()
    state = _read(path, expected, family.name)
    network.load_state_dict(state, assign=True)
    return network.requires_grad_(requires_grad=False)


def check_finite(network: nn.Module, explanation: str) -> None:
    """Refuses a network with NaN or infinity among its parameters and buffers.

    Raises:
        LoadError: names them, followed by `explanation`.
    """
    bad = [
        name
        for name, tensor in network.state_dict().items()
        if tensor.is_floating_point() and not torch.isfinite(tensor).all()
    ]
    if bad:
        raise LoadError(f"NaN or infinity in {first_names(bad)}: {explanation}")


def layout_of(state: Mapping[str, Tensor]) -> Layout:
    """What a file must hold to have exactly the tensors of a state_dict."""
    return {key: (tuple(t.shape), t.dtype.is_floating_point) for key, t in state.items()}


def _read(path: Path, expected: dict[str, Tensor], architecture: str) -> dict[str, Tensor]:
    parts = read_tensors(path, layout_of(expected), architecture)
    types = {key: _DTYPES[part["dtype"]] for key, part in parts.items()}
    # Only those of another type are in memory twice.
    return {
        key: torch.frombuffer(parts.pop(key)["data"], dtype=types[key])
        .reshape(tensor.shape)
        .to(tensor.dtype)
        for key, tensor in expected.items()
    }
