"""FairFace's checkpoint becomes analysers that answer as its ResNet-34 does, which is written here again."""

import io
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from mien_server.backends.devices import CpuDevice
from mien_server.commands.main import main
from mien_server.models import portraits
from mien_server.models.analyser import AnalyserRow
from mien_server.repository.config.model import ModelConfig, read_config
from mien_server.repository.instances import load_instance
from mien_server.repository.manifest import read_manifest
from mien_server.weights.errors import WeightsError
from mien_server.weights.importer import ImportRefused, import_weights
from mien_server.weights.progress import Progress

NARROW = (8, 8, 16, 16)
PUBLIC = (64, 128, 256, 512)
PARTS = {"race": slice(7), "gender": slice(7, 9), "age": slice(9, 18)}
MEAN = torch.tensor([0.485, 0.456, 0.406])
DEVIATION = torch.tensor([0.229, 0.224, 0.225])


class Block(nn.Module):
    """Two convolutions beside a shorter way."""

    def __init__(self, inputs: int, outputs: int, step: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, step, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = nn.Sequential()
        if step > 1:
            self.downsample.append(nn.Conv2d(inputs, outputs, 1, step, bias=False))
            self.downsample.append(nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        deep = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        return functional.relu(deep + self.downsample(x))


class ResNet34(nn.Module):
    """torchvision's network, under its names, of any width."""

    def __init__(self, widths: tuple[int, ...], outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        inputs = widths[0]
        for number, (blocks, width) in enumerate(zip((3, 4, 6, 3), widths, strict=True), 1):
            layer = nn.Sequential()
            for block in range(blocks):
                layer.append(Block(inputs, width, 2 if number > 1 and block == 0 else 1))
                inputs = width
            self.add_module(f"layer{number}", layer)
        self.fc = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.max_pool2d(functional.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        for number in range(1, 5):
            x = self.get_submodule(f"layer{number}")(x)
        found: Tensor = self.fc(x.mean(dim=(2, 3)))
        return found


def seen(images: np.ndarray[Any, Any]) -> Tensor:
    """What the network gets of them: as torchvision's transforms make it."""
    return ((torch.from_numpy(images) / 255 - MEAN) / DEVIATION).permute(0, 3, 1, 2)


@cache
def network(widths: tuple[int, ...] = NARROW) -> ResNet34:
    """With random weights whose norms and last layer have seen pictures, so that none loses them."""
    torch.manual_seed(0)
    found = ResNet34(widths, outputs=18)
    for module in found.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.normal_(module.bias, std=0.2)
            module.momentum = None
    with torch.no_grad():
        found(seen(portraits.crops(224)))
        given = found.eval()(seen(portraits.crops(224)))
        found.fc.weight.mul_(2 / given.std(dim=0)[:, None])
        found.fc.bias.sub_(found(seen(portraits.crops(224))).mean(dim=0))
    return found


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network as its publisher saves it."""
    path = tmp_path_factory.mktemp("fairface") / "res34_fair_align_multi_7_20190809.pt"
    torch.save(network().state_dict(), path)
    return path


def bring(root: Path, name: str, path: Path, part: str | None) -> str:
    said = io.StringIO()
    import_weights(root, name, path, Progress(said), part=part)
    return said.getvalue()


def config_of(folder: Path) -> ModelConfig:
    config = read_config(folder / "config.pbtxt")
    assert isinstance(config, ModelConfig)
    return config


def check_answers(folder: Path, model: ResNet34, part: str) -> None:
    """A version answers as the network's part does, alone and in a batch."""
    images = portraits.crops(224)
    with torch.inference_mode():
        expected = model(seen(images))[:, PARTS[part]].softmax(dim=1).numpy()
    assert expected.std(axis=0).max() > 0.01, "random weights tell the pictures apart"
    instance = load_instance(config_of(folder), folder / "1", CpuDevice(1))
    for some in (slice(None), slice(1)):
        rows = [AnalyserRow(image) for image in images[some]]
        found = instance.split(instance.compute(instance.collate(rows)), rows)
        np.testing.assert_allclose([each.values for each in found], expected[some], atol=1e-4)
    instance.close()


@pytest.mark.parametrize("part", PARTS)
def test_each_part_answers_as_the_network_does(tmp_path: Path, checkpoint: Path, part: str) -> None:
    said = bring(tmp_path, part, checkpoint, part)
    check_answers(tmp_path / part, network(), part)
    assert ("forbidden" in said) == (part == "race"), "who imports race is told what not to do"
    assert "CC BY 4.0" in read_manifest(tmp_path / part / "1").license


@pytest.mark.long
def test_the_network_of_the_public_size_comes_in(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save(
        {f"module.{key}": value for key, value in network(PUBLIC).state_dict().items()}, path
    )
    said = bring(tmp_path / "models", "age", path, "age")
    assert "182 tensors" in said
    check_answers(tmp_path / "models" / "age", network(PUBLIC), "age")


def test_what_it_tells_and_sees_is_in_its_new_configuration(
    tmp_path: Path, checkpoint: Path
) -> None:
    options = []
    for part in PARTS:
        bring(tmp_path, part, checkpoint, part)
        options.append(config_of(tmp_path / part).options)
    race, gender, age = (each.labels for each in options)
    assert race == (
        *("White", "Black", "Latino_Hispanic", "East Asian", "Southeast Asian", "Indian"),
        "Middle Eastern",
    )
    assert gender == ("Male", "Female")
    assert age == ("0-2", "3-9", "10-19", "20-29", "30-39", "40-49", "50-59", "60-69", "70+")
    assert {each.kind for each in options} == {"classification"}
    assert not any(each.by_default for each in options)


def test_it_sees_what_dlib_cuts_for_it(tmp_path: Path, checkpoint: Path) -> None:
    """The middle of the eyes' corners lies in a chip where the template's eyes lie in the window."""
    bring(tmp_path, "age", checkpoint, "age")
    crop = config_of(tmp_path / "age").options.crop
    assert (crop.around, crop.side) == ("template", 224)
    corners = np.array([[0.8596, 0.2135], [0.6461, 0.2290], [0.1206, 0.2137], [0.3341, 0.2291]])
    right, left = ((0.25 + corners) / 1.5).reshape(2, 2, 2).mean(axis=1) * 224
    eyes = np.array([[38.2946, 51.6963], [73.5318, 51.5014]]) + 0.5
    found = (eyes - crop.window[:2]) * crop.side / crop.window[2]
    np.testing.assert_allclose(found, [left, right], atol=0.5)


@pytest.mark.parametrize("part", [None, "mood"])
def test_without_a_part_it_is_told_which_there_are(
    tmp_path: Path, checkpoint: Path, part: str | None
) -> None:
    with pytest.raises(WeightsError, match="--part age, --part gender or --part race"):
        bring(tmp_path / "models", "new", checkpoint, part)
    assert not (tmp_path / "models").exists()


def test_the_command_takes_the_part(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["models", "import", "gender", str(checkpoint), "--model-repository", str(tmp_path)]
    assert main(command) != 0
    assert "--part gender" in capsys.readouterr().err
    assert main([*command, "--part", "gender"]) == 0
    assert config_of(tmp_path / "gender").options.labels == ("Male", "Female")


def test_a_part_of_another_network_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "resnet34.pt"
    torch.save(ResNet34(NARROW, outputs=1000).state_dict(), path)
    with pytest.raises(WeightsError, match="not FairFace's network, the only one that --part is"):
        bring(tmp_path, "new", path, "age")
    with pytest.raises(WeightsError, match="none of the networks that mien has"):
        bring(tmp_path, "new", path, None)


def test_a_model_that_tells_something_else_is_not_given_a_part_of_it(
    tmp_path: Path, checkpoint: Path
) -> None:
    bring(tmp_path, "model", checkpoint, "age")
    with pytest.raises(ImportRefused, match=r"config\.pbtxt says output dims \[9\]"):
        bring(tmp_path, "model", checkpoint, "gender")
    path = tmp_path / "model" / "config.pbtxt"
    path.write_text(path.read_text().replace("0-2, 3-9", "baby, child"))
    said = bring(tmp_path, "model", checkpoint, "age")
    assert "calls the answers baby, child, 10-19" in said
    assert (tmp_path / "model" / "2").is_dir()


def test_a_network_with_other_layers_is_refused(tmp_path: Path) -> None:
    state = network().state_dict()
    for changed, problem in (
        ({**state, "layer3.6.conv1.weight": torch.ones(1)}, "holds 1 tensors more"),
        ({key: value for key, value in state.items() if "bn1.bias" not in key}, "has no bn1.bias"),
        ({**state, "layer2.0.bn1.bias": torch.full((8,), torch.nan)}, "is not finite"),
        ({**state, "layer2.0.bn1.bias": torch.ones(9)}, "its layers do not fit together"),
    ):
        torch.save(changed, tmp_path / "weights.pt")
        with pytest.raises(WeightsError, match=problem):
            bring(tmp_path / "models", "new", tmp_path / "weights.pt", "age")
