"""How many calls the server takes at a time, when it begins to, and when it stops."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Literal

from mien_server.scheduling.admission import Budget
from mien_server.scheduling.errors import Draining, QueueFull, Unavailable

RETRY_AFTER_SECONDS = 1.0


class Intake:
    """Counts the calls in progress and refuses those that are too early, too many or too late.

    Used from the event loop only.

    Attributes:
        budget: counts the calls in progress, with the bytes of their requests.
        checking: health checks whose request is on its way.
        arriving: calls whose request is still on its way, and streams that are open, whose next one may be;
            nobody knows how large it is.
        last_event: when a call, or a part of a request, last came or went, by the monotonic clock; -inf: none
            has.

    Args:
        max_calls: how many calls may be in progress at the same time, at least 1.
        max_bytes: how many bytes their requests may have together, at least 1.
        max_arriving: of how many calls requests may be on their way; None: as many as in progress.
        max_checking: of how many health checks requests may be on their way beside them; others wait for
            their turn. They are there at once, unless somebody means it ill.
    """

    def __init__(
        self,
        *,
        max_calls: int,
        max_bytes: int,
        max_arriving: int | None = None,
        max_checking: int = 8,
    ) -> None:
        self.budget = Budget(max_count=max_calls, max_bytes=max_bytes)
        self.arriving = 0
        self._max_arriving = max_arriving or max_calls
        self.checking = 0
        self._places = asyncio.Semaphore(max_checking)
        self._state: Literal["loading", "open", "draining"] = "loading"
        self._idle = asyncio.Event()
        self.last_event = -math.inf

    def open(self) -> None:
        """Begins to admit calls: until now the models were loading."""
        self._state = "open"

    @contextmanager
    def arrival(self) -> Iterator[None]:
        """Counts a call whose request arrives in the block.

        Raises:
            QueueFull: too many are on their way already.
        """
        if self.arriving >= self._max_arriving:
            raise QueueFull(
                f"The requests of {self.arriving} calls are on their way already; try again.",
                retry_after=RETRY_AFTER_SECONDS,
            )
        self.arriving += 1
        try:
            yield
        finally:
            self.arriving -= 1
            self.last_event = time.monotonic()

    @asynccontextmanager
    async def check(self) -> AsyncIterator[None]:
        """Waits for one of the places of health checks, whose request arrives in the block."""
        async with self._places:
            self.checking += 1
            try:
                yield
            except BaseException:
                self.last_event = time.monotonic()  # what has come of it is memory to give back
                raise
            finally:
                self.checking -= 1

    def enter(self, nbytes: int) -> None:
        """Admits a call whose request has `nbytes`; `leave` must follow.

        Raises:
            Unavailable: the models are still loading. Draining: the server is stopping.
            QueueFull: it already holds as much as it may.
        """
        self.last_event = time.monotonic()
        if self._state == "loading":
            raise Unavailable("The server is still loading its models; try again in a few seconds.")
        if self._state == "draining":
            raise Draining("The server is stopping and takes no new calls; another one may serve.")
        budget = self.budget
        if budget.exceeded(nbytes):
            raise QueueFull(
                f"The server already holds {budget.count} calls with {budget.nbytes} bytes; try again.",
                retry_after=RETRY_AFTER_SECONDS,
            )
        budget.enter(nbytes)

    def leave(self, nbytes: int) -> None:
        """Ends a call that `enter` admitted."""
        self.last_event = time.monotonic()
        self.budget.leave(nbytes)
        if self._state == "draining" and not self.budget.count:
            self._idle.set()

    async def drain(self, grace: float) -> bool:
        """Refuses new calls and waits for those in progress; False if `grace` seconds ran out."""
        self._state = "draining"
        if not self.budget.count:
            return True
        try:
            await asyncio.wait_for(self._idle.wait(), grace)
        except TimeoutError:
            return False
        return True

    def idle(self, seconds: float) -> bool:
        """Whether no call is in progress, and none has come or gone for so long."""
        return not self.budget.count and time.monotonic() - self.last_event >= seconds

    async def quiet(self, *, still: float, at_most: float) -> None:
        """Waits until no call has come or gone for `still` seconds, `at_most` seconds altogether."""
        end = time.monotonic() + at_most
        while (rest := min(self.last_event + still, end) - time.monotonic()) > 0:  # noqa: ASYNC110
            await asyncio.sleep(rest)
