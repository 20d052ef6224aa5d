"""What all detectors have in common: from scored candidates to the faces of each photo."""

from collections.abc import Sequence
from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray

from mien_server.models.interface import ArrayF32, Detections

CANDIDATES = 5000
"""Best-scored candidates of a photo that suppression looks at."""
FACES = 750
"""Most faces of a photo."""


def candidates(
    scores: ArrayF32, min_scores: Sequence[float]
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """What is worth decoding: the best of the scores above each photo's own.

    Args:
        scores: [N, P], of P candidates of each photo. What is not finite is no face.
        min_scores: for each photo, the score to beat.

    Returns:
        photo and candidate of each, photo by photo, by falling score.
    """
    thresholds = np.asarray(min_scores, dtype=np.float32)
    row, candidate = np.nonzero((scores > thresholds[:, None]) & (scores < np.inf))
    order = np.lexsort((-scores[row, candidate], row))
    row, candidate = row[order], candidate[order]
    rank = np.arange(len(row)) - np.searchsorted(row, row)
    return row[rank < CANDIDATES], candidate[rank < CANDIDATES]


def detections(
    row: NDArray[np.intp],
    boxes: ArrayF32,
    scores: ArrayF32,
    landmarks: ArrayF32,
    *,
    photos: int,
    nms_threshold: float,
) -> list[Detections]:
    """The faces of each photo, after non-maximum suppression. What is not finite is no face.

    Args:
        row: [n], the photo of each candidate, ascending.
        boxes: [n, 4], corners in pixels of the canvas.
        scores: [n], above 0, falling within a photo; above 1 counts as 1.
        landmarks: [n, 5, 2], likewise in pixels.
        photos: how many there are.
        nms_threshold: boxes that overlap a better one by more than this IoU are dropped.
    """
    valid = np.isfinite(boxes).all(axis=1) & np.isfinite(landmarks).all(axis=(1, 2))
    valid &= (boxes[:, :2] < boxes[:, 2:]).all(axis=1)
    row, boxes, landmarks = row[valid], boxes[valid], landmarks[valid]
    scores = np.minimum(scores[valid], 1)
    found = []
    for start, end in pairwise(np.searchsorted(row, np.arange(photos + 1))):
        kept = start + suppress(boxes[start:end], scores[start:end], nms_threshold)[:FACES]
        found.append(Detections(boxes[kept], scores[kept], landmarks[kept]))
    return found


def suppress(boxes: ArrayF32, scores: ArrayF32, threshold: float) -> NDArray[np.int64]:
    """Greedy non-maximum suppression of one photo's boxes.

    Args:
        boxes: [n, 4], corners.
        scores: [n], above 0.
        threshold: boxes that overlap a better, kept one by more than this IoU are dropped.

    Returns:
        Indices of the boxes kept, by falling score; among equals the first comes first.
    """
    corner_and_size = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
    # Each photo by itself, not cv2.dnn.NMSBoxesBatched: that moves photos apart by the largest
    # coordinate of the whole batch, so one absurd box would blur the coordinates of all the others.
    kept = cv2.dnn.NMSBoxes(corner_and_size, scores, 0.0, threshold)  # type: ignore[arg-type]
    return np.asarray(kept, dtype=np.int64)
