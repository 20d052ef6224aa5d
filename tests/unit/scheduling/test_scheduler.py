"""Who wakes whom on the scheduler's real threads; tests/integration tries them under load."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from mien_server.scheduling.batching import BatchingPolicy
from mien_server.scheduling.errors import Expired
from mien_server.scheduling.interface import PlacedInstance, Work
from mien_server.scheduling.scheduler import Scheduler, Slot
from tests.scheduling_rig import Echo, FakeDevice

LONG = 20.0  # seconds: never reached unless somebody sleeps on


class Gate(Echo):
    """Holds every batch until it is opened."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.open = threading.Event()

    def compute(self, batch: list[Any]) -> list[Any]:
        self.entered.release()
        assert self.open.wait(LONG)
        return super().compute(batch)


@pytest.fixture
def scheduler() -> Iterator[Scheduler]:
    scheduler = Scheduler([FakeDevice(executors=2, cores=0)])
    yield scheduler
    scheduler.close()


def opened(scheduler: Scheduler, model: Echo, **policy: Any) -> Slot:
    placed = [PlacedInstance(model, "cpu", count=2)]
    return scheduler.open_slot("model", 1, BatchingPolicy(**policy), placed)


def busy(scheduler: Scheduler) -> Gate:
    """Occupies both executors until the gate is opened."""
    gate = Gate()
    slot = opened(scheduler, gate)
    for _ in range(2):
        slot.submit(Work(rows=["busy"]))
        assert gate.entered.acquire(timeout=LONG)
    return gate


def test_work_wakes_an_idle_executor_time_and_again(scheduler: Scheduler) -> None:
    slot = opened(scheduler, Echo())
    for number in range(20):
        answer = slot.submit(Work(rows=[number])).result(timeout=LONG)
        assert answer.results == [("answer", number)]


def test_an_executor_that_leaves_work_behind_wakes_another(scheduler: Scheduler) -> None:
    gate = Gate()
    slot = opened(scheduler, gate)
    futures = [slot.submit(Work(rows=[number])) for number in range(2)]
    assert gate.entered.acquire(timeout=LONG)
    assert gate.entered.acquire(timeout=LONG)
    gate.open.set()
    assert all(future.result(timeout=LONG) for future in futures)


def test_a_deadline_beyond_all_clocks_leaves_the_timer_alive(scheduler: Scheduler) -> None:
    gate = busy(scheduler)
    slot = opened(scheduler, Echo())
    far = slot.submit(Work(rows=["far"], deadline=1e12))
    time.sleep(0.05)  # the timer has looked at it
    near = slot.submit(Work(rows=["near"], deadline=time.monotonic() + 0.05))
    with pytest.raises(Expired):
        near.result(timeout=LONG)
    gate.open.set()
    assert far.result(timeout=LONG).results == [("answer", "far")]


def test_a_nearer_deadline_wakes_the_timer(scheduler: Scheduler) -> None:
    gate = busy(scheduler)
    slot = opened(scheduler, Echo())
    now = time.monotonic()
    slot.submit(Work(rows=["far"], deadline=now + 2 * LONG))
    near = slot.submit(Work(rows=["near"], deadline=now + 0.05))
    assert isinstance(near.exception(timeout=LONG / 2), Expired)
    gate.open.set()


def test_a_request_that_is_cancelled_wakes_whoever_waits_for_its_slot_to_close(
    scheduler: Scheduler,
) -> None:
    gate = busy(scheduler)
    slot = opened(scheduler, Echo())
    waiting = slot.submit(Work(rows=["waits"]))
    with ThreadPoolExecutor(1) as pool:
        closed = pool.submit(scheduler.close_slot, slot, timeout=LONG)
        while not slot.state.closing:
            time.sleep(0.001)
        assert waiting.cancel()
        assert closed.result(timeout=LONG)
    gate.open.set()


@pytest.mark.parametrize("ending", ["close_slot", "drain"])
def test_the_end_wakes_executors_that_wait_for_company(scheduler: Scheduler, ending: str) -> None:
    slot = opened(scheduler, Echo(), max_batch_size=8, max_queue_delay=2 * LONG)
    lone = slot.submit(Work(rows=["lone"]))
    time.sleep(0.05)  # so that the executors have looked and wait
    if ending == "close_slot":
        assert scheduler.close_slot(slot, timeout=LONG)
    else:
        assert scheduler.drain(timeout=LONG)
    assert lone.done()
