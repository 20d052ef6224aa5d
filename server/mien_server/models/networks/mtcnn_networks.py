"""MTCNN's three networks.

Zhang et al., "Joint Face Detection and Alignment using Multi-task Cascaded Convolutional Networks",
arXiv:1604.02878, figure 2. Widths and state_dict keys are those of the public PyTorch checkpoints, which
pool as Caffe does: a window that reaches beyond the border counts too.
"""

import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own convention
from torch import Tensor, nn


def _face(logits: Tensor) -> Tensor:
    """The probability of a face from the two classes along axis 1, float32 whatever the input's type."""
    return torch.softmax(logits, dim=1, dtype=torch.float32)[:, 1]


def _flatten(maps: Tensor) -> Tensor:
    """[M, C, H, W] to [M, W * H * C]: column by column, as the checkpoints' weights are ordered."""
    return maps.permute(0, 3, 2, 1).flatten(1)


class PNet(nn.Module):
    """Proposes: looks at every window of 12x12 pixels, two pixels apart."""

    side = 12
    stride = 2

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 10, 3)
        self.prelu1 = nn.PReLU(10)
        self.conv2 = nn.Conv2d(10, 16, 3)
        self.prelu2 = nn.PReLU(16)
        self.conv3 = nn.Conv2d(16, 32, 3)
        self.prelu3 = nn.PReLU(32)
        self.conv4_1 = nn.Conv2d(32, 2, 1)
        self.conv4_2 = nn.Conv2d(32, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[N, 3, H, W] to scores [N, h, w] and offsets [N, 4, h, w]."""
        x = F.max_pool2d(self.prelu1(self.conv1(x)), 2, 2, ceil_mode=True)
        x = self.prelu2(self.conv2(x))
        x = self.prelu3(self.conv3(x))
        return _face(self.conv4_1(x)), self.conv4_2(x)


class RNet(nn.Module):
    """Refines: looks at crops of 24x24 pixels."""

    side = 24

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 28, 3)
        self.prelu1 = nn.PReLU(28)
        self.conv2 = nn.Conv2d(28, 48, 3)
        self.prelu2 = nn.PReLU(48)
        self.conv3 = nn.Conv2d(48, 64, 2)
        self.prelu3 = nn.PReLU(64)
        self.dense4 = nn.Linear(64 * 3 * 3, 128)
        self.prelu4 = nn.PReLU(128)
        self.dense5_1 = nn.Linear(128, 2)
        self.dense5_2 = nn.Linear(128, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[M, 3, 24, 24] to scores [M] and offsets [M, 4]."""
        x = F.max_pool2d(self.prelu1(self.conv1(x)), 3, 2, ceil_mode=True)
        x = F.max_pool2d(self.prelu2(self.conv2(x)), 3, 2, ceil_mode=True)
        x = self.prelu3(self.conv3(x))
        x = self.prelu4(self.dense4(_flatten(x)))
        return _face(self.dense5_1(x)), self.dense5_2(x)


class ONet(nn.Module):
    """Gives the output: looks at crops of 48x48 pixels, and finds the landmarks too."""

    side = 48

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 3)
        self.prelu1 = nn.PReLU(32)
        self.conv2 = nn.Conv2d(32, 64, 3)
        self.prelu2 = nn.PReLU(64)
        self.conv3 = nn.Conv2d(64, 64, 3)
        self.prelu3 = nn.PReLU(64)
        self.conv4 = nn.Conv2d(64, 128, 2)
        self.prelu4 = nn.PReLU(128)
        self.dense5 = nn.Linear(128 * 3 * 3, 256)
        self.prelu5 = nn.PReLU(256)
        self.dense6_1 = nn.Linear(256, 2)
        self.dense6_2 = nn.Linear(256, 4)
        self.dense6_3 = nn.Linear(256, 10)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[M, 3, 48, 48] to scores [M], offsets [M, 4] and landmarks [M, 10]: five x, then five y."""
        x = F.max_pool2d(self.prelu1(self.conv1(x)), 3, 2, ceil_mode=True)
        x = F.max_pool2d(self.prelu2(self.conv2(x)), 3, 2, ceil_mode=True)
        x = F.max_pool2d(self.prelu3(self.conv3(x)), 2, 2, ceil_mode=True)
        x = self.prelu4(self.conv4(x))
        x = self.prelu5(self.dense5(_flatten(x)))
        return _face(self.dense6_1(x)), self.dense6_2(x), self.dense6_3(x)
