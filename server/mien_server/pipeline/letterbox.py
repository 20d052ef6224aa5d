"""Fits photos into the square canvases that share batches, and finds out which canvas a photo needs.

Measured with RetinaFace mobilenet0.25 and SFace on the six sample portraits:

- **Small faces.** A portrait pasted into a photo of 2000x1500: faces 38 canvas pixels tall or more are
  all found with a score of 0.9 and above, at 26 to 31 pixels four of five are, at 15 none. So the canvas
  decides how small a face may be.
- **Large faces.** The largest anchor is 512 pixels. With the face cropped to its box (nothing else in the
  photo) every canvas finds it, but the landmarks of the 1024 canvas are wrong: cosine of the same person
  0.26 and 0.60, against 0.53 and 0.76 with 320 and 0.53 and 0.75 with 640. Cut off by a tenth on every
  side: 0.16 and 0.11, against 0.50 and 0.73, 0.45 and 0.71. A margin of padding does not help beyond
  noise, so there is none, and nothing is enlarged.
- **The largest face only.** On whole portraits the 320 canvas verifies as well as the 640 one (0.64 and
  0.76 against 0.57 and 0.76; different people at most 0.25) at a third of its time (15.8 against 51.6 ms,
  1024: 133.7 ms; onnxruntime, 2 busy cores). A face missed there is smaller than `SURE_AREA`, so once a
  larger one is found no finer pass can find a larger one still: the coarse pass loses nothing.
- **Shrinking.** Averaging by a whole factor and then bilinear finds as many small faces as exact area
  averaging (179 and 177 of 240; plain bilinear 171) and takes 0.3 against 2.6 ms from 900x716 to 320, 2.7
  against 8.9 ms from 2000x1500.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from mien_server.models.interface import Detections
from mien_server.pipeline.decode import Photo
from mien_server.pipeline.types import ArrayF32, ImageU8

SURE_AREA = 40.0 * 40.0
"""Box area, in canvas pixels, from which on a detector misses no face."""

LARGEST_ANCHOR = 512.0
"""Longer box side, in canvas pixels, beyond which landmarks become unreliable."""


@dataclass(frozen=True, slots=True)
class Letterbox:
    """A photo in the upper left of a square canvas.

    Attributes:
        canvas: [side, side, 3] RGB uint8.
        scale: [2] float32, canvas pixels per pixel of the full photo, along x and y.
    """

    canvas: ImageU8
    scale: ArrayF32

    def to_photo(self, found: Detections) -> Detections:
        """Boxes and landmarks in pixels of the full, upright photo."""
        boxes: ArrayF32 = (found.boxes / np.tile(self.scale, 2)).astype(np.float32)
        landmarks: ArrayF32 = (found.landmarks / self.scale).astype(np.float32)
        return Detections(boxes, found.scores, landmarks)


def letterbox(photo: Photo, side: int, fill: tuple[int, int, int]) -> Letterbox:
    """Shrinks a photo, if need be, to fit into a square; the rest is filled.

    Args:
        photo: the photo.
        side: of the canvas, in pixels.
        fill: RGB, `Normalisation.fill_rgb`.
    """
    height, width = photo.pixels.shape[:2]
    ratio = min(1.0, side / max(height, width))
    new_width, new_height = max(1, round(width * ratio)), max(1, round(height * ratio))
    factor = min(width // new_width, height // new_height)
    pixels = photo.pixels
    if factor > 1:
        width, height = width // factor * factor, height // factor * factor
        shrunk = (width // factor, height // factor)
        pixels = np.asarray(
            cv2.resize(pixels[:height, :width], shrunk, interpolation=cv2.INTER_AREA), np.uint8
        )
    canvas = np.empty((side, side, 3), np.uint8)
    canvas[:] = fill
    canvas[:new_height, :new_width] = cv2.resize(
        pixels, (new_width, new_height), interpolation=cv2.INTER_LINEAR
    )
    scale = np.array([new_width / width, new_height / height]) / photo.reduction
    return Letterbox(canvas, scale.astype(np.float32))


def fine_side(buckets: Sequence[int], long_side: int) -> int:
    """The smallest canvas that holds the photo unshrunk, else the largest there is."""
    return min((side for side in buckets if side >= long_side), default=max(buckets))


def has_giants(found: Detections) -> bool:
    """Whether faces of a canvas are beyond what the network's anchors cover."""
    return bool((_long_sides(found) > LARGEST_ANCHOR).any())


def merge_passes(
    coarse: Detections, fine: Detections, *, large: float, overlap: float
) -> Detections:
    """The faces of two passes over one photo: large ones from the coarse, the others from the fine.

    Args:
        coarse: of the smaller canvas, in photo pixels.
        fine: of the larger canvas, in photo pixels.
        large: longer box side, in photo pixels, from which on the coarse pass is trusted.
        overlap: IoU beyond which two boxes are the same face; the coarse one stays.

    Returns:
        By falling score.
    """
    coarse = _take(coarse, np.flatnonzero(_long_sides(coarse) >= large))
    if not len(coarse.scores):
        return fine
    new = (_long_sides(fine) < large) & (_iou(fine.boxes, coarse.boxes).max(axis=1) <= overlap)
    fine = _take(fine, np.flatnonzero(new))
    both = Detections(*(np.concatenate(pair) for pair in zip(coarse, fine, strict=True)))
    return _take(both, np.argsort(-both.scores, kind="stable"))


def _take(found: Detections, index: np.ndarray) -> Detections:
    return Detections(found.boxes[index], found.scores[index], found.landmarks[index])


def _long_sides(found: Detections) -> ArrayF32:
    sides: ArrayF32 = (found.boxes[:, 2:] - found.boxes[:, :2]).max(axis=1)
    return sides


def _iou(a: ArrayF32, b: ArrayF32) -> ArrayF32:
    """Of boxes [n, 4] with boxes [m, 4]: [n, m]."""
    corner = np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2])
    shared = np.clip(corner, 0, None).prod(axis=2)
    area_a, area_b = ((box[:, 2:] - box[:, :2]).prod(axis=1) for box in (a, b))
    iou: ArrayF32 = shared / np.maximum(area_a[:, None] + area_b[None, :] - shared, 1e-9)
    return iou
