"""Threads that work off one queue, each piece with a future of what comes of it."""

import logging
import secrets
from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from threading import Lock
from typing import Any, TypeVar

from mien_server.scheduling.errors import RowFailed
from mien_server.threads import Threads

_log = logging.getLogger(__name__)

T = TypeVar("T")


class Workers:
    """So many threads for blocking work. Safe for threads.

    Work whose thread dies in it (`SystemExit`) fails with RowFailed, and the thread begins anew.

    Args:
        name: of the threads, which get a number each.
        count: how many, at least 1.
        threads: keeps them alive.
    """

    def __init__(self, name: str, count: int, threads: Threads) -> None:
        self._queue: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._lock = Lock()
        self._closed = False
        self._threads = [threads.start(f"{name}-{number}", self._work) for number in range(count)]

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Queues work; its future can be cancelled until a thread takes it.

        Raises:
            RuntimeError: after `close`.
        """
        future: Future[T] = Future()
        with self._lock:
            if self._closed:
                raise RuntimeError("the threads have been told to end")
            self._queue.put((future, work))
        return future

    def close(self) -> None:
        """Cancels what waits, and waits until what runs is done."""
        with self._lock:
            self._closed = True
        while True:
            try:
                job = self._queue.get_nowait()
            except Empty:
                break
            if job is not None:
                job[0].cancel()
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while (job := self._queue.get()) is not None:
            _run(*job)
            del job  # an idle thread keeps no picture alive


def _run(future: Future[T], work: Callable[[], T]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = work()
    except Exception as error:
        future.set_exception(error)
    except BaseException as error:
        incident = secrets.token_hex(6)
        _log.error("incident %s: a thread died on a picture", incident, exc_info=error)
        future.set_exception(RowFailed("The server failed on this picture.", incident=incident))
        raise
    else:
        future.set_result(result)
    # The error's traceback holds this frame, and would with these hold itself and the picture.
    del future, work
