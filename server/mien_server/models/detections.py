"""The faces of a canvas, and what all detectors have in common: from scored candidates to those faces."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from mien_server.models.interface import ArrayF32

CANDIDATES = 5000
"""Best-scored candidates of a photo that suppression looks at."""
FACES = 750
"""Most faces of a photo."""


class Detections(NamedTuple):
    """The faces of one canvas, by falling score, after non-maximum suppression.

    boxes: [n, 4] float32, x1 y1 x2 y2 in canvas pixels. scores: [n] float32 in [0, 1].
    landmarks: [n, 5, 2] float32, x y in canvas pixels: left eye, right eye, nose, left and right mouth
    corner, left and right as the viewer sees them. [n, 0, 2] of a detector that places none.
    """

    boxes: ArrayF32
    scores: ArrayF32
    landmarks: ArrayF32

    @property
    def placed(self) -> bool:
        """Whether their detector places landmarks."""
        return bool(self.landmarks.shape[1])

    def take(self, index: NDArray[Any]) -> "Detections":
        """The faces of an index or a mask, in its order."""
        return Detections(self.boxes[index], self.scores[index], self.landmarks[index])

    def scaled(self, factor: ArrayF32) -> "Detections":
        """The same faces in pixels of another size: every x and y divided by `factor`, [2]."""
        boxes = (self.boxes / np.tile(factor, 2)).astype(np.float32)
        landmarks = (self.landmarks / factor).astype(np.float32)
        return Detections(boxes, self.scores, landmarks)

    def iou(self, other: "Detections") -> ArrayF32:
        """Intersection over union of each box with each of another's: [n, m] in [0, 1]."""
        shared = shared_areas(self.boxes, other.boxes)
        union = areas(self.boxes)[:, None] + areas(other.boxes)[None, :] - shared
        iou: ArrayF32 = shared / np.maximum(union, 1e-9)
        return iou


def areas(boxes: ArrayF32) -> ArrayF32:
    """Of boxes [n, 4] in square pixels: [n]."""
    found: ArrayF32 = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    return found


def shared_areas(a: ArrayF32, b: ArrayF32) -> ArrayF32:
    """What each box of [n, 4] has in common with each of [m, 4], in square pixels: [n, m]."""
    corner = np.minimum(a[:, None, 2:], b[None, :, 2:])
    corner -= np.maximum(a[:, None, :2], b[None, :, :2])
    shared: ArrayF32 = np.clip(corner, 0, None).prod(axis=2)
    return shared


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
        landmarks: [n, 5, 2], likewise in pixels; [n, 0, 2] where none are placed.
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
