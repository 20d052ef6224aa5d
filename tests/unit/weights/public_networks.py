"""The published networks, written a second time and as plainly as possible, with the public key names.

Import is tested against these: they share no code with the networks that mien serves.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own convention
from torch import Tensor, nn

WITH_DEPTHS = {"iresnet18": (2, 2, 2, 2), "iresnet34": (3, 4, 6, 3), "iresnet50": (3, 4, 14, 3)}
WITH_DEPTHS["iresnet100"] = (3, 13, 30, 3)


class IBasicBlock(nn.Module):
    def __init__(self, inplanes: int, planes: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inplanes, eps=1e-05)
        self.conv1 = nn.Conv2d(inplanes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes, eps=1e-05)
        self.prelu = nn.PReLU(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(planes, eps=1e-05)
        self.downsample = None
        if stride == 2:
            conv = nn.Conv2d(inplanes, planes, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(planes, eps=1e-05))

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        x = self.bn2(self.conv1(self.bn1(x)))
        x = self.bn3(self.conv2(self.prelu(x)))
        return x + identity


class ArcFace(nn.Module):
    def __init__(self, depths: Sequence[int]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(64, eps=1e-05)
        self.prelu = nn.PReLU(64)
        planes = [64, 64, 128, 256, 512]
        for number, depth in enumerate(depths, 1):
            blocks = [IBasicBlock(planes[number - 1], planes[number], 2)]
            blocks += [IBasicBlock(planes[number], planes[number], 1) for _ in range(1, depth)]
            setattr(self, f"layer{number}", nn.Sequential(*blocks))
        self.bn2 = nn.BatchNorm2d(512, eps=1e-05)
        self.dropout = nn.Dropout(p=0.0, inplace=True)
        self.fc = nn.Linear(512 * 7 * 7, 512)
        self.features = nn.BatchNorm1d(512, eps=1e-05)

    def forward(self, x: Tensor) -> Tensor:
        x = self.prelu(self.bn1(self.conv1(x)))
        for number in (1, 2, 3, 4):
            x = getattr(self, f"layer{number}")(x)
        x = self.dropout(torch.flatten(self.bn2(x), 1))
        out: Tensor = self.features(self.fc(x))
        return out


def conv_bn(i: int, o: int, k: int, stride: int = 1, leaky: float | None = 0.0) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(i, o, k, stride, k // 2, bias=False), nn.BatchNorm2d(o)]
    return nn.Sequential(*layers, *([] if leaky is None else [nn.LeakyReLU(leaky)]))


def conv_dw(i: int, o: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(i, i, 3, stride, 1, groups=i, bias=False),
        nn.BatchNorm2d(i),
        nn.LeakyReLU(0.1),
        nn.Conv2d(i, o, 1, bias=False),
        nn.BatchNorm2d(o),
        nn.LeakyReLU(0.1),
    )


class MobileNetV1(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        widths = [(8, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1)]
        self.stage1 = nn.Sequential(conv_bn(3, 8, 3, 2, 0.1), *(conv_dw(*w) for w in widths))
        self.stage2 = nn.Sequential(conv_dw(64, 128, 2), *(conv_dw(128, 128, 1) for _ in range(5)))
        self.stage3 = nn.Sequential(conv_dw(128, 256, 2), conv_dw(256, 256, 1))

    def forward(self, x: Tensor) -> list[Tensor]:
        one = self.stage1(x)
        two = self.stage2(one)
        return [one, two, self.stage3(two)]


class Bottleneck(nn.Module):
    def __init__(self, i: int, width: int, stride: int, *, downsample: bool) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(i, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, width * 4, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width * 4)
        if downsample:
            conv = nn.Conv2d(i, width * 4, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(width * 4))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return F.relu(out + (self.downsample(x) if hasattr(self, "downsample") else x))


class ResNet50(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        i = 64
        for number, (width, depth) in enumerate([(64, 3), (128, 4), (256, 6), (512, 3)], 1):
            blocks = []
            for index in range(depth):
                stride = 2 if number > 1 and index == 0 else 1
                blocks.append(Bottleneck(i, width, stride, downsample=index == 0))
                i = width * 4
            setattr(self, f"layer{number}", nn.Sequential(*blocks))

    def forward(self, x: Tensor) -> list[Tensor]:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        maps = []
        for number in (1, 2, 3, 4):
            x = getattr(self, f"layer{number}")(x)
            maps.append(x)
        return maps[1:]


class FPN(nn.Module):
    def __init__(self, inputs: Sequence[int], o: int, leaky: float) -> None:
        super().__init__()
        for number, i in enumerate(inputs, 1):
            setattr(self, f"output{number}", conv_bn(i, o, 1, leaky=leaky))
        self.merge1, self.merge2 = conv_bn(o, o, 3, leaky=leaky), conv_bn(o, o, 3, leaky=leaky)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        one, two, three = (getattr(self, f"output{n}")(m) for n, m in enumerate(maps, 1))
        two = self.merge2(two + F.interpolate(three, size=two.shape[2:], mode="nearest"))
        one = self.merge1(one + F.interpolate(two, size=one.shape[2:], mode="nearest"))
        return [one, two, three]


class SSH(nn.Module):
    def __init__(self, width: int, leaky: float) -> None:
        super().__init__()
        self.conv3X3 = conv_bn(width, width // 2, 3, leaky=None)
        self.conv5X5_1 = conv_bn(width, width // 4, 3, leaky=leaky)
        self.conv5X5_2 = conv_bn(width // 4, width // 4, 3, leaky=None)
        self.conv7X7_2 = conv_bn(width // 4, width // 4, 3, leaky=leaky)
        self.conv7x7_3 = conv_bn(width // 4, width // 4, 3, leaky=None)

    def forward(self, x: Tensor) -> Tensor:
        five = self.conv5X5_1(x)
        seven = self.conv7x7_3(self.conv7X7_2(five))
        return F.relu(torch.cat([self.conv3X3(x), self.conv5X5_2(five), seven], dim=1))


class Head(nn.Module):
    def __init__(self, width: int, values: int) -> None:
        super().__init__()
        self.values = values
        self.conv1x1 = nn.Conv2d(width, 2 * values, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv1x1(x).permute(0, 2, 3, 1).contiguous()
        return out.view(out.shape[0], -1, self.values)


class PublicRetinaFace(nn.Module):
    def __init__(self, *, small: bool) -> None:
        super().__init__()
        self.body = MobileNetV1() if small else ResNet50()
        inputs, width, leaky = ((64, 128, 256), 64, 0.1) if small else ((512, 1024, 2048), 256, 0.0)
        self.fpn = FPN(inputs, width, leaky)
        self.ssh1, self.ssh2, self.ssh3 = (SSH(width, leaky) for _ in range(3))
        self.ClassHead = nn.ModuleList([Head(width, 2) for _ in range(3)])
        self.BboxHead = nn.ModuleList([Head(width, 4) for _ in range(3)])
        self.LandmarkHead = nn.ModuleList([Head(width, 10) for _ in range(3)])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        maps = self.fpn(self.body(x))
        maps = [ssh(m) for ssh, m in zip([self.ssh1, self.ssh2, self.ssh3], maps, strict=True)]
        heads = (self.BboxHead, self.ClassHead, self.LandmarkHead)
        box, score, points = (
            torch.cat([head[i](m) for i, m in enumerate(maps)], dim=1) for head in heads
        )
        return box, F.softmax(score, dim=-1), points


def public_network(architecture: str, seed: int = 0) -> nn.Module:
    """A network as its publisher would have it after training: with statistics of its own inputs."""
    torch.manual_seed(seed)
    small = architecture == "retinaface_mobilenet0.25"
    network = (
        ArcFace(WITH_DEPTHS[architecture])
        if architecture in WITH_DEPTHS
        else PublicRetinaFace(small=small)
    )
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, std=0.1)
            layer.momentum = 1.0
        elif isinstance(layer, nn.PReLU):
            nn.init.uniform_(layer.weight, 0.1, 0.4)
    with torch.no_grad():
        network.train()(public_input(architecture, 4))
    return network.eval()


@lru_cache(maxsize=3)
def shared_network(architecture: str) -> nn.Module:
    """The same, made once for all tests that only look at it."""
    return public_network(architecture)


@lru_cache(maxsize=2)
def public_answer(network: nn.Module, architecture: str) -> tuple[Tensor, ...]:
    """What a network, which nobody changes after that, gives for `public_input`."""
    return answer(network, architecture)


def answer(network: nn.Module, architecture: str) -> tuple[Tensor, ...]:
    """The network's outputs for `public_input`."""
    with torch.inference_mode():
        outputs = network(public_input(architecture))
    return outputs if isinstance(outputs, tuple) else (outputs,)


def public_input(architecture: str, rows: int = 1) -> Tensor:
    """Random rows of what the network takes."""
    generator = torch.Generator().manual_seed(1)
    if architecture in WITH_DEPTHS:
        return torch.rand(rows, 3, 112, 112, generator=generator) * 2 - 1
    return torch.rand(rows, 3, 96, 96, generator=generator) * 255 - 110
