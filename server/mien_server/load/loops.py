"""The load itself, on asyncio: a closed loop and an open one, over calls of any kind.

`mien-server tune` and bench send their loads with this. locust, which people use, runs its users in its own
way and shares the shapes and the statistics. `loadtest/connections.py` has calls that cost the caller next to
nothing.
"""

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field

from mien_server.load.shapes import Shape
from mien_server.load.tally import Stage, Tally

Call = Callable[[int], Awaitable[Sequence[Stage]]]
"""Makes the n-th call and gives the server's stages, if it was asked for them. Raises CallFailed."""

_NEXT_LOOK = 0.05
"""Seconds after which a caller that the shape has no use for now looks again."""


class CallFailed(Exception):
    """A call brought no answer, or an error; the message is the reason, in UPPER_SNAKE_CASE."""


@dataclass
class Load:
    """What a load has shown.

    Attributes:
        tally: the calls that ended while it was measured.
        seconds: how long that was.
        cpu: processor seconds that this process, the generator, took meanwhile.
        late: seconds from the moment that a call of an open loop was due to the moment that it was sent.
    """

    tally: Tally = field(default_factory=Tally)
    seconds: float = 0.0
    cpu: float = 0.0
    late: list[float] = field(default_factory=list)


async def closed_loop(call: Call, shape: Shape, *, warm_up: float = 0.0) -> Load:
    """As many callers as the shape says, each with one call at a time; ends when the last answer is there.

    Args:
        call: makes a call.
        shape: how many callers there are at each moment.
        warm_up: seconds at the start in which calls that end do not count.
    """
    load = Load(seconds=shape.seconds - warm_up)
    numbers = itertools.count()
    started = time.perf_counter()
    opens, closes = started + warm_up, started + shape.seconds

    async def caller(position: int) -> None:
        while (level := shape.level(time.perf_counter() - started)) is not None:
            if position >= level:
                await asyncio.sleep(_NEXT_LOOK)
                continue
            await _enter(load.tally, call(next(numbers)), time.perf_counter(), opens, closes)

    async with asyncio.TaskGroup() as callers:
        for position in range(round(shape.peak)):
            callers.create_task(caller(position))
        await asyncio.sleep(opens - time.perf_counter())
        taken = time.process_time()
        await asyncio.sleep(closes - time.perf_counter())
        load.cpu = time.process_time() - taken
    return load


async def open_loop(call: Call, dues: Iterable[float]) -> Load:
    """Calls at the moments of a schedule, whether or not earlier ones are done; waits for all of them.

    Latencies count from the moment that a call was due: what delays one call, the calls behind it feel too.

    Args:
        call: makes a call, which must end by itself, by a deadline.
        dues: seconds after the start, ascending, as from `shapes.arrivals`.
    """
    load = Load()
    started, taken = time.perf_counter(), time.process_time()
    async with asyncio.TaskGroup() as calls:
        for number, moment in enumerate(dues):
            due = started + moment
            await asyncio.sleep(due - time.perf_counter())
            load.late.append(time.perf_counter() - due)
            calls.create_task(_enter(load.tally, call(number), due))
    load.seconds, load.cpu = time.perf_counter() - started, time.process_time() - taken
    return load


async def _enter(
    tally: Tally,
    call: Awaitable[Sequence[Stage]],
    due: float,
    opens: float = float("-inf"),
    closes: float = float("inf"),
) -> None:
    """Waits for a call and enters it, if it ended while the window was open."""
    failure: str | None = None
    stages: Sequence[Stage] = ()
    try:
        stages = await call
    except CallFailed as error:
        failure = str(error)
    ended = time.perf_counter()
    if opens <= ended < closes:
        tally.add(due, ended, failure=failure, stages=stages)
