"""Who is let in: budgets, the limits of a slot, and what the deadline still allows."""

from collections.abc import Sequence
from typing import Literal

from mien_server.scheduling.errors import Draining, Expired, QueueFull, Unavailable
from mien_server.scheduling.interface import Work
from mien_server.scheduling.queue import Request
from mien_server.scheduling.state import SlotState
from mien_server.scheduling.statistics import with_headroom


class Budget:
    """Counts what is held and tells which limit one more would pass.

    It is not safe for threads: its owner guards it, by a lock or by staying on one event loop.

    Args:
        max_count: how many may be held, at least 1.
        max_bytes: how many bytes they may have together, at least 1.

    Attributes:
        count: how many are held.
        nbytes: how many bytes they have together.
    """

    def __init__(self, *, max_count: int, max_bytes: int) -> None:
        self.max_count = max_count
        self.max_bytes = max_bytes
        self.count = 0
        self.nbytes = 0

    def exceeded(self, nbytes: int) -> Literal["", "count", "bytes"]:
        """The limit that one more, of `nbytes`, would pass; "" if there is room for it."""
        if self.count >= self.max_count:
            return "count"
        return "bytes" if self.nbytes + nbytes > self.max_bytes else ""

    def enter(self, nbytes: int) -> None:
        """Counts one more; `leave` must follow."""
        self.count += 1
        self.nbytes += nbytes

    def leave(self, nbytes: int) -> None:
        """Ends what `enter` counted."""
        self.count -= 1
        self.nbytes -= nbytes


_RETRY_AFTER = (0.05, 5.0)  # seconds: no retry storm, and no client that stays away for good


class Admission:
    """Counts what the server holds and refuses what it cannot hold or cannot do in time.

    Attributes:
        budget: counts the requests accepted and not yet settled, in all slots, with the bytes of their rows.
        draining: whether new calls are refused; what accepted calls still need is not.
        closed: whether everything is refused.
    """

    def __init__(
        self,
        slots: Sequence[SlotState],
        *,
        max_requests: int,
        max_bytes: int,
    ) -> None:
        self.budget = Budget(max_count=max_requests, max_bytes=max_bytes)
        self.draining = False
        self.closed = False
        self._slots = slots

    def check(self, slot: SlotState, work: Work, level: int, now: float) -> None:
        """Lets work of a priority level pass, or says why not.

        Raises:
            QueueFull, Expired, Unavailable, Draining, ValueError: as `Slot.submit` says.
        """
        policy, rows = slot.policy, len(work.rows)
        if rows < 1 or (rows > policy.max_batch_size and not policy.split_rows):
            raise ValueError(
                f"{slot} takes 1 to {policy.max_batch_size} rows a request, not {rows}"
            )
        if self.closed:
            raise Draining("the server is shutting down")
        if slot.closed:
            raise Draining(f"{slot} has been unloaded")
        if slot.broken:
            raise Unavailable(f"{slot} is unhealthy: {slot.broken}")
        if work.deadline is not None and work.deadline <= now:
            raise Expired(f"its deadline passed before it reached the queue of {slot}")
        if work.passed > 0:
            return
        if self.draining:
            raise Draining("the server is shutting down")
        if slot.closing:
            raise Draining(f"{slot} is being unloaded")
        full = self._full(slot, work, level)
        if full:
            wait = self._expected_wait(slot, level, now)
            raise QueueFull(f"{full}; try again later", retry_after=_retry_after(wait))
        if work.deadline is not None and len(slot.queue):
            wait = self._expected_wait(slot, level, now)
            # It will run in the company of those that wait already, and take as long as they all do.
            company = min(policy.usual_batch_size, slot.queue.rows + rows)
            compute = slot.estimate.typical(max(company, rows), work.shape, now)
            if now + with_headroom(wait + compute) > work.deadline:
                raise QueueFull(
                    f"the queue of {slot} is about {wait * 1e3:.0f} ms long and the deadline cannot be"
                    " met; try again later",
                    retry_after=_retry_after(wait),
                )

    def hold(self, slot: SlotState, request: Request) -> None:
        """Counts a request in."""
        slot.held += 1
        self.budget.enter(request.nbytes)

    def release(self, slot: SlotState, request: Request) -> None:
        """Counts a settled request out."""
        slot.held -= 1
        self.budget.leave(request.nbytes)

    def close(self) -> None:
        """Refuses everything from now on."""
        self.draining = self.closed = True

    def _full(self, slot: SlotState, work: Work, level: int) -> str:
        """What has no room for the work, or ""."""
        policy, queue = slot.policy, slot.queue
        limit = policy.queue_policy(level).max_queue_size
        if len(queue) >= policy.max_queue_size:
            return f"the queue of {slot} is full ({policy.max_queue_size} requests)"
        if limit and queue.length_of_level(level) >= limit:
            return f"the queue of {slot} is full for priority {level} ({limit} requests)"
        if queue.nbytes + work.nbytes > policy.max_queue_bytes:
            return f"the queue of {slot} is full ({policy.max_queue_bytes} bytes)"
        match self.budget.exceeded(work.nbytes):
            case "count":
                return f"the server is full ({self.budget.max_count} requests)"
            case "bytes":
                return f"the server is full ({self.budget.max_bytes} bytes)"
        return ""

    def _expected_wait(self, slot: SlotState, level: int, now: float) -> float:
        """Seconds until a new request of the slot would start, at the pace of late."""
        others = [
            other.queue.rows * other.estimate.row_cost(now)
            for other in self._slots
            if other is not slot
            and len(other.queue)
            and not slot.share.keys().isdisjoint(other.share)
        ]
        own = slot.queue.rows_ahead(level) * slot.estimate.row_cost(now)
        # With fair shares, of k busy slots each gets at least its k-th of the device.
        return min(own + sum(others), own * (1 + len(others))) / slot.capacity


def _retry_after(wait: float) -> float:
    shortest, longest = _RETRY_AFTER
    return min(max(wait, shortest), longest)
