"""Checkpoints of independently written networks compute the same before and after import."""

from collections import OrderedDict
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mien_server.models.interface import Normalisation
from mien_server.repository.manifest import sha256_of, verify_version
from mien_server.weights.recognise.checkpoint import recognise
from tests.unit.weights.conftest import Import, config_of, difference_as_served, largest_difference
from tests.unit.weights.public_networks import public_network, shared_network

State = dict[str, Tensor]

COUNTS = {
    "iresnet18": (187, 24_025_600),
    "iresnet34": (331, 34_139_328),
    "iresnet50": (475, 43_590_848),
    "iresnet100": (925, 65_156_160),
    "retinaface_mobilenet0.25": (300, 426_608),
    "retinaface_resnet50": (456, 27_293_600),
}

LARGE = ["iresnet34", "iresnet50", "iresnet100"]
"""Looked at once: nothing is gained by keeping them in memory."""
SMALL = [pytest.param("iresnet18", marks=pytest.mark.long), "retinaface_mobilenet0.25"]


@pytest.mark.parametrize(
    "architecture",
    [pytest.param(name, marks=pytest.mark.long) if name in LARGE else name for name in COUNTS],
)
def test_every_network_is_recognised_and_computes_the_same(
    architecture: str, tmp_path: Path
) -> None:
    network = (public_network if architecture in LARGE else shared_network)(architecture)
    torch.save(network.state_dict(), tmp_path / "no_name_that_says_anything.bin")
    (found,) = recognise(tmp_path / "no_name_that_says_anything.bin")
    assert found.architecture == architecture
    assert (found.tensors, found.parameters) == COUNTS[architecture]
    assert largest_difference(network, found) <= 1e-4


@pytest.mark.parametrize(
    "architecture",
    [pytest.param("iresnet18", marks=pytest.mark.long), "retinaface_mobilenet0.25"],
)
def test_imported_version_computes_the_same(
    architecture: str, tmp_path: Path, repository: Path, bring: Import
) -> None:
    network = shared_network(architecture)
    checkpoint = tmp_path / "checkpoint"
    torch.save(network.state_dict(), checkpoint)

    (done,), said = bring("mine", checkpoint)

    assert difference_as_served(network, done) <= 1e-4
    assert f"{COUNTS[architecture][0]} tensors, {COUNTS[architecture][1]:,} parameters" in said
    config = config_of(repository / "mine")
    assert config.architecture == architecture
    assert config.normalisation == done.recognised.normalisation
    if architecture.startswith("iresnet"):
        assert config.normalisation == Normalisation("RGB", (127.5, 127.5, 127.5), 1 / 127.5)
    manifest = verify_version(done.folder, repository, "model.safetensors")
    assert sha256_of(checkpoint) in said
    assert sha256_of(checkpoint) in manifest.source
    assert manifest.license in said


def with_prefix(prefix: str) -> Callable[[State], dict[str, Any]]:
    return lambda state: {f"{prefix}{key}": value for key, value in state.items()}


def saved_by_arcface_torch(state: State) -> dict[str, Any]:
    return {
        "epoch": 24,
        "global_step": 364_000,
        "state_dict_backbone": state,
        "state_dict_softmax_fc": {"weight": torch.zeros(10, 512)},
        "state_optimizer": {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": []},
    }


WRAPPERS: dict[str, Callable[[State], dict[str, Any]]] = {
    "as it is": lambda state: state,
    "in order": OrderedDict,
    "DataParallel": with_prefix("module."),
    "as a backbone": with_prefix("backbone."),
    "DistributedDataParallel of a part": with_prefix("module.model."),
    "state_dict": lambda state: {"state_dict": state, "epoch": 3},
    "state_dict with a prefix": lambda state: {"state_dict": with_prefix("module.")(state)},
    "three deep": lambda state: {"checkpoint": {"model": {"state_dict": state}}},
    "arcface_torch's training state": saved_by_arcface_torch,
    "parameters": lambda state: {
        key: nn.Parameter(value) if value.is_floating_point() else value
        for key, value in state.items()
    },
}


@pytest.mark.parametrize("architecture", SMALL)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_every_wrapper_is_seen_through(architecture: str, wrapper: str, tmp_path: Path) -> None:
    network = shared_network(architecture)
    torch.save(WRAPPERS[wrapper](network.state_dict()), tmp_path / "checkpoint")
    (found,) = recognise(tmp_path / "checkpoint")
    assert largest_difference(network, found) <= 1e-4


@pytest.mark.parametrize("architecture", SMALL)
def test_format_of_old_pytorch_is_read(
    architecture: str,
    tmp_path: Path,
) -> None:
    network = shared_network(architecture)
    path = tmp_path / "old.pth"
    torch.save(network.state_dict(), path, _use_new_zipfile_serialization=False)
    (found,) = recognise(path)
    assert largest_difference(network, found) <= 1e-4


@pytest.mark.parametrize("architecture", SMALL)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_safetensors_are_read(
    architecture: str,
    prefix: str,
    tmp_path: Path,
) -> None:
    network = shared_network(architecture)
    save_file(with_prefix(prefix)(network.state_dict()), tmp_path / "weights")
    (found,) = recognise(tmp_path / "weights")
    assert largest_difference(network, found) <= 1e-4


@pytest.mark.parametrize("first", [b"\x80", b"\x08", b"P"])
def test_safetensors_are_known_whatever_their_length_looks_like(
    first: bytes, tmp_path: Path
) -> None:
    network, path = shared_network("retinaface_mobilenet0.25"), tmp_path / "weights"
    lengths = range(8, 8 * 257, 8)  # the header is padded to eight bytes
    for length in lengths:
        save_file(network.state_dict(), path, metadata={"comment": "x" * length})
        if path.read_bytes().startswith(first):
            break
    assert path.read_bytes().startswith(first), "like a pickle, ONNX or zip"
    (found,) = recognise(path)
    assert found.architecture == "retinaface_mobilenet0.25"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_become_float32_and_a_note_says_so(
    dtype: torch.dtype,
    tmp_path: Path,
) -> None:
    # Everything, as `network.half()` and careless conversions do it: the counters, too.
    state = {
        key: value.to(dtype) for key, value in shared_network("iresnet18").state_dict().items()
    }
    torch.save(state, tmp_path / "half.pth")

    (found,) = recognise(tmp_path / "half.pth")

    name = str(dtype).removeprefix("torch.")
    assert f"tensors were {name} and are float32 now" in " ".join(found.notes)
    rounded = deepcopy(shared_network("iresnet18"))
    rounded.load_state_dict({key: value.float() for key, value in state.items()})
    assert largest_difference(rounded, found) <= 1e-4


def test_counters_that_old_checkpoints_lack_are_filled_in(tmp_path: Path) -> None:
    network = shared_network("iresnet18")
    state = {k: v for k, v in network.state_dict().items() if "num_batches_tracked" not in k}
    torch.save(state, tmp_path / "old.pth")
    (found,) = recognise(tmp_path / "old.pth")
    assert "num_batches_tracked were not there and are 0" in " ".join(found.notes)
    assert largest_difference(network, found) <= 1e-4


@pytest.mark.parametrize(
    ("prefix", "head"),
    [
        ("", "head.weight"),
        ("", "kernel"),
        ("module.", "module.classifier.weight"),
        ("backbone.", "head.kernel"),
    ],
)
def test_classification_layer_is_left_out_and_a_note_says_so(
    prefix: str,
    head: str,
    tmp_path: Path,
) -> None:
    network = shared_network("iresnet18")
    state = with_prefix(prefix)(network.state_dict()) | {head: torch.zeros(10, 512)}
    torch.save(state, tmp_path / "training.pth")
    (found,) = recognise(tmp_path / "training.pth")
    assert "left out, as inference has no use for it: " in " ".join(found.notes)
    assert largest_difference(network, found) <= 1e-4


def test_retinaface_sees_bgr_unless_it_comes_from_modelscope(tmp_path: Path) -> None:
    torch.save(shared_network("retinaface_resnet50").state_dict(), tmp_path / "detector.pt")

    (upstream,) = recognise(tmp_path / "detector.pt")
    assert upstream.normalisation == Normalisation("BGR", (104, 117, 123), 1)
    assert "ModelScope's is the same network and sees RGB" in " ".join(upstream.notes)

    source = "modelscope:damo/cv_resnet50_face-detection_retinaface/pytorch_model.pt"
    (theirs,) = recognise(tmp_path / "detector.pt", source)
    assert theirs.normalisation == Normalisation("RGB", (104, 117, 123), 1)
    assert theirs.notes == ()
