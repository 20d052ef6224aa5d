"""Loads and unloads in threads of their own: those of one model one after the other, the newest wins."""

import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field

from mien_server.errors import Reason, Unmet
from mien_server.scheduling.errors import Draining


@dataclass(slots=True, eq=False)
class _Operation:
    kind: str
    work: Callable[[], None]
    done: Future[None] = field(default_factory=Future)

    def end(self, error: BaseException | None = None) -> None:
        """Tells those who wait what came of it, unless they have been told."""
        with contextlib.suppress(InvalidStateError):
            if error:
                self.done.set_exception(error)
            else:
                self.done.set_result(None)


class Operations:
    """The models' operations. Safe for threads; to submit one never waits.

    An operation that has not begun is superseded by a later one of the same model: by one of another kind
    it fails, one of the same kind it becomes. One that runs ends at its next step for one of another kind.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._waiting: dict[str, _Operation | None] = {}  # has a key as long as a model is at work
        self._running: dict[str, _Operation] = {}
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
            superseded.end(_superseded(superseded, model, kind, "did not begin"))
        if not busy:
            threading.Thread(
                target=self._work, args=(model,), name=f"mien-{model}", daemon=True
            ).start()
        return operation.done

    def stop_if_asked(self, model: str) -> None:
        """What the operation that runs for a model calls before each of its steps.

        Raises:
            Draining: the server is shutting down.
            Unmet: MODEL_CONTROL_REFUSED, an operation of another kind waits for it to end.
        """
        with self._lock:
            running, waiting = self._running[model], self._waiting[model]
            closed = self._closed
        if closed:
            raise Draining("the server is shutting down")
        if waiting and waiting.kind != running.kind:
            raise _superseded(running, model, waiting.kind, "was ended")

    def settle(self, model: str) -> None:
        """Waits until nothing of a model is under way; not to be called from an operation of its own."""
        with self._lock:
            self._idle.wait_for(lambda: model not in self._waiting)

    def close(self, timeout: float | None = None) -> bool:
        """Ends all with Draining, and waits until what ran has come to its end; False if time ran out."""
        with self._lock:
            self._closed = True
            refused = [*self._running.values(), *filter(None, self._waiting.values())]
            self._waiting = dict.fromkeys(self._waiting)
        for operation in refused:
            operation.end(Draining("the server is shutting down"))
        with self._lock:
            return self._idle.wait_for(lambda: not self._waiting, timeout)

    def _work(self, model: str) -> None:
        while True:
            with self._lock:
                self._running.pop(model, None)
                operation = self._waiting[model]
                if operation is None:
                    del self._waiting[model]
                    self._idle.notify_all()
                    return
                self._waiting[model] = None
                self._running[model] = operation
            _run(operation)
            del operation  # its future may hold an exception, and that the frames of a failed load


def _run(operation: _Operation) -> None:
    try:
        operation.work()
    except BaseException as error:
        operation.end(error)
    else:
        operation.end()


def _superseded(operation: _Operation, model: str, by: str, fate: str) -> Unmet:
    return Unmet(
        Reason.MODEL_CONTROL_REFUSED,
        f"the {operation.kind} of model {model!r} {fate}: a later {by} took its place",
    )
