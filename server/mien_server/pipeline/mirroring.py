"""Copies of calls' rows for a shadow version: its answers are compared, counted, and never returned."""

import logging
import time
from collections.abc import Hashable, Sequence
from concurrent.futures import Future
from typing import Any

from mien_server.models.interface import AnyRole
from mien_server.repository.versions import ReadyModel, Shadow
from mien_server.scheduling.errors import RowFailed, SchedulingError
from mien_server.scheduling.interface import BACKGROUND, Completion, Work

MOST_WAITING = 4
"""How many requests may wait for a shadow at once."""

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
        model: the version that answered.
        results: its answers, one per row.
        shape: what the rows were submitted with, as `nbytes`.
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
    role = model.config.role
    copies.add_done_callback(lambda done: _compare(role, shadow, results, done))


def _compare(role: AnyRole, shadow: Shadow, ours: Sequence[Any], done: Future[Completion]) -> None:
    """Runs on the thread that has the shadow's answers, and lets the shadow go."""
    try:
        theirs = done.result().results
        agreed = sum(role.agree(mine, other) for mine, other in zip(ours, theirs, strict=True))
        _count(shadow, compared=len(ours), agreed=agreed)
    except RowFailed:
        _count(shadow, failed=len(ours))
    except SchedulingError:
        _count(shadow, dropped=len(ours))
    except Exception:
        model = shadow.version.model
        facts = {"model": model.name, "version": model.version}
        _log.exception("the shadow's answers could not be compared", extra=facts)
        _count(shadow, failed=len(ours))
    finally:
        shadow.version.release()


def _count(shadow: Shadow, **rows: int) -> None:
    shadow.counter.shadow(shadow.version.model.version, **rows)
