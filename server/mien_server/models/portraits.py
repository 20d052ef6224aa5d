"""Two portraits, cut into what golden files ask models about.

`portraits.jpg` shows two people in the public domain (Barack Obama by the United States Senate, Jacinda
Ardern by the Office of the Vice President of the United States). A golden file holds the pictures that it
asks about, so that they can change here without harm to those that there are.
"""

from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from mien_server.models.interface import CROP_SIDE, ImageU8

_PICTURE = Path(__file__).with_name("portraits.jpg")
_CORNERS = ((23, 24), (183, 184))
"""Upper left corners (row, column) of the faces in it that, cut out, are aligned well enough."""
_SMALL = (slice(24, 136), slice(184, 296))
"""Where it is empty: rows and columns for a small copy of it."""
_LARGE = (slice(160, 320), slice(160, 320))
"""One of the portraits."""
_PADDING = 96


def crops(side: int = CROP_SIDE) -> ImageU8:
    """Two aligned faces, each with its mirror image: [4, side, side, 3]."""
    picture = _picture()
    faces = [picture[y : y + CROP_SIDE, x : x + CROP_SIDE] for y, x in _CORNERS]
    views = np.stack([view for face in faces for view in (face, face[:, ::-1])])
    if side == CROP_SIDE:
        return views
    resized = [cv2.resize(view, (side, side), interpolation=cv2.INTER_AREA) for view in views]
    return np.asarray(np.stack(resized), np.uint8)


def canvases(side: int) -> ImageU8:
    """Faces of three sizes, for which different parts of a detector are responsible.

    Args:
        side: of the canvases, in pixels.

    Returns:
        [2, side, side, 3]
    """
    picture = _picture()
    large = _resized(picture[_LARGE], len(picture))
    picture = picture.copy()
    picture[_SMALL] = _resized(picture, CROP_SIDE)
    padded = np.full((2, side, side, 3), _PADDING, np.uint8)
    size = min(side, len(picture))
    padded[:, :size, :size] = [_resized(each, size) for each in (picture, large)]
    return padded


def _picture() -> ImageU8:
    with Image.open(_PICTURE) as file:
        return np.asarray(file.convert("RGB"))


def _resized(picture: ImageU8, side: int) -> ImageU8:
    way = cv2.INTER_AREA if side < len(picture) else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(picture, (side, side), interpolation=way), np.uint8)
