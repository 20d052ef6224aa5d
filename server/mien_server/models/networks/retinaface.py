"""RetinaFace: one pass over a photo gives face boxes, scores and five landmarks.

Deng et al., "RetinaFace: Single-stage Dense Face Localisation in the Wild", arXiv:1905.00641. Layers,
widths and state_dict keys are those of the public PyTorch checkpoints (`mobilenet0.25`, `resnet50`), so
that they load strictly.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own convention
from torch import Tensor, nn


def _conv(
    inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1
) -> nn.Conv2d:
    """A convolution without bias, padded to keep the size (halved by stride 2)."""
    return nn.Conv2d(
        inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False
    )


def _conv_bn(
    inputs: int, outputs: int, kernel: int = 3, stride: int = 1, *, slope: float | None
) -> nn.Sequential:
    """Convolution, batch norm and, unless `slope` is None, LeakyReLU."""
    layers: list[nn.Module] = [_conv(inputs, outputs, kernel, stride), nn.BatchNorm2d(outputs)]
    if slope is not None:
        layers.append(nn.LeakyReLU(slope, inplace=True))
    return nn.Sequential(*layers)


def _conv_dw(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """A depthwise and a pointwise convolution, each with batch norm and LeakyReLU."""
    return nn.Sequential(
        _conv(inputs, inputs, stride=stride, groups=inputs),
        nn.BatchNorm2d(inputs),
        nn.LeakyReLU(0.1, inplace=True),
        _conv(inputs, outputs, kernel=1),
        nn.BatchNorm2d(outputs),
        nn.LeakyReLU(0.1, inplace=True),
    )


class MobileNet025(nn.Module):
    """MobileNet v1 at a quarter of its width; gives the maps of strides 8, 16 and 32."""

    widths = (64, 128, 256)

    def __init__(self) -> None:
        super().__init__()
        self.stage1 = nn.Sequential(
            _conv_bn(3, 8, stride=2, slope=0.1),
            _conv_dw(8, 16),
            _conv_dw(16, 32, stride=2),
            _conv_dw(32, 32),
            _conv_dw(32, 64, stride=2),
            _conv_dw(64, 64),
        )
        self.stage2 = nn.Sequential(
            _conv_dw(64, 128, stride=2), *(_conv_dw(128, 128) for _ in range(5))
        )
        self.stage3 = nn.Sequential(_conv_dw(128, 256, stride=2), _conv_dw(256, 256))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[N, 3, H, W] to [N, 64, H/8, W/8], [N, 128, H/16, W/16] and [N, 256, H/32, W/32]."""
        c3 = self.stage1(x)
        c4 = self.stage2(c3)
        return c3, c4, self.stage3(c4)


class _Bottleneck(nn.Module):
    """ResNet's 1x1, 3x3, 1x1 block, the stride on the 3x3."""

    FOLDABLE = (("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3"))

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.conv1 = _conv(inputs, width, kernel=1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv(width, width, stride=stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = _conv(width, outputs, kernel=1)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = (
            nn.Sequential(_conv(inputs, outputs, kernel=1, stride=stride), nn.BatchNorm2d(outputs))
            if stride != 1 or inputs != outputs
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out)) + self.downsample(x)
        result: Tensor = self.relu(out)
        return result


class ResNet50(nn.Module):
    """ResNet-50 without its classifier; gives the maps of strides 8, 16 and 32."""

    FOLDABLE = (("conv1", "bn1"),)

    widths = (512, 1024, 2048)

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = _conv(3, 64, kernel=7, stride=2)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = self._layer(64, 64, blocks=3, stride=1)
        self.layer2 = self._layer(256, 128, blocks=4, stride=2)
        self.layer3 = self._layer(512, 256, blocks=6, stride=2)
        self.layer4 = self._layer(1024, 512, blocks=3, stride=2)

    @staticmethod
    def _layer(inputs: int, width: int, *, blocks: int, stride: int) -> nn.Sequential:
        first = _Bottleneck(inputs, width, stride)
        return nn.Sequential(first, *(_Bottleneck(4 * width, width, 1) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[N, 3, H, W] to [N, 512, H/8, W/8], [N, 1024, H/16, W/16] and [N, 2048, H/32, W/32]."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        c3 = self.layer2(self.layer1(x))
        c4 = self.layer3(c3)
        return c3, c4, self.layer4(c4)


class FPN(nn.Module):
    """Feature pyramid: coarse maps are added to finer ones, all brought to one width."""

    def __init__(self, inputs: Sequence[int], outputs: int, *, slope: float) -> None:
        super().__init__()
        self.output1 = _conv_bn(inputs[0], outputs, kernel=1, slope=slope)
        self.output2 = _conv_bn(inputs[1], outputs, kernel=1, slope=slope)
        self.output3 = _conv_bn(inputs[2], outputs, kernel=1, slope=slope)
        self.merge1 = _conv_bn(outputs, outputs, slope=slope)
        self.merge2 = _conv_bn(outputs, outputs, slope=slope)

    def forward(self, c3: Tensor, c4: Tensor, c5: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The backbone's maps, of strides 8, 16 and 32, to maps of the same sizes and one width."""
        p5: Tensor = self.output3(c5)
        p4: Tensor = self.output2(c4)
        p4 = self.merge2(p4 + F.interpolate(p5, size=p4.shape[-2:], mode="nearest"))
        p3: Tensor = self.output1(c3)
        p3 = self.merge1(p3 + F.interpolate(p4, size=p3.shape[-2:], mode="nearest"))
        return p3, p4, p5


class SSH(nn.Module):
    """Context module: receptive fields of 3x3, 5x5 and 7x7 side by side (arXiv:1708.03979)."""

    def __init__(self, width: int, *, slope: float) -> None:
        super().__init__()
        half, quarter = width // 2, width // 4
        self.conv3X3 = _conv_bn(width, half, slope=None)
        self.conv5X5_1 = _conv_bn(width, quarter, slope=slope)
        self.conv5X5_2 = _conv_bn(quarter, quarter, slope=None)
        self.conv7X7_2 = _conv_bn(quarter, quarter, slope=slope)
        self.conv7x7_3 = _conv_bn(quarter, quarter, slope=None)

    def forward(self, x: Tensor) -> Tensor:
        """[N, width, h, w] to the same shape."""
        context = self.conv5X5_1(x)
        wider = self.conv7x7_3(self.conv7X7_2(context))
        return F.relu(torch.cat([self.conv3X3(x), self.conv5X5_2(context), wider], dim=1))


class _Head(nn.Module):
    """One 1x1 convolution that says `values` numbers about each of a cell's anchors."""

    def __init__(self, width: int, anchors: int, values: int) -> None:
        super().__init__()
        self.values = values
        self.conv1x1 = nn.Conv2d(width, anchors * values, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[N, width, h, w] to [N, h * w * anchors, values], row by row."""
        out: Tensor = self.conv1x1(x)
        return out.permute(0, 2, 3, 1).reshape(out.shape[0], -1, self.values)


class RetinaFace(nn.Module):
    """Backbone, feature pyramid, context modules and three heads.

    Args:
        body: the backbone; its `widths` are those of its three maps.
        width: channels of the pyramid.
        slope: LeakyReLU's in the pyramid and the context modules; 0 is a plain ReLU.
        anchors: how many there are in each cell of a map.
    """

    def __init__(
        self, body: MobileNet025 | ResNet50, *, width: int, slope: float, anchors: int
    ) -> None:
        super().__init__()
        self.body = body
        self.fpn = FPN(body.widths, width, slope=slope)
        self.ssh1 = SSH(width, slope=slope)
        self.ssh2 = SSH(width, slope=slope)
        self.ssh3 = SSH(width, slope=slope)
        self.ClassHead = nn.ModuleList(_Head(width, anchors, 2) for _ in range(3))
        self.BboxHead = nn.ModuleList(_Head(width, anchors, 4) for _ in range(3))
        self.LandmarkHead = nn.ModuleList(_Head(width, anchors, 10) for _ in range(3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Runs the network.

        Args:
            x: [N, 3, H, W], BGR, 0..255 minus the mean.

        Returns:
            loc [N, P, 4] and landmarks [N, P, 10], relative to the priors and in the input's dtype;
            between them conf [N, P, 2] float32, softmax over (background, face). P is the number of
            priors (`models.retinaface.priors`), 16,800 at 640x640.
        """
        p3, p4, p5 = self.fpn(*self.body(x))
        maps = (self.ssh1(p3), self.ssh2(p4), self.ssh3(p5))
        loc = torch.cat([head(m) for head, m in zip(self.BboxHead, maps, strict=True)], dim=1)
        conf = torch.cat([head(m) for head, m in zip(self.ClassHead, maps, strict=True)], dim=1)
        points = torch.cat(
            [head(m) for head, m in zip(self.LandmarkHead, maps, strict=True)], dim=1
        )
        # In float32 also where the network runs in less: thresholds are set on these.
        return loc, torch.softmax(conf, dim=-1, dtype=torch.float32), points
