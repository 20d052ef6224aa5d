"""All slots and all device executors of a server: the dispatcher's rules, with a lock and threads.

Three kinds of thread meet under the one lock, each for microseconds: callers that submit or cancel, the
executors (one thread each) that take a batch, run it outside the lock and bring it back, and one timer
that takes out expired requests whatever the executors are doing. Futures are completed outside the lock.
"""

import logging
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from mien_server.scheduling.dispatch import Assignment, Dispatcher, Settlement
from mien_server.scheduling.interface import Completion, Device, PlacedInstance
from mien_server.scheduling.policy import BatchingPolicy
from mien_server.scheduling.request import Request
from mien_server.scheduling.slot import Slot
from mien_server.scheduling.statistics import SlotStatistics

_log = logging.getLogger(__name__)


class Scheduler:
    """Owns the devices' executor threads and the slots they serve. Safe for threads.

    Args:
        devices: what computes.
        max_requests: requests that may wait or run in all slots together, at least 1.
        max_bytes: bytes that their rows may hold together, at least 1.
    """

    def __init__(
        self, devices: Sequence[Device], *, max_requests: int = 4096, max_bytes: int = 1 << 30
    ) -> None:
        self._core = Dispatcher(devices, max_requests=max_requests, max_bytes=max_bytes)
        self._lock = threading.Lock()
        self._work = {device.name: threading.Condition(self._lock) for device in devices}
        self._timer = threading.Condition(self._lock)
        self._settled = threading.Condition(self._lock)
        self._timer_sleeps_until: float | None = None
        self._orphans: dict[str, list[Assignment]] = {device.name: [] for device in devices}
        self._clock: Callable[[], float] = time.monotonic
        self._threads: set[threading.Thread] = set()
        for device in devices:
            for number in range(device.executors):
                self._start_executor(device, number)
        self._start(self._expire_forever, "mien-deadlines")

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
        if not instances:
            raise ValueError(f"{name} version {version} has no instance")
        for placed in instances:
            if placed.device not in self._work:
                raise ValueError(f"there is no device {placed.device!r}, only {sorted(self._work)}")
        slot = Slot(name, version, policy, instances, self)
        with self._lock:
            self._core.slots.append(slot)
        return slot

    def close_slot(self, slot: Slot, *, timeout: float | None = None) -> bool:
        """Refuses new requests, waits for those accepted, removes the slot; False if time ran out.

        When time runs out the slot stays, closed to new requests: call again to wait on.
        """
        state = slot.state
        with self._lock:
            state.closing = True
            self._wake_all()
            # Rows of a request that is settled already may still run.
            done = self._settled.wait_for(
                lambda: state.held == 0 and not any(state.running), timeout
            )
            if done and not state.closed:
                state.closed = True
                self._core.slots.remove(slot)
        return done

    def drain(self, *, timeout: float | None = None) -> bool:
        """Refuses new calls everywhere and waits for those accepted; False if time ran out."""
        with self._lock:
            self._core.admission.draining = True
            self._wake_all()
            return self._settled.wait_for(lambda: self._core.admission.held == 0, timeout)

    def close(self) -> None:
        """Stops the threads; what still waits is answered with Draining, what runs is finished."""
        with self._lock:
            settled = self._core.close()
            self._wake_all()
            self._timer.notify()
            self._settled.notify_all()
        self._deliver(settled)
        # A thread that dies starts its successor before it leaves the set.
        while threads := self._living():
            for thread in threads:
                thread.join()

    def accept(
        self,
        slot: Slot,
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
        """Admits and queues a request: `Slot.submit`."""
        now = self._clock()
        level = slot.policy.level(priority)
        timeout = slot.policy.queue_policy(level).timeout(timeout)
        request = Request(
            slot,
            rows,
            shape=shape,
            nbytes=nbytes,
            level=level,
            stage=stage,
            deadline=deadline,
            expires=None if timeout is None else now + timeout,
            arrived=now if arrived is None else arrived,
            queued=now,
            withdraw=self._withdraw,
        )
        with self._lock:
            self._core.submit(slot, request, now)
            for placed in slot.instances:
                self._work[placed.device].notify()
            self._wake_timer()
        return request

    def look(self, slot: Slot) -> SlotStatistics:
        """A consistent copy of a slot's statistics."""
        with self._lock:
            return slot.state.statistics.copy()

    def expect(self, slot: Slot, rows: int, shape: Hashable) -> float:
        """How long a batch is expected to take, in seconds."""
        with self._lock:
            return slot.state.estimate.typical(rows, shape, self._clock())

    def _withdraw(self, request: Request) -> bool:
        with self._lock:
            removed, settled = self._core.withdraw(request)
            if removed:
                self._settled.notify_all()
        self._deliver(settled)
        return removed

    def _start(self, target: Callable[..., None], name: str, *args: object) -> None:
        def live() -> None:
            try:
                target(*args)
            finally:
                self._threads.discard(threading.current_thread())

        thread = threading.Thread(target=live, name=name, daemon=True)
        with self._lock:  # nobody joins a thread that has not started
            self._threads.add(thread)
            thread.start()

    def _living(self) -> list[threading.Thread]:
        with self._lock:
            return list(self._threads)

    def _start_executor(self, device: Device, number: int) -> None:
        name = f"mien-{device.name}-{number}"
        self._start(self._execute_forever, name, device, number)

    def _execute_forever(self, device: Device, number: int) -> None:
        """An executor's life: take the most urgent batch, run it, bring it back."""
        while (assignment := self._next_assignment(device.name)) is not None:
            try:
                device.begin(assignment.cores)
                assignment.run.run(self._clock)
            except BaseException as error:
                _log.critical(
                    "executor %d of %s died; another takes over",
                    number,
                    device.name,
                    exc_info=error,
                )
                self._bury(assignment, error)
                self._start_executor(device, number)
                return
            self._bring_back(assignment)
            del assignment  # an idle executor keeps no rows, no results and no model alive

    def _next_assignment(self, device_name: str) -> Assignment | None:
        """Waits for a batch; None when the scheduler is closed."""
        while True:
            with self._lock:
                if self._orphans[device_name]:
                    return self._orphans[device_name].pop()
                if self._core.admission.closed:
                    return None
                decision, settled = self._core.take(device_name, self._clock())
                if isinstance(decision, Assignment):
                    if decision.device.idle and self._core.batches_waiting(decision.device):
                        self._work[device_name].notify()
                elif not settled:
                    wait = None if decision is None else max(0.0, decision - self._clock())
                    self._work[device_name].wait(wait)
                if settled:
                    self._settled.notify_all()
            self._deliver(settled)
            if isinstance(decision, Assignment):
                return decision

    def _bring_back(self, assignment: Assignment) -> None:
        device_name = assignment.device.device.name
        with self._lock:
            settled = self._core.finish(assignment, self._clock())
            # Its cores and its instance are free: a waiting executor may be able to go on.
            self._work[device_name].notify()
            self._settled.notify_all()
        self._deliver(settled)

    def _bury(self, assignment: Assignment, error: BaseException) -> None:
        with self._lock:
            assignment.run.died = True
            settled = self._core.died(assignment, error)
            self._orphans[assignment.device.device.name].append(assignment)
            self._settled.notify_all()
        self._deliver(settled)

    def _expire_forever(self) -> None:
        """The timer's life: sleep until the next request expires, and take it out."""
        while True:
            with self._lock:
                if self._core.admission.closed:
                    return
                settled = self._core.expire(self._clock())
                if settled:
                    self._settled.notify_all()
                else:
                    self._timer_sleeps_until = self._core.next_expiry()
                    until = self._timer_sleeps_until
                    self._timer.wait(None if until is None else max(0.0, until - self._clock()))
            self._deliver(settled)

    def _wake_timer(self) -> None:
        upcoming = self._core.next_expiry()
        sleeps_until = self._timer_sleeps_until
        if upcoming is not None and (sleeps_until is None or upcoming < sleeps_until):
            self._timer.notify()

    def _wake_all(self) -> None:
        for condition in self._work.values():
            condition.notify_all()

    def _deliver(self, settled: Sequence[Settlement]) -> None:
        """Tells the callers. Their callbacks run here, so the lock must be free."""
        while settled:
            for request, outcome in settled:
                _tell(request, outcome)
            # While this thread was out with answers of ordered slots, no other thread was.
            ordered = {
                request.slot
                for request, outcome in settled
                if request.slot.policy.preserve_ordering and isinstance(outcome, Completion)
            }
            settled = []
            if ordered:
                with self._lock:
                    for slot in ordered:
                        settled += self._core.delivered(slot)


def _tell(request: Request, outcome: Completion | Exception) -> None:
    if not request.running() and not request.set_running_or_notify_cancel():
        return
    if isinstance(outcome, Exception):
        request.set_exception(outcome)
    else:
        request.set_result(outcome)
