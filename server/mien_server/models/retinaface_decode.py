"""From RetinaFace's raw outputs to faces: priors, decoding and non-maximum suppression."""

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray

from mien_server.models.interface import ArrayF32, Detections

STEPS = (8, 16, 32)
"""Pixels between the cells of each map."""
SIZES = ((16, 32), (64, 128), (256, 512))
"""Sides in pixels of the priors of each map's cells."""
ANCHORS_PER_CELL = 2
CENTRE_VARIANCE = 0.1
SIZE_VARIANCE = 0.2
CANDIDATES = 5000
"""Best-scored priors of a photo that suppression looks at."""
FACES = 750
"""Most faces of a photo."""


@lru_cache(maxsize=16)
def priors(side: int) -> ArrayF32:
    """The prior boxes of a square canvas, in the order of the network's outputs.

    They are squares, so [P, 3] float32 says it all: centre x, centre y and side, in canvas pixels.
    Order: map, row, column, size. P is 16,800 for a side of 640. Read-only, since it is shared.
    """
    maps = []
    for step, sizes in zip(STEPS, SIZES, strict=True):
        centres = (np.arange(-(-side // step), dtype=np.float32) + 0.5) * step
        y, x, size = np.meshgrid(centres, centres, np.array(sizes, np.float32), indexing="ij")
        maps.append(np.stack([x, y, size], axis=-1).reshape(-1, 3))
    boxes = np.concatenate(maps)
    boxes.setflags(write=False)
    return boxes


def decode(
    loc: ArrayF32,
    scores: ArrayF32,
    landmarks: ArrayF32,
    *,
    side: int,
    min_scores: Sequence[float],
    nms_threshold: float,
) -> list[Detections]:
    """The faces of each photo of a batch.

    Formulas: the SSD box coding with variances 0.1 and 0.2 (Liu et al., arXiv:1512.02325, section 2.2);
    landmarks are coded as centres are. Only priors that beat their photo's score are decoded, those of
    all photos at once. What is not finite is no face.

    Args:
        loc: [N, P, 4], offsets of centre and size.
        scores: [N, P], the face's probability.
        landmarks: [N, P, 10], offsets of five points.
        side: of the square canvas, in pixels.
        min_scores: for each photo, the score to beat.
        nms_threshold: boxes that overlap a better one by more than this IoU are dropped.

    Raises:
        ValueError: P is not the number of priors of the canvas.
    """
    anchors = priors(side)
    if loc.shape[1] != len(anchors):
        raise ValueError(
            f"the outputs speak of {loc.shape[1]} priors, a canvas of {side} pixels has {len(anchors)}"
        )
    row, prior = _candidates(scores, np.asarray(min_scores, dtype=np.float32))
    centre, size = anchors[prior, :2], anchors[prior, 2:]
    offsets = loc[row, prior]
    with np.errstate(over="ignore", invalid="ignore"):
        middle = centre + offsets[:, :2] * CENTRE_VARIANCE * size
        half = size * np.exp(offsets[:, 2:] * SIZE_VARIANCE) / 2
        boxes = np.concatenate([middle - half, middle + half], axis=1)
        points = landmarks[row, prior].reshape(-1, 5, 2)
        points = centre[:, None] + points * CENTRE_VARIANCE * size[:, None]
    valid = np.isfinite(boxes).all(axis=1) & np.isfinite(points).all(axis=(1, 2))
    valid &= (boxes[:, :2] < boxes[:, 2:]).all(axis=1)
    row, boxes, points = row[valid], boxes[valid], points[valid]
    confidence = np.minimum(scores[row, prior[valid]], 1)
    ends = np.searchsorted(row, np.arange(len(loc) + 1))
    found = []
    for start, end in pairwise(ends):
        kept = start + suppress(boxes[start:end], confidence[start:end], nms_threshold)[:FACES]
        found.append(Detections(boxes[kept], confidence[kept], points[kept]))
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


def _candidates(
    scores: ArrayF32, min_scores: ArrayF32
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Photo and prior of the best scores above each photo's own: photo by photo, by falling score."""
    row, prior = np.nonzero((scores > min_scores[:, None]) & (scores < np.inf))
    order = np.lexsort((-scores[row, prior], row))
    row, prior = row[order], prior[order]
    rank = np.arange(len(row)) - np.searchsorted(row, row)
    return row[rank < CANDIDATES], prior[rank < CANDIDATES]
