"""What tests of the scheduler's real threads share: devices, models, and a scheduler that must end clean."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager
from random import Random
from typing import Any

from mien_server.scheduling.batching import BatchingPolicy
from mien_server.scheduling.interface import PlacedInstance, Work
from mien_server.scheduling.scheduler import Scheduler, Slot
from tests.scheduling_rig import Echo, FakeDevice

SOON = 0.05  # seconds: ten times what is promised, for a machine that is shared
LONG = 30.0  # seconds: never reached unless something hangs


class Gate(Echo):
    """Holds every batch, without the GIL, until it is opened."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.open = threading.Event()

    def compute(self, batch: list[Any]) -> list[Any]:
        self.entered.release()
        assert self.open.wait(LONG)
        return super().compute(batch)


class Deadly(Echo):
    """Kills its executor thread on the row "killer"."""

    def compute(self, batch: list[Any]) -> list[Any]:
        if "killer" in batch:
            raise SystemExit("killed")
        return super().compute(batch)


class Napping(Echo):
    """Takes a moment for every batch, not always the same."""

    def __init__(self, seconds: float, seed: int | None = None) -> None:
        self._seconds = seconds
        self._random = None if seed is None else Random(seed)  # noqa: S311 - no secret

    def compute(self, batch: list[Any]) -> list[Any]:
        time.sleep(self._seconds * (1 if self._random is None else self._random.random()))
        return super().compute(batch)


class Photo:
    """A row whose end can be observed."""


@contextmanager
def scheduling(
    device: FakeDevice | None = None, **limits: Any
) -> Iterator[tuple[Scheduler, Callable[..., Slot]]]:
    """A scheduler and how to open slots on it; at the end it must leave no thread."""
    before = set(threading.enumerate())
    device = device or FakeDevice(executors=2, cores=2)
    scheduler = Scheduler([device], **limits)

    def open_slot(model: Any, name: str = "model", **policy: Any) -> Slot:
        placed = PlacedInstance(model, device.name, count=64)
        return scheduler.open_slot(name, 1, BatchingPolicy(**policy), [placed])

    try:
        yield scheduler, open_slot
    finally:
        scheduler.close()
    assert set(threading.enumerate()) <= before


def two_streams() -> AbstractContextManager[tuple[Scheduler, Callable[..., Slot]]]:
    """Two executors that share no cores, so that both always run."""
    return scheduling(FakeDevice("cuda:0", executors=2, cores=0))


def answers(future: Future[Any]) -> list[Any]:
    return [row for _, row in future.result(timeout=LONG).results]


def eventually(condition: Callable[[], bool]) -> bool:
    """Whether the condition comes true, for what no event tells of."""
    until = time.monotonic() + LONG
    while not condition() and time.monotonic() < until:
        time.sleep(0.001)
    return condition()


def busy(open_slot: Callable[..., Slot]) -> Gate:
    """Occupies every executor until the gate is opened."""
    gate = Gate()
    slot = open_slot(gate, "busy")
    for _ in range(2):
        slot.submit(Work(rows=["busy"]))
        assert gate.entered.acquire(timeout=LONG)
    return gate


def busy_once(open_slot: Callable[..., Slot]) -> Gate:
    """Occupies the one executor until the gate is opened."""
    gate = Gate()
    open_slot(gate, "busy").submit(Work(rows=["busy"]))
    assert gate.entered.acquire(timeout=LONG)
    return gate
