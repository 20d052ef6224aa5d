"""SFace: a small embedding network of the shape of MobileNet v1.

Zhong et al., "SFace: Sigmoid-Constrained Hypersphere Loss for Robust Face Recognition",
arXiv:2205.12010. Its public form is the ONNX graph of the OpenCV Zoo, which has no PyTorch names: the
keys here are ours, `weights/published.py` maps them.
"""

from torch import Tensor, nn

DIMENSIONS = 128
FINAL_SIDE = 7
"""A crop of 112 pixels, halved by four blocks."""
BLOCKS = (
    *((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)),
    *((512, 1),) * 5,
    *((1024, 2), (1024, 1)),
)
"""Output width and stride of each depthwise-separable block."""
CONV_EPS = 1e-3
HEAD_EPS = 2e-5


class _ConvUnit(nn.Module):
    """Convolution without bias, batch norm, PReLU."""

    FOLDABLE = (("conv", "bn"),)

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False
        )
        self.bn = nn.BatchNorm2d(outputs, eps=CONV_EPS)
        self.prelu = nn.PReLU(outputs)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.prelu(self.bn(self.conv(x)))
        return out


class _Block(nn.Module):
    """A depthwise and a pointwise convolution."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.depthwise = _ConvUnit(inputs, inputs, stride=stride, groups=inputs)
        self.pointwise = _ConvUnit(inputs, outputs, kernel=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.pointwise(self.depthwise(x))
        return out


class SFace(nn.Module):
    """An aligned face to a vector of 128 numbers, not normalised."""

    FOLDABLE = (("fc", "features"),)

    def __init__(self) -> None:
        super().__init__()
        self.stem = _ConvUnit(3, 32)
        inputs = [32, *(width for width, _ in BLOCKS)]
        self.blocks = nn.Sequential(
            *(_Block(w, width, stride) for w, (width, stride) in zip(inputs, BLOCKS, strict=False))
        )
        self.bn = nn.BatchNorm2d(inputs[-1], eps=HEAD_EPS)
        self.fc = nn.Linear(inputs[-1] * FINAL_SIDE**2, DIMENSIONS)
        self.features = nn.BatchNorm1d(DIMENSIONS, eps=HEAD_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, 112, 112], RGB in [-1, 1), to [N, 128]."""
        x = self.bn(self.blocks(self.stem(x))).flatten(1)
        embedding: Tensor = self.features(self.fc(x))
        return embedding
