"""Reads a version's weights: strictly, and never executing anything that the file contains."""

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from mien_server.models.interface import Family, NoNetwork

_NAMES_SHOWN = 8
_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
"""Types of a safetensors file that float32 can stand for. Quantised ones would need their scales."""


class LoadError(Exception):
    """A version that cannot be loaded; the message says what is wrong with it and what to do."""


def load_network(family: Family, path: Path) -> nn.Module:
    """The family's network with the weights of a safetensors file, in float32.

    The network is built without storage and takes over the tensors read, so that the weights are in
    memory once; nothing keeps the file mapped.

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
        with safe_open(path, framework="pt") as file:
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 - no mapping
            found = {key: (part.get_shape(), part.get_dtype()) for key, part in slices.items()}
            problems = differences(found, expected)
            if problems:
                raise LoadError(
                    f"{path} does not hold the weights of architecture {architecture!r}"
                    f" ({'; '.join(problems)}): check `architecture` in config.pbtxt, or import the"
                    " checkpoint again"
                )
            # The tensors lie in the mapped file: converted or copied, they outlive it.
            return {
                key: file.get_tensor(key).to(tensor.dtype, copy=True)
                for key, tensor in expected.items()
            }
    except (OSError, SafetensorError) as error:
        raise LoadError(
            f"{path} cannot be read as safetensors ({error}): import the checkpoint again"
        ) from error


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
            if (found[key][1] in _FLOATS) != expected[key].is_floating_point()
        ],
    }
    return [f"{len(names)} {kind}: {first_names(names)}" for kind, names in kinds.items() if names]


def first_names(names: Sequence[str]) -> str:
    """The first of many names, and how many more there are."""
    more = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
