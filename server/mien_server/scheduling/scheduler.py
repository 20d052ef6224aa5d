"""All slots and all device executors of a server: the dispatcher's rules, with threads.

Three kinds of thread meet under the desk's lock, each for microseconds: callers that submit or cancel,
the executors (one thread each) that take a batch, run it outside the lock and bring it back, and one timer
that takes out expired requests whatever the executors are doing. Futures are completed outside the lock.
"""

import logging
import secrets
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from functools import partial

from mien_server.scheduling.batching import BatchingPolicy
from mien_server.scheduling.dispatch import Dispatcher
from mien_server.scheduling.interface import Completion, Device, PlacedInstance, Work
from mien_server.scheduling.queue import Request
from mien_server.scheduling.state import Assignment, Settlement, SlotState
from mien_server.scheduling.statistics import SlotStatistics
from mien_server.threads import Threads

_log = logging.getLogger(__name__)


class Desk:
    """The lock around a dispatcher, and the conditions that threads wait for under it.

    It starts no threads: the scheduler's executors and timer use it, and so may a simulation that plays
    them, with a clock of its own.

    Attributes:
        dispatcher: to be called only with the lock held.
        clock: the time in seconds.
        lock: held for microseconds, never while a caller is told.
        work: per device, notified when an executor may find a batch.
        timer: notified when a request expires before `timer_sleeps_until`.
        settled: notified when a request is settled or a batch is back.
        timer_sleeps_until: when the timer looks next by itself; None if nothing will expire.
    """

    def __init__(self, dispatcher: Dispatcher, clock: Callable[[], float]) -> None:
        self.dispatcher = dispatcher
        self.clock = clock
        self.lock = threading.Lock()
        self.work = {name: threading.Condition(self.lock) for name in dispatcher.devices}
        self.timer = threading.Condition(self.lock)
        self.settled = threading.Condition(self.lock)
        self.timer_sleeps_until: float | None = None

    def seconds_until(self, moment: float) -> float:
        """How long a thread may wait for a moment, which may have passed or be too far off to wait for."""
        return min(max(0.0, moment - self.clock()), threading.TIMEOUT_MAX)

    def wake_for(self, slot: SlotState) -> None:
        """Wakes those who have to do with a request that a slot has accepted. Needs the lock."""
        for device in slot.share:
            self.work[device].notify()
        upcoming = self.dispatcher.next_expiry()
        sleeps_until = self.timer_sleeps_until
        if upcoming is not None and (sleeps_until is None or upcoming < sleeps_until):
            self.timer.notify()

    def wake_executors(self) -> None:
        """Wakes every idle executor. Needs the lock."""
        for condition in self.work.values():
            condition.notify_all()

    def deliver(self, settled: Sequence[Settlement]) -> None:
        """Tells the callers. Their callbacks run here, so the lock must be free.

        A callback that kills its thread does so once all have been told.
        """
        killer: BaseException | None = None
        while settled:
            for _, request, outcome in settled:
                try:
                    request.tell(outcome)
                except BaseException as error:
                    killer = error
            # While this thread was out with answers of ordered slots, no other thread was.
            ordered = {
                slot
                for slot, _, outcome in settled
                if slot.order is not None and isinstance(outcome, Completion)
            }
            settled = []
            if ordered:
                with self.lock:
                    for slot in ordered:
                        settled += self.dispatcher.delivered(slot)
        if killer is not None:
            raise killer


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


class Scheduler:
    """Owns the devices' executor threads and the slots they serve. Safe for threads.

    Args:
        devices: what computes.
        max_requests: requests that may wait or run in all slots together, at least 1.
        max_bytes: bytes that their rows may hold together, at least 1.
        threads: keeps the executors and the timer alive; None: nobody asks how they are.
    """

    def __init__(
        self,
        devices: Sequence[Device],
        *,
        max_requests: int = 4096,
        max_bytes: int = 1 << 30,
        threads: Threads | None = None,
    ) -> None:
        self._dispatcher = Dispatcher(devices, max_requests=max_requests, max_bytes=max_bytes)
        self._desk = Desk(self._dispatcher, time.monotonic)
        self._orphans: dict[str, list[Assignment]] = {device.name: [] for device in devices}
        threads = threads or Threads()
        self._threads = [
            threads.start(f"mien-{device.name}-{number}", partial(self._execute_forever, device))
            for device in devices
            for number in range(device.executors)
        ]
        self._threads.append(threads.start("mien-deadlines", self._expire_forever))

    def open_slot(
        self,
        name: str,
        version: int,
        policy: BatchingPolicy,
        instances: Sequence[PlacedInstance],
    ) -> Slot:
        """Adds a slot; it takes requests at once.

        Raises:
            ValueError: no instance, or one on a device that the scheduler does not have.
        """
        with self._desk.lock:
            state = self._dispatcher.open_slot(name, version, policy, instances)
        return Slot(state, self._desk)

    def close_slot(self, slot: Slot, *, timeout: float | None = None) -> bool:
        """Refuses new requests, waits for those accepted, removes the slot; False if time ran out.

        When time runs out the slot stays, closed to new requests: call again to wait on.
        """
        with self._desk.lock:
            self._desk.wake_executors()  # those that wait for company need not any more
            return self._desk.settled.wait_for(
                lambda: self._dispatcher.close_slot(slot.state), timeout
            )

    def drain(self, *, timeout: float | None = None) -> bool:
        """Refuses new calls everywhere and waits for those accepted; False if time ran out."""
        with self._desk.lock:
            self._desk.wake_executors()
            return self._desk.settled.wait_for(self._dispatcher.drain, timeout)

    def close(self) -> None:
        """Stops the threads; what still waits is answered with Draining, what runs is finished."""
        with self._desk.lock:
            settled = self._dispatcher.close()
            self._desk.wake_executors()
            self._desk.timer.notify()
            self._desk.settled.notify_all()
        self._desk.deliver(settled)
        for thread in self._threads:
            thread.join()

    def _execute_forever(self, device: Device) -> None:
        """An executor's life: take the most urgent batch, run it, bring it back.

        If it dies with a batch that has not run, the batch runs again, row by row, on the next executor that
        is free; if with one that has, what it did not settle fails.
        """
        while (assignment := self._next_assignment(device.name)) is not None:
            try:
                device.begin(assignment.cores)
                assignment.run.run(self._desk.clock)
            except BaseException as error:
                self._bury(assignment, error)
                raise
            try:
                self._bring_back(assignment)
            except BaseException as error:
                self._abandon(assignment, error)
                raise
            del assignment  # an idle executor keeps no rows, no results and no model alive

    def _next_assignment(self, device_name: str) -> Assignment | None:
        """Waits for a batch; None when the scheduler is closed."""
        desk, dispatcher = self._desk, self._dispatcher
        while True:
            with desk.lock:
                if self._orphans[device_name]:
                    return self._orphans[device_name].pop()
                if dispatcher.admission.closed:
                    return None
                decision, settled = dispatcher.take(device_name, desk.clock())
                if isinstance(decision, Assignment):
                    if decision.device.idle and dispatcher.batches_waiting(decision.device):
                        desk.work[device_name].notify()
                elif not settled:
                    wait = None if decision is None else desk.seconds_until(decision)
                    desk.work[device_name].wait(wait)
                if settled:
                    desk.settled.notify_all()
            try:
                desk.deliver(settled)
            except BaseException:
                if isinstance(decision, Assignment):
                    self._hand_on(decision)
                raise
            if isinstance(decision, Assignment):
                return decision

    def _bring_back(self, assignment: Assignment) -> None:
        device_name = assignment.device.device.name
        with self._desk.lock:
            settled = self._dispatcher.finish(assignment, self._desk.clock())
            # Its cores and its instance are free: another executor may go on while this one tells callers.
            if self._dispatcher.batches_waiting(assignment.device):
                self._desk.work[device_name].notify()
            self._desk.settled.notify_all()
        self._desk.deliver(settled)

    def _bury(self, assignment: Assignment, error: BaseException) -> None:
        with self._desk.lock:
            settled = self._dispatcher.died(assignment, error)
            self._desk.settled.notify_all()
        self._hand_on(assignment)
        self._desk.deliver(settled)

    def _hand_on(self, assignment: Assignment) -> None:
        """Leaves a batch to the next executor of its device that is free."""
        device_name = assignment.device.device.name
        with self._desk.lock:
            self._orphans[device_name].append(assignment)
            self._desk.work[device_name].notify()

    def _abandon(self, assignment: Assignment, error: BaseException) -> None:
        incident = secrets.token_hex(6)
        facts = {"incident": incident, **assignment.slot.facts}
        _log.error("a batch of %s is lost", assignment.slot, exc_info=error, extra=facts)
        with self._desk.lock:
            settled = self._dispatcher.abandon(assignment, self._desk.clock(), incident)
            self._desk.settled.notify_all()
        self._desk.deliver(settled)

    def _expire_forever(self) -> None:
        """The timer's life: sleep until the next request expires, and take it out."""
        desk, dispatcher = self._desk, self._dispatcher
        while True:
            with desk.lock:
                if dispatcher.admission.closed:
                    return
                settled = dispatcher.expire(desk.clock())
                if settled:
                    desk.settled.notify_all()
                else:
                    until = desk.timer_sleeps_until = dispatcher.next_expiry()
                    desk.timer.wait(None if until is None else desk.seconds_until(until))
            desk.deliver(settled)
