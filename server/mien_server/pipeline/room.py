"""Room for pictures in memory: taken before a file is decoded, given back when its pixels are let go."""

import sys
import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition, Lock

from mien_server.pipeline.types import ImageU8
from mien_server.scheduling.admission import Budget
from mien_server.scheduling.errors import QueueFull

_RETRY_AFTER_SECONDS = 0.5


class PictureRoom:
    """Counts the bytes of pictures: as they came in while they wait, and of their pixels while they live.

    Pixels count from before they are allocated until the array is freed, whoever holds it. What decoders need
    beside the result has a limit of its own, of as many bytes: a decode waits until it fits. Safe for
    threads.

    Args:
        max_count: how many files may wait or be decoded, at least 1.
        max_bytes: how many bytes files and pixels may have together, at least 1. One picture is always let
            in, whatever its size.
    """

    def __init__(self, *, max_count: int, max_bytes: int = sys.maxsize) -> None:
        self._budget = Budget(max_count=max_count, max_bytes=max_bytes)
        self._lock = Lock()
        self._pixels = 0
        # Filled by finalizers, which may run in the midst of anything, also of a block that holds the lock.
        self._freed: deque[int] = deque()
        self._scratch = 0
        self._scratch_free = Condition()
        self._scratch_turn = Lock()

    @property
    def waiting(self) -> int:
        """Files that are being decoded or wait for it."""
        return self._budget.count

    @property
    def nbytes(self) -> int:
        """Bytes of files and pixels together."""
        with self._lock:
            self._settle()
            return self._budget.nbytes

    def enter(self, nbytes: int) -> str:
        """Counts in a file that is to be decoded; `leave` must follow.

        Returns:
            What has no room for it, if it is not let in: "3 calls", "1,000 bytes"; "" if it is.
        """
        with self._lock:
            self._settle()
            budget = self._budget
            exceeded = budget.exceeded(nbytes)
            if exceeded and budget.count:
                if exceeded == "count":
                    return f"{budget.max_count:,} calls"
                return f"{budget.max_bytes:,} bytes"
            budget.enter(nbytes)
            return ""

    def leave(self, nbytes: int) -> None:
        """Counts out a file that `enter` let in."""
        with self._lock:
            self._budget.leave(nbytes)

    @contextmanager
    def hold(self, *, refusable: bool = True) -> "Iterator[Hold]":
        """Room for the pixels of one picture that is decoded in the block.

        Args:
            refusable: whether pixels that do not fit are refused. Those of a call that is nearly done are
                not.
        """
        hold = Hold(self, refusable=refusable)
        try:
            yield hold
        finally:
            hold.end()

    def take(self, nbytes: int, *, refusable: bool) -> None:
        """Counts in pixels; `give_back` or `freed_with` must follow.

        Raises:
            QueueFull: there is no room for them beside those of others.
        """
        with self._lock:
            self._settle()
            budget = self._budget
            if refusable and self._pixels and budget.nbytes + nbytes > budget.max_bytes:
                raise QueueFull(
                    f"The server holds as many bytes of photos as it may ({budget.max_bytes:,}).",
                    retry_after=_RETRY_AFTER_SECONDS,
                )
            budget.nbytes += nbytes
            self._pixels += nbytes

    def give_back(self, nbytes: int) -> None:
        """Counts out pixels that are free."""
        self._freed.append(nbytes)

    def freed_with(self, pixels: ImageU8, nbytes: int) -> None:
        """Counts out `nbytes` when this array is freed."""
        weakref.finalize(pixels, self._freed.append, nbytes).atexit = False

    def take_scratch(self, nbytes: int) -> None:
        """Waits until there is room for what a decoder needs beside its result, one after the other."""
        with self._scratch_turn, self._scratch_free:
            most = self._budget.max_bytes
            self._scratch_free.wait_for(lambda: not self._scratch or self._scratch + nbytes <= most)
            self._scratch += nbytes

    def give_back_scratch(self, nbytes: int) -> None:
        """Ends what `take_scratch` let in."""
        with self._scratch_free:
            self._scratch -= nbytes
            self._scratch_free.notify_all()

    def _settle(self) -> None:
        while self._freed:
            nbytes = self._freed.popleft()
            self._budget.nbytes -= nbytes
            self._pixels -= nbytes


class Hold:
    """The room that one picture has taken; `PictureRoom.hold` makes it."""

    def __init__(self, room: PictureRoom, *, refusable: bool) -> None:
        self._room = room
        self._refusable = refusable
        self._nbytes = 0
        self._scratch = 0

    def take(self, nbytes: int, *, scratch: int) -> None:
        """Takes room for pixels, instead of what it had, and waits for that of the decoder.

        Raises:
            QueueFull: there is none.
        """
        self.end()
        self._room.take(nbytes, refusable=self._refusable)
        self._nbytes = nbytes
        self._room.take_scratch(scratch)
        self._scratch = scratch

    def keep(self, pixels: ImageU8) -> None:
        """The room stays taken until the array is freed."""
        self._room.freed_with(pixels, self._nbytes)
        self._nbytes = 0

    def end(self) -> None:
        """Gives back what is not kept."""
        if self._nbytes:
            self._room.give_back(self._nbytes)
        if self._scratch:
            self._room.give_back_scratch(self._scratch)
        self._nbytes = self._scratch = 0
