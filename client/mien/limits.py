"""What bounds a client: calls in progress, connections, and the time that a call has."""

import random
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from mien.errors import MienError, Overloaded


@dataclass(frozen=True, slots=True)
class Limits:
    """How much of a server one client uses, for `Client(limits=...)`.

    Attributes:
        max_calls: calls in progress at the same time, 1 or more. Further ones wait for their turn, within
            their timeout, and read their photo when it has come. None: no limit.
        max_connections: 1 or more. A further one is opened where all that there are have calls on them.
            One is enough but for many large photos at a time, or for a balancer that spreads connections.

    Raises:
        TypeError: a limit is no int. ValueError: it is below 1.
    """

    max_calls: int | None = None
    max_connections: int = 1

    def __post_init__(self) -> None:
        if self.max_calls is not None:
            checked_whole(self.max_calls, "max_calls", 1)
        checked_whole(self.max_connections, "max_connections", 1)


def checked_limits(limits: object) -> Limits:
    """The limits; the default ones for None.

    Raises:
        TypeError: they are no `Limits`.
    """
    if limits is None:
        return Limits()
    if not isinstance(limits, Limits):
        raise TypeError(f"limits must be a mien.Limits, not {limits!r}")
    return limits


def checked_whole(number: object, name: str, least: int) -> int:
    """A whole number that an argument is.

    Raises:
        TypeError: it is no int. ValueError: it is below `least`.
    """
    if not isinstance(number, int) or isinstance(number, bool):
        raise TypeError(f"{name} must be a whole number, not {number!r}")
    if number < least:
        raise ValueError(f"{name} must be {least} or more, not {number}")
    return number


class Attempts:
    """The tries of one call, within its time.

    Args:
        seconds: that the call has, from now on.
        retries: how often it may be tried again where the server is too busy for it.

    Attributes:
        seconds: as given.
    """

    def __init__(self, seconds: float, retries: int) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds
        self._retries = retries

    def left(self) -> float:
        """The seconds that are left, 0 or more."""
        return max(0.0, self._end - time.monotonic())

    def pause(self, error: MienError) -> float | None:
        """Counts a failed try: the seconds to wait before the next, or None if there is to be none.

        Never less than the server has asked for, and up to half as much more, so that those who were refused
        together do not come back together.
        """
        if not self._retries or not isinstance(error, Overloaded) or error.retry_after is None:
            return None
        pause = error.retry_after * random.uniform(1.0, 1.5)  # noqa: S311 - no secret
        if pause >= self.left():
            return None
        self._retries -= 1
        return pause


class Spread:
    """Several channels as one, as far as a stub needs that: each call takes the one with the fewest calls.

    Args:
        channels: of `grpc` or of `grpc.aio`, at least one. They connect at their first call.
        asynchronous: whether they are of `grpc.aio`.
    """

    def __init__(self, channels: Sequence[Any], *, asynchronous: bool) -> None:
        self._channels = channels
        self._asynchronous = asynchronous
        self._calls = [0] * len(channels)
        self._lock = threading.Lock()

    def unary_unary(self, *arguments: Any, **options: Any) -> Any:
        """The method, on whichever channel."""
        methods = [channel.unary_unary(*arguments, **options) for channel in self._channels]
        return _AsyncMethod(self, methods) if self._asynchronous else _Method(self, methods)

    def take(self) -> int:
        """The channel of a call that begins."""
        with self._lock:
            index = self._calls.index(min(self._calls))
            self._calls[index] += 1
        return index

    def give_back(self, index: int) -> None:
        """Ends a call that `take` began."""
        with self._lock:
            self._calls[index] -= 1

    def close(self) -> Any:
        """Closes every channel; for those of `grpc.aio`, to be awaited."""
        closing = [channel.close() for channel in self._channels]
        return _all(closing) if self._asynchronous else None


def spread(channels: Sequence[Any], *, asynchronous: bool = False) -> Any:
    """The only channel, or several as one."""
    return channels[0] if len(channels) == 1 else Spread(channels, asynchronous=asynchronous)


async def _all(closing: Sequence[Any]) -> None:
    for each in closing:
        await each


class _Method:
    def __init__(self, spread: Spread, methods: Sequence[Any]) -> None:
        self._spread, self._methods = spread, methods

    def with_call(self, *arguments: Any, **options: Any) -> Any:
        with self._channel() as index:
            return self._methods[index].with_call(*arguments, **options)

    def future(self, *arguments: Any, **options: Any) -> Any:
        index = self._spread.take()
        try:
            call = self._methods[index].future(*arguments, **options)
        except BaseException:
            self._spread.give_back(index)
            raise
        call.add_done_callback(lambda _: self._spread.give_back(index))
        return call

    @contextmanager
    def _channel(self) -> Iterator[int]:
        index = self._spread.take()
        try:
            yield index
        finally:
            self._spread.give_back(index)


class _AsyncMethod:
    def __init__(self, spread: Spread, methods: Sequence[Any]) -> None:
        self._spread, self._methods = spread, methods

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        index = self._spread.take()
        try:
            call = self._methods[index](*arguments, **options)
        except BaseException:
            self._spread.give_back(index)
            raise
        call.add_done_callback(lambda _: self._spread.give_back(index))
        return call
