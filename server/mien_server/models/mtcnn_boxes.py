"""The candidates that MTCNN's networks hand on: boxes on several photos, in one list."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mien_server.models.detections import shared_areas, suppress
from mien_server.models.interface import ArrayF32


class Candidates(NamedTuple):
    """Boxes that may be faces, and the photo of a batch that each one is in.

    row: [M] int64, the photo. boxes: [M, 4] float32, x1 y1 x2 y2 in canvas pixels, which may reach beyond
    the canvas. scores: [M] float32 in [0, 1].
    """

    row: NDArray[np.int64]
    boxes: ArrayF32
    scores: ArrayF32

    def take(self, index: NDArray[Any]) -> "Candidates":
        """Those of an index or a mask."""
        return Candidates(*(values[index] for values in self))

    def squared(self) -> "Candidates":
        """The same with boxes of the same centres, both sides as long as the longer one was."""
        centre = (self.boxes[:, :2] + self.boxes[:, 2:]) / 2
        half = sizes(self.boxes).max(axis=1, keepdims=True) / 2
        return self._replace(boxes=np.concatenate([centre - half, centre + half], axis=1))


def join(parts: Sequence[Candidates]) -> Candidates:
    """All of several lists; none, if there is no list."""
    if not parts:
        empty = np.empty(0, np.float32)
        return Candidates(np.empty(0, np.int64), empty.reshape(0, 4), empty)
    return Candidates(*(np.concatenate(values) for values in zip(*parts, strict=True)))


def sizes(boxes: ArrayF32) -> ArrayF32:
    """Widths and heights [M, 2] of boxes [M, 4]."""
    return boxes[:, 2:] - boxes[:, :2]


def calibrate(boxes: ArrayF32, offsets: ArrayF32) -> ArrayF32:
    """Moves the corners of boxes [M, 4] by offsets [M, 4], which are in units of the box's own size."""
    return boxes + offsets * np.tile(sizes(boxes), 2)


def visible(boxes: ArrayF32, width: int, height: int) -> NDArray[np.bool_]:
    """Which boxes [M, 4] are a pixel large at least and have a part on the canvas: [M]."""
    begin, end = boxes[:, :2], boxes[:, 2:]
    with np.errstate(invalid="ignore", over="ignore"):
        size = end - begin
    shown = np.isfinite(size) & (size >= 1) & (begin < (width, height)) & (end > 0)
    every: NDArray[np.bool_] = np.all(shown, axis=1)
    return every


def place_in_photo(row: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many of the same photo come before each, [M]; `row` ascends."""
    place: NDArray[np.int64] = np.arange(len(row)) - np.searchsorted(row, row)
    return place


def strongest(found: Candidates, most: int) -> Candidates:
    """The best-scored of each photo, `most` at most: photo by photo, by falling score."""
    found = found.take(np.lexsort((-found.scores, found.row)))
    return found.take(place_in_photo(found.row) < most)


def merge(found: Candidates, overlap: float) -> Candidates:
    """Drops boxes that overlap a better one of their photo by more than this IoU.

    Args:
        found: in the order that `strongest` gives, which the result has too.
        overlap: in [0, 1].
    """
    starts = np.flatnonzero(np.diff(found.row, prepend=-1))
    kept = [
        start + suppress(found.boxes[start:end], found.scores[start:end], overlap)
        for start, end in pairwise([*starts, len(found.row)])
    ]
    return found.take(np.concatenate(kept)) if kept else found


def nested(boxes: ArrayF32, share: float) -> NDArray[np.bool_]:
    """Which boxes lie in a better one, or around it.

    Measured is the intersection over the smaller of the two areas: other than the IoU, it is large also
    where one box is much smaller.

    Args:
        boxes: [n, 4], the best first.
        share: of the smaller one, above which two boxes are one face; in [0, 1].

    Returns:
        [n], true where a better, remaining box has that much in common.
    """
    shared = shared_areas(boxes, boxes)
    area = shared.diagonal()
    same = shared > share * np.minimum(area[:, None], area)
    dropped = np.zeros(len(boxes), np.bool_)
    for better in range(len(boxes)):
        if not dropped[better]:
            dropped[better + 1 :] |= same[better, better + 1 :]
    return dropped
