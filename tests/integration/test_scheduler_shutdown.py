"""Slots and schedulers that end, and executors that die: nothing is lost and nothing is left behind."""

import gc
import logging
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from typing import Any
from weakref import ref

import pytest

from mien_server.scheduling.errors import Draining, QueueFull, RowFailed, Unavailable
from mien_server.scheduling.interface import Work
from tests.integration.threads import (
    LONG,
    Deadly,
    Gate,
    Napping,
    Photo,
    answers,
    busy,
    eventually,
    scheduling,
    two_streams,
)
from tests.scheduling_rig import Echo


def test_a_dead_executor_is_replaced_and_its_batch_gets_its_answers() -> None:
    with two_streams() as (_, open_slot):
        slot = open_slot(Deadly(), max_batch_size=4)
        gate = busy(open_slot)
        futures = [slot.submit(Work(rows=[row])) for row in ("good", "killer", "good too")]
        gate.open.set()
        assert answers(futures[0]) == ["good"]
        assert isinstance(futures[1].exception(timeout=LONG), RowFailed)
        assert answers(futures[2]) == ["good too"]
        assert slot.statistics().executor_deaths == 2
        assert answers(slot.submit(Work(rows=["more"]))) == ["more"]
        alive = [thread.name for thread in threading.enumerate() if thread.name[:5] == "mien-"]
        assert sorted(alive) == ["mien-cuda:0-0", "mien-cuda:0-1", "mien-deadlines"]


def test_executors_that_keep_dying_break_their_slot_and_no_other() -> None:
    with scheduling() as (_, open_slot):
        deadly, healthy = open_slot(Deadly(), "deadly"), open_slot(Echo(), "healthy")
        for _ in range(3):
            assert isinstance(
                deadly.submit(Work(rows=["killer"])).exception(timeout=LONG), RowFailed
            )
        with pytest.raises(Unavailable, match="6 executors in a row died"):
            deadly.submit(Work(rows=["good"]))
        assert "SystemExit('killed')" in deadly.broken
        assert [answers(healthy.submit(Work(rows=[number]))) for number in range(10)] == [
            [number] for number in range(10)
        ]


def test_close_refuses_what_waits_finishes_what_runs_and_joins_every_thread() -> None:
    with two_streams() as (scheduler, open_slot):
        gate = Gate()
        slot = open_slot(gate)
        futures = [slot.submit(Work(rows=[number])) for number in range(6)]
        for _ in range(2):
            assert gate.entered.acquire(timeout=LONG)
        closing = threading.Thread(target=scheduler.close)
        closing.start()
        refused = wait_for(futures[2:], timeout=LONG).done
        assert len(refused) == 4
        assert all(isinstance(future.exception(), Draining) for future in refused)
        assert not any(future.done() for future in futures[:2])
        assert closing.is_alive()
        gate.open.set()
        closing.join(LONG)
        assert [answers(future) for future in futures[:2]] == [[0], [1]]
        with pytest.raises(Draining):
            slot.submit(Work(rows=["late"]))
        scheduler.close()


def test_close_wakes_whoever_waits_for_a_slot_to_empty() -> None:
    with two_streams() as (scheduler, open_slot):
        gate = busy(open_slot)
        slot = open_slot(Echo())
        slot.submit(Work(rows=["waits"]))
        emptied: list[bool] = []
        unloading = threading.Thread(target=lambda: emptied.append(scheduler.close_slot(slot)))
        unloading.start()
        closing = threading.Thread(target=scheduler.close)
        closing.start()
        unloading.join(LONG)
        assert emptied == [True]
        assert closing.is_alive()
        gate.open.set()
        closing.join(LONG)


def test_drain_under_load_loses_nothing() -> None:
    with scheduling() as (scheduler, open_slot):
        slot = open_slot(Napping(0.001), max_batch_size=8, max_queue_delay=0.005)
        accepted: list[list[Future[Any]]] = [[] for _ in range(4)]
        flowing = threading.Barrier(5)

        def caller(mine: list[Future[Any]]) -> None:
            while True:
                try:
                    mine.append(slot.submit(Work(rows=[len(mine)])))
                except QueueFull as full:
                    time.sleep(min(full.retry_after, 0.01))
                    continue
                except Draining:
                    return
                if len(mine) == 50:
                    flowing.wait(LONG)

        with ThreadPoolExecutor(4) as pool:
            callers = [pool.submit(caller, mine) for mine in accepted]
            flowing.wait(LONG)
            assert scheduler.drain(timeout=LONG)
            for finished in callers:
                finished.result(timeout=LONG)
        for mine in accepted:
            assert [answers(future) for future in mine] == [[number] for number in range(len(mine))]
        assert slot.statistics().succeeded == sum(map(len, accepted))


@pytest.mark.parametrize("leaves_by", ["cancellation", "expiry"])
def test_whoever_waits_for_a_slot_to_empty_learns_of_a_request_that_only_left(
    leaves_by: str,
) -> None:
    with two_streams() as (scheduler, open_slot):
        gate = busy(open_slot)
        slot = open_slot(Echo())
        patience = 0.2 if leaves_by == "expiry" else LONG
        waiting = slot.submit(Work(rows=["row"], deadline=time.monotonic() + patience))
        with ThreadPoolExecutor(1) as pool:
            closed = pool.submit(scheduler.close_slot, slot)
            if leaves_by == "cancellation":
                assert eventually(lambda: slot.state.closing)
                assert waiting.cancel()
            assert closed.result(timeout=LONG)
        gate.open.set()


def test_drain_and_close_slot_say_when_time_runs_out_and_may_be_called_again() -> None:
    with two_streams() as (scheduler, open_slot):
        gate = Gate()
        slot = open_slot(gate)
        running = slot.submit(Work(rows=["row"]))
        assert not scheduler.close_slot(slot, timeout=0.01)
        assert not scheduler.drain(timeout=0.01)
        gate.open.set()
        assert scheduler.drain(timeout=LONG)
        assert scheduler.close_slot(slot, timeout=LONG)
        assert scheduler.close_slot(slot, timeout=LONG)
        assert answers(running) == ["row"]


def test_a_slot_closes_without_waiting_for_company_while_another_serves_on() -> None:
    with scheduling() as (scheduler, open_slot):
        old = open_slot(Echo(), "old", max_batch_size=8, max_queue_delay=LONG)
        new = open_slot(Echo(), "new")
        last = old.submit(Work(rows=["last"]))
        assert scheduler.close_slot(old, timeout=LONG)
        assert answers(last) == ["last"]
        with pytest.raises(Draining, match="old version 1 has been unloaded"):
            old.submit(Work(rows=["later"], passed=1))
        assert answers(new.submit(Work(rows=["row"]))) == ["row"]


def test_a_slot_is_not_closed_while_rows_of_a_cancelled_request_still_run() -> None:
    with two_streams() as (scheduler, open_slot):
        gate = Gate()
        slot = open_slot(gate, max_batch_size=1, split_rows=True)
        future = slot.submit(Work(rows=[0, 1, 2, 3]))
        for _ in range(2):
            assert gate.entered.acquire(timeout=LONG)
        assert future.cancel()
        assert not scheduler.close_slot(slot, timeout=0.01)
        gate.open.set()
        assert scheduler.close_slot(slot, timeout=LONG)


def test_a_closed_slots_model_is_freed_though_the_executors_are_idle(
    caplog: pytest.LogCaptureFixture,
) -> None:
    # pytest would hold the log's tracebacks, and they the model.
    caplog.set_level(logging.CRITICAL + 1, logger="mien_server")
    with scheduling() as (scheduler, open_slot):
        gc.collect()
        gc.disable()
        try:
            model = Deadly()
            observed = ref(model)
            slot = open_slot(model, max_batch_size=2)
            futures = [slot.submit(Work(rows=[row])) for row in ("good", "killer", "good")]
            assert not wait_for(futures, timeout=LONG).not_done
            assert scheduler.close_slot(slot, timeout=LONG)
            del model, slot, futures
            assert eventually(lambda: observed() is None)
        finally:
            gc.enable()


def test_an_idle_executor_holds_no_results() -> None:
    with scheduling() as (_, open_slot):
        photo = Photo()
        observed = ref(photo)
        completion = open_slot(Echo()).submit(Work(rows=[photo])).result(timeout=LONG)
        del photo, completion
        assert eventually(lambda: observed() is None)
