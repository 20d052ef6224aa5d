"""Which of the faces found are wanted."""

import math

import numpy as np
from numpy.typing import NDArray

from mien_server.errors import InvalidRequest, Reason, Unmet
from mien_server.models.detections import Detections
from mien_server.pipeline.types import ArrayF32, FacePolicy, FaceSelection, Limits

DEFAULT_MIN_FACE_SIZE = 10.0
"""Pixels of the shorter box side; ModelScope's RetinaFace drops smaller faces too."""

MIN_SCORE_FLOOR = 0.02
"""The lowest score to ask for: RetinaFace's own, used for evaluation on WIDER FACE."""


def check_selection(selection: FaceSelection, limits: Limits, *, one_face: bool = False) -> None:
    """Checks a request's options.

    Args:
        one_face: the call is about one face, so that ALL is refused.

    Raises:
        InvalidRequest: INVALID_OPTION. It names the option and its range.
    """
    if one_face and selection.policy is FacePolicy.ALL:
        _refuse("policy", "ALL is for Detect and Embed: choose one face for a comparison")
    score, size, count = selection.min_score, selection.min_face_size, selection.max_faces
    # 0.02 arrives as the nearest float32, which is a little less.
    if score is not None and not MIN_SCORE_FLOOR - 1e-6 <= score <= 1.0:
        _refuse("min_score", f"{score:g} is outside [{MIN_SCORE_FLOOR}, 1]")
    if size is not None and not (math.isfinite(size) and size >= 0.0):
        _refuse("min_face_size", f"{size:g} is no size in pixels: give 0 or more")
    if count is not None:
        if selection.policy is not FacePolicy.ALL:
            _refuse("max_faces", "only the policy ALL takes it: leave it unset")
        if not 1 <= count <= limits.max_faces:
            _refuse("max_faces", f"{count} is outside [1, {limits.max_faces}], this server's limit")


def rank(boxes: ArrayF32, policy: FacePolicy, width: float, height: float) -> NDArray[np.float64]:
    """What LARGEST and CENTER_LARGEST maximise, in square pixels: [n] for boxes [n, 4].

    It is the area of the box. CENTER_LARGEST takes from it twice the squared distance of the box's centre
    from the centre of a picture of `width` x `height`.
    """
    b = boxes.astype(np.float64)
    area: NDArray[np.float64] = np.clip(b[:, 2:] - b[:, :2], 0.0, None).prod(axis=1)
    if policy is not FacePolicy.CENTER_LARGEST:
        return area
    offset = (b[:, :2] + b[:, 2:]) / 2.0 - np.array([width, height]) / 2.0
    weighed: NDArray[np.float64] = area - 2.0 * (offset**2).sum(axis=1)
    return weighed


def select_faces(
    found: Detections,
    selection: FaceSelection,
    *,
    width: int,
    height: int,
    limits: Limits,
    required: bool,
) -> list[int]:
    """The indices of the wanted faces, in the policy's order.

    Args:
        found: in photo pixels, by falling score.
        selection: checked by `check_selection`.
        width: the photo's, as its height.
        required: whether having none is an error (Embed and Verify, unless the policy is ALL).

    Raises:
        Unmet: MULTIPLE_FACES under REQUIRE_ONE; FACE_NOT_FOUND or FACE_TOO_SMALL if a face is required.
    """
    smallest = selection.min_face_size
    if smallest is None:
        smallest = DEFAULT_MIN_FACE_SIZE
    sides = (found.boxes[:, 2:] - found.boxes[:, :2]).min(axis=1, initial=math.inf)
    kept = np.flatnonzero(sides >= smallest)
    if not len(kept):
        if required and selection.policy is not FacePolicy.ALL:
            _nothing(sides, smallest)
        return []
    scores = found.scores[kept]
    if selection.policy is FacePolicy.ALL:
        order = np.argsort(-scores, kind="stable")[: selection.max_faces or limits.max_faces]
        return [int(i) for i in kept[order]]
    if selection.policy is FacePolicy.REQUIRE_ONE and len(kept) > 1:
        raise Unmet(
            Reason.MULTIPLE_FACES,
            f"The photo has {len(kept)} faces where exactly one is required: crop it, raise min_score or"
            " min_face_size, or choose another policy.",
        )
    value = rank(found.boxes[kept], selection.policy, width, height)
    best = np.lexsort((kept, -scores, -value))[0]
    return [int(kept[best])]


def _nothing(sides: ArrayF32, smallest: float) -> None:
    if len(sides):
        raise Unmet(
            Reason.FACE_TOO_SMALL,
            f"The largest face's shorter side is {sides.max():.1f} pixels, below the"
            f" {smallest:g} of min_face_size: send a larger photo or lower it.",
        )
    raise Unmet(
        Reason.FACE_NOT_FOUND,
        "No face was found in the photo: check that it shows one, upright, or lower min_score.",
    )


def _refuse(option: str, why: str) -> None:
    raise InvalidRequest(Reason.INVALID_OPTION, f"selection.{option}: {why}.", field=option)
