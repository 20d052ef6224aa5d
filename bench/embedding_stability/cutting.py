"""Ways of cutting a crop, and which of them are tried with which landmarks."""

from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np

from bench.embedding_stability.photos import Matrix
from mien_server.models.interface import CROP_SIDE, ArrayF32, ImageU8
from mien_server.pipeline.align import crop_faces, similarity

Cut = Callable[[ImageU8, ArrayF32], ImageU8]


def halved(pixels: ImageU8, landmarks: ArrayF32) -> ImageU8:
    """As served."""
    return crop_faces(pixels, landmarks[None])[0]


def sampled(pixels: ImageU8, landmarks: ArrayF32) -> ImageU8:
    """Bilinear alone."""
    matrix = similarity(landmarks[None])[0]
    crop = cv2.warpAffine(pixels, matrix, (CROP_SIDE, CROP_SIDE), flags=cv2.INTER_LINEAR)
    return np.asarray(crop, np.uint8)


def averaged_by_factor(pixels: ImageU8, landmarks: ArrayF32) -> ImageU8:
    """Averages over squares of as many whole pixels as a pixel of the crop has, then bilinear."""
    matrix = similarity(landmarks[None])[0]
    return warp(pixels, matrix, CROP_SIDE, (0, 0, 0), whole=True)


def averaged_exactly(pixels: ImageU8, landmarks: ArrayF32) -> ImageU8:
    """The photo to the scale of the crop by exact averages, then bilinear."""
    return warp(pixels, similarity(landmarks[None])[0], CROP_SIDE, (0, 0, 0))


def warp(
    pixels: ImageU8, matrix: Matrix, side: int, fill: tuple[int, int, int], *, whole: bool = False
) -> ImageU8:
    """A square out of a photo that is averaged to its scale before it is sampled.

    Args:
        matrix: [2, 3] from photo pixels to those of the square.
        whole: averages are over whole pixels, so the scale is only about that of the square.
    """
    scale = float(np.hypot(*matrix[:, 0]))
    if scale < 1:
        height, width = pixels.shape[:2]
        if whole:
            factor = int(1 / scale)
            height, width = height // factor * factor, width // factor * factor
            size = width // factor, height // factor
        else:
            size = max(1, round(width * scale)), max(1, round(height * scale))
        shrunk = cv2.resize(pixels[:height, :width], size, interpolation=cv2.INTER_AREA)
        pixels = np.asarray(shrunk, np.uint8)
        ratio = np.array([width / size[0], height / size[1]])
        shift = matrix[:, :2] @ ((ratio - 1) / 2) + matrix[:, 2]
        matrix = np.column_stack([matrix[:, :2] * ratio, shift])
    square = cv2.warpAffine(pixels, matrix, (side, side), flags=cv2.INTER_LINEAR, borderValue=fill)
    return np.asarray(square, np.uint8)


class Way(NamedTuple):
    """Landmarks of one kind, cut in one way."""

    landmarks: str
    cut: Cut


SERVED, AVERAGED = "as served", "mean of candidates"
SECOND, SECOND_SMALL = "second look at 320", "second look at 160"
EXACT, PLAIN = "letterbox by exact averages", "640, bilinear"
WAYS = (
    Way(SERVED, sampled),
    Way(SERVED, halved),
    Way(SERVED, averaged_by_factor),
    Way(SERVED, averaged_exactly),
    Way(EXACT, sampled),
    Way(EXACT, halved),
    Way(SECOND, sampled),
    Way(SECOND, halved),
    Way(SECOND_SMALL, halved),
    Way(AVERAGED, sampled),
    Way(AVERAGED, halved),
    Way(PLAIN, sampled),
)
