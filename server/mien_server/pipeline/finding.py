"""From a picture to the faces in it: one pass over a coarse canvas, one over a finer if need be.

`letterbox` has the measurements behind the choice of passes.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from mien_server.models.detections import Detections
from mien_server.models.roles import DetectorOptions, DetectorRow
from mien_server.pipeline.decode import Photo, load
from mien_server.pipeline.letterbox import (
    SHAKY_SIDE,
    TRUSTED_AREA,
    Letterbox,
    fine_side,
    letterbox,
    merge_passes,
)
from mien_server.pipeline.pool import PicturePool
from mien_server.pipeline.rows import run_rows
from mien_server.pipeline.selection import rank
from mien_server.pipeline.types import (
    Call,
    EncodedImage,
    FacePolicy,
    FaceSelection,
    Limits,
    RawPixels,
    StageTime,
)
from mien_server.repository.leases import Lease

T = TypeVar("T")

ENOUGH_PIXELS = 1024
"""Long side that a reduced photo keeps at least: a face large enough for a coarse canvas then still has
the 112 pixels of a crop."""


@dataclass(frozen=True, slots=True)
class FoundFaces:
    """A decoded photo and all faces of it, in pixels of the full photo."""

    photo: Photo
    faces: Detections


async def find_faces(
    source: EncodedImage | RawPixels,
    detector: Lease,
    selection: FaceSelection,
    *,
    limits: Limits,
    pool: PicturePool,
    call: Call,
    reserve: float = 0.0,
) -> FoundFaces:
    """Decodes a picture and finds its faces.

    The smallest canvas comes first. What is large there is taken from there whatever the policy, so that
    one face has one box, one set of landmarks and one embedding. The finest canvas that the photo fills has
    the smaller faces; LARGEST and CENTER_LARGEST look at it only if nothing was large.

    Args:
        selection: checked by `check_selection`.
        call: gets the stages.
        reserve: seconds that the call needs after detection.

    Raises:
        InvalidRequest: the picture cannot be used.
        SchedulingError: why there is no result.
    """
    config = detector.model.config
    options: DetectorOptions = config.options
    buckets, fill = options.buckets, config.normalisation.fill_rgb
    deadline = None if call.deadline is None else call.deadline - reserve
    enough = max(*buckets, ENOUGH_PIXELS)

    def first() -> tuple[Photo, Letterbox, float, float]:
        photo, decoding = _timed(lambda: load(source, limits, enough=enough))
        fitted, fitting = _timed(lambda: letterbox(photo, min(buckets), fill))
        return photo, fitted, decoding, fitting

    (photo, fitted, decoding, fitting), waited = await pool.decode(
        first, nbytes=len(source.data), deadline=deadline
    )
    call.stages += [
        StageTime("decode.queue", waited),
        StageTime("decode", decoding),
        StageTime("letterbox", fitting),
    ]

    async def look(fitted: Letterbox, passed: int) -> Detections:
        row = DetectorRow(fitted.canvas, _score_to_beat(options, selection))
        found: Detections
        (found,) = await run_rows(
            detector,
            [row],
            call,
            nbytes=fitted.canvas.nbytes + photo.pixels.nbytes,
            passed=passed,
            deadline=deadline,
        )
        return found

    faces = fitted.to_photo(await look(fitted, passed=0))
    fine = fine_side(buckets, max(photo.width, photo.height))
    trusted = TRUSTED_AREA / float(np.prod(fitted.scale))
    if fine != min(buckets) and not _is_settled(faces, selection.policy, photo, trusted):
        # Not on a decoding thread: this call holds its photo already, and new ones should not hold it up.
        again, seconds = await pool.finish(lambda: _timed(lambda: letterbox(photo, fine, fill)))
        call.stages.append(StageTime("letterbox", seconds))
        faces = merge_passes(
            faces,
            again.to_photo(await look(again, passed=1)),
            trusted=trusted,
            shaky=SHAKY_SIDE / float(again.scale.min()),
            overlap=options.nms_threshold,
        )
    return FoundFaces(photo, faces)


def _is_settled(faces: Detections, policy: FacePolicy, photo: Photo, trusted: float) -> bool:
    """Whether no face that the coarse pass may have missed could be the one that is wanted."""
    if policy not in (FacePolicy.LARGEST, FacePolicy.CENTER_LARGEST):
        return False
    best = rank(faces.boxes, policy, photo.width, photo.height).max(initial=0.0)
    return bool(best >= trusted)


def _score_to_beat(options: DetectorOptions, selection: FaceSelection) -> float:
    if selection.min_score is None:
        return options.score_threshold
    # Detectors drop what does not exceed the score; the request keeps what reaches it.
    return float(np.nextafter(np.float32(selection.min_score), np.float32(0.0)))


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    begun = time.monotonic()
    result = work()
    return result, time.monotonic() - begun
