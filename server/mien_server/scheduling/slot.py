"""A slot as its callers hold it: one version of one model that takes work."""

from collections.abc import Hashable
from concurrent.futures import Future

from mien_server.scheduling.desk import Desk
from mien_server.scheduling.interface import Completion, PlacedInstance
from mien_server.scheduling.policy import BatchingPolicy
from mien_server.scheduling.request import Request
from mien_server.scheduling.slot_state import SlotState
from mien_server.scheduling.statistics import SlotStatistics
from mien_server.scheduling.work import Work


class Slot:
    """One version of one model. The scheduler makes it; safe for threads.

    Attributes:
        name: the model's name.
        version: its version, 1 or more.
        policy: how it forms batches.
        instances: where it runs.
        state: what the dispatcher keeps of it; nobody else changes it.
    """

    def __init__(self, state: SlotState, desk: Desk) -> None:
        self.name: str = state.name
        self.version: int = state.version
        self.policy: BatchingPolicy = state.policy
        self.instances: tuple[PlacedInstance, ...] = state.instances
        self.state = state
        self._desk = desk

    def __str__(self) -> str:
        return str(self.state)

    def submit(self, work: Work) -> Future[Completion]:
        """Queues one request.

        Returns:
            A future of the results. Cancelling it takes the request out of the queue at once. It fails
            with Expired, RowFailed, Unavailable or Draining.

        Raises:
            QueueFull: the queue or the server is full, or the deadline cannot be met.
            Expired: the deadline has passed already.
            Unavailable: the slot does not serve. Draining: it is closing.
            ValueError: no rows, or more than the policy allows.
        """
        desk = self._desk
        now = desk.clock()
        with desk.lock:
            request = desk.dispatcher.submit(self.state, work, now, self._withdraw)
            desk.wake_for(self.state)
        return request

    def expected_compute(self, rows: int = 1, shape: Hashable = None) -> float:
        """Seconds that a batch of `rows` is expected to take, learnt from the past; 0 at first."""
        with self._desk.lock:
            return self.state.estimate.typical(rows, shape, self._desk.clock())

    def statistics(self) -> SlotStatistics:
        """A consistent copy of the slot's figures."""
        with self._desk.lock:
            return self.state.statistics.copy()

    @property
    def pending(self) -> int:
        """Requests that wait in the queue."""
        return len(self.state.queue)

    @property
    def broken(self) -> str:
        """Why the slot serves no more, or ""."""
        return self.state.broken

    def _withdraw(self, request: Request) -> bool:
        with self._desk.lock:
            removed, settled = self._desk.dispatcher.withdraw(self.state, request)
            if removed:
                self._desk.settled.notify_all()
        self._desk.deliver(settled)
        return removed
