"""The threads on which pictures are decoded and aligned, with a bounded queue in front."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

import cv2

from mien_server.pipeline.room import PictureRoom
from mien_server.pipeline.workers import Workers
from mien_server.scheduling.errors import Expired, QueueFull
from mien_server.threads import Threads

T = TypeVar("T")


class PicturePool:
    """Runs blocking work on pictures off the event loop.

    New work (decoding) is admitted within limits. Work of calls whose photo is decoded (a second canvas,
    crops) is never refused and does not wait behind decoding, because finishing a call beats starting
    another. How much there is of it is bounded by the calls in progress.

    Args:
        threads: how many pictures are decoded at the same time, at least 1; and as many are aligned.
        max_requests: how many calls may be decoding or waiting for it, at least 1.
        max_bytes: how many bytes their encoded pictures may have together with the pixels of those that
            are decoded, until these are freed, at least 1. One picture is always admitted, whatever its size.
        keeper: keeps the threads alive; None: nobody asks how they are.

    Attributes:
        room: counts the bytes of pictures.
    """

    def __init__(
        self,
        *,
        threads: int = 2,
        max_requests: int = 256,
        max_bytes: int = 256 * 1024 * 1024,
        keeper: Threads | None = None,
    ) -> None:
        # This holds for the whole process: the cores belong to the executors, not to each call of OpenCV.
        cv2.setNumThreads(1)
        self._threads = threads
        self.room = PictureRoom(max_count=max_requests, max_bytes=max_bytes)
        keeper = keeper or Threads()
        self._decoding = Workers("decode", threads, keeper)
        self._finishing = Workers("align", threads, keeper)
        self._mean_seconds = 0.01

    @property
    def pending(self) -> int:
        """Photos that are being decoded or wait for it."""
        return self.room.waiting

    async def decode(
        self, work: Callable[[], T], *, nbytes: int, deadline: float | None = None
    ) -> tuple[T, float]:
        """Queues new work and waits for it: its result, and the seconds until a thread took it.

        If the caller is cancelled, work that has not begun leaves the queue.

        Args:
            work: runs on a decoding thread.
            nbytes: what the work keeps in memory while it waits.
            deadline: `time.monotonic()` seconds after which the work is not begun.

        Raises:
            QueueFull: too many requests or bytes wait already.
            Expired: the deadline passed before the work began.
        """
        queued = time.monotonic()
        if deadline is not None and queued >= deadline:
            raise Expired("The deadline had passed before the picture was decoded.")

        pending = [work]
        del work

        def timed() -> tuple[T, float]:
            begun = time.monotonic()
            if deadline is not None and begun >= deadline:
                raise Expired("The deadline passed while the picture waited to be decoded.")
            result = pending.pop()()
            self._mean_seconds += 0.1 * (time.monotonic() - begun - self._mean_seconds)
            return result, begun - queued

        if full := self.room.enter(nbytes):
            raise QueueFull(
                f"The queue of pictures to decode is full ({full}).",
                retry_after=max(0.05, self.pending * self._mean_seconds / self._threads),
            )
        try:
            future = self._decoding.submit(timed)
        except BaseException:
            self.room.leave(nbytes)
            raise

        def release(_: Future[tuple[T, float]]) -> None:
            # The executor keeps cancelled work until a thread comes by: let go of its picture now.
            pending.clear()
            self.room.leave(nbytes)

        future.add_done_callback(release)
        return await asyncio.wrap_future(future)

    async def finish(self, work: Callable[[], T]) -> T:
        """Runs work of a call whose photo is decoded already."""
        return await asyncio.wrap_future(self._finishing.submit(work))

    def close(self) -> None:
        """Ends the threads when their current work is done; what still waits is cancelled."""
        self._decoding.close()
        self._finishing.close()
