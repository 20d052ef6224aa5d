"""Work on many pictures at once: retried while queues are full, in order, and a bounded number of them."""

import asyncio
import sys

import pytest

from mien_server.errors import InvalidRequest, Reason
from mien_server.evaluation.loaded import run_all
from mien_server.scheduling.errors import QueueFull, RowFailed


async def double(number: int) -> int:
    await asyncio.sleep(0.001 * (number % 3))  # so that later ones may be done first
    return 2 * number


def test_results_come_in_the_order_of_the_items() -> None:
    assert run_all(range(100), double, label="doubling") == [2 * number for number in range(100)]


def test_nothing_to_do_gives_nothing() -> None:
    assert run_all([], double, label="doubling") == []


def test_a_full_queue_is_asked_again_however_often() -> None:
    refusals = sys.getrecursionlimit() + 10

    async def work(item: str) -> str:
        nonlocal refusals
        if refusals:
            refusals -= 1
            raise QueueFull("the queue is full", retry_after=0)
        return item

    assert run_all(["photo"], work, label="waiting") == ["photo"]


@pytest.mark.parametrize(
    "fault",
    [
        InvalidRequest(Reason.INVALID_IMAGE, "no picture"),
        OSError("gone"),
        RowFailed("no answer", incident="a1"),
    ],
)
def test_what_is_wrong_with_one_item_stands_in_its_place(fault: Exception) -> None:
    async def work(item: int) -> int:
        if item == 1:
            raise fault
        return item

    assert run_all(range(3), work, label="failing") == [0, fault, 2]


def test_what_is_wrong_with_all_of_it_ends_the_run() -> None:
    async def work(item: int) -> int:
        raise ZeroDivisionError

    with pytest.raises(ExceptionGroup) as raised:
        run_all([1], work, label="failing")
    assert raised.group_contains(ZeroDivisionError)


def test_only_some_are_in_the_pipeline_at_the_same_time() -> None:
    running = most = 0

    async def work(item: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        return item

    run_all(range(200), work, label="counting")
    assert most == 32
