"""The six portraits, changed in many small ways."""

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from mien_server.models.interface import ArrayF32, ImageU8

FAMILIES = ("scaled", "pasted", "rotated", "cropped", "jpeg", "blurred", "light", "all at once")
SMALLEST = 60.0
"""Height in pixels below which no variant shrinks a face: smaller ones would decide all figures."""

Matrix = NDArray[np.float64]


class Variant(NamedTuple):
    """A portrait, changed.

    Attributes:
        portrait: index of the portrait.
        pixels: [h, w, 3] RGB uint8.
        matrix: [2, 3] from pixels of the portrait to pixels of this photo.
    """

    portrait: int
    family: str
    pixels: ImageU8
    matrix: Matrix


def transform(
    scale: float, degrees: float, centre: NDArray[np.float64], to: NDArray[np.float64]
) -> Matrix:
    """Turns and scales around `centre`, which then lies at `to`."""
    angle = np.deg2rad(degrees)
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return np.column_stack([turn, to - turn @ centre])


def moved(portrait: ImageU8, matrix: Matrix, width: int, height: int, border: int) -> ImageU8:
    """Resamples at any sub-pixel place, smoothed before as a lens and a sensor of fewer pixels would."""
    scale = float(np.hypot(*matrix[:, 0]))
    if scale < 1:
        portrait = blurred(portrait, 0.5 * np.sqrt(1 / scale**2 - 1))
    grey = (128, 128, 128)
    photo = cv2.warpAffine(
        portrait,
        matrix,
        (width, height),
        flags=cv2.INTER_CUBIC,
        borderMode=border,
        borderValue=grey,
    )
    return np.asarray(photo, np.uint8)


def blurred(photo: ImageU8, sigma: float) -> ImageU8:
    return np.asarray(cv2.GaussianBlur(photo, (0, 0), max(sigma, 0.05)), np.uint8)


def encoded(photo: ImageU8, quality: int) -> ImageU8:
    _, data = cv2.imencode(".jpg", photo[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR_RGB), np.uint8)


def variant(
    random: np.random.Generator, family: str, index: int, portrait: ImageU8, box: ArrayF32
) -> Variant:
    """One random change of a portrait whose face has the given box."""
    every = family == "all at once"
    height, width = portrait.shape[:2]
    low = min(1.0, max(0.35, SMALLEST / float(box[3] - box[1])))
    scale = random.uniform(low, 1) if every or family in ("scaled", "pasted") else 1.0
    degrees = random.uniform(-20, 20) if every or family == "rotated" else 0.0
    room = np.array([box[0], box[1], width - box[2], height - box[3]], np.float64).clip(0)
    kept = random.uniform(0.1, 1, 4) if every or family == "cropped" else np.ones(4)
    left, top, right, bottom = (room * (1 - kept)).round()
    inner = scale * np.array([width - left - right, height - top - bottom])
    size = np.ceil(inner)
    if family == "pasted" or (every and random.random() < 0.5):
        size = np.ceil(inner * random.uniform(1.1, 2.5, 2))
    # A photo that is as large as the portrait has no place but one, unless it was moved anyway.
    place = random.uniform(0, size - inner) if scale < 1 else np.zeros(2)
    middle = np.array([left, top]) + inner / scale / 2
    # Pixel i covers [i, i + 1]: what scales those edges moves centres by half a pixel less.
    matrix = transform(scale, degrees, middle - 0.5, place + inner / 2 - 0.5)
    border = cv2.BORDER_CONSTANT if (size > inner + 1).any() else cv2.BORDER_REPLICATE
    photo = moved(portrait, matrix, int(size[0]), int(size[1]), border)
    if every or family == "light":
        levels = (np.arange(256) / 255) ** random.uniform(0.7, 1.4) * random.uniform(0.6, 1.3)
        photo = (levels * 255).clip(0, 255).astype(np.uint8)[photo]
    if every or family == "blurred":
        photo = blurred(photo, random.uniform(0.003, 0.012) * scale * float(box[3] - box[1]))
    if every or family == "jpeg":
        photo = encoded(photo, int(random.integers(40, 96)))
    return Variant(index, family, np.ascontiguousarray(photo), matrix)
