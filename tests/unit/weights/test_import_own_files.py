"""mien's own weight files come in like anybody's, of every family that it has a network of."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from mien_server.errors import OperatorError
from mien_server.models import families as known
from mien_server.models.families import families
from mien_server.models.interface import NoNetwork
from mien_server.models.roles import EmbedderFamily
from mien_server.repository.manifest import verify_version
from mien_server.weights.errors import WeightsError
from mien_server.weights.importer import ImportRefused
from mien_server.weights.install import install
from mien_server.weights.recognise.checkpoint import recognise
from tests.unit.weights.conftest import Import, config_of
from tests.unit.weights.onnx_files import one_layer


def has_network(architecture: str) -> bool:
    try:
        with torch.device("meta"):
            families()[architecture].network()
    except NoNetwork:
        return False
    return True


LARGE = {"iresnet34", "iresnet50", "iresnet100", "retinaface_resnet50"}


@pytest.mark.parametrize(
    "architecture",
    [
        pytest.param(name, marks=pytest.mark.long) if name in LARGE else name
        for name in families()
        if has_network(name)
    ],
)
def test_own_file_of_every_network_is_recognised_as_what_it_is(
    architecture: str, tmp_path: Path
) -> None:
    state = families()[architecture].network().state_dict()
    save_file(state, tmp_path / "model.safetensors")
    (found,) = recognise(tmp_path / "model.safetensors")
    assert found.architecture == architecture
    assert isinstance(found.weights, dict)
    assert all(torch.equal(state[key], value) for key, value in found.weights.items())
    assert found.weights.keys() == state.keys()


@pytest.mark.parametrize(
    "model", ["sface", *(pytest.param(n, marks=pytest.mark.long) for n in ("retinaface", "mtcnn"))]
)
def test_installed_file_becomes_the_next_version_and_a_model_of_its_own(
    model: str, repository: Path, bring: Import, model_repository_path: Path
) -> None:
    if model == "mtcnn":  # it is not one of those that are installed for all tests
        install(repository, [model])
    else:
        shutil.copytree(model_repository_path / model / "1", repository / model / "1")
    weights = repository / model / "1" / "model.safetensors"
    for name, version in ((model, 2), ("mine", 1)):
        (done,), said = bring(name, weights)
        assert (done.version, "golden file" in said) == (version, False)
        manifest = verify_version(done.folder, repository, "model.safetensors")
        ours, theirs = load_file(weights), load_file(done.folder / "model.safetensors")
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
        assert manifest.license.startswith("not stated; ")
    fresh, shipped = config_of(repository / "mine"), config_of(repository / model)
    assert fresh.normalisation == shipped.normalisation
    assert [o.dims for o in fresh.outputs] == [o.dims for o in shipped.outputs]


def test_what_was_trained_on_is_taken_out_of_its_wrapper(
    repository: Path, tmp_path: Path, bring: Import
) -> None:
    state = families()["sface"].network().state_dict()
    wrapped = {f"module.{key}": value for key, value in state.items()}
    torch.save(
        {"epoch": 3, "model": {**wrapped, "head.weight": torch.zeros(9, 128)}}, tmp_path / "x"
    )
    (done,), said = bring("sface", tmp_path / "x")
    assert done.recognised.architecture == "sface"
    assert "left out, as inference has no use for it: head.weight" in said


def test_a_file_that_is_nearly_one_of_them_is_told_what_is_wrong(tmp_path: Path) -> None:
    state = families()["sface"].network().state_dict()
    del state["fc.bias"]
    save_file(state, tmp_path / "x")
    with pytest.raises(WeightsError, match=r"it looks like sface, but .*fc\.bias"):
        recognise(tmp_path / "x")


class _Stranger(nn.Module):
    """A network that no publisher is known for."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(3, 8, 1)
        self.last = nn.Linear(8, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.last(self.mix(x).mean(dim=(2, 3)))
        return out


@pytest.fixture
def stranger(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A file of the network of a family that came from elsewhere."""
    mine = {**families(), "stranger": EmbedderFamily("stranger", _Stranger)}
    for module in (
        known,
        *(
            __import__(f"mien_server.{name}", fromlist=["families"])
            for name in ("weights.recognise.own_networks", "repository.config.model")
        ),
    ):
        monkeypatch.setattr(module, "families", lambda: mine)
    save_file(_Stranger().state_dict(), tmp_path / "stranger.safetensors")
    return tmp_path / "stranger.safetensors"


@pytest.mark.long
def test_network_of_a_package_goes_where_a_config_asks_for_it(
    stranger: Path, repository: Path, bring: Import
) -> None:
    (found,) = recognise(stranger)
    assert (found.architecture, found.dimensions, found.normalisation) == ("stranger", 16, None)
    with pytest.raises(
        ImportRefused, match=r"input of architecture 'stranger' is not known: say so by"
    ):
        bring("new", stranger)
    config = (repository / "sface" / "config.pbtxt").read_text()
    (repository / "mine").mkdir()
    for old, new in (('name: "sface"', ""), ('"sface"', '"stranger"'), ("[ 128 ]", "[ 16 ]")):
        assert old in config
        config = config.replace(old, new)
    (repository / "mine" / "config.pbtxt").write_text(config)
    (done,), said = bring("mine", stranger)
    assert (done.version, "note" in said) == (1, False)
    assert (done.folder / "golden.safetensors").is_file()


def test_graph_of_a_package_goes_where_a_config_asks_for_it(
    stranger: Path, repository: Path, bring: Import, tmp_path: Path
) -> None:
    graph = one_layer(tmp_path / "stranger.onnx", ["n", 3, 112, 112], 16)
    with pytest.raises(WeightsError, match="neither an embedder"):
        bring("mine", graph)
    config = (repository / "sface" / "config.pbtxt").read_text()
    (repository / "mine").mkdir()
    for old, new in (
        ('name: "sface"', ""),
        ('"pytorch"', '"onnxruntime"'),
        ('"sface"', '"stranger"'),
        ("[ 128 ]", "[ 16 ]"),
    ):
        config = config.replace(old, new)
    (repository / "mine" / "config.pbtxt").write_text(config)
    (done,), _ = bring("mine", graph)
    assert done.recognised.kind == "architecture 'stranger' on backend 'onnxruntime'"
    assert (done.folder / "golden.safetensors").is_file()
    twice = one_layer(tmp_path / "wide.onnx", ["n", 3, 112, 112], 17)
    with pytest.raises(OperatorError, match="17"):
        bring("mine", twice)


def test_network_of_a_package_with_other_tensors_beside_it_is_not_taken_for_it(
    stranger: Path, tmp_path: Path
) -> None:
    save_file({**load_file(stranger), "more": torch.zeros(1)}, tmp_path / "more")
    with pytest.raises(WeightsError, match="none of the networks that mien has"):
        recognise(tmp_path / "more")
