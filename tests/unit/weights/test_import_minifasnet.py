"""MiniFASNet's checkpoints become graphs that answer as the network does, which is written here once more."""

import io
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mien_server.backends.devices import CpuDevice
from mien_server.models.analyser import AnalyserRow
from mien_server.repository.config.model import ModelConfig, read_config
from mien_server.repository.instances import load_instance
from mien_server.weights.errors import WeightsError
from mien_server.weights.importer import ImportRefused, import_weights
from mien_server.weights.install import install
from mien_server.weights.progress import Progress

WIDTHS = {
    "V1SE": ([103, 13, 26, 13, 52], [231, 154, 52, 26, 52, 26, 26], [308, 26, 26]),
    "V2": ([103, 13, 13, 13, 13], [231, 231, 52, 26, 77, 26, 26], [308, 26, 26]),
}
"""Of V1 and V2, how wide the bottlenecks of each group are inside; the first halves the image."""


def block(inputs: int, outputs: int, side: int, step: int = 1, *, each: bool = False) -> nn.Module:
    """A convolution with its norm and PReLU, under the public names."""
    found = nn.Module()
    groups = inputs if each else 1
    found.conv = nn.Conv2d(inputs, outputs, side, step, side // 2, groups=groups, bias=False)
    found.bn = nn.BatchNorm2d(outputs)
    found.prelu = nn.PReLU(outputs)
    return found


def run(layers: Any, x: Tensor) -> Tensor:
    """A block on pixels; one without PReLU is linear."""
    x = layers.bn(layers.conv(x))
    found: Tensor = layers.prelu(x) if hasattr(layers, "prelu") else x
    return found


class Bottleneck(nn.Module):
    """Wider, each channel by itself, narrower again; perhaps its channels weighed."""

    def __init__(self, inputs: int, wide: int, outputs: int, step: int, *, se: bool) -> None:
        super().__init__()
        self.conv = block(inputs, wide, 1)
        self.conv_dw = block(wide, wide, 3, step, each=True)
        self.project = block(wide, outputs, 1)
        del self.project.prelu
        self.short = step == 1
        if se:
            self.se_module = nn.Module()
            self.se_module.fc1 = nn.Conv2d(outputs, outputs // 4, 1, bias=False)
            self.se_module.bn1 = nn.BatchNorm2d(outputs // 4)
            self.se_module.fc2 = nn.Conv2d(outputs // 4, outputs, 1, bias=False)
            self.se_module.bn2 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        y = run(self.project, run(self.conv_dw, run(self.conv, x)))
        if hasattr(self, "se_module"):
            se: Any = self.se_module
            share = torch.relu(se.bn1(se.fc1(y.mean(dim=(2, 3), keepdim=True))))
            y = y * torch.sigmoid(se.bn2(se.fc2(share)))
        return x + y if self.short else y


class MiniFASNet(nn.Module):
    """The network, from its groups' widths."""

    def __init__(self, widths: tuple[list[int], ...], *, se: bool, mixed: int = 128) -> None:
        super().__init__()
        self.conv1 = block(3, 32, 3, 2)
        self.conv2_dw = block(32, 32, 3, each=True)
        inputs = 32
        for (halving, group), (first, *others), outputs in zip(
            (("conv_23", "conv_3"), ("conv_34", "conv_4"), ("conv_45", "conv_5")),
            widths,
            (64, 128, 128),
            strict=True,
        ):
            self.add_module(halving, Bottleneck(inputs, first, outputs, 2, se=False))
            rest = nn.Module()
            rest.model = nn.Sequential(
                *(
                    Bottleneck(outputs, wide, outputs, 1, se=se and number == len(others))
                    for number, wide in enumerate(others, 1)
                )
            )
            self.add_module(group, rest)
            inputs = outputs
        self.conv_6_sep = block(128, 512, 1)
        self.conv_6_dw = nn.Module()
        self.conv_6_dw.conv = nn.Conv2d(512, 512, 5, groups=512, bias=False)
        self.conv_6_dw.bn = nn.BatchNorm2d(512)
        self.linear = nn.Linear(512, mixed, bias=False)
        self.bn = nn.BatchNorm1d(mixed)
        self.prob = nn.Linear(mixed, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = run(self.conv2_dw, run(self.conv1, x))
        for number in ("23", "3", "34", "4", "45", "5"):
            layers: Any = getattr(self, f"conv_{number}")
            x = layers.model(x) if hasattr(layers, "model") else layers(x)
        x = run(self.conv_6_dw, run(self.conv_6_sep, x)).flatten(1)
        found: Tensor = self.prob(self.bn(self.linear(x) if self.linear.out_features < 512 else x))
        return found


def pictures(number: int, seed: int) -> NDArray[np.uint8]:
    """Coarse and fine noise, RGB [number, 80, 80, 3]."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 200, (number, 8, 8, 3)).repeat(10, axis=1).repeat(10, axis=2)
    return np.asarray(coarse + random.integers(0, 56, coarse.shape), np.uint8)


def seen(images: NDArray[np.uint8]) -> Tensor:
    """What the network gets of them: BGR, 0 to 255."""
    return torch.from_numpy(images[..., ::-1].copy()).permute(0, 3, 1, 2).float()


@cache
def network(variant: str, mixed: int = 128) -> MiniFASNet:
    """With random weights, whose norms have seen pictures, so that no layer loses them."""
    torch.manual_seed(0)
    found = MiniFASNet(WIDTHS[variant], se="SE" in variant, mixed=mixed)
    norms = [each for each in found.modules() if isinstance(each, nn.BatchNorm1d | nn.BatchNorm2d)]
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.8, 1.2)
        nn.init.normal_(norm.bias, std=0.2)
        norm.momentum = None
    for module in found.modules():
        if isinstance(module, nn.PReLU):
            nn.init.uniform_(module.weight, 0.1, 0.4)
    with torch.no_grad():
        found(seen(pictures(16, seed=0)))
        found.prob.weight *= 5
    return found.eval()


def saved(model: nn.Module, path: Path, prefix: str = "module.") -> Path:
    torch.save({f"{prefix}{key}": value for key, value in model.state_dict().items()}, path)
    return path


def bring(root: Path, name: str, path: Path) -> str:
    said = io.StringIO()
    install(root, [name])
    import_weights(root, name, path, Progress(said))
    return said.getvalue()


@pytest.mark.parametrize(
    ("name", "variant", "mixed", "margin"),
    [
        pytest.param("minifasnet_v2", "V2", 128, 2.7, marks=pytest.mark.long),
        ("minifasnet_v1se", "V1SE", 128, 4.0),
        pytest.param("minifasnet_v2", "V2", 512, 2.7, marks=pytest.mark.long),
    ],
)
def test_it_answers_as_the_network_does(
    tmp_path: Path, name: str, variant: str, mixed: int, margin: float
) -> None:
    model = network(variant, mixed)
    said = bring(tmp_path, name, saved(model, tmp_path / "weights.pth"))
    assert f"MiniFASNet{' with SE' * ('SE' in variant)} (minivision" in said
    assert "minivision's public weights are Apache-2.0" in said
    assert "prepares pixels in another way" not in said
    config = read_config(tmp_path / name / "config.pbtxt")
    assert isinstance(config, ModelConfig)
    crop = config.options.crop
    assert (crop.around, crop.margin, crop.side) == ("inside", margin, 80)
    images = pictures(4, seed=1)
    with torch.inference_mode():
        live = model(seen(images)).softmax(dim=1)[:, 1:2].numpy()
    assert live.std() > 0.01, "random weights tell the pictures apart"
    instance = load_instance(config, tmp_path / name / "1", CpuDevice(1))
    for part in (slice(4), slice(1)):
        rows = [AnalyserRow(image) for image in images[part]]
        found = instance.split(instance.compute(instance.collate(rows)), rows)
        np.testing.assert_allclose([each.values for each in found], live[part], atol=1e-4)
    instance.close()


def broken(**changes: Tensor | None) -> nn.Module:
    """The network's tensors, some of them others or left out."""
    found = nn.Module()
    state = network("V2").state_dict()
    for key, value in {**state, **{k.replace("__", "."): v for k, v in changes.items()}}.items():
        if value is not None:
            at: nn.Module = found
            *path, last = key.split(".")
            for part in path:
                if not hasattr(at, part):
                    at.add_module(part, nn.Module())
                at = getattr(at, part)
            at.register_buffer(last, value)
    return found


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"conv_34__conv__bn__bias": None}, "but has no conv_34.conv.bn.bias"),
        ({"extra__weight": torch.ones(3)}, r"holds 1 tensors more \('?extra\.weight"),
        ({"prob__weight": torch.ones(3, 64)}, "its layers do not fit together"),
        ({"bn__bias": torch.full((128,), torch.nan)}, "bn.bias is not finite"),
    ],
)
def test_another_network_is_refused(
    tmp_path: Path, changes: dict[str, Tensor | None], problem: str
) -> None:
    path = saved(broken(**changes), tmp_path / "weights.pth")
    with pytest.raises(WeightsError, match=problem):
        bring(tmp_path, "minifasnet_v2", path)
    assert not (tmp_path / "minifasnet_v2" / "1").exists()


def test_tensors_beside_it_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    state = network("V2").state_dict()
    torch.save({"a.weight": torch.ones(2), **{f"net.{k}": v for k, v in state.items()}}, path)
    with pytest.raises(
        WeightsError, match=r"beside MiniFASNet at 'net\.' it holds 1 other tensors"
    ):
        bring(tmp_path, "minifasnet_v2", path)


def test_without_a_configuration_it_is_told_what_is_missing(tmp_path: Path) -> None:
    path = saved(network("V2"), tmp_path / "weights.pth")
    with pytest.raises(ImportRefused, match=r"write .*new/config\.pbtxt first"):
        import_weights(tmp_path / "models", "new", path, Progress(io.StringIO()))
