"""Many calls, some at a time: what `embed_many` and `enrol_many` of both clients have in common."""

import asyncio
import random
import threading
import time
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Generator,
    Iterable,
    Sequence,
)
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar

import grpc

from mien.errors import (
    Cancelled,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidRequest,
    MienError,
    Overloaded,
    ServerError,
    Unavailable,
)

CONCURRENCY = 8
"""Calls at the same time, unless the caller says otherwise."""

AHEAD = 2
"""What is read ahead of what has been given out, in multiples of the calls at the same time."""

PATIENCE = 120.0
"""Seconds that an item waits for a server that is busy or away, before the whole run ends."""

_PAUSE = 1.0
"""Seconds until the next look at a server that is away."""

_CLOSED = "the iterator was closed"

# What may be the fault of one item. All else would go wrong with the next one, too.
_OF_ONE = (InvalidRequest, FailedPrecondition, DeadlineExceeded, ServerError)

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

Failure: TypeAlias = MienError | OSError
"""What keeps one item from its result: what the server or the SDK has to say of it, or an unreadable file."""


@dataclass(frozen=True, slots=True)
class Outcome(Generic[ItemT, ResultT]):
    """What became of one item of many.

    Attributes:
        index: its place among those that were given, from 0 on.
        item: as it was given.
        result: the answer. None if there is none; of a face that was refused, why.
        error: what went wrong with this item; None: nothing.
    """

    index: int
    item: ItemT
    result: ResultT | None = None
    error: Failure | None = None

    def get(self) -> ResultT:
        """The result.

        Raises:
            MienError: what went wrong with this item. OSError: its file cannot be read.
        """
        if self.error is not None:
            raise self.error
        if self.result is None:
            raise RuntimeError("an outcome has a result or an error")
        return self.result


Group: TypeAlias = list[tuple[int, ItemT]]
"""Items that share a call, with their indices."""


def is_of_one(error: Failure) -> bool:
    """Whether an error may be the fault of one item, so that the next one may go well."""
    if isinstance(error, OSError):
        return True
    if error.reason == "INVALID_OPTION":  # of the call, or of a face in it
        return error.field.startswith("faces[")
    return isinstance(error, _OF_ONE)


class Patience:
    """How long the items of one run wait for the server.

    One that is busy is waited for as it asks. One that cannot be reached is waited for once it has answered
    an item: it has been there, and may be starting again. Without an answer it may be the wrong address.
    """

    def __init__(self) -> None:
        self.answered = False

    def pause(self, error: Failure, since: float) -> float | None:
        """The seconds before another try of an item, or None if there is to be none.

        Args:
            error: how the last try ended.
            since: `time.monotonic()` at the first try.
        """
        match error:
            case Overloaded():
                least = error.retry_after or _PAUSE
            case Unavailable() if self.answered and error.reason != "TLS_FAILED":
                least = error.retry_after or _PAUSE
            case _:
                return None
        # Those who were refused together are not to come back together.
        pause = least * random.uniform(1.0, 1.5)  # noqa: S311 - no secret
        return pause if time.monotonic() + pause - since < PATIENCE else None


class Calls:
    """The calls in progress of one run, which ends them all when it is closed. Safe for threads."""

    def __init__(self) -> None:
        self._running: set[Any] = set()
        self._lock = threading.Lock()
        self._closed = threading.Event()

    def with_call(
        self, rpc: Any, request: Any, timeout: float, metadata: Any
    ) -> tuple[Any, grpc.Call]:
        """As a method's own `with_call`.

        Raises:
            Cancelled: the run is closed. grpc.FutureCancelledError: it, or the channel, was closed meanwhile.
        """
        with self._lock:
            self._check()
            call = rpc.future(request, timeout=timeout, metadata=metadata)
            self._running.add(call)
        try:
            return call.result(), call
        finally:
            with self._lock:
                self._running.discard(call)

    def sleep(self, seconds: float) -> None:
        """Waits, unless the run is closed meanwhile.

        Raises:
            Cancelled: it was.
        """
        self._closed.wait(seconds)
        self._check()

    def close(self) -> None:
        """Cancels what is in progress, and lets nothing begin."""
        with self._lock:
            self._closed.set()
            running = list(self._running)
        for call in running:
            call.cancel()

    def _check(self) -> None:
        if self._closed.is_set():
            raise Cancelled(_CLOSED)


Work: TypeAlias = Callable[
    [Sequence[ItemT], Calls], Sequence[tuple[ResultT | None, Failure | None]]
]
"""What a group's items come to, each a result or an error. Raises what is wrong with the whole group."""

AsyncWork: TypeAlias = Callable[
    [Sequence[ItemT]], Awaitable[Sequence[tuple[ResultT | None, Failure | None]]]
]


def in_threads(
    groups: Iterable[Group[ItemT]],
    work: Work[ItemT, ResultT],
    *,
    concurrency: int,
    ordered: bool,
) -> Generator[Outcome[ItemT, ResultT], None, None]:
    """Does the work of groups on threads, and gives out the outcomes.

    Groups are read in the caller's thread, at most `AHEAD * concurrency` ahead of those that are given out.
    Closing the generator cancels the calls in progress.

    Raises:
        MienError: what would go wrong with every item.
    """
    calls, patience = Calls(), Patience()
    pool = ThreadPoolExecutor(concurrency, thread_name_prefix="mien-many")
    running: list[Future[list[Outcome[ItemT, ResultT]]]] = []
    left = iter(groups)
    more = True
    try:
        while True:
            # One is read for each that is given out: the calls go on while the caller looks at a result.
            if more and len(running) < AHEAD * concurrency:
                group = next(left, None)
                if group is None:
                    more = False
                else:
                    running.append(pool.submit(_done, group, work, calls, patience))
            elif not running:
                return
            else:
                wait(running[:1] if ordered else running, return_when=FIRST_COMPLETED)
            ready = running[:1] if ordered else running
            done = next((future for future in ready if future.done()), None)
            if done is not None:
                running.remove(done)
                yield from done.result()
    finally:
        calls.close()
        pool.shutdown(wait=False, cancel_futures=True)


def _done(
    group: Group[ItemT], work: Work[ItemT, ResultT], calls: Calls, patience: Patience
) -> list[Outcome[ItemT, ResultT]]:
    since = time.monotonic()
    while True:
        try:
            results = work([item for _, item in group], calls)
        except (MienError, OSError) as error:
            pause = patience.pause(error, since)
            if pause is not None:
                calls.sleep(pause)
                continue
            if not is_of_one(error):
                raise
            if len(group) == 1:
                return _failed(group[0], error)
            return [outcome for each in group for outcome in _done([each], work, calls, patience)]
        patience.answered = True
        return _outcomes(group, results)


async def in_tasks(
    groups: AsyncGenerator[Group[ItemT], None],
    work: AsyncWork[ItemT, ResultT],
    *,
    concurrency: int,
    ordered: bool,
) -> AsyncGenerator[Outcome[ItemT, ResultT], None]:
    """As `in_threads`, in tasks of the event loop. What is ready never waits for the next group to come."""
    patience, turns = Patience(), asyncio.Semaphore(concurrency)
    running: list[asyncio.Task[list[Outcome[ItemT, ResultT]]]] = []
    reader: asyncio.Task[Group[ItemT] | None] | None = None
    more = True
    async with aclosing(groups):
        try:
            while True:
                if more and reader is None and len(running) < AHEAD * concurrency:
                    reader = asyncio.create_task(_next(groups))
                ready: list[asyncio.Task[Any]] = [*(running[:1] if ordered else running)]
                if reader is not None:
                    ready.append(reader)
                if not ready:
                    return
                await asyncio.wait(ready, return_when=asyncio.FIRST_COMPLETED)
                if reader is not None and reader.done():
                    group, reader = reader.result(), None
                    if group is None:
                        more = False
                    else:
                        task = _done_in_turn(group, work, patience, turns)
                        running.append(asyncio.create_task(task))
                looked = running[:1] if ordered else running
                done = next((task for task in looked if task.done()), None)
                if done is not None:
                    running.remove(done)
                    for outcome in done.result():
                        yield outcome
        finally:
            left = [*running, *([reader] if reader is not None else [])]
            for each in left:
                each.cancel()
            await asyncio.gather(*left, return_exceptions=True)


async def _next(groups: AsyncGenerator[Group[ItemT], None]) -> Group[ItemT] | None:
    return await anext(groups, None)


async def _done_in_turn(
    group: Group[ItemT],
    work: AsyncWork[ItemT, ResultT],
    patience: Patience,
    turns: asyncio.Semaphore,
) -> list[Outcome[ItemT, ResultT]]:
    async with turns:
        return await _done_async(group, work, patience)


async def _done_async(
    group: Group[ItemT], work: AsyncWork[ItemT, ResultT], patience: Patience
) -> list[Outcome[ItemT, ResultT]]:
    since = time.monotonic()
    while True:
        try:
            results = await work([item for _, item in group])
        except (MienError, OSError) as error:
            pause = patience.pause(error, since)
            if pause is not None:
                await asyncio.sleep(pause)
                continue
            if not is_of_one(error):
                raise
            if len(group) == 1:
                return _failed(group[0], error)
            return [done for each in group for done in await _done_async([each], work, patience)]
        patience.answered = True
        return _outcomes(group, results)


def _failed(each: tuple[int, ItemT], error: Failure) -> list[Outcome[ItemT, ResultT]]:
    index, item = each
    return [Outcome(index, item, error=error)]


def _outcomes(
    group: Group[ItemT], results: Sequence[tuple[ResultT | None, Failure | None]]
) -> list[Outcome[ItemT, ResultT]]:
    return [
        Outcome(index, item, result, error)
        for (index, item), (result, error) in zip(group, results, strict=True)
    ]


class _Grouping(Generic[ItemT]):
    """Puts neighbours together that may share a call."""

    def __init__(self, most: Callable[[ItemT], int]) -> None:
        self._most = most
        self._size = 0
        self._index = 0
        self._group: Group[ItemT] = []

    def add(self, item: ItemT) -> list[Group[ItemT]]:
        """Takes an item; the groups that are complete now."""
        size = self._most(item)
        complete = self.rest() if size != self._size else []
        self._size = size
        self._group.append((self._index, item))
        self._index += 1
        return [*complete, *(self.rest() if len(self._group) == size else [])]

    def rest(self) -> list[Group[ItemT]]:
        """The group that has begun, if there is one."""
        group, self._group = self._group, []
        return [group] if group else []


def grouped(
    items: Iterable[ItemT], most: Callable[[ItemT], int]
) -> Generator[Group[ItemT], None, None]:
    """Neighbours that may share a call, up to the number that `most` says of each of them.

    Only neighbours of the same number do so. The items are read as the groups are.
    """
    grouping = _Grouping(most)
    for item in items:
        yield from grouping.add(item)
    yield from grouping.rest()


async def grouped_async(
    items: Iterable[ItemT] | AsyncIterable[ItemT], most: Callable[[ItemT], int]
) -> AsyncGenerator[Group[ItemT], None]:
    """As `grouped`, of an iterable of either kind."""
    grouping = _Grouping(most)
    async for item in _each(items):
        for group in grouping.add(item):
            yield group
    for group in grouping.rest():
        yield group


async def _each(items: Iterable[ItemT] | AsyncIterable[ItemT]) -> AsyncIterator[ItemT]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item


def alone(_: object) -> int:
    """For `grouped`: every item has a call of its own."""
    return 1
