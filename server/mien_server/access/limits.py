"""How much one caller may ask for, so that no caller takes a server from the others. Event loop only."""

import asyncio
import math
import time
from dataclasses import dataclass

from mien_server.access.callers import Caller
from mien_server.errors import CallerLimit

MAX_REMEMBERED = 10_000
"""Callers whose recent calls are remembered. Tokens can have any number of subjects."""

BUSY_RETRY_SECONDS = 0.5
"""After how long a caller with too many calls at once is told to try again."""


@dataclass(slots=True)
class _Use:
    """What one caller has left, and does now."""

    left: float
    at: float
    calls: int = 0


class CallerLimits:
    """A bucket of calls for each caller, which fills at a rate, and a number of calls at once.

    Keys of the same name are one caller.

    Args:
        rate: calls a second in the long run, above 0; None: any number.
        burst: calls that may come at once after a rest, 1 or more.
        at_once: calls in progress, 1 or more; None: any number.
    """

    def __init__(self, *, rate: float | None, burst: int, at_once: int | None) -> None:
        self._rate = math.inf if rate is None else rate
        self._burst = float(burst)
        self._at_once = math.inf if at_once is None else at_once
        self._uses: dict[tuple[str, str], _Use] = {}

    def enter(self, caller: Caller) -> None:
        """Counts a call that begins; `leave` must follow.

        Raises:
            CallerLimit: the caller has too many at once.
        """
        use = self._use(caller)
        if use.calls >= self._at_once:
            raise CallerLimit(
                f"{caller.name} has {use.calls} calls in progress, and may have no more at once.",
                retry_after=BUSY_RETRY_SECONDS,
            )
        use.calls += 1

    def leave(self, caller: Caller) -> None:
        """Ends a call that `enter` counted."""
        self._use(caller).calls -= 1

    def spend(self, caller: Caller) -> None:
        """Takes a call from the caller's bucket.

        Raises:
            CallerLimit: it is empty.
        """
        if (seconds := self._missing(caller)) > 0:
            raise CallerLimit(
                f"{caller.name} may make {self._rate:g} calls a second, and has made more.",
                retry_after=seconds,
            )

    async def wait_and_spend(self, caller: Caller) -> None:
        """Takes a call from the caller's bucket as soon as there is one."""
        while (seconds := self._missing(caller)) > 0:  # noqa: ASYNC110 - nobody tells when
            await asyncio.sleep(seconds)

    def _missing(self, caller: Caller) -> float:
        """Takes a call, or tells in how many seconds there will be one."""
        if self._rate == math.inf:
            return 0.0
        use, now = self._use(caller), time.monotonic()
        use.left = min(self._burst, use.left + (now - use.at) * self._rate)
        use.at = now
        if use.left < 1.0:
            return (1.0 - use.left) / self._rate
        use.left -= 1.0
        return 0.0

    def _use(self, caller: Caller) -> _Use:
        identity = (caller.proof.partition(" ")[0], caller.name)
        if (use := self._uses.get(identity)) is None:
            if len(self._uses) >= MAX_REMEMBERED:
                self._forget()
            use = self._uses[identity] = _Use(self._burst, time.monotonic())
        return use

    def _forget(self) -> None:
        """Drops callers without calls in progress: those with a full bucket, or else half of them."""
        now = time.monotonic()
        idle = [identity for identity, use in self._uses.items() if not use.calls]
        full = [
            identity
            for identity in idle
            if self._uses[identity].left + (now - self._uses[identity].at) * self._rate
            >= self._burst
        ]
        for identity in (
            full or sorted(idle, key=lambda each: self._uses[each].at)[: len(idle) // 2 + 1]
        ):
            del self._uses[identity]
