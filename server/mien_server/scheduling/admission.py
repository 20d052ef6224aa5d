"""Who is let in: limits of a slot, of the server, and of what the deadline still allows."""

from collections.abc import Mapping, Sequence

from mien_server.scheduling.device_state import DeviceState
from mien_server.scheduling.errors import Draining, Expired, QueueFull, Unavailable
from mien_server.scheduling.estimate import with_headroom
from mien_server.scheduling.request import Request
from mien_server.scheduling.slot import Slot

_RETRY_AFTER = (0.05, 5.0)  # seconds: no retry storm, and no client that stays away for good


class Admission:
    """Counts what the server holds and refuses what it cannot hold or cannot do in time.

    Attributes:
        held: requests accepted and not yet settled, in all slots.
        held_bytes: bytes of their rows.
        draining: new calls are refused; later stages of accepted calls are not.
        closed: everything is refused.
    """

    def __init__(
        self,
        devices: Mapping[str, DeviceState],
        slots: Sequence[Slot],
        *,
        max_requests: int,
        max_bytes: int,
    ) -> None:
        self.held = 0
        self.held_bytes = 0
        self.draining = False
        self.closed = False
        self._devices = devices
        self._slots = slots
        self._max_requests = max_requests
        self._max_bytes = max_bytes

    def check(self, slot: Slot, request: Request, now: float) -> None:
        """Lets a request pass, or says why not.

        Raises:
            QueueFull, Expired, Unavailable, Draining, ValueError: as `Slot.submit` says.
        """
        policy, state, rows = slot.policy, slot.state, len(request.rows)
        if rows < 1 or (rows > policy.max_batch_size and not policy.split_rows):
            raise ValueError(
                f"{slot} takes 1 to {policy.max_batch_size} rows a request, not {rows}"
            )
        if self.closed:
            raise Draining("the server is shutting down")
        if state.closed:
            raise Draining(f"{slot} has been unloaded")
        if state.broken:
            raise Unavailable(f"{slot} is unhealthy: {state.broken}")
        if request.deadline is not None and request.deadline <= now:
            raise Expired(f"its deadline passed before it reached the queue of {slot}")
        if request.stage > 0:
            return
        if self.draining:
            raise Draining("the server is shutting down")
        if state.closing:
            raise Draining(f"{slot} is being unloaded")
        full = self._full(slot, request)
        if full:
            wait = self._expected_wait(slot, request.level, now)
            raise QueueFull(f"{full}; try again later", retry_after=_retry_after(wait))
        if request.deadline is not None and len(state.queue):
            wait = self._expected_wait(slot, request.level, now)
            # It will run in the company of those that wait already, and take as long as they all do.
            company = min(policy.usual_batch_size, state.queue.rows + rows)
            compute = state.estimate.typical(max(company, rows), request.shape, now)
            if now + with_headroom(wait + compute) > request.deadline:
                raise QueueFull(
                    f"the queue of {slot} is about {wait * 1e3:.0f} ms long and the deadline cannot be"
                    " met; try again later",
                    retry_after=_retry_after(wait),
                )

    def hold(self, request: Request) -> None:
        """Counts a request in."""
        request.slot.state.held += 1
        self.held += 1
        self.held_bytes += request.nbytes

    def release(self, request: Request) -> None:
        """Counts a settled request out."""
        request.slot.state.held -= 1
        self.held -= 1
        self.held_bytes -= request.nbytes

    def close(self) -> None:
        """Refuses everything from now on."""
        self.draining = self.closed = True

    def _full(self, slot: Slot, request: Request) -> str:
        """What has no room for the request, or ""."""
        policy, queue, level = slot.policy, slot.state.queue, request.level
        limit = policy.queue_policy(level).max_queue_size
        if len(queue) >= policy.max_queue_size:
            return f"the queue of {slot} is full ({policy.max_queue_size} requests)"
        if limit and queue.length_of_level(level) >= limit:
            return f"the queue of {slot} is full for priority {level} ({limit} requests)"
        if queue.nbytes + request.nbytes > policy.max_queue_bytes:
            return f"the queue of {slot} is full ({policy.max_queue_bytes} bytes)"
        if self.held >= self._max_requests:
            return f"the server is full ({self._max_requests} requests)"
        if self.held_bytes + request.nbytes > self._max_bytes:
            return f"the server is full ({self._max_bytes} bytes)"
        return ""

    def _expected_wait(self, slot: Slot, level: int, now: float) -> float:
        """Seconds until a new request of the slot would start, at the pace of late."""
        placed = slot.state.share.keys()
        capacity = sum(self._devices[name].capacity for name in placed)
        others = [
            other.state.queue.rows * other.state.estimate.row_cost(now)
            for other in self._slots
            if other is not slot
            and len(other.state.queue)
            and not placed.isdisjoint(other.state.share)
        ]
        own = slot.state.queue.rows_ahead(level) * slot.state.estimate.row_cost(now)
        # With fair shares, of k busy slots each gets at least its k-th of the device.
        return min(own + sum(others), own * (1 + len(others))) / capacity


def _retry_after(wait: float) -> float:
    shortest, longest = _RETRY_AFTER
    return min(max(wait, shortest), longest)
