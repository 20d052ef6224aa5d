"""Cuts a face out of its photo as embedding models want it: 112x112 pixels, eyes, nose and mouth in place.

A server does the same with the photos that it is given, so that this is for who keeps the crops: to label
them, to train on them, to calibrate with them. Needs Pillow: `pip install 'mien[pictures]'`.
"""

import math

try:
    from PIL import Image
except ImportError as error:
    raise ImportError("pictures need Pillow: pip install 'mien[pictures]'") from error

from mien.results import Landmarks

SIDE = 112
_TEMPLATE = (
    complex(38.2946, 51.6963),
    complex(73.5318, 51.5014),
    complex(56.0252, 71.7366),
    complex(41.5493, 92.3655),
    complex(70.7299, 92.2041),
)
"""Where ArcFace expects left eye, right eye, nose, left and right mouth corner, in pixels of a crop."""
_LEAST_SPREAD = 1e-6
"""Of landmarks, in square pixels: nearer together they say nothing of the face."""
_NARROW = 0.02
"""Nor if their spread across their narrow direction is less than this part of that along the wide one."""


def aligned_crop(picture: Image.Image, landmarks: Landmarks) -> Image.Image | None:
    """The face of an upright RGB photo, aligned by the similarity that fits its landmarks best.

    As on the server, a face of twice the crop's size and more is halved, by averages, before it is sampled;
    what lies outside of the photo is black.

    Returns:
        112x112 pixels, or None if the landmarks are (nearly) one point or on one line.
    """
    points = [complex(*getattr(landmarks, name)) for name in Landmarks.__slots__]
    middle, wanted = sum(points) / len(points), sum(_TEMPLATE) / len(_TEMPLATE)
    spread = sum(abs(p - middle) ** 2 for p in points)
    # For the squared spreads a >= b along the principal axes, these are a + b and a - b.
    longer = abs(sum((p - middle) ** 2 for p in points))
    wide = spread - longer > _NARROW**2 * (spread + longer)
    if not (math.isfinite(spread) and spread > _LEAST_SPREAD and wide):
        return None
    # With points as complex numbers, turning and scaling is one multiplication (Umeyama 1991, in the plane).
    fit = sum(
        (p - middle).conjugate() * (q - wanted) for p, q in zip(points, _TEMPLATE, strict=True)
    )
    back = 1 / (fit / spread)  # from the crop to the photo
    shift = middle - back * wanted
    halvings = int(math.log2(max(1.0, min(abs(back), *picture.size))))
    square = 2**halvings
    small = picture.reduce(square) if square > 1 else picture
    # Pillow counts from the corner of the first pixel, landmarks from its middle.
    half = complex(0.5, 0.5)
    shift = (shift + half - back * half) / square
    back /= square
    return small.transform(
        (SIDE, SIDE),
        Image.Transform.AFFINE,
        (back.real, -back.imag, shift.real, back.imag, back.real, shift.imag),
        Image.Resampling.BILINEAR,
    )
