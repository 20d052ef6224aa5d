"""Where callers and executors meet: the dispatcher's lock, and telling callers once the lock is free."""

import threading
from collections.abc import Callable, Sequence

from mien_server.scheduling.dispatch import Dispatcher, Settlement
from mien_server.scheduling.interface import Completion
from mien_server.scheduling.slot_state import SlotState


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
        """Tells the callers. Their callbacks run here, so the lock must be free."""
        while settled:
            for _, request, outcome in settled:
                request.tell(outcome)
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
