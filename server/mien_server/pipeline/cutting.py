"""Cuts out of a photo what each model sees of its faces."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mien_server.models.crops import Crop
from mien_server.pipeline.align import TEMPLATE, crop_faces, cut, magnification, similarity
from mien_server.pipeline.decode import Photo, load
from mien_server.pipeline.room import PictureRoom
from mien_server.pipeline.types import ArrayF32, EncodedImage, ImageU8, Limits, RawPixels


class Cut(NamedTuple):
    """One crop of one face: its pixels [side, side, 3], and [2, 3], how it was cut out of the picture."""

    pixels: ImageU8
    matrix: NDArray[np.float64]


def cut_aligned(
    image: EncodedImage | RawPixels,
    photo: Photo,
    landmarks: ArrayF32,
    limits: Limits,
    room: PictureRoom,
) -> list[ImageU8]:
    """The crops [112, 112, 3] of the faces [n, 5, 2] of a photo. Blocking."""
    if photo.reduction > 1 and magnification(landmarks / photo.reduction).max() > 1.0:
        # The reduced photo has fewer pixels of some face than its crop: decode it in full.
        with room.hold(refusable=False) as hold:
            photo = load(image, limits, hold=hold)
    return crop_faces(photo.pixels, (landmarks / photo.reduction).astype(np.float32))


def cut_others(
    image: EncodedImage | RawPixels,
    photo: Photo,
    matrices: dict[Crop, list[NDArray[np.float64]]],
    limits: Limits,
    room: PictureRoom,
) -> dict[Crop, list[Cut]]:
    """Other crops of faces of a photo than the aligned ones, by their `matrix_of`. Blocking."""
    finest = max(
        (np.hypot(*each[:, 0]) for part in matrices.values() for each in part), default=0.0
    )
    if photo.reduction > 1 and finest * photo.reduction > 1.0:
        # The reduced photo has fewer pixels of some face than its crop: decode it in full.
        with room.hold(refusable=False) as hold:
            photo = load(image, limits, hold=hold)
    reduction = np.array([photo.reduction, photo.reduction, 1.0])
    return {
        crop: [Cut(cut(photo.pixels, each * reduction, crop.side), each) for each in part]
        for crop, part in matrices.items()
    }


def cut_again(aligned: ImageU8, crop: Crop) -> ImageU8:
    """A crop of an aligned face, of whose photo nothing is known: black beyond it. Blocking."""
    return cut(aligned, matrix_of(crop, TEMPLATE), crop.side)


def matrix_of(
    crop: Crop,
    landmarks: ArrayF32,
    box: ArrayF32 | None = None,
    size: tuple[int, int] = (0, 0),
) -> NDArray[np.float64]:
    """From pixels of a picture to those of a crop of a face of it: [2, 3].

    Args:
        crop: which part of the picture.
        landmarks: [5, 2], where they are; alignable.
        box: [4]; a crop around the box needs it.
        size: width and height of the picture, which a crop inside of it needs.
    """
    if crop.needs_photo:
        if box is None:
            raise ValueError("a crop around the box needs one")
        low, high = box[:2].astype(np.float64), box[2:].astype(np.float64)
        if crop.around == "inside":
            return _inside(crop, low, high, np.array(size, np.float64) - 1)
        scale = crop.side / max(crop.margin * float((high - low).max()), 1.0)
        middle = (crop.side - 1) / 2
        return np.column_stack([np.eye(2) * scale, middle - scale * (low + high) / 2])
    matrix: NDArray[np.float64] = similarity(landmarks[None])[0]
    if crop.is_template:
        return matrix
    left, top, side = crop.window
    scale = crop.side / side
    # Whole pixels lie between their edges: half of one before the centre of the first.
    shift = scale * (0.5 - np.array([left, top])) - 0.5
    return np.column_stack([scale * matrix[:, :2], scale * matrix[:, 2] + shift])


def _inside(
    crop: Crop, low: NDArray[np.float64], high: NDArray[np.float64], most: NDArray[np.float64]
) -> NDArray[np.float64]:
    """As `matrix_of`, of a box enlarged, and moved to end where the picture does: MiniFASNet's crop."""
    span = np.maximum(high - low, 1.0)
    part = span * min(crop.margin, *(most / span))
    first = np.clip((low + high - part) / 2, 0, np.maximum(most - part, 0))
    scale = crop.side / np.maximum(part, 1.0)
    return np.column_stack([np.diag(scale), (crop.side - 1) / 2 - scale * (first + part / 2)])
