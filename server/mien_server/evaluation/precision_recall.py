"""Average precision as WIDER FACE's evaluation tools compute it."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

STEPS = 1000
"""At so many thresholds precision and recall are looked at."""
OVERLAP = 0.5
"""From this intersection over union on a box finds a face."""

Boxes = NDArray[np.float64]
Scores = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """What the boxes of one photo found, by falling score.

    Attributes:
        scores: normalised to [0, 1], [n].
        proposed: how many boxes count, up to each of them, [n]. A box on a face that does not count is none.
        found: how many faces that count were found, up to each box, [n].
    """

    scores: Scores
    proposed: NDArray[np.intp]
    found: NDArray[np.intp]


def overlaps(a: Boxes, b: Boxes) -> NDArray[np.float64]:
    """IoU of boxes [n, 4] with boxes [m, 4], x1 y1 x2 y2 with both ends inside, as in the tools: [n, m]."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = np.clip(high - low + 1, 0, None).prod(axis=2)
    area_a, area_b = ((box[:, 2:] - box[:, :2] + 1).prod(axis=1) for box in (a, b))
    iou: NDArray[np.float64] = shared / (area_a[:, None] + area_b[None, :] - shared)
    return iou


def match(boxes: Boxes, scores: Scores, faces: Boxes, counting: NDArray[np.bool_]) -> Outcome:
    """Matches the boxes of one photo to its labelled faces.

    Each box goes to the face that it overlaps most. If that is at least `OVERLAP`, the first box on a face
    that counts is a hit and the others are false; boxes on a face that does not count are left out.

    Args:
        boxes: [n, 4], x1 y1 x2 y2, by falling score.
        scores: [n], falling.
        faces: [m, 4], x1 y1 x2 y2, m at least 1.
        counting: which of the faces count, [m].
    """
    iou = overlaps(boxes, faces)
    nearest = iou.argmax(axis=1)
    hits = iou[np.arange(len(boxes)), nearest] >= OVERLAP
    proposed = ~hits | counting[nearest]
    found = np.zeros(len(boxes), np.bool_)
    (which,) = np.nonzero(hits & counting[nearest])
    found[which[np.unique(nearest[which], return_index=True)[1]]] = True
    return Outcome(scores, np.cumsum(proposed), np.cumsum(found))


def average_precision(outcomes: Iterable[Outcome], faces: int) -> float:
    """The area under precision over recall, precision made to fall (as VOC does from 2010 on).

    Args:
        outcomes: those of the photos that have labelled faces and boxes.
        faces: how many count, in all photos together, at least 1.
    """
    totals = np.zeros((2, STEPS))
    thresholds = 1 - np.arange(1, STEPS + 1) / STEPS
    for each in outcomes:
        boxes = np.searchsorted(-each.scores, -thresholds, side="right")
        for total, counts in zip(totals, (each.proposed, each.found), strict=True):
            total += np.concatenate([[0], counts])[boxes]
    proposed, found = totals
    precision = np.divide(found, proposed, out=np.zeros(STEPS), where=proposed > 0)
    recall = np.concatenate([[0.0], found / faces])
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(recall) * envelope).sum())
