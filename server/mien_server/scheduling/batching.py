"""Which waiting requests share the next batch, and whether it closes now: a pure function.

A batch closes when an executor is free to take it, not at a timer. `form_batch` is asked only then. It
looks at the requests in the order of service and gathers, for each shape it meets, what fits into one
batch. The first shape, in the order of its oldest request, whose batch should close now wins; so a batch
may step over requests of other shapes, but the oldest request is never passed over once its own time has
come. If none closes now, the answer is when to ask again.
"""

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field, replace
from enum import StrEnum

from mien_server.scheduling.policy import BatchingPolicy
from mien_server.scheduling.request import Part, Request

Expected = Callable[[int, Hashable], float]
"""Seconds that a batch of so many rows of a shape is expected to take."""


class CloseReason(StrEnum):
    """Why a batch closed."""

    FULL = "full"
    """The largest batch was reached, or the next request did not fit any more."""
    PREFERRED = "preferred"
    """A preferred size was reached, or the largest one was passed."""
    URGENT = "urgent"
    """A deadline allowed no more waiting."""
    SHAPE = "shape"
    """Only requests of other shapes wait behind it, and no delay or no further look-ahead is allowed."""
    DELAY = "delay"
    """The oldest request has waited for company as long as allowed (which may be not at all)."""
    DRAIN = "drain"
    """The slot is closing and waits for nobody."""
    ALONE = "alone"
    """The policy combines no requests."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What to run together: parts of requests of one shape, and why it closed."""

    parts: tuple[Part, ...]
    reason: CloseReason
    shape: Hashable

    @property
    def rows(self) -> int:
        """Number of rows."""
        return sum(part.size for part in self.parts)


def form_batch(
    waiting: Iterable[Request],
    policy: BatchingPolicy,
    now: float,
    expected: Expected,
    *,
    draining: bool,
) -> Batch | float | None:
    """The batch to run now, or when to ask again, or None if nothing waits.

    Args:
        waiting: the requests in the order of service, none of them expired.
        policy: the slot's batching policy.
        now: the time, in the seconds of the requests' own times.
        expected: how long to allow for a batch.
        draining: whether the slot waits for no further company.
    """
    groups: dict[Hashable, _Group] = {}
    first: _Group | None = None  # of the oldest request
    stepped_over = 0
    for request in waiting:
        group = groups.get(request.shape)
        if group is None:
            group = groups[request.shape] = _Group(request.shape)
        group.add(request, policy)
        if first is None:
            first = group
        elif group is not first:
            stepped_over += 1
        first.blocked = stepped_over > policy.look_ahead
        if first.full or first.blocked:
            break
    ask_again: float | None = None
    for group in groups.values():
        decision = _decide(group, policy, now, expected, draining, several=len(groups) > 1)
        if isinstance(decision, Batch):
            return decision
        ask_again = decision if ask_again is None else min(ask_again, decision)
    return ask_again


def in_time(batch: Batch, now: float, expected: Expected) -> Batch:
    """As much of a batch as is done before the nearest deadline in it, from the front; one part at least."""
    parts = batch.parts
    while len(parts) > 1:
        deadlines = [part.request.deadline for part in parts if part.request.deadline is not None]
        if not deadlines:
            break
        seconds = expected(sum(part.size for part in parts), batch.shape)
        if now + seconds <= min(deadlines):
            break
        parts = parts[:-1]
    return batch if parts == batch.parts else replace(batch, parts=parts, reason=CloseReason.URGENT)


@dataclass(slots=True)
class _Group:
    """Requests of one shape, as many as one batch holds."""

    shape: Hashable
    parts: list[Part] = field(default_factory=list)
    rows: int = 0
    full: bool = False
    blocked: bool = False  # others have been stepped over so often that none can join any more
    preferred: int = 0  # how many parts make the largest preferred size so far

    def add(self, request: Request, policy: BatchingPolicy) -> None:
        if self.full:
            return
        room = policy.max_batch_size - self.rows
        size = request.waiting_rows
        if size > room:
            if not policy.split_rows:
                # Smaller requests behind it must not overtake it for ever: the batch ends here.
                self.full = True
                return
            size = room
        self.parts.append(Part(request, request.taken, request.taken + size))
        self.rows += size
        self.full = self.rows == policy.max_batch_size or not policy.combine
        if self.rows in policy.preferred_batch_sizes:
            self.preferred = len(self.parts)


def _decide(
    group: _Group,
    policy: BatchingPolicy,
    now: float,
    expected: Expected,
    draining: bool,
    *,
    several: bool,
) -> Batch | float:
    def close(reason: CloseReason, parts: list[Part] = group.parts) -> Batch:
        return Batch(tuple(parts), reason, group.shape)

    if group.preferred:
        parts = group.parts[: group.preferred]
        reached_maximum = group.full and group.preferred == len(group.parts)
        return close(CloseReason.FULL if reached_maximum else CloseReason.PREFERRED, parts)
    if group.full:
        return close(CloseReason.FULL if policy.combine else CloseReason.ALONE)
    if group.rows > policy.usual_batch_size:
        return close(CloseReason.PREFERRED)
    if group.blocked:
        return close(CloseReason.SHAPE)
    if draining:
        return close(CloseReason.DRAIN)
    if policy.max_queue_delay == 0:
        return close(CloseReason.SHAPE if several else CloseReason.DELAY)
    oldest = min(part.request.queued for part in group.parts)
    delay_ends = oldest + policy.max_queue_delay
    if now >= delay_ends:
        return close(CloseReason.DELAY)
    deadlines = [p.request.deadline for p in group.parts if p.request.deadline is not None]
    if deadlines:
        latest_start = min(deadlines) - expected(group.rows, group.shape)
        if now >= latest_start:
            return close(CloseReason.URGENT)
        return min(delay_ends, latest_start)
    return delay_ends
