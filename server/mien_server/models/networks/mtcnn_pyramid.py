"""A batch of canvases at many scales: what MTCNN's first network looks at, and crops are cut from."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own convention
from numpy.typing import NDArray
from torch import Tensor

from mien_server.models.interface import ArrayF32


class Pyramid:
    """Canvases and ever smaller copies of them.

    Args:
        images: [N, C, H, W] float32.
        first: scale of the first copy, in (0, 1].
        factor: from the scale of one copy to that of the next, in (0, 1).
        smallest: the shorter side that every copy has at least, in pixels, 2 or more.

    Attributes:
        height, width: of the canvases, in pixels.
        copies: [N, C, h, w] each, of falling size; none if the canvases are too small.
    """

    def __init__(self, images: Tensor, *, first: float, factor: float, smallest: int) -> None:
        self.height, self.width = images.shape[-2:]
        self.copies: list[Tensor] = []
        source, scale = images, first
        while min(size := (round(self.height * scale), round(self.width * scale))) >= smallest:
            # Averages of whole pixels first, which is exact and fast; copies of copies would blur.
            while _halves(source.shape, size):
                source = F.avg_pool2d(source, 2)
            self.copies.append(F.interpolate(source, size, mode="bilinear", antialias=True))
            scale *= factor
        self._levels = [images, *self.copies]

    def to_canvas(self, boxes: NDArray[np.int64], copy: Tensor) -> ArrayF32:
        """Boxes [M, 4] in pixels of one of the copies, in pixels of the canvas."""
        return (boxes / self._scale(copy)).astype(np.float32)

    def crops(self, row: NDArray[np.int64], boxes: ArrayF32, side: int) -> Tensor:
        """Cuts boxes out and brings them to one size, whatever theirs is.

        Each comes from the smallest copy in which it is at least as large as wanted: bilinear
        interpolation then skips (nearly) no pixels. Beyond the canvas its border goes on.

        Args:
            row: [M], the canvas of each box.
            boxes: [M, 4], squares in pixels of the canvas.
            side: of the crops, in pixels.

        Returns:
            [M, C, side, side] float32, channels last in memory.
        """
        first = self._levels[0]
        widths = np.array([level.shape[-1] for level in self._levels])
        wanted = side * self.width / (boxes[:, 2] - boxes[:, 0])
        chosen = np.maximum(np.searchsorted(-widths, -wanted, side="right") - 1, 0)
        crops = first.new_empty((len(row), side, side, first.shape[1]))
        for number in np.unique(chosen):
            index = np.flatnonzero(chosen == number)
            level = self._levels[number]
            scaled = (boxes[index] * self._scale(level)).astype(np.float32)
            crops[torch.from_numpy(index).to(crops.device)] = _sample(
                level, row[index], scaled, side
            )
        return crops.permute(0, 3, 1, 2)

    def _scale(self, level: Tensor) -> NDArray[np.float64]:
        """What to multiply a box in pixels of the canvas with, [4]."""
        height, width = level.shape[-2:]
        return np.tile([width / self.width, height / self.height], 2)


def _halves(shape: Sequence[int], size: tuple[int, int]) -> bool:
    """Whether images of a shape [..., H, W] can be halved and still have at least that size."""
    return all(
        length % 2 == 0 and length // 2 >= wanted
        for length, wanted in zip(shape[-2:], size, strict=True)
    )


def _sample(images: Tensor, row: NDArray[np.int64], boxes: ArrayF32, side: int) -> Tensor:
    """Bilinear crops [m, side, side, C] of images [N, C, H, W]; boxes in pixels of these."""
    _, channels, height, width = images.shape
    corners = torch.from_numpy(boxes).to(images.device)
    centres = (torch.arange(side, device=images.device) + 0.5) / side

    def along(axis: int, length: int) -> tuple[Tensor, Tensor]:
        """For each sample the first of its two pixels, and how far it is on the way to the second."""
        begin, end = corners[:, axis, None], corners[:, axis + 2, None]
        at = (begin + centres * (end - begin) - 0.5).clamp(0, length - 1)
        first = at.floor().clamp(max=length - 2)
        return first.long(), at - first

    x, right = along(0, width)
    y, down = along(1, height)
    right, down = right[:, None, :, None], down[:, :, None, None]
    pixels = images.permute(0, 2, 3, 1).reshape(-1, channels)
    y += torch.from_numpy(row).to(images.device)[:, None] * height
    at = y[:, :, None] * width + x[:, None, :]
    upper = torch.lerp(pixels[at], pixels[at + 1], right)
    lower = torch.lerp(pixels[at + width], pixels[at + width + 1], right)
    return torch.lerp(upper, lower, down)
