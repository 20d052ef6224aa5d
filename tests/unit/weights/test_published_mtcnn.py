"""A package that does not carry MTCNN's three checkpoints is refused, and nothing of it runs."""

import io
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mien_server.models.families import find_family
from mien_server.weights.errors import WeightsError
from mien_server.weights.fetch.published_mtcnn import read_facenet_mtcnn

NAMES = ("pnet", "rnet", "onet")
Members = dict[str, bytes]


def saved(value: Any, *, zipped: bool = False) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def wheel_of(folder: Path, members: Mapping[str, bytes]) -> Path:
    wheel = folder / "package-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(f"facenet_pytorch/data/{name}.pt", data)
    return wheel


@pytest.fixture
def states() -> dict[str, dict[str, torch.Tensor]]:
    """The state_dicts of three networks with random weights."""
    network = find_family("mtcnn").network()
    return {name: dict(network.get_submodule(name).state_dict()) for name in NAMES}


@pytest.mark.parametrize("zipped", [False, True])
def test_every_tensor_lands_under_its_key(
    tmp_path: Path, states: dict[str, dict[str, torch.Tensor]], zipped: bool
) -> None:
    wheel = wheel_of(tmp_path, {n: saved(s, zipped=zipped) for n, s in states.items()})
    state = read_facenet_mtcnn(wheel)
    expected = {f"{n}.{key}": tensor for n, s in states.items() for key, tensor in s.items()}
    assert state.keys() == expected.keys()
    for key, tensor in expected.items():
        assert np.array_equal(state[key], tensor.numpy()), key
    assert state.keys() == find_family("mtcnn").network().state_dict().keys()


def missing_key(state: dict[str, Any]) -> None:
    del state["conv3.bias"]


def left_over_key(state: dict[str, Any]) -> None:
    state["dense9.weight"] = torch.zeros(1)


def misshaped(state: dict[str, Any]) -> None:
    state["dense4.weight"] = torch.zeros(128, 575)


def not_finite(state: dict[str, Any]) -> None:
    state["conv2.weight"][0, 0, 0, 0] = torch.nan


def half_precision(state: dict[str, Any]) -> None:
    state["conv2.weight"] = state["conv2.weight"].half()


def not_a_tensor(state: dict[str, Any]) -> None:
    state["conv2.weight"] = [1.0, 2.0]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (missing_key, r"rnet\.conv3\.bias missing or left over"),
        (left_over_key, r"rnet\.dense9\.weight missing or left over"),
        (misshaped, r"rnet\.dense4\.weight is \(128, 575\), must be \(128, 576\)"),
        (not_finite, r"rnet\.conv2\.weight is not finite"),
        (half_precision, r"rnet\.pt is no state_dict of float32 tensors"),
        (not_a_tensor, r"rnet\.pt is no state_dict of float32 tensors"),
    ],
)
def test_a_checkpoint_that_is_not_the_networks_is_refused(
    tmp_path: Path,
    states: dict[str, dict[str, torch.Tensor]],
    spoil: Callable[[dict[str, Any]], None],
    message: str,
) -> None:
    spoil(states["rnet"])
    wheel = wheel_of(tmp_path, {name: saved(state) for name, state in states.items()})
    with pytest.raises(WeightsError, match=message):
        read_facenet_mtcnn(wheel)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no plain checkpoint"),
        (b"<html>not found</html>", "no plain checkpoint"),
        (saved([torch.zeros(1)]), "no state_dict"),
        (saved({"conv1.weight": torch.zeros(1)})[:200], "no plain checkpoint"),
    ],
)
def test_a_file_that_is_no_checkpoint_is_refused(
    tmp_path: Path, states: dict[str, dict[str, torch.Tensor]], data: bytes, message: str
) -> None:
    members = {name: saved(state) for name, state in states.items()} | {"onet": data}
    with pytest.raises(WeightsError, match=rf"onet\.pt is {message}"):
        read_facenet_mtcnn(wheel_of(tmp_path, members))


def test_a_network_that_is_missing_is_named(
    tmp_path: Path, states: dict[str, dict[str, torch.Tensor]]
) -> None:
    members = {name: saved(state) for name, state in states.items() if name != "onet"}
    with pytest.raises(WeightsError, match=r"does not hold facenet_pytorch/data/onet\.pt"):
        read_facenet_mtcnn(wheel_of(tmp_path, members))


class _Trap:
    """Runs code when it is unpickled by a careless reader."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.trace,))


def test_nothing_that_a_checkpoint_holds_is_executed(
    tmp_path: Path, states: dict[str, dict[str, torch.Tensor]]
) -> None:
    trace = tmp_path / "trace"
    members = {name: saved(state) for name, state in states.items()}
    members["pnet"] = saved(states["pnet"] | {"conv1.weight": _Trap(trace)})
    with pytest.raises(WeightsError, match=r"pnet\.pt is no plain checkpoint"):
        read_facenet_mtcnn(wheel_of(tmp_path, members))
    assert not trace.exists()
