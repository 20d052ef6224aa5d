"""Files that are read again when they change: the old content stays in force until the new one holds."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, Protocol, TypeAlias, TypeVar

from mien_server.errors import OperatorError

logger = logging.getLogger(__name__)

T = TypeVar("T")
Stamps: TypeAlias = "list[tuple[int, int, int, int] | None]"

LOOK_SECONDS = 1.0
"""Between two looks at the files."""


class Watched(Generic[T]):
    """One or several files that belong together.

    Args:
        what: for the log: `keys`.
        paths: the files. One that is gone counts as changed.
        read: reads them, on a thread; raises OperatorError if they cannot be used.
        use: takes what was read, on the event loop.

    To be made before the files are read for the first time, lest a change in between be missed.
    """

    def __init__(
        self,
        what: str,
        paths: Sequence[Path],
        read: Callable[[], T],
        use: Callable[[T], None],
    ) -> None:
        self._what = what
        self._paths = paths
        self._read = read
        self._use = use
        self._read_at = self._stamps()
        self._failed_at: Stamps | None = None
        self._told_at: Stamps | None = None

    async def look(self, *, forced: bool = False) -> None:
        """Reads the files again if they have changed, or in any case. Logs what came of it."""
        stamps = await asyncio.to_thread(self._stamps)
        if stamps == self._read_at and not forced:
            return
        try:
            found = await asyncio.to_thread(self._read)
        except OperatorError as error:
            self._failed(stamps, error, forced=forced)
            return
        self._use(found)
        self._read_at, self._failed_at, self._told_at = stamps, None, None
        logger.info("%s reloaded", self._what)

    def _failed(self, stamps: Stamps, error: OperatorError, *, forced: bool) -> None:
        # Who replaces several files, or writes one in place, is seen half way: the next look tells.
        if forced or self._told_at != stamps == self._failed_at:
            logger.error("%s not reloaded, the old ones stay: %s", self._what, error)
            self._told_at = stamps
        self._failed_at = stamps

    def _stamps(self) -> Stamps:
        return [_stamp(path) for path in self._paths]


def _stamp(path: Path) -> tuple[int, int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    # The change of status, too: a mode that is too open is told, and not only at the next start.
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino


class Looking(Protocol):
    """What is looked at every second."""

    async def look(self, *, forced: bool = False) -> None:
        """Reads what has changed, or all of it; logs what went wrong."""


async def watch(files: Sequence[Looking], now: asyncio.Event) -> None:
    """Looks at the files every second, and reads them all again whenever `now` is set; until cancelled."""
    while True:
        forced = True
        try:
            await asyncio.wait_for(now.wait(), LOOK_SECONDS)
        except TimeoutError:
            forced = False
        now.clear()
        for each in files:
            try:
                await each.look(forced=forced)
            except Exception:
                logger.exception("a look at files failed; the next one follows")
