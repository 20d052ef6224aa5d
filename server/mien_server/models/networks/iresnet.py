"""IResNet, the backbones of ArcFace: IR-50 and its relatives.

Deng et al., "ArcFace: Additive Angular Margin Loss for Deep Face Recognition", arXiv:1801.07698, section
3.1. Layers and state_dict keys are those of the public arcface_torch checkpoints, so that they load
strictly.
"""

from collections.abc import Sequence

from torch import Tensor, nn

WIDTHS = (64, 128, 256, 512)
FINAL_SIDE = 7
"""A crop of 112 pixels, halved by each of the four layers."""


def _conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)


class _Block(nn.Module):
    """Batch norm first, no activation after the addition."""

    FOLDABLE = (("conv1", "bn2"), ("conv2", "bn3"))

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = _conv(inputs, outputs)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.prelu = nn.PReLU(outputs)
        self.conv2 = _conv(outputs, outputs, stride=stride)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = (
            nn.Sequential(_conv(inputs, outputs, kernel=1, stride=stride), nn.BatchNorm2d(outputs))
            if stride != 1
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        out = self.prelu(self.bn2(self.conv1(self.bn1(x))))
        out = self.bn3(self.conv2(out))
        result: Tensor = out + self.downsample(x)
        return result


class IResNet(nn.Module):
    """An aligned face to a vector, which is not normalised.

    Args:
        blocks: residual blocks of each of the four layers.
        dimensions: of the vector.
    """

    FOLDABLE = (("conv1", "bn1"), ("fc", "features"))

    def __init__(self, blocks: Sequence[int], dimensions: int) -> None:
        super().__init__()
        self.conv1 = _conv(3, WIDTHS[0])
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.prelu = nn.PReLU(WIDTHS[0])
        self.layer1 = self._layer(WIDTHS[0], WIDTHS[0], blocks[0])
        self.layer2 = self._layer(WIDTHS[0], WIDTHS[1], blocks[1])
        self.layer3 = self._layer(WIDTHS[1], WIDTHS[2], blocks[2])
        self.layer4 = self._layer(WIDTHS[2], WIDTHS[3], blocks[3])
        self.bn2 = nn.BatchNorm2d(WIDTHS[3])
        self.fc = nn.Linear(WIDTHS[3] * FINAL_SIDE**2, dimensions)
        self.features = nn.BatchNorm1d(dimensions)

    @staticmethod
    def _layer(inputs: int, outputs: int, blocks: int) -> nn.Sequential:
        first = _Block(inputs, outputs, stride=2)
        return nn.Sequential(first, *(_Block(outputs, outputs, 1) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, 112, 112], RGB in [-1, 1], to [N, dimensions]."""
        x = self.prelu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        x = self.bn2(x).flatten(1)
        embedding: Tensor = self.features(self.fc(x))
        return embedding
