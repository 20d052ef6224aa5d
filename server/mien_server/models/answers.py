"""What models answer as plain arrays, and how near two answers come to each other."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mien_server.models.detections import Detections
from mien_server.models.interface import ArrayF32

SCORE = 5
"""The column of a face's score in a golden file: number of the picture, box, score, landmarks."""


def cosines(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float64]:
    """Of vectors [1 or n, d] with vectors [n, d]: [n]; 0 where one is zero or not finite."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    with np.errstate(all="ignore"):
        norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        found: NDArray[np.float64] = (a * b).sum(axis=1) / norms
    return np.nan_to_num(found, nan=0.0, posinf=0.0, neginf=0.0)


def grown(array: ArrayF32, length: int) -> ArrayF32:
    """An array as long as that, its end zeros."""
    found = np.zeros((length, *array.shape[1:]), np.float32)
    found[: len(array)] = array
    return found


def faces_of(picture: int, found: Detections) -> ArrayF32:
    """The faces of a picture [n, 16]: its number, box, score, landmarks; [n, 6] without any of these."""
    number = np.full((len(found.scores), 1), picture)
    marks = found.landmarks.reshape(len(number), found.landmarks.shape[1] * 2)
    parts = (number, found.boxes, found.scores[:, None], marks)
    return np.concatenate(parts, axis=1).astype(np.float32)


def nearest(face: ArrayF32, found: ArrayF32) -> float:
    """The best cosine to the expected face of any that was found in the same picture."""
    found = found[found[:, 0] == face[0]]
    if not len(found):
        return 0.0
    low, high = face[1:3], face[3:5]
    centre, unit = (low + high) / 2, (high - low).max() / 2

    def seen(faces: ArrayF32) -> NDArray[np.float64]:
        points = np.concatenate([faces[:, 1:SCORE], faces[:, SCORE + 1 :]], axis=1)
        shape = (points.reshape(len(faces), -1, 2) - centre) / unit
        return np.concatenate(
            [shape.reshape(len(faces), -1), faces[:, SCORE, None]], axis=1
        ).astype(np.float64)

    return float(cosines(seen(face[None]), seen(found)).max())
