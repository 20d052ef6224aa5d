"""From landmarks to crops: that of 112x112 pixels that embedders are trained on, and those that others see.

Change `models.interface.ALIGNMENT` when crops change: it is part of every embedder's fingerprint.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from mien_server.models.crops import Crop
from mien_server.models.interface import CROP_SIDE
from mien_server.pipeline.decode import Photo, load
from mien_server.pipeline.room import PictureRoom
from mien_server.pipeline.types import ArrayF32, EncodedImage, ImageU8, Limits, RawPixels

TEMPLATE: ArrayF32 = np.array(
    [
        [38.2946, 51.6963],
        [73.5318, 51.5014],
        [56.0252, 71.7366],
        [41.5493, 92.3655],
        [70.7299, 92.2041],
    ],
    np.float32,
)
"""Where ArcFace expects the left eye, right eye, nose, left and right mouth corner, in crop pixels."""

# Landmarks whose spread across their narrow direction is below this part of that along the wide one are a
# line and say nothing about the face. A frontal face has about 0.6, a full profile above 0.1.
_MIN_SPREAD = 0.02


def similarity(landmarks: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """The similarity transforms that bring faces closest to the template, in the least-squares sense.

    Umeyama (1991) for two dimensions: with points as complex numbers around their means, the rotation and
    scale of the best similarity without reflection is sum(conj(p)·q) / sum(|p|²).

    Args:
        landmarks: [n, 5, 2], x y in photo pixels.

    Returns:
        [n, 2, 3] float64, from photo pixels to crop pixels. NaN for landmarks that are not finite, (nearly)
        equal or (nearly) on one line.
    """
    points = np.where(np.isfinite(landmarks), landmarks, 0.0).astype(np.float64)
    p = points[..., 0] + 1j * points[..., 1]
    q = TEMPLATE[:, 0].astype(np.float64) + 1j * TEMPLATE[:, 1]
    p_mean, q_mean = p.mean(axis=1, keepdims=True), q.mean()
    p, q = p - p_mean, q - q_mean
    energy = (np.abs(p) ** 2).sum(axis=1)
    # |sum p²| = a - b and energy = a + b, for the squared spreads a >= b along the principal axes.
    elongation = np.abs((p**2).sum(axis=1))
    finite = np.isfinite(landmarks).all(axis=(1, 2))
    wide = energy - elongation > _MIN_SPREAD**2 * (energy + elongation)
    usable = finite & wide & (energy > 1e-6)
    turn = (p.conj() * q).sum(axis=1) / np.where(usable, energy, 1.0)
    shift = q_mean - turn * p_mean[:, 0]
    matrices = np.stack(
        [
            np.stack([turn.real, -turn.imag, shift.real], axis=1),
            np.stack([turn.imag, turn.real, shift.imag], axis=1),
        ],
        axis=1,
    )
    matrices[~usable] = np.nan
    return matrices


def alignable(landmarks: ArrayF32) -> NDArray[np.bool_]:
    """Which of the faces [n, 5, 2] have landmarks that determine a crop: [n]."""
    return np.isfinite(magnification(landmarks))


def magnification(landmarks: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """How many crop pixels one photo pixel becomes, for each face: [n]. Above 1 the crop is blurred."""
    matrices = similarity(landmarks)
    size: NDArray[np.float64] = np.hypot(matrices[:, 0, 0], matrices[:, 1, 0])
    return size


def crop_faces(pixels: ImageU8, landmarks: NDArray[np.floating[Any]]) -> list[ImageU8]:
    """Cuts aligned crops [112, 112, 3] out of a photo, bilinear, black outside the photo.

    A face at least twice as large as the crop is first halved, by averages, until it is not. Sampled without
    that, as the reference implementation (InsightFace) does, a crop changes with where its samples happen to
    fall, and the embedding with it: docs/evaluation.md has the figures.

    Args:
        pixels: [h, w, 3] RGB uint8.
        landmarks: [n, 5, 2] in the pixels of that array; all `alignable`.
    """
    return [cut(pixels, matrix, CROP_SIDE) for matrix in similarity(landmarks)]


def cut(pixels: ImageU8, matrix: NDArray[np.float64], side: int) -> ImageU8:
    """Cuts a square [side, side, 3] out of a photo [h, w, 3], as `crop_faces` does.

    Args:
        matrix: [2, 3], from pixels of that array to those of the square: turns, scales and moves.
    """
    height, width = pixels.shape[:2]
    shrinking = 1 / np.hypot(matrix[0, 0], matrix[1, 0])
    halvings = int(np.log2(np.clip(shrinking, 1, max(width, height))))
    square = 2**halvings
    # OpenCV warps arrays of at most 32766 pixels a side: hand it the part of the photo that it needs.
    corners = np.array([[0, 0], [side, 0], [0, side], [side, side]], np.float64)
    inside = (corners - matrix[:, 2]) @ np.linalg.inv(matrix[:, :2]).T
    left, top = np.clip(np.floor(inside.min(axis=0)) - 1 - square, 0, [width, height]).astype(int)
    right, bottom = np.clip(
        np.ceil(inside.max(axis=0)) + 1 + 2 * square, 0, [width, height]
    ).astype(int)
    # Whole squares, counted from the corner of the photo: the same ones wherever the face begins.
    # Where the photo ends, that leaves out less than a pixel of the crop.
    left -= left % square
    top -= top % square
    right -= (right - left) % square
    bottom -= (bottom - top) % square
    if left >= right or top >= bottom:
        return np.zeros((side, side, 3), np.uint8)
    face = pixels[top:bottom, left:right]
    for _ in range(halvings):
        # OpenCV has a fast way for just this factor: by 3 or by 4 at once takes five times as long.
        half = (face.shape[1] // 2, face.shape[0] // 2)
        face = np.asarray(cv2.resize(face, half, interpolation=cv2.INTER_AREA), np.uint8)
    # The first pixel now stands for the centre of the first square.
    first = np.array([left, top], np.float64) + (square - 1) / 2
    part = np.column_stack([square * matrix[:, :2], matrix[:, 2] + matrix[:, :2] @ first])
    crop = cv2.warpAffine(face, part, (side, side), flags=cv2.INTER_LINEAR)
    return np.asarray(crop, np.uint8)


class Cut(NamedTuple):
    """One crop of one face: its pixels [side, side, 3], and [2, 3], how it was cut out of the picture."""

    pixels: ImageU8
    matrix: NDArray[np.float64]


def cut_faces(
    image: EncodedImage | RawPixels,
    photo: Photo,
    landmarks: ArrayF32,
    others: Mapping[Crop, Sequence[NDArray[np.float64]]],
    limits: Limits,
    room: PictureRoom,
) -> tuple[list[ImageU8], dict[Crop, list[Cut]]]:
    """The aligned crops [112, 112, 3] of the faces [n, 5, 2] of a photo, and other crops of them. Blocking.

    The aligned ones are the same to the last bit, whatever else is cut.

    Args:
        others: of each other crop, the `matrix_of` each face.
    """

    @cache
    def whole() -> Photo:
        with room.hold(refusable=False) as hold:
            return load(image, limits, hold=hold)

    def fine_enough(magnified: float) -> Photo:
        # The reduced photo may have fewer pixels of some face than its crop: then it is decoded in full.
        return whole() if magnified > 1.0 else photo

    reduced = photo.reduction > 1
    seen = fine_enough(
        magnification(landmarks / photo.reduction).max(initial=0.0) if reduced else 0.0
    )
    aligned = crop_faces(seen.pixels, (landmarks / seen.reduction).astype(np.float32))
    finest = max((np.hypot(*each[:, 0]) for part in others.values() for each in part), default=0.0)
    seen = fine_enough(finest * photo.reduction if reduced else 0.0)
    scale = np.array([seen.reduction, seen.reduction, 1.0])
    return aligned, {
        crop: [Cut(cut(seen.pixels, each * scale, crop.side), each) for each in part]
        for crop, part in others.items()
    }


def cut_again(aligned: ImageU8, crop: Crop) -> ImageU8:
    """A crop of an aligned face, of whose photo nothing is known: black beyond it. Blocking."""
    return cut(aligned, matrix_of(crop, TEMPLATE), crop.side)


def matrix_of(
    crop: Crop,
    landmarks: ArrayF32,
    box: ArrayF32 | None = None,
    size: tuple[int, int] = (0, 0),
) -> NDArray[np.float64]:
    """From pixels of a picture to those of a crop of a face of it: [2, 3].

    Args:
        crop: which part of the picture.
        landmarks: [5, 2], where they are; alignable.
        box: [4]; a crop around the box needs it.
        size: width and height of the picture, which a crop inside of it needs.
    """
    if crop.needs_photo:
        if box is None:
            raise ValueError("a crop around the box needs one")
        low, high = box[:2].astype(np.float64), box[2:].astype(np.float64)
        if crop.around == "inside":
            return _inside(crop, low, high, np.array(size, np.float64) - 1)
        scale = crop.side / max(crop.margin * float((high - low).max()), 1.0)
        middle = (crop.side - 1) / 2
        return np.column_stack([np.eye(2) * scale, middle - scale * (low + high) / 2])
    matrix: NDArray[np.float64] = similarity(landmarks[None])[0]
    if crop.is_template:
        return matrix
    left, top, side = crop.window
    scale = crop.side / side
    # Whole pixels lie between their edges: half of one before the centre of the first.
    shift = scale * (0.5 - np.array([left, top])) - 0.5
    return np.column_stack([scale * matrix[:, :2], scale * matrix[:, 2] + shift])


def _inside(
    crop: Crop, low: NDArray[np.float64], high: NDArray[np.float64], most: NDArray[np.float64]
) -> NDArray[np.float64]:
    """As `matrix_of`, of a box enlarged, and moved to end where the picture does: MiniFASNet's crop."""
    span = np.maximum(high - low, 1.0)
    part = span * min(crop.margin, *(most / span))
    first = np.clip((low + high - part) / 2, 0, np.maximum(most - part, 0))
    scale = crop.side / np.maximum(part, 1.0)
    return np.column_stack([np.diag(scale), (crop.side - 1) / 2 - scale * (first + part / 2)])
