"""What a call about faces is about: an aligned crop as it came, or the chosen faces of a photo."""

import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mien_server.errors import InvalidRequest, Reason, at
from mien_server.models.detections import Detections
from mien_server.pipeline.align import CROP_SIDE, alignable
from mien_server.pipeline.decode import Photo, load
from mien_server.pipeline.finding import find_faces
from mien_server.pipeline.pool import PicturePool
from mien_server.pipeline.quality import LIMITS, of_face
from mien_server.pipeline.selection import select_faces
from mien_server.pipeline.types import (
    AlignedFace,
    Call,
    EncodedImage,
    FaceSelection,
    ImageU8,
    Limits,
    Quality,
    RawPixels,
    StageTime,
)
from mien_server.repository.versions import Lease


class Chosen(NamedTuple):
    """A photo and its faces.

    Attributes:
        photo: decoded, perhaps reduced.
        faces: all that can be aligned, in pixels of the full photo.
        indices: of the chosen ones, in the policy's order.
    """

    photo: Photo
    faces: Detections
    indices: list[int]


async def load_crop(
    image: AlignedFace, *, limits: Limits, pool: PicturePool, call: Call
) -> ImageU8:
    """The pixels [112, 112, 3] of an aligned face.

    Raises:
        InvalidRequest: it cannot be decoded, or has another size. Its field begins with the picture's part.
    """
    source = image.crop

    def crop() -> tuple[ImageU8, float]:
        begun = time.monotonic()
        with pool.room.hold() as hold:
            photo = load(source, limits, hold=hold)
        if (photo.width, photo.height) != (CROP_SIDE, CROP_SIDE):
            raise InvalidRequest(
                Reason.INVALID_IMAGE,
                f"An aligned face has {CROP_SIDE}x{CROP_SIDE} pixels, this one has"
                f" {photo.width}x{photo.height}: align it, or send it as a photo.",
            )
        return photo.pixels, time.monotonic() - begun

    queued = time.monotonic()
    with at(source.part):
        (pixels, seconds), waited = await pool.decode(
            crop, nbytes=len(source.data), deadline=call.deadline
        )
    call.add(queued, StageTime("decode.queue", waited), StageTime("decode", seconds))
    return pixels


async def find_chosen(
    image: EncodedImage | RawPixels,
    detector: Lease,
    selection: FaceSelection,
    *,
    limits: Limits,
    pool: PicturePool,
    call: Call,
    reserve: float,
) -> Chosen:
    """The chosen ones of a photo's faces that can be aligned.

    Args:
        selection: checked by `check_selection`.
        reserve: seconds that the call needs after detection.

    Raises:
        InvalidRequest: the picture cannot be used.
        Unmet: the photo has no face that is wanted (unless the policy is ALL), or too many.
        SchedulingError: why there is no result.
    """
    found = await find_faces(
        image, detector, selection, limits=limits, pool=pool, call=call, reserve=reserve
    )
    faces = found.faces.take(np.flatnonzero(alignable(found.faces.landmarks)))
    indices = select_faces(
        faces,
        selection,
        width=found.photo.width,
        height=found.photo.height,
        limits=limits,
        required=True,
    )
    return Chosen(found.photo, faces, indices)


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
