"""ULFD as its author describes it, written anew in PyTorch with few channels, and its export."""

import math
import warnings
from itertools import product
from pathlib import Path

import torch
from torch import Tensor, nn

SIDES = ((10.0, 16.0, 24.0), (32.0, 48.0), (64.0, 96.0), (128.0, 192.0, 256.0))
STRIDES = (8.0, 16.0, 32.0, 64.0)
WIDTH = 4


def conv(inp: int, out: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inp, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU()
    )


def separable(inp: int, out: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inp, inp, 3, stride, 1, groups=inp, bias=False),
        nn.BatchNorm2d(inp),
        nn.ReLU(),
        nn.Conv2d(inp, out, 1, bias=False),
        nn.BatchNorm2d(out),
        nn.ReLU(),
    )


def head(inp: int, out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inp, inp, 3, padding=1, groups=inp), nn.ReLU(), nn.Conv2d(inp, out, 1)
    )


class Branches(nn.Module):
    """The block that RFB has and slim has not: wider views beside each other, and a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.views = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels, channels, 1),
                nn.ReLU(),
                nn.Conv2d(channels, channels, 3, padding=wide, dilation=wide),
            )
            for wide in (2, 3, 5)
        )
        self.mixed = nn.Conv2d(3 * channels, channels, 1)
        self.short = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        mixed: Tensor = self.mixed(torch.cat([view(x) for view in self.views], 1))
        return torch.relu(mixed * 0.8 + self.short(x))


class PublicUlfd(nn.Module):
    """From [1, 3, H, W] to probabilities [1, P, 2], and boxes [1, P, 4] as fractions of the canvas."""

    def __init__(
        self,
        height: int,
        width: int,
        *,
        rfb: bool = False,
        decoded: bool = True,
        sides: tuple[tuple[float, ...], ...] = SIDES,
        pool: bool = False,
        sigmoid: bool = False,
    ) -> None:
        super().__init__()
        w = WIDTH
        self.decoded, self.sigmoid = decoded, sigmoid
        down = nn.Sequential(nn.MaxPool2d(2), conv(w, w)) if pool else separable(w, w, 2)
        self.bodies = nn.ModuleList(
            [
                nn.Sequential(
                    conv(3, w, 2),
                    down,
                    separable(w, 2 * w, 2),
                    Branches(2 * w) if rfb else separable(2 * w, 2 * w),
                ),
                separable(2 * w, 3 * w, 2),
                separable(3 * w, 4 * w, 2),
                nn.Sequential(
                    nn.Conv2d(4 * w, w, 1),
                    nn.ReLU(),
                    nn.Conv2d(w, w, 3, 2, 1, groups=w),
                    nn.ReLU(),
                    nn.Conv2d(w, 4 * w, 1),
                    nn.ReLU(),
                ),
            ]
        )
        channels = [2 * w, 3 * w, 4 * w]
        counts = [len(each) for each in sides]
        self.scores, self.boxes = (
            nn.ModuleList(
                [
                    *(head(c, n * values) for c, n in zip(channels, counts[:3], strict=True)),
                    nn.Conv2d(4 * w, counts[3] * values, 3, padding=1),
                ]
            )
            for values in (2, 4)
        )
        self.priors = public_priors(height, width, sides)
        for layer in self.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_mean = 0.2 * torch.randn(layer.num_features)
                layer.running_var = 0.5 + torch.rand(layer.num_features)
        self.eval()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores: list[Tensor] = []
        boxes: list[Tensor] = []
        for body, score, box in zip(self.bodies, self.scores, self.boxes, strict=True):
            x = body(x)
            for found, layer, values in ((scores, score, 2), (boxes, box, 4)):
                rows: Tensor = layer(x).permute(0, 2, 3, 1).contiguous()
                found.append(rows.view(rows.size(0), -1, values))
        logits, offsets = torch.cat(scores, 1), torch.cat(boxes, 1)
        if not self.decoded:
            return logits, offsets
        middle = offsets[..., :2] * 0.1 * self.priors[..., 2:] + self.priors[..., :2]
        size = torch.exp(offsets[..., 2:] * 0.2) * self.priors[..., 2:]
        told = torch.sigmoid(logits) if self.sigmoid else torch.softmax(logits, 2)
        return told, torch.cat([middle - size / 2, middle + size / 2], 2)


def public_priors(
    height: int, width: int, sides: tuple[tuple[float, ...], ...] = SIDES
) -> torch.Tensor:
    """Centres and sizes [1, P, 4] as fractions of the canvas, one at a time."""
    found = []
    for stride, kinds in zip(STRIDES, sides, strict=True):
        rows, columns = math.ceil(height / stride), math.ceil(width / stride)
        for j, i in product(range(rows), range(columns)):
            x, y = (i + 0.5) / columns, (j + 0.5) / rows
            found += [[x, y, side / width, side / height] for side in kinds]
    return torch.clamp(torch.tensor(found), 0.0, 1.0)[None]


def exported_ulfd(network: nn.Module, path: Path, height: int, width: int) -> Path:
    """What the author's exporter makes of it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (torch.zeros(1, 3, height, width),),
            str(path),
            input_names=["input"],
            output_names=["scores", "boxes"],
            opset_version=11,
            dynamo=False,
        )
    return path
