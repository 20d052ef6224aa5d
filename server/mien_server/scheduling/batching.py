"""Which waiting requests share the next batch, and whether it closes now: a pure function.

A batch closes when an executor is free to take it, not at a timer. `form_batch` is asked only then. It
looks at the requests in the order of service and gathers, for each shape it meets, what fits into one
batch. The first shape, in the order of its oldest request, whose batch should close now wins; so a batch
may step over requests of other shapes, but the oldest request is never passed over once its own time has
come. If none closes now, the answer is when to ask again.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from types import MappingProxyType

from mien_server.scheduling.queue import Part, Request


class PolicyError(ValueError):
    """A policy that cannot be kept.

    Attributes:
        field: the field of config.pbtxt at fault, without those around it: `preferred_batch_size`.
        problem: what is wrong and how to mend it.
        value: of several values of the field, the one at fault; or "".
    """

    def __init__(self, field: str, problem: str, *, value: object = "") -> None:
        super().__init__(problem)
        self.field = field
        self.problem = problem
        self.value = str(value)


class TimeoutAction(StrEnum):
    """What happens to a request whose queue timeout has passed."""

    REJECT = "REJECT"
    DELAY = "DELAY"


@dataclass(frozen=True, slots=True)
class QueuePolicy:
    """Triton's ModelQueuePolicy, for one priority level.

    Attributes:
        timeout_action: REJECT answers Expired; DELAY serves the request after all others of its level.
        default_timeout: seconds a request may wait in the queue; 0: no limit.
        allow_timeout_override: whether a request may bring its own timeout; it can only shorten.
        max_queue_size: requests that may wait at this level; 0: only the slot's own limit holds.
    """

    timeout_action: TimeoutAction = TimeoutAction.REJECT
    default_timeout: float = 0.0
    allow_timeout_override: bool = False
    max_queue_size: int = 0

    def __post_init__(self) -> None:
        if self.default_timeout < 0:
            field = "default_timeout_microseconds"
            raise PolicyError(field, f"{field} must be 0 or more")
        if self.max_queue_size < 0:
            raise PolicyError("max_queue_size", "max_queue_size must be 0 or more")

    def timeout(self, requested: float | None) -> float | None:
        """The queue timeout that holds for a request that asks for `requested` seconds, or None."""
        limit = self.default_timeout or None
        if requested is None or requested <= 0 or not self.allow_timeout_override:
            return limit
        return requested if limit is None else min(requested, limit)


@dataclass(frozen=True, slots=True)
class BatchingPolicy:
    """Everything that decides which waiting requests share a batch, and when it closes.

    Attributes:
        max_batch_size: rows of the largest batch, at least 1.
        combine: whether requests share batches; else each runs alone, and at once.
        preferred_batch_sizes: sizes worth waiting for, ascending; empty: `max_batch_size`.
        max_queue_delay: seconds an idle executor may wait for company; 0: none.
        preserve_ordering: answers leave in the order in which requests came.
        priority_levels: levels 1 (most urgent) to this; 0: one level only.
        default_priority_level: the level of a request that names none.
        default_queue_policy: for levels that `priority_queue_policy` does not name.
        priority_queue_policy: by level.
        max_queue_size: requests that may wait in the slot altogether, at least 1.
        max_queue_bytes: bytes of their rows, at least 1.
        look_ahead: how many requests of other shapes a batch may step over, before they must go first.
        split_rows: whether a request's rows may run in several batches.
    """

    max_batch_size: int = 1
    combine: bool = True
    preferred_batch_sizes: tuple[int, ...] = ()
    max_queue_delay: float = 0.0
    preserve_ordering: bool = False
    priority_levels: int = 0
    default_priority_level: int = 0
    default_queue_policy: QueuePolicy = QueuePolicy()
    priority_queue_policy: Mapping[int, QueuePolicy] = field(
        default_factory=lambda: MappingProxyType({})
    )
    max_queue_size: int = 512
    max_queue_bytes: int = 512 * 1024 * 1024
    look_ahead: int = 64
    split_rows: bool = False

    def __post_init__(self) -> None:
        """Checks what Triton checks.

        Raises:
            PolicyError: names the config.pbtxt field and the fix.
        """
        if self.max_batch_size < 1:
            raise PolicyError("max_batch_size", "max_batch_size must be at least 1")
        for size in self.preferred_batch_sizes:
            if not 0 < size <= self.max_batch_size:
                raise PolicyError(
                    "preferred_batch_size",
                    f"preferred_batch_size {size} must be in [1, {self.max_batch_size}]"
                    " (max_batch_size)",
                    value=size,
                )
        if list(self.preferred_batch_sizes) != sorted(set(self.preferred_batch_sizes)):
            raise PolicyError(
                "preferred_batch_size",
                "preferred_batch_size must be ascending, without repetition",
            )
        if self.max_queue_delay < 0:
            field = "max_queue_delay_microseconds"
            raise PolicyError(field, f"{field} must be 0 or more")
        self._check_levels()
        if self.preserve_ordering:
            if self.priority_levels > 1:
                raise PolicyError(
                    "preserve_ordering", "preserve_ordering excludes more than one priority level"
                )
            policies = [self.default_queue_policy, *self.priority_queue_policy.values()]
            if any(p.timeout_action is TimeoutAction.DELAY for p in policies):
                raise PolicyError(
                    "preserve_ordering", "preserve_ordering excludes timeout_action DELAY"
                )
        for limit in ("max_queue_size", "max_queue_bytes"):
            if getattr(self, limit) < 1:
                raise PolicyError(limit, "a slot's queue limits must be at least 1")
        if self.look_ahead < 0:
            raise PolicyError("look_ahead", "look_ahead must be 0 or more")

    def _check_levels(self) -> None:
        levels, default = self.priority_levels, self.default_priority_level
        if levels < 0:
            raise PolicyError("priority_levels", "priority_levels must be 0 or more")
        if default and not levels:
            raise PolicyError(
                "default_priority_level",
                f"default_priority_level {default} needs priority_levels, the number of levels",
            )
        if levels and not 1 <= default <= levels:
            raise PolicyError(
                "default_priority_level",
                f"default_priority_level must be in [1, {levels}] (priority_levels)",
            )
        for level in self.priority_queue_policy:
            if not 1 <= level <= levels:
                raise PolicyError(
                    "priority_queue_policy",
                    f"priority_queue_policy names level {level}, outside [1, {levels}]",
                    value=level,
                )

    def level(self, requested: int) -> int:
        """The priority level of a request that asks for `requested`; 0 or out of range: the default."""
        if self.priority_levels and 1 <= requested <= self.priority_levels:
            return requested
        return self.default_priority_level

    def queue_policy(self, level: int) -> QueuePolicy:
        """The queue policy of a level."""
        return self.priority_queue_policy.get(level, self.default_queue_policy)

    @property
    def usual_batch_size(self) -> int:
        """Rows that are worth waiting for, and no more."""
        if not self.combine:
            return 1
        return max(self.preferred_batch_sizes, default=self.max_batch_size)


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
    SHARE = "share"
    """The rest is left to the other cores: a processor is done sooner with rows on each than side by side."""
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


def at_most(batch: Batch, rows: int, *, split: bool) -> Batch:
    """As much of a batch as has at most so many rows, from the front; one part at least.

    Args:
        rows: at least 1.
        split: whether a part may be cut.
    """
    parts: list[Part] = []
    room = rows
    for part in batch.parts:
        fitting = part._replace(stop=min(part.stop, part.start + room)) if split else part
        if parts and fitting.size > room:
            break
        parts.append(fitting)
        room -= fitting.size
        if room <= 0:
            break
    if tuple(parts) == batch.parts:
        return batch
    return replace(batch, parts=tuple(parts), reason=CloseReason.SHARE)


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
