"""Copies of calls' rows for a shadow version: its answers are compared, counted, and never returned."""

import logging
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np

from mien_server.models.interface import Detections, Task
from mien_server.pipeline.types import ArrayF32
from mien_server.repository.leases import Shadow
from mien_server.repository.versions import ReadyModel
from mien_server.scheduling.errors import RowFailed, SchedulingError
from mien_server.scheduling.interface import Completion
from mien_server.scheduling.work import BACKGROUND, Work

MIN_COSINE = 0.99
"""From this cosine on two vectors of one face agree: what a lower precision of a network may lose."""

MIN_IOU = 0.75
"""From this overlap on two boxes agree."""

MOST_WAITING = 4
"""Requests that wait for a shadow at once."""

PATIENCE_SECONDS = 5.0
"""How long a copy may wait for an executor that has nothing else to do."""

_log = logging.getLogger(__name__)


def mirror(
    model: ReadyModel,
    shadow: Shadow,
    rows: Sequence[Any],
    results: Sequence[Any],
    *,
    shape: Hashable,
    nbytes: int,
) -> None:
    """Gives answered rows to the shadow as well, unless there is other work to do. Never waits or fails.

    Args:
        model: that answered.
        shadow: that gets the copies.
        rows: that were answered.
        results: the answers, one per row.
        shape: as the rows were submitted with.
        nbytes: likewise.
    """
    slot = shadow.version.model.slot
    if model.slot.pending or slot.pending >= MOST_WAITING:
        _count(shadow, dropped=len(rows))
        return
    shadow.version.hold()
    try:
        copies = slot.submit(
            Work(
                rows=rows,
                shape=shape,
                nbytes=nbytes,
                deadline=time.monotonic() + PATIENCE_SECONDS,
                priority=slot.policy.priority_levels,
                passed=BACKGROUND,
            )
        )
    except (
        SchedulingError,
        ValueError,
    ):  # no room, or more rows than the candidate's config allows
        _count(shadow, dropped=len(rows))
        shadow.version.release()
        return
    task = model.config.task
    copies.add_done_callback(lambda done: _compare(task, shadow, results, done))


def same_faces(ours: Detections, theirs: Detections) -> bool:
    """Whether two detectors found as many faces, each where the other has one."""
    if len(ours.boxes) != len(theirs.boxes):
        return False
    top_left = np.maximum(ours.boxes[:, None, :2], theirs.boxes[None, :, :2])
    bottom_right = np.minimum(ours.boxes[:, None, 2:], theirs.boxes[None, :, 2:])
    shared = np.prod(np.maximum(bottom_right - top_left, 0.0), axis=-1)
    union = _areas(ours.boxes)[:, None] + _areas(theirs.boxes)[None, :] - shared
    overlaps = shared / np.maximum(union, np.finfo(np.float32).tiny)
    return bool((overlaps.max(axis=1, initial=0.0) >= MIN_IOU).all())


def same_vector(ours: ArrayF32, theirs: ArrayF32) -> bool:
    """Whether two embedders gave vectors [d] of nearly one direction."""
    norms = float(np.linalg.norm(ours)) * float(np.linalg.norm(theirs))
    return norms > 0.0 and float(np.dot(ours, theirs)) / norms >= MIN_COSINE


_SAME: dict[Task, Callable[[Any, Any], bool]] = {
    "detect": lambda ours, theirs: same_faces(Detections(*ours), Detections(*theirs)),
    "embed": same_vector,
}


def _areas(boxes: ArrayF32) -> ArrayF32:
    sides: ArrayF32 = boxes[:, 2:] - boxes[:, :2]
    return sides[:, 0] * sides[:, 1]


def _compare(task: Task, shadow: Shadow, ours: Sequence[Any], done: Future[Completion]) -> None:
    """Runs on the thread that has the shadow's answers, and lets the shadow go."""
    try:
        theirs = done.result().results
        agreed = sum(_SAME[task](mine, other) for mine, other in zip(ours, theirs, strict=True))
        _count(shadow, compared=len(ours), agreed=agreed)
    except RowFailed:
        _count(shadow, failed=len(ours))
    except SchedulingError:
        _count(shadow, dropped=len(ours))
    except Exception:
        _log.exception("the answers of %s could not be compared", shadow.version.model.slot)
        _count(shadow, failed=len(ours))
    finally:
        shadow.version.release()


def _count(shadow: Shadow, **rows: int) -> None:
    shadow.counter.shadow(shadow.version.model.version, **rows)
