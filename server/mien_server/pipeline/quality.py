"""How good a face is to recognise somebody by, as figures: of its pixels, its landmarks and its place.

No network takes part. A figure says one thing and moves one way: a blurred face has less `sharpness` than
the same face before, whatever its light.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import cv2
import numpy as np
from numpy.typing import NDArray

from mien_server.models.detections import Detections
from mien_server.models.interface import CROP_SIDE
from mien_server.pipeline.align import TEMPLATE, similarity
from mien_server.pipeline.types import ArrayF32, ImageU8, Quality


class Problem(StrEnum):
    """What can be wrong with a face."""

    SMALL = "SMALL"
    BLURRED = "BLURRED"
    TURNED = "TURNED"
    DARK = "DARK"
    BRIGHT = "BRIGHT"
    FLAT = "FLAT"
    CUT_OFF = "CUT_OFF"
    SEVERAL_FACES = "SEVERAL_FACES"
    UNSURE = "UNSURE"
    LIKE_ANOTHER_PERSON = "LIKE_ANOTHER_PERSON"


@dataclass(frozen=True, slots=True)
class Issue:
    """One thing that is wrong: the figure, what it would have to be, and the other person if one is meant."""

    problem: Problem
    value: float
    limit: float
    person: str = ""

    def __str__(self) -> str:
        if self.problem is Problem.LIKE_ANOTHER_PERSON:
            figures = f"{self.value:.3f}, less than {self.limit:.3f} passes"
            return f"it is like a face of {self.person!r} ({figures})"
        passes = "or less" if self.problem in _TOO_HIGH else "or more"
        what = self.problem.replace("_", " ").lower()
        return f"{what} ({self.value:.3g}, {self.limit:.3g} {passes} passes)"


_TOO_HIGH = (Problem.BRIGHT, Problem.TURNED, Problem.CUT_OFF, Problem.SEVERAL_FACES)


@dataclass(frozen=True, slots=True)
class QualityLimits:
    """What each figure has to be, at least or at most, to identify a person by the face later.

    Of the sample portraits, degraded until one figure meets its limit, SFace's embedding keeps a cosine of
    some 0.85 to 0.95 to that of the portrait as it is; well beyond, it falls below 0.8.
    """

    min_size: float = 32.0
    min_sharpness: float = 0.08
    min_brightness: float = 0.08
    max_brightness: float = 0.9
    min_contrast: float = 0.03
    max_yaw: float = 45.0
    max_pitch: float = 40.0
    max_cut_off: float = 0.1
    max_next_face: float = 0.7
    min_score: float = 0.8


LIMITS = QualityLimits()


def overall(quality: Quality) -> float:
    """How good a face is to recognise somebody by, in [0, 1]: its figures in one number.

    What each of five sides of it leaves, multiplied: the detail that it has, its light, how far it is turned,
    how much of it is there, and how sure it is a face. A side is 1 from where more does no harm to an
    embedding, and 0 where nothing can be told any more; one that is unknown is 1. Size and sharpness are one
    side, as brightness and contrast are, since what lowers one of these lowers the other: the worse counts.
    `bench.quality` measures what it is worth.
    """
    detail = min(_side(quality.size, 8, 40), _side(quality.sharpness, 0.02, 0.14))
    light = min(
        _side(quality.brightness, 0.0, 0.1),
        _side(quality.brightness, 1.0, 0.85),
        _side(quality.contrast, 0.0, 0.04),
    )
    turn = _side(_turn(quality), 55, 25)
    return detail * light * turn * _side(quality.cut_off, 0.4, 0.0) * _side(quality.score, 0.5, 0.9)


def _side(figure: float | None, none: float, full: float) -> float:
    """0 at `none`, 1 at `full`, straight between them, and as far beyond."""
    if figure is None:
        return 1.0
    return min(1.0, max(0.0, (figure - none) / (full - none)))


def _turn(quality: Quality) -> float | None:
    """The angle between where a face looks and the camera, in degrees."""
    if quality.yaw is None or quality.pitch is None:
        return None
    ahead = math.cos(math.radians(quality.yaw)) * math.cos(math.radians(quality.pitch))
    return math.degrees(math.acos(ahead))


# The face without hair and background, in pixels of the crop.
_INNER = (slice(28, 104), slice(22, 90))

# Of a mean face that looks at the camera: the template's places, and how far the eyes, the nose and the
# corners of the mouth stand out towards it, in pixels of the crop. The tip of the nose stands out by nearly
# half the distance of the eyes; the detectors here see it a little lower than the template has it.
_MODEL: NDArray[np.float64] = np.column_stack(
    [TEMPLATE.astype(np.float64), np.array([0.0, 0.0, 16.0, 2.0, 2.0])]
)
_MODEL[2, 1] += 3.0
_MODEL -= _MODEL.mean(axis=0)
_FROM_MODEL = np.linalg.pinv(_MODEL)

_GRID = (np.stack(np.meshgrid(np.arange(16), np.arange(16)), axis=-1).reshape(-1, 2) + 0.5) * (
    CROP_SIDE / 16
)
"""Points of a crop, of which those outside of the photo are counted."""


def of_crop(crop: ImageU8) -> Quality:
    """The figures of an aligned crop [112, 112, 3], RGB, of whose photo nothing is known."""
    grey = cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255.0
    inner = grey[_INNER]
    contrast = float(inner.std())
    # Smoothed first, so that the rounding of its pixels to 256 levels is not taken for detail.
    smooth = cv2.GaussianBlur(grey, (0, 0), 1.0)
    detail = float(cv2.Laplacian(smooth, cv2.CV_32F, ksize=1)[_INNER].std())
    return Quality(
        sharpness=detail / max(contrast, 1e-3),
        brightness=float(inner.mean()),
        contrast=contrast,
    )


def of_face(
    crop: ImageU8,
    *,
    box: ArrayF32,
    landmarks: ArrayF32,
    score: float,
    others: ArrayF32,
    width: int,
    height: int,
) -> Quality:
    """The figures of a face of a photo.

    Args:
        crop: [112, 112, 3], RGB.
        box: [4] in pixels of the photo, as landmarks [5, 2], or [0, 2] if there are none.
        others: [n, 4], the boxes of the photo's other faces, as far as these are surely faces.
        width, height: of the photo.
    """
    pixels = of_crop(crop)
    sides = np.append(others[:, 2:] - others[:, :2], [[0.0, 0.0]], axis=0).min(axis=1)
    size = float((box[2:] - box[:2]).min())
    known = replace(pixels, size=size, next_face=float(sides.max() / max(size, 1.0)), score=score)
    if not len(landmarks):
        return known
    yaw, pitch, roll = pose(landmarks)
    cut_off = _cut_off(landmarks, width, height)
    return replace(known, yaw=yaw, pitch=pitch, roll=roll, cut_off=cut_off)


def pose(landmarks: ArrayF32) -> tuple[float, float, float]:
    """Yaw, pitch and roll in degrees, of landmarks [5, 2]: see the contract's FaceQuality.

    The turned and scaled mean face that lies closest to the landmarks, seen from far away. People differ,
    and so do detectors: it is right to some 10 degrees.
    """
    points = landmarks.astype(np.float64)
    points = points - points.mean(axis=0)
    u, _, v = np.linalg.svd((_FROM_MODEL @ points).T, full_matrices=False)
    right, down = u @ v  # where the face's axes x, y and z (towards the camera) go in the picture
    ahead = np.array([right[2], down[2]])
    roll = float(np.degrees(np.arctan2(down[0], right[0])))
    turn = np.radians(roll)
    across = ahead @ [np.cos(turn), np.sin(turn)]
    along = ahead @ [-np.sin(turn), np.cos(turn)]
    yaw = float(np.degrees(np.arcsin(np.clip(across, -1.0, 1.0))))
    pitch = float(np.degrees(np.arcsin(np.clip(-along, -1.0, 1.0))))
    return yaw, pitch, roll


def _cut_off(landmarks: ArrayF32, width: int, height: int) -> float:
    """The share of the crop that lies outside of the photo."""
    matrix = similarity(landmarks[None])[0]
    points = (_GRID - matrix[:, 2]) @ np.linalg.inv(matrix[:, :2]).T
    inside = ((points >= -0.5) & (points <= [width - 0.5, height - 0.5])).all(axis=1)
    return float(1.0 - inside.mean())


def problems(quality: Quality, limits: QualityLimits = LIMITS) -> list[Issue]:
    """What is wrong with a face, by its figures; those that are unknown are nothing to complain of."""
    too_low: Sequence[tuple[Problem, float | None, float]] = (
        (Problem.SMALL, quality.size, limits.min_size),
        (Problem.BLURRED, quality.sharpness, limits.min_sharpness),
        (Problem.DARK, quality.brightness, limits.min_brightness),
        (Problem.FLAT, quality.contrast, limits.min_contrast),
        (Problem.UNSURE, quality.score, limits.min_score),
    )
    too_high: Sequence[tuple[Problem, float | None, float]] = (
        (Problem.BRIGHT, quality.brightness, limits.max_brightness),
        (Problem.TURNED, _size_of(quality.yaw), limits.max_yaw),
        (Problem.TURNED, _size_of(quality.pitch), limits.max_pitch),
        (Problem.CUT_OFF, quality.cut_off, limits.max_cut_off),
        (Problem.SEVERAL_FACES, quality.next_face, limits.max_next_face),
    )
    low = [Issue(p, v, limit) for p, v, limit in too_low if v is not None and v < limit]
    high = [Issue(p, v, limit) for p, v, limit in too_high if v is not None and v > limit]
    return low + high


def _size_of(angle: float | None) -> float | None:
    return None if angle is None else abs(angle)


def judge(
    crops: Sequence[ImageU8], faces: Detections, chosen: Sequence[int], width: int, height: int
) -> list[Quality]:
    """The quality of the chosen ones of a photo's faces, of which these are the crops."""
    sure = faces.scores >= LIMITS.min_score
    return [
        of_face(
            crop,
            box=faces.boxes[i],
            landmarks=faces.landmarks[i],
            score=float(faces.scores[i]),
            others=faces.boxes[sure & (np.arange(len(sure)) != i)],
            width=width,
            height=height,
        )
        for crop, i in zip(crops, chosen, strict=True)
    ]
