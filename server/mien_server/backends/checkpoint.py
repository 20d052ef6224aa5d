"""Reads a version's weights: strictly, and never executing anything that the file contains."""

from pathlib import Path

import torch
from safetensors import SafetensorError, deserialize
from torch import Tensor, nn

from mien_server.backends.weights_file import LoadError, first_names, read_weights
from mien_server.models.interface import AnyFamily, NoNetwork

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
}
"""Types of a safetensors file that are read. Quantised weights would need their scales."""


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


def _read(path: Path, expected: dict[str, Tensor], architecture: str) -> dict[str, Tensor]:
    try:
        parts = dict(deserialize(read_weights(path)))  # type: ignore[no-untyped-call]
    except (OSError, SafetensorError) as error:
        raise LoadError(
            f"{path} cannot be read as safetensors ({error}): import the checkpoint again"
        ) from error
    found = {key: (part["shape"], part["dtype"]) for key, part in parts.items()}
    if problems := differences(found, expected):
        raise LoadError(
            f"{path} does not hold the weights of architecture {architecture!r}"
            f" ({'; '.join(problems)}): check `architecture` in config.pbtxt, or import the"
            " checkpoint again"
        )
    # Each tensor has its bytes for itself, and only those of another type are in memory twice.
    return {
        key: torch.frombuffer(parts.pop(key)["data"], dtype=_DTYPES[found[key][1]])
        .reshape(tensor.shape)
        .to(tensor.dtype)
        for key, tensor in expected.items()
    }


def differences(found: dict[str, tuple[list[int], str]], expected: dict[str, Tensor]) -> list[str]:
    """What distinguishes a checkpoint from a network: one sentence per kind, with counts and names.

    Args:
        found: shape and safetensors' name of the type ("F32") of each tensor, by key.
        expected: the network's own state_dict.
    """
    common = [key for key in expected if key in found]
    kinds = {
        "missing": [key for key in expected if key not in found],
        "unexpected": [key for key in found if key not in expected],
        "misshaped": [
            f"{key} is {found[key][0]}, must be {list(expected[key].shape)}"
            for key in common
            if found[key][0] != list(expected[key].shape)
        ],
        "of another type": [
            f"{key} is {found[key][1]}"
            for key in common
            if not _stands_for(found[key][1], expected[key].dtype)
        ],
    }
    return [f"{len(names)} {kind}: {first_names(names)}" for kind, names in kinds.items() if names]


def _stands_for(name: str, wanted: torch.dtype) -> bool:
    dtype = _DTYPES.get(name)
    return dtype is not None and dtype.is_floating_point == wanted.is_floating_point
