"""Loads and unloads in threads of their own: those of one model one after the other, the newest wins."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

from mien_server.errors import Reason, Unmet
from mien_server.scheduling.errors import Draining

_AT_ONCE = 4
"""Models that are loaded at the same time: Triton's own default."""


@dataclass(slots=True, eq=False)
class _Operation:
    kind: str
    work: Callable[[], None]
    done: Future[None] = field(default_factory=Future)


class Operations:
    """The models' operations. Safe for threads, and never waits.

    An operation that has not begun is superseded by a later one of the same model: by one of another kind
    it fails, one of the same kind it becomes.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._at_once = threading.Semaphore(_AT_ONCE)
        self._waiting: dict[str, _Operation | None] = {}  # has a key as long as a model is at work
        self._closed = False

    def submit(self, model: str, kind: str, work: Callable[[], None]) -> Future[None]:
        """Queues an operation, which runs in a thread.

        Args:
            model: whose operation it is.
            kind: "load" or "unload".
            work: what to do; blocking.

        Returns:
            A future of its end, which cannot be cancelled. It fails with what `work` raises, with Unmet
            (MODEL_CONTROL_REFUSED) when superseded, or with Draining.

        Raises:
            Draining: the server is shutting down.
        """
        operation = _Operation(kind, work)
        operation.done.set_running_or_notify_cancel()
        with self._lock:
            if self._closed:
                raise Draining("the server is shutting down")
            busy = model in self._waiting
            superseded = self._waiting.get(model)
            if superseded and superseded.kind == kind:
                return superseded.done
            self._waiting[model] = operation
        if superseded:
            superseded.done.set_exception(
                Unmet(
                    Reason.MODEL_CONTROL_REFUSED,
                    f"the {superseded.kind} of model {model!r} did not begin: a later {kind} took its place",
                )
            )
        if not busy:
            threading.Thread(
                target=self._work, args=(model,), name=f"mien-{model}", daemon=True
            ).start()
        return operation.done

    def close(self, timeout: float | None = None) -> bool:
        """Refuses what has not begun and waits for what runs; False if time ran out."""
        with self._lock:
            self._closed = True
            refused = [operation for operation in self._waiting.values() if operation]
            self._waiting = dict.fromkeys(self._waiting)
        for operation in refused:
            operation.done.set_exception(Draining("the server is shutting down"))
        with self._lock:
            return self._idle.wait_for(lambda: not self._waiting, timeout)

    def _work(self, model: str) -> None:
        while True:
            with self._at_once:
                with self._lock:
                    operation = self._waiting[model]
                    if operation is None:
                        del self._waiting[model]
                        self._idle.notify_all()
                        return
                    self._waiting[model] = None
                _run(operation)
            del operation  # its future may hold an exception, and that the frames of a failed load


def _run(operation: _Operation) -> None:
    try:
        operation.work()
    except BaseException as error:
        operation.done.set_exception(error)
    else:
        operation.done.set_result(None)
