"""Cuts boxes out of photos: with numpy alone, or with Pillow where a photo has to be decoded."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mien.images import EncodedOrPicture

if TYPE_CHECKING:
    import PIL.Image

_SIZE_TOLERANCE = 0.01
"""By how much, of its sides, a photo's size may differ from what boxes in pixels and in fractions say."""


def cut(
    photo: NDArray[np.uint8] | EncodedOrPicture,
    box: Sequence[float],
    margin: float,
    size: tuple[int, int] | None,
) -> "NDArray[np.uint8] | PIL.Image.Image":
    """The part of the upright photo in a box and its margin.

    Args:
        photo: an array [height, width, ...], or what Pillow reads.
        box: x1, y1, x2, y2 in pixels.
        margin: a part of the box's sides, 0 or more.
        size: the width and height that the photo should have, or None.

    Raises:
        ValueError: the margin is below 0, or the photo is of another size.
        ImportError: Pillow is missing. OSError: the photo cannot be read.
    """
    if not margin >= 0:
        raise ValueError(f"the margin must be 0 or more, not {margin!r}")
    if isinstance(photo, np.ndarray):
        height, width = photo.shape[:2]
        left, top, right, bottom = _corners(box, margin, (width, height), size)
        return photo[top:bottom, left:right]
    from mien import pictures  # Pillow may be missing

    picture = pictures.upright_rgb(photo)
    return picture.crop(_corners(box, margin, picture.size, size))


def _corners(
    box: Sequence[float], margin: float, found: tuple[int, int], wanted: tuple[int, int] | None
) -> tuple[int, int, int, int]:
    if wanted is not None and any(
        abs(side - known) > max(1.0, _SIZE_TOLERANCE * known)
        for side, known in zip(found, wanted, strict=True)
    ):
        raise ValueError(
            f"the face was found in a photo of {wanted[0]} x {wanted[1]} pixels, and this one has"
            f" {found[0]} x {found[1]}: give the same photo, upright"
        )
    x1, y1, x2, y2 = box
    across, down = margin * (x2 - x1), margin * (y2 - y1)
    (width, height) = found
    # At least one pixel of the photo, also for a box that lies outside.
    left = min(max(math.floor(x1 - across), 0), width - 1)
    top = min(max(math.floor(y1 - down), 0), height - 1)
    right = max(min(math.ceil(x2 + across) + 1, width), left + 1)
    bottom = max(min(math.ceil(y2 + down) + 1, height), top + 1)
    return left, top, right, bottom
