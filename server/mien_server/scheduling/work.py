"""What a caller asks of a slot."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

BACKGROUND = -1
"""`Work.passed` of work that nobody waits for: everything else of its priority goes first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One request: one or more rows of equal shape for one slot.

    Attributes:
        rows: opaque to the scheduler; at most the policy's `max_batch_size`, unless it splits rows.
        shape: only requests of equal shape share a batch (a detector's canvas side).
        nbytes: bytes that the rows hold, counted against the admission limits.
        deadline: `time.monotonic()` seconds; the request never runs after it.
        timeout: seconds that the request may wait in the queue (Triton's `timeout`). It can only shorten
            the policy's own limit, and only if the policy allows that.
        priority: 1 is the most urgent; 0 is the model's default.
        passed: how many slots the call has passed already. Work that has passed more goes first, because
            finishing a call that has been worked on beats starting another, and from 1 on it is not
            refused for load. `BACKGROUND` is for work that nobody waits for.
        arrived: `time.monotonic()` of the call, for its age; None means now.
    """

    rows: Sequence[Any]
    shape: Hashable = None
    nbytes: int = 0
    deadline: float | None = None
    timeout: float | None = None
    priority: int = 0
    passed: int = 0
    arrived: float | None = None
