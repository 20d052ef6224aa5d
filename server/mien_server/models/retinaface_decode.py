"""From RetinaFace's raw outputs to faces: priors and decoding."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from mien_server.models.detections import Detections, candidates, detections
from mien_server.models.interface import ArrayF32

STEPS = (8, 16, 32)
"""Pixels between the cells of each map."""
SIZES = ((16, 32), (64, 128), (256, 512))
"""Sides in pixels of the priors of each map's cells."""
ANCHORS_PER_CELL = 2
CENTRE_VARIANCE = 0.1
SIZE_VARIANCE = 0.2


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
    row, prior = candidates(scores, min_scores)
    centre, size = anchors[prior, :2], anchors[prior, 2:]
    offsets = loc[row, prior]
    with np.errstate(over="ignore", invalid="ignore"):
        middle = centre + offsets[:, :2] * CENTRE_VARIANCE * size
        half = size * np.exp(offsets[:, 2:] * SIZE_VARIANCE) / 2
        boxes = np.concatenate([middle - half, middle + half], axis=1)
        points = landmarks[row, prior].reshape(-1, 5, 2)
        points = centre[:, None] + points * CENTRE_VARIANCE * size[:, None]
    return detections(
        row, boxes, scores[row, prior], points, photos=len(loc), nms_threshold=nms_threshold
    )
