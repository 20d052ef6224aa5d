"""The loops themselves, on calls that only sleep."""

import asyncio
import time
from collections.abc import Sequence

from mien import StageTiming
from mien_server.load.loops import CallFailed, closed_loop, open_loop
from mien_server.load.shapes import Shape, Stretch, steady


class Calls:
    """Counts what is under way at once; every fifth call fails."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.now = self.most = 0

    async def __call__(self, number: int) -> Sequence[StageTiming]:
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(self.seconds)
        self.now -= 1
        if number % 5 == 4:
            raise CallFailed("QUEUE_FULL")
        return [StageTiming("embed.queue", 1.0)]


async def test_a_closed_loop_has_as_many_calls_under_way_as_callers() -> None:
    calls = Calls(0.02)

    load = await closed_loop(calls, steady(3, 0.4), warm_up=0.1)

    assert calls.most == 3
    assert calls.now == 0, "it waits for the last answers"
    assert load.tally.failures["QUEUE_FULL"] > 0
    assert min(load.tally.latencies) >= 0.02
    assert len(load.tally.queued) == len(load.tally.latencies)
    assert load.tally.ended - load.tally.began <= 0.4
    assert load.seconds == 0.4 - 0.1


async def test_callers_come_with_the_shape() -> None:
    calls = Calls(0.01)
    shape = Shape((Stretch(0.2, 1, 1), Stretch(0.3, 4, 4)))
    early: list[int] = []
    began = time.perf_counter()

    async def call(number: int) -> Sequence[StageTiming]:
        if time.perf_counter() - began < 0.2:
            early.append(calls.now)
        return await calls(number)

    await closed_loop(call, shape)

    assert early
    assert set(early) == {0}, "nobody else was calling"
    assert calls.most == 4


async def test_an_open_loop_does_not_wait_for_answers() -> None:
    calls = Calls(0.2)

    load = await open_loop(calls, [0.0, 0.01, 0.02, 0.03, 0.04, 0.05])

    assert calls.most == 6
    assert len(load.tally.latencies) == 5
    assert load.tally.failures == {"QUEUE_FULL": 1}
    assert len(load.late) == 6


async def test_latency_counts_from_the_moment_that_a_call_was_due() -> None:
    async def blocks_the_loop(number: int) -> Sequence[StageTiming]:
        if number == 0:
            await asyncio.sleep(0)
            end = asyncio.get_running_loop().time() + 0.2
            while asyncio.get_running_loop().time() < end:
                pass
        return ()

    load = await open_loop(blocks_the_loop, [0.0, 0.05])

    assert max(load.late) >= 0.1, "the second was sent when the loop was free again"
    assert min(load.tally.latencies) >= 0.1, "and nobody forgets what it waited before that"
