"""The scheduler with its real threads: deadlines, cancellation, order, shares and mixed load."""

import asyncio
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from functools import partial
from random import Random
from typing import Any
from weakref import ref

import pytest

from mien_server.scheduling.batching import BatchingPolicy
from mien_server.scheduling.errors import Expired
from mien_server.scheduling.interface import PlacedInstance, Work
from tests.integration.threads import (
    LONG,
    SOON,
    Gate,
    Napping,
    Photo,
    answers,
    busy,
    busy_once,
    eventually,
    scheduling,
    two_streams,
)
from tests.scheduling_rig import Echo, FakeDevice


@pytest.fixture
def _restless_threads() -> Iterator[None]:
    """Python changes threads a thousand times more often than usual, to find races."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(usual / 1000)
    yield
    sys.setswitchinterval(usual)


def test_requests_leave_at_their_deadlines_while_every_executor_is_busy(
    record_property: Callable[[str, object], None],
) -> None:
    with two_streams() as (_, open_slot):
        gate = busy(open_slot)
        slot = open_slot(Echo())
        start = time.monotonic()
        # The nearest deadline comes last, so that the timer must be woken for it.
        deadlines = [start + 0.3 - 0.01 * number for number in range(25)]
        left: dict[float, float] = {}
        futures = []

        def note(deadline: float, _: Future[Any]) -> None:
            left[deadline] = time.monotonic()

        for deadline in deadlines:
            future = slot.submit(Work(rows=["row"], deadline=deadline))
            future.add_done_callback(partial(note, deadline))
            futures.append(future)
        assert not wait_for(futures, timeout=LONG).not_done
        assert slot.pending == 0
        gate.open.set()
    assert all(isinstance(future.exception(), Expired) for future in futures)
    late = sorted(left[deadline] - deadline for deadline in deadlines)
    record_property("expiry_late_ms_median", round(late[len(late) // 2] * 1e3, 3))
    record_property("expiry_late_ms_worst", round(late[-1] * 1e3, 3))
    assert late[0] >= 0
    assert late[-1] < SOON


def test_a_cancelled_request_is_gone_with_its_memory_while_every_executor_is_busy(
    record_property: Callable[[str, object], None],
) -> None:
    with two_streams() as (_, open_slot):
        gate = busy(open_slot)
        slot = open_slot(Echo())
        photos = [Photo() for _ in range(50)]
        observed = [ref(photo) for photo in photos]
        futures = [
            slot.submit(Work(rows=[photo], deadline=time.monotonic() + LONG)) for photo in photos
        ]
        photos.clear()
        slowest = 0.0
        for number, future in enumerate(futures):
            start = time.monotonic()
            assert future.cancel()
            slowest = max(slowest, time.monotonic() - start)
            assert slot.pending == len(futures) - number - 1
        gate.open.set()
    assert all(photo() is None for photo in observed)
    record_property("cancellation_ms_worst", round(slowest * 1e3, 3))
    assert slowest < SOON
    assert slot.statistics().cancelled == 50


async def test_a_cancelled_task_takes_its_request_out_of_the_queue() -> None:
    with two_streams() as (_, open_slot):
        gate = busy(open_slot)
        slot = open_slot(Echo())

        async def call() -> None:
            await asyncio.wrap_future(slot.submit(Work(rows=["row"])))

        task = asyncio.create_task(call())
        await asyncio.sleep(0)
        assert slot.pending == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert slot.pending == 0
        assert slot.statistics().cancelled == 1
        gate.open.set()


async def test_a_timed_out_task_and_its_neighbours_each_get_their_own_outcome() -> None:
    with two_streams() as (_, open_slot):
        gate = busy(open_slot)
        slot = open_slot(Echo(), max_batch_size=4)
        kept = [asyncio.wrap_future(slot.submit(Work(rows=[number]))) for number in range(3)]
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.wrap_future(slot.submit(Work(rows=["impatient"]))), 0.01)
        assert slot.pending == 3
        gate.open.set()
        completions = await asyncio.gather(*kept)
    assert [completion.results for completion in completions] == [
        [("answer", number)] for number in range(3)
    ]


def test_a_flooded_slot_leaves_another_its_share_of_the_device() -> None:
    with scheduling(FakeDevice(executors=1, cores=1)) as (_, open_slot):
        gate = busy_once(open_slot)
        order: list[str] = []
        futures = []

        def note(name: str, _: Future[Any]) -> None:
            order.append(name)

        for name, count in (("flooded", 200), ("calm", 40)):
            slot = open_slot(Napping(0.003), name)
            for _ in range(count):
                future = slot.submit(Work(rows=["row"]))
                future.add_done_callback(partial(note, name))
                futures.append(future)
        gate.open.set()
        assert not wait_for(futures, timeout=LONG).not_done
    last_calm = len(order) - order[::-1].index("calm")
    # Even shares would finish the calm slot after 80 batches, age alone after 240.
    assert last_calm < 160
    assert Counter(order) == {"flooded": 200, "calm": 40}


@pytest.mark.usefixtures("_restless_threads")
def test_thousands_of_mixed_requests_from_many_threads_each_get_their_own_answers() -> None:
    with scheduling(max_requests=100_000) as (_, open_slot):
        slots = [
            open_slot(Echo(), "plain", max_batch_size=8, max_queue_size=10_000),
            open_slot(
                Echo(),
                "levels",
                max_batch_size=4,
                preferred_batch_sizes=(2, 4),
                max_queue_delay=0.001,
                priority_levels=3,
                default_priority_level=2,
                max_queue_size=10_000,
            ),
            open_slot(
                Echo(),
                "ordered",
                max_batch_size=4,
                split_rows=True,
                preserve_ordering=True,
                max_queue_size=10_000,
            ),
        ]

        def caller(number: int) -> int:
            random = Random(number)  # noqa: S311 - no secret
            calls = []
            for call in range(500):
                rows = [(number, call, row) for row in range(random.randint(1, 4))]
                future = random.choice(slots).submit(
                    Work(
                        rows=rows,
                        shape=random.choice("ab"),
                        deadline=time.monotonic() + LONG,
                        priority=random.randint(0, 3),
                        passed=random.choice([0, 0, 1]),
                    )
                )
                calls.append((future, rows))
                if call % 50 == 0:
                    answers(future)
            for future, rows in calls:
                assert answers(future) == rows
            return len(calls)

        with ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(caller, range(8))) == 4000
        assert sum(slot.statistics().succeeded for slot in slots) == 4000
        assert all(slot.pending == 0 for slot in slots)


@pytest.mark.usefixtures("_restless_threads")
def test_answers_leave_in_order_though_two_executors_finish_out_of_order() -> None:
    with two_streams() as (_, open_slot):
        slot = open_slot(Napping(0.0001, seed=7), preserve_ordering=True)
        left: list[int] = []
        futures = []
        for number in range(500):
            future = slot.submit(Work(rows=[number], passed=1))
            future.add_done_callback(lambda done: left.append(done.result().results[0][1]))
            futures.append(future)
        assert not wait_for(futures, timeout=LONG).not_done
        assert eventually(lambda: len(left) == 500)
    assert left == list(range(500))


def test_an_answer_does_not_overtake_one_that_another_thread_is_still_handing_out() -> None:
    with two_streams() as (_, open_slot):
        gate = Gate()
        slot = open_slot(gate, preserve_ordering=True)
        first, second = slot.submit(Work(rows=["first"])), slot.submit(Work(rows=["second"]))
        left: list[str] = []

        def slowly(_: Future[Any]) -> None:
            assert eventually(lambda: slot.statistics().batches == 2)
            wait_for([second], timeout=0.1)
            left.append("first")

        first.add_done_callback(slowly)
        second.add_done_callback(lambda _: left.append("second"))
        gate.open.set()
        assert answers(second) == ["second"]
    assert left == ["first", "second"]


def test_cancelling_the_head_of_an_ordered_slot_hands_out_the_answer_that_waited_behind_it() -> (
    None
):
    with two_streams() as (_, open_slot):
        slot = open_slot(Echo(), max_batch_size=2, max_queue_delay=LONG, preserve_ordering=True)
        head = slot.submit(Work(rows=["waits for company"], shape="a"))
        behind = slot.submit(Work(rows=["first", "second"], shape="b"))
        assert eventually(lambda: slot.statistics().succeeded == 1)
        assert not behind.done()
        assert head.cancel()
        # Nothing else happens in this slot, so that nobody but the canceller can hand it out.
        assert behind.done()
        assert answers(behind) == ["first", "second"]


def test_a_callback_may_submit_and_cancel() -> None:
    with scheduling() as (_, open_slot):
        slot = open_slot(Echo(), preserve_ordering=True)
        chained: Future[list[Any]] = Future()

        def again(done: Future[Any]) -> None:
            following, dropped = (
                slot.submit(Work(rows=["second"])),
                slot.submit(Work(rows=["dropped"])),
            )
            dropped.cancel()
            following.add_done_callback(lambda last: chained.set_result(answers(last)))

        slot.submit(Work(rows=["first"])).add_done_callback(again)
        assert chained.result(timeout=LONG) == ["second"]


def test_each_batch_learns_on_its_own_thread_how_many_cores_it_has() -> None:
    device = FakeDevice(executors=2, cores=2)
    with scheduling(device) as (_, open_slot):
        slot = open_slot(Echo())
        answers(slot.submit(Work(rows=["lone"])))
        assert [cores for _, cores in device.grants] == [2]
    assert {thread for thread, _ in device.grants} <= {"mien-cpu-0", "mien-cpu-1"}


def test_a_slot_must_name_a_device_that_there_is() -> None:
    with scheduling() as (scheduler, _):
        with pytest.raises(ValueError, match="there is no device 'cuda:0', only"):
            scheduler.open_slot("model", 1, BatchingPolicy(), [PlacedInstance(Echo(), "cuda:0")])
        with pytest.raises(ValueError, match="model version 1 has no instance"):
            scheduler.open_slot("model", 1, BatchingPolicy(), [])
