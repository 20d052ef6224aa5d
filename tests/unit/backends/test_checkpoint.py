import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mien_server.backends import weights_file
from mien_server.backends.checkpoint import check_finite, load_network
from mien_server.backends.weights_file import LoadError
from mien_server.models.families import find_family

SFACE = find_family("sface")


@pytest.fixture
def state() -> dict[str, Tensor]:
    return SFACE.network().state_dict()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def test_every_weight_is_loaded(state: dict[str, Tensor], path: Path) -> None:
    save_file(state, path)
    loaded = load_network(SFACE, path)
    assert not loaded.training
    assert loaded.state_dict().keys() == state.keys()
    for key, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, state[key]), key


def test_half_precision_weights_are_widened(state: dict[str, Tensor], path: Path) -> None:
    halved = {k: v.bfloat16() if v.is_floating_point() else v for k, v in state.items()}
    save_file(halved, path)
    loaded = load_network(SFACE, path).state_dict()
    assert loaded["fc.weight"].dtype == torch.float32
    assert torch.equal(loaded["fc.weight"], halved["fc.weight"].float())


def test_the_weights_do_not_change_when_the_file_does(state: dict[str, Tensor], path: Path) -> None:
    save_file(state, path)
    loaded = load_network(SFACE, path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] + bytes(len(content) // 2))
    assert torch.equal(loaded.state_dict()["fc.weight"], state["fc.weight"])


def test_a_file_cut_short_while_it_is_read_harms_nobody(
    state: dict[str, Tensor], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file(state, path)
    differences = weights_file.differences

    def cut_short(*arguments: Any) -> list[str]:
        assert str(path) not in Path("/proc/self/maps").read_text(), "reading on would be SIGBUS"
        os.truncate(path, 0)
        return differences(*arguments)

    monkeypatch.setattr(weights_file, "differences", cut_short)
    for key, tensor in load_network(SFACE, path).state_dict().items():
        assert torch.equal(tensor, state[key]), key


def test_missing_unexpected_and_misshaped_keys_are_listed(
    state: dict[str, Tensor], path: Path
) -> None:
    del state["stem.conv.weight"]
    state["classifier.weight"] = torch.zeros(2)
    state["fc.bias"] = torch.zeros(512)
    save_file(state, path)
    with pytest.raises(LoadError) as caught:
        load_network(SFACE, path)
    message = str(caught.value)
    assert "architecture 'sface'" in message
    assert "1 missing: stem.conv.weight" in message
    assert "1 unexpected: classifier.weight" in message
    assert "1 misshaped: fc.bias is [512], must be [128]" in message


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn, torch.bool])
def test_quantised_weights_are_refused(
    state: dict[str, Tensor], path: Path, dtype: torch.dtype
) -> None:
    state["fc.weight"] = state["fc.weight"].to(dtype)
    save_file(state, path)
    with pytest.raises(LoadError, match=r"1 of another type: fc\.weight is "):
        load_network(SFACE, path)


def test_another_architecture_is_refused_with_a_bounded_list(path: Path) -> None:
    save_file(find_family("retinaface_mobilenet0.25").network().state_dict(), path)
    with pytest.raises(LoadError, match=r"300 unexpected: .* and 292 more") as caught:
        load_network(SFACE, path)
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"not safetensors", b"\xff" * 64, pickle.dumps({"a": 1})),
        (1 << 62).to_bytes(8, "little") + b"{}",
    ],
)
def test_a_file_that_is_no_safetensors_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(LoadError, match="cannot be read as safetensors"):
        load_network(SFACE, path)


def test_a_truncated_file_is_refused(state: dict[str, Tensor], path: Path) -> None:
    save_file(state, path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 9 // 10])
    with pytest.raises(LoadError, match="cannot be read as safetensors"):
        load_network(SFACE, path)


def test_a_file_too_large_for_weights_is_refused_unread(path: Path) -> None:
    path.touch()
    os.truncate(path, (1 << 30) + 1)
    with pytest.raises(LoadError, match=r"1073741825 bytes; at most 1073741824 are read"):
        load_network(SFACE, path)


def test_an_absent_file_or_a_folder_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(LoadError, match="cannot be read as safetensors"):
            load_network(SFACE, path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_no_finite_numbers_are_refused(value: float) -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    network[1].running_mean[1] = value  # type: ignore[operator]
    with pytest.raises(LoadError, match=r"NaN or infinity in 1\.running_mean: fix it"):
        check_finite(network, "fix it")


def test_finite_weights_pass() -> None:
    check_finite(SFACE.network(), "unused")
