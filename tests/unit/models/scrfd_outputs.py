"""What SCRFD's heads say of known faces."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mien_server.models.interface import ArrayF32

SIDE = 64
STRIDES = (8, 16, 32)

Point = tuple[float, float]


@dataclass(frozen=True)
class Face:
    """A face in canvas pixels."""

    box: tuple[float, float, float, float]
    score: float
    landmarks: Sequence[Point]


def shapes(side: int) -> list[tuple[int, ...]]:
    """Of the nine outputs for one canvas: scores by stride, boxes by stride, landmarks by stride."""
    return [(2 * (side // stride) ** 2, values) for values in (1, 4, 10) for stride in STRIDES]


def encode(photos: Sequence[Sequence[Face]], *, grid: int = 0, anchor: int = 0) -> list[ArrayF32]:
    """The outputs by which one anchor, the nearest of a grid, sees each face; all others see nothing."""
    outputs = [np.zeros((len(photos), *shape), np.float32) for shape in shapes(SIDE)]
    stride, cells = STRIDES[grid], SIDE // STRIDES[grid]
    scores, boxes, landmarks = outputs[grid::3]
    for photo, faces in enumerate(photos):
        for face in faces:
            x1, y1, x2, y2 = face.box
            column, row = (
                int(np.clip(round((low + high) / 2 / stride), 0, cells - 1))
                for low, high in ((x1, x2), (y1, y2))
            )
            x, y = column * stride, row * stride
            index = 2 * (row * cells + column) + anchor
            scores[photo, index] = face.score
            boxes[photo, index] = np.array([x - x1, y - y1, x2 - x, y2 - y]) / stride
            offsets = np.array(face.landmarks) - (x, y)
            landmarks[photo, index] = offsets.reshape(10) / stride
    return outputs
