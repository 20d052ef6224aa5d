"""From a picture to the faces that a call is about: one pass over a coarse canvas, perhaps one over a finer.

Fits photos into the square canvases that share batches, and finds out which canvas a photo needs.

Measured with RetinaFace mobilenet0.25 and SFace on the six sample portraits:

- **Small faces.** A portrait pasted into a photo of 2000x1500: faces 38 canvas pixels tall or more are
  all found with a score of 0.9 and above, at 26 to 31 pixels four of five are, at 15 none. So the canvas
  decides how small a face may be.
- **Large faces.** The largest anchor is 512 pixels. With the face cropped to its box (nothing else in the
  photo) every canvas finds it, but the landmarks of the 1024 canvas are wrong: cosine of the same person
  0.26 and 0.60, against 0.53 and 0.76 with 320 and 0.53 and 0.75 with 640. Cut off by a tenth on every
  side: 0.16 and 0.11, against 0.50 and 0.73, 0.45 and 0.71. A margin of padding does not help beyond
  noise, so there is none, and nothing is enlarged. Of faces beyond the anchor some canvases also find up
  to four parts of 350 pixels and more, as faces of their own.
- **One face, one embedding.** Landmarks of two canvases differ by a few pixels, and the embeddings made
  with them have a cosine of 0.93 to 0.98. So the canvas must not depend on the policy: a face that is
  large enough on the smallest canvas always comes from there, a smaller one always from the finer.
- **Large enough.** Portraits pasted at random into larger photos, 24 each; the cosine of the largest
  face's embedding with the mean one of its portrait, by the height of the face on the 320 canvas:

      height   40     50     60     80     100    140
      320    0.968  0.972  0.962  0.974  0.980  0.984
      640    0.973  0.982  0.983  0.984  0.983  0.982
      1024   0.983  0.982  0.984  0.981  0.981  0.983

  A box 80 tall is about 66x66 in area. A face of 40x40 is not missed any more, so once a face of
  `TRUSTED_AREA` is found no finer pass can find a larger one. The 320 canvas takes a third of the time of
  the 640 one (15.8 against 51.6 ms, 1024: 133.7 ms; onnxruntime, 2 busy cores).
- **Shrinking.** Averaging by a whole factor and then bilinear finds as many small faces as exact area
  averaging (179 and 177 of 240; plain bilinear 171) and takes 0.3 against 2.6 ms from 900x716 to 320, 2.7
  against 8.9 ms from 2000x1500.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import cv2
import numpy as np

from mien_server.errors import InvalidRequest, Reason, at
from mien_server.models.detections import Detections, areas
from mien_server.models.interface import CROP_SIDE
from mien_server.models.roles import DetectorOptions, DetectorRow
from mien_server.pipeline.align import alignable
from mien_server.pipeline.decode import Photo, load
from mien_server.pipeline.pool import PicturePool
from mien_server.pipeline.running import run_rows
from mien_server.pipeline.selection import rank, select_faces
from mien_server.pipeline.types import (
    AlignedFace,
    ArrayF32,
    Call,
    EncodedImage,
    FacePolicy,
    FaceSelection,
    ImageU8,
    Limits,
    RawPixels,
    StageTime,
)
from mien_server.repository.versions import Lease

SHAKY_SIDE = 256.0
"""Longer box side, in canvas pixels, from which on parts of a larger face are found, too."""

TRUSTED_AREA = 64.0 * 64.0
"""Box area, in canvas pixels, from which on a detector misses no face and places landmarks as well as on
any larger canvas: a fifth of the canvas's side."""


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
        return found.scaled(self.scale)


def letterbox(photo: Photo, side: int, fill: tuple[int, int, int]) -> Letterbox:
    """Shrinks a photo, if need be, to fit into a square; the rest is filled.

    Args:
        side: the canvas's, in pixels.
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
    # Row by row: NumPy fills pixel by pixel otherwise, which takes longer than all the rest.
    canvas.reshape(side, side * 3)[:] = np.tile(np.array(fill, np.uint8), side)
    canvas[:new_height, :new_width] = cv2.resize(
        pixels, (new_width, new_height), interpolation=cv2.INTER_LINEAR
    )
    scale = np.array([new_width / width, new_height / height]) / photo.reduction
    return Letterbox(canvas, scale.astype(np.float32))


def fine_side(buckets: Sequence[int], long_side: int) -> int:
    """The smallest canvas that holds the photo unshrunk, else the largest there is."""
    return min((side for side in buckets if side >= long_side), default=max(buckets))


def merge_passes(
    coarse: Detections, fine: Detections, *, trusted: float, shaky: float, overlap: float
) -> Detections:
    """The faces of two passes over one photo: large ones from the coarse, the others from the fine.

    Args:
        coarse: what was found on the smaller canvas, in photo pixels.
        fine: what was found on the larger canvas, in photo pixels.
        trusted: box area, in photo pixels, from which on the coarse pass has the last word on a face.
        shaky: longer box side, in photo pixels, from which on the fine pass may take parts for faces.
        overlap: IoU beyond which two boxes are the same face. Of a shaky one any overlap is enough.

    Returns:
        The faces, by falling score.
    """
    coarse = coarse.take(areas(coarse.boxes) >= trusted)
    sides = (fine.boxes[:, 2:] - fine.boxes[:, :2]).max(axis=1)
    shared = fine.iou(coarse).max(axis=1, initial=0.0)
    known = shared > np.where(sides < shaky, overlap, 0.0)
    fine = fine.take(~known)
    both = Detections(*(np.concatenate(pair) for pair in zip(coarse, fine, strict=True)))
    return both.take(np.argsort(-both.scores, kind="stable"))


T = TypeVar("T")

ENOUGH_PIXELS = 1024
"""Long side that a reduced photo keeps at least: a face large enough for a coarse canvas then still has
the 112 pixels of a crop."""


@dataclass(frozen=True, slots=True)
class FoundFaces:
    """A decoded photo and all faces of it, in pixels of the full photo."""

    photo: Photo
    faces: Detections


class Chosen(NamedTuple):
    """A photo and its faces.

    Attributes:
        photo: decoded, perhaps reduced.
        faces: all that can be aligned, in pixels of the full photo; all of a detector without landmarks.
        indices: of the chosen ones, in the policy's order.
    """

    photo: Photo
    faces: Detections
    indices: list[int]


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
        with pool.room.hold() as hold:
            photo, decoding = _timed(lambda: load(source, limits, enough=enough, hold=hold))
        fitted, fitting = _timed(lambda: letterbox(photo, min(buckets), fill))
        return photo, fitted, decoding, fitting

    queued = time.monotonic()
    (photo, fitted, decoding, fitting), waited = await pool.decode(
        first, nbytes=len(source.data), deadline=deadline
    )
    call.add(
        queued,
        StageTime("decode.queue", waited),
        StageTime("decode", decoding),
        StageTime("letterbox", fitting),
    )

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
        begun = time.monotonic()
        again, seconds = await pool.finish(lambda: _timed(lambda: letterbox(photo, fine, fill)))
        call.add(begun, StageTime("letterbox", seconds))
        faces = merge_passes(
            faces,
            again.to_photo(await look(again, passed=1)),
            trusted=trusted,
            shaky=SHAKY_SIDE / float(again.scale.min()),
            overlap=options.nms_threshold,
        )
    return FoundFaces(photo, faces)


async def find_chosen(
    image: EncodedImage | RawPixels,
    detector: Lease,
    selection: FaceSelection,
    *,
    limits: Limits,
    pool: PicturePool,
    call: Call,
    reserve: float,
    required: bool = True,
) -> Chosen:
    """The chosen ones of a photo's faces that can be aligned; of all, if the detector places no landmarks.

    Args:
        selection: checked by `check_selection`.
        reserve: seconds that the call needs after detection.
        required: as `select_faces` has it.

    Raises:
        InvalidRequest: the picture cannot be used.
        Unmet: the photo has no face that is wanted, and one is required; or too many.
        SchedulingError: why there is no result.
    """
    found = await find_faces(
        image, detector, selection, limits=limits, pool=pool, call=call, reserve=reserve
    )
    faces = found.faces
    if faces.placed:
        faces = faces.take(np.flatnonzero(alignable(faces.landmarks)))
    indices = select_faces(
        faces,
        selection,
        width=found.photo.width,
        height=found.photo.height,
        limits=limits,
        required=required,
    )
    return Chosen(found.photo, faces, indices)


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
