"""What every server written by hand does beside its networks: JPEG to pixels, pixels to faces and crops.

Written as an expert would for speed: libjpeg-turbo with reduced decoding for large photos, one vectorised
pass over the candidates, alignment in closed form. Left out is all that a first version leaves out: other
formats, EXIF, limits, checks.
"""

from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from bench.peers.by_hand.arrays import CROP, Floats, Pixels

cv2.setNumThreads(1)  # the callers are parallel already

FILL = (123, 117, 104)  # the detector's mean, RGB
ENOUGH = 1024  # pixels of the long side that a reduced photo keeps
MIN_SIZE = 10  # pixels of a face's shorter side
TEMPLATE = np.array([38.2946, 73.5318, 56.0252, 41.5493, 70.7299]) + 1j * np.array(
    [51.6963, 51.5014, 71.7366, 92.3655, 92.2041]
)


class Photo(NamedTuple):
    """Decoded pixels [h, w, 3] RGB, and the size of the photo as it came."""

    pixels: Pixels
    width: int
    height: int


class Face(NamedTuple):
    """A face in pixels of the decoded photo: box [4], score, landmarks [5, 2]."""

    box: Floats
    score: float
    landmarks: Floats


def decode(jpeg: bytes) -> Photo:
    """libjpeg-turbo, at a half, a quarter or an eighth where the photo stays large enough."""
    height, width, *_ = simplejpeg.decode_jpeg_header(jpeg)
    factor = max(f for f in (1, 2, 4, 8) if f == 1 or max(height, width) / f >= ENOUGH)
    # The decoder takes the smallest size that is not below these.
    pixels = simplejpeg.decode_jpeg(
        jpeg, "RGB", min_height=height // factor, min_width=width // factor
    )
    return Photo(pixels, width, height)


def letterbox(photo: Photo, side: int) -> tuple[Pixels, Floats]:
    """The photo in the upper left of a square, and how far it was shrunk along x and y."""
    pixels = photo.pixels
    height, width = pixels.shape[:2]
    ratio = min(1.0, side / max(height, width))
    new_width, new_height = round(width * ratio), round(height * ratio)
    factor = min(width // new_width, height // new_height)
    if factor > 1:  # whole steps by averaging, which is fast
        height, width = height // factor * factor, width // factor * factor
        small = (width // factor, height // factor)
        area = cv2.resize(pixels[:height, :width], small, interpolation=cv2.INTER_AREA)
        pixels = np.asarray(area, np.uint8)
    canvas = np.full((side, side, 3), FILL, np.uint8)
    canvas[:new_height, :new_width] = cv2.resize(pixels, (new_width, new_height))
    return canvas, np.array([new_width / width, new_height / height])


@lru_cache
def priors(side: int) -> NDArray[np.float32]:
    """Centre x, centre y and size of RetinaFace's anchors."""
    maps = []
    for step, sizes in ((8, (16, 32)), (16, (64, 128)), (32, (256, 512))):
        centres = (np.arange(-(-side // step)) + 0.5) * step
        y, x, size = np.meshgrid(centres, centres, sizes, indexing="ij")
        maps.append(np.stack([x, y, size], -1).reshape(-1, 3))
    return np.concatenate(maps).astype(np.float32)


def find(loc: Floats, conf: Floats, points: Floats, side: int, scale: Floats) -> list[Face]:
    """The faces in the outputs of one canvas, [P, 4], [P, 2] and [P, 10], by falling score."""
    index = np.flatnonzero(conf[:, 1] > 0.5)
    anchor, scores = priors(side)[index], conf[index, 1]
    centre, size = anchor[:, :2], anchor[:, 2:]
    middle = centre + loc[index, :2] * 0.1 * size
    wide = size * np.exp(loc[index, 2:] * 0.2)
    boxes = np.concatenate([middle - wide / 2, wide], axis=1)
    kept = np.asarray(cv2.dnn.NMSBoxes(boxes, scores, 0.0, 0.4), np.intp)  # type: ignore[arg-type]
    boxes[:, 2:] += boxes[:, :2]
    boxes /= np.tile(scale, 2)
    landmarks = (points[index].reshape(-1, 5, 2) * 0.1 * size[:, None] + centre[:, None]) / scale
    faces = [Face(boxes[i], float(scores[i]), landmarks[i]) for i in kept]
    return [face for face in faces if (face.box[2:] - face.box[:2]).min() >= MIN_SIZE]


def area(face: Face) -> float:
    return float((face.box[2:] - face.box[:2]).prod())


def align(pixels: Pixels, landmarks: Floats) -> Pixels:
    """The crop [112, 112, 3]: Umeyama's similarity, with points as complex numbers.

    A large face is halved first, as mien does it: sampled without that, crops alias, and answers differ.
    """
    points = landmarks[:, 0] + 1j * landmarks[:, 1]
    p, q = points - points.mean(), TEMPLATE - TEMPLATE.mean()
    turn = (p.conj() * q).sum() / (np.abs(p) ** 2).sum()
    shift = TEMPLATE.mean() - turn * points.mean()
    while abs(turn) <= 0.5 and min(pixels.shape[:2]) > 1:
        height, width = pixels.shape[0] // 2 * 2, pixels.shape[1] // 2 * 2
        half = cv2.resize(
            pixels[:height, :width], (width // 2, height // 2), interpolation=cv2.INTER_AREA
        )
        pixels, shift, turn = np.asarray(half, np.uint8), shift + turn * (0.5 + 0.5j), turn * 2
    matrix = np.array([[turn.real, -turn.imag, shift.real], [turn.imag, turn.real, shift.imag]])
    return np.asarray(cv2.warpAffine(pixels, matrix, (CROP, CROP)), np.uint8)
