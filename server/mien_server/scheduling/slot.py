"""A slot: one version of one model, with its queue, its policy, its instances and its statistics."""

from collections import deque
from collections.abc import Hashable, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

from mien_server.scheduling.estimate import ComputeEstimate
from mien_server.scheduling.interface import Completion, PlacedInstance
from mien_server.scheduling.policy import BatchingPolicy
from mien_server.scheduling.queue import SlotQueue
from mien_server.scheduling.request import Request
from mien_server.scheduling.statistics import SlotStatistics


class Desk(Protocol):
    """What a slot asks of the scheduler that it belongs to; each call takes the scheduler's lock."""

    def accept(
        self,
        slot: "Slot",
        rows: Sequence[Any],
        *,
        shape: Hashable,
        nbytes: int,
        deadline: float | None,
        timeout: float | None,
        priority: int,
        stage: int,
        arrived: float | None,
    ) -> Request:
        """Admits and queues a request."""
        ...

    def look(self, slot: "Slot") -> SlotStatistics:
        """A consistent copy of a slot's statistics."""
        ...

    def expect(self, slot: "Slot", rows: int, shape: Hashable) -> float:
        """How long a batch is expected to take, in seconds."""
        ...


class SlotState:
    """What the dispatcher keeps of a slot; nobody else touches it.

    Attributes:
        queue: the requests that wait.
        estimate: how long batches take.
        statistics: what was done.
        running: batches under way, per placed instance.
        held: requests accepted and not yet settled.
        share: per device, seconds of a core (or executor) spent on new work, for fairness between slots.
        closing: it takes no new calls.
        closed: it takes nothing any more.
        broken: why it serves no more, or "".
        deaths: executor threads that died in a row in its batches.
        in_order: unsettled and undelivered requests, oldest first, when answers keep their order.
        delivering: a thread is out delivering answers; only one may, when they keep their order.
    """

    def __init__(self, instances: Sequence[PlacedInstance]) -> None:
        self.queue = SlotQueue()
        self.estimate = ComputeEstimate()
        self.statistics = SlotStatistics()
        self.running = [0] * len(instances)
        self.held = 0
        self.share = dict.fromkeys((placed.device for placed in instances), 0.0)
        self.closing = False
        self.closed = False
        self.broken = ""
        self.deaths = 0
        self.in_order: deque[Request] = deque()
        self.delivering = False


class Slot:
    """One version of one model.

    Attributes:
        name: the model's name.
        version: its version, 1 or more.
        policy: how it forms batches.
        instances: where it runs.
        state: for the dispatcher alone.
    """

    def __init__(
        self,
        name: str,
        version: int,
        policy: BatchingPolicy,
        instances: Sequence[PlacedInstance],
        desk: Desk,
    ) -> None:
        self.name = name
        self.version = version
        self.policy = policy
        self.instances = tuple(instances)
        self.state = SlotState(self.instances)
        self._desk = desk

    def __str__(self) -> str:
        return f"{self.name} version {self.version}"

    def submit(
        self,
        rows: Sequence[Any],
        *,
        shape: Hashable = None,
        nbytes: int = 0,
        deadline: float | None = None,
        timeout: float | None = None,
        priority: int = 0,
        stage: int = 0,
        arrived: float | None = None,
    ) -> Future[Completion]:
        """Queues one request of one or more rows of equal shape.

        Args:
            rows: opaque to the scheduler, at most the policy's max_batch_size (unless it splits rows).
            shape: only requests of equal shape share a batch (a detector's canvas side).
            nbytes: bytes that the rows hold, counted against the admission limits.
            deadline: `time.monotonic()` seconds; never run after it.
            timeout: seconds the request may wait in the queue (Triton's `timeout`); may only shorten.
            priority: 1 is the most urgent; 0 the model's default.
            stage: how many slots the call has already passed. Later stages go first: finishing a call
                that has been worked on beats starting another, and is not refused for load. -1 is for
                work that nobody waits for: all other of its priority goes first.
            arrived: `time.monotonic()` of the call, for its age; now, if None.

        Returns:
            A future of the results. Cancelling it takes the request out of the queue at once. It fails
            with Expired, RowFailed, Unavailable or Draining.

        Raises:
            QueueFull: the queue or the server is full, or the deadline cannot be met.
            Expired: the deadline has passed already.
            Unavailable: the slot does not serve. Draining: it is closing.
            ValueError: no rows, or more than the policy allows.
        """
        return self._desk.accept(
            self,
            rows,
            shape=shape,
            nbytes=nbytes,
            deadline=deadline,
            timeout=timeout,
            priority=priority,
            stage=stage,
            arrived=arrived,
        )

    def expected_compute(self, rows: int = 1, shape: Hashable = None) -> float:
        """Seconds that a batch of `rows` is expected to take, learnt from the past; 0 at first."""
        return self._desk.expect(self, rows, shape)

    def statistics(self) -> SlotStatistics:
        """A copy of the slot's figures."""
        return self._desk.look(self)

    @property
    def pending(self) -> int:
        """Requests that wait in the queue."""
        return len(self.state.queue)

    @property
    def broken(self) -> str:
        """Why the slot serves no more, or ""."""
        return self.state.broken
