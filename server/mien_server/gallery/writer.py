"""The one thread that writes to the galleries' file. Changes that come together share a transaction.

Waiting for the disk is what a durable change costs, and a transaction waits once. So the thread takes all
changes that wait, makes each in a savepoint of its own, commits them, shows them to searches, and only then
tells the callers.
"""

import logging
import queue
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from mien_server.errors import GalleryFull, MienError
from mien_server.scheduling.errors import Draining
from mien_server.threads import Threads

_log = logging.getLogger(__name__)

T = TypeVar("T")

_MOST = 256
"""Changes that share a transaction at most."""

_ERASE_AGAIN_SECONDS = 2.0
_BUSY_MS = 1000
"""How long a truncation of the WAL waits for readers, while changes wait for it."""


@dataclass(slots=True, eq=False)
class Change(Generic[T]):
    """One change to the file.

    Attributes:
        work: makes it, within a transaction; returns what its caller is told.
        publish: shows what `work` returned to searches; called after the commit. It must not fail.
        erases: whether it deletes what must be in no file any more before the caller is told.
        done: what the caller waits for: what `work` returned, and whether it is durable and erased.
    """

    work: Callable[[sqlite3.Connection], T]
    publish: Callable[[T], None]
    erases: bool
    done: Future[tuple[T, bool]] = field(default_factory=Future)
    outcome: Any = None


class Writer:
    """Makes changes, in the order in which they come. Safe for threads.

    Args:
        connection: used by nobody else.
        threads: keeps the thread alive.
    """

    def __init__(self, connection: sqlite3.Connection, threads: Threads) -> None:
        self._connection = connection
        self._waiting: queue.SimpleQueue[Change[Any] | None] = queue.SimpleQueue()
        self._unerased = False
        self._closed = False
        self._thread = threads.start("mien-gallery", self._run)

    def submit(
        self,
        work: Callable[[sqlite3.Connection], T],
        publish: Callable[[T], None],
        *,
        erases: bool = False,
    ) -> Future[tuple[T, bool]]:
        """Queues a change: see `Change`.

        Returns:
            what `work` returned, and whether nothing that it deleted is in a file any more. It fails with
            what `work` raised, or `GalleryFull` if the disk is. Cancelling works until it is begun.

        Raises:
            Draining: the writer is closed.
        """
        if self._closed:
            raise Draining("the server is shutting down")
        change = Change(work, publish, erases)
        self._waiting.put(change)
        return change.done

    def close(self) -> None:
        """Makes what waits, and ends the thread."""
        self._closed = True
        self._waiting.put(None)
        self._thread.join()

    def _run(self) -> None:
        ending = False
        while not ending:
            changes, ending = self._take()
            if changes:
                self._make_or_fail(changes)
            elif not ending:
                self._erase()
        self._erase()
        self._connection.close()

    def _take(self) -> tuple[list[Change[Any]], bool]:
        """What waits; nothing if it is time to erase again. And whether nothing will follow."""
        changes: list[Change[Any]] = []
        try:
            change = self._waiting.get(timeout=_ERASE_AGAIN_SECONDS if self._unerased else None)
            while change is not None:
                if change.done.set_running_or_notify_cancel():
                    changes.append(change)
                if len(changes) == _MOST:
                    return changes, False
                change = self._waiting.get_nowait()
        except queue.Empty:
            return changes, False
        return changes, True

    def _make_or_fail(self, changes: Sequence[Change[Any]]) -> None:
        try:
            self._make(changes)
        except BaseException as error:
            # The thread dies, and begins anew. Whoever waits must not wait for ever.
            for change in changes:
                if not change.done.done():
                    failed = RuntimeError(
                        "the galleries' writer died: the change may have been made or not"
                    )
                    failed.__cause__ = error
                    change.done.set_exception(failed)
            raise

    def _make(self, changes: Sequence[Change[Any]]) -> None:
        try:
            self._in_transaction(changes)
        except Exception as error:
            if len(changes) == 1:
                changes[0].done.set_exception(_told(error))
                return
            # One of them may be what the disk has no room for: the others need not fail with it.
            for change in changes:
                self._make([change])
            return
        made = [change for change in changes if not isinstance(change.outcome, MienError)]
        for change in made:
            self._publish(change)
        self._unerased = self._unerased or any(change.erases for change in made)
        if any(change.erases for change in made):
            self._erase()
        for change in changes:
            if isinstance(change.outcome, MienError):
                change.done.set_exception(change.outcome)
            else:
                change.done.set_result((change.outcome, not self._unerased))

    def _publish(self, change: Change[Any]) -> None:
        try:
            change.publish(change.outcome)
        except Exception:
            # It is on the disk: the next start shows it. The others must not wait for ever until then.
            _log.exception("a change of the galleries is kept, but searches do not see it")

    def _in_transaction(self, changes: Sequence[Change[Any]]) -> None:
        """Makes changes and commits them, or none of them; refusals become their outcomes."""
        connection = self._connection
        connection.execute("BEGIN IMMEDIATE")
        try:
            for change in changes:
                connection.execute("SAVEPOINT change")
                try:
                    change.outcome = change.work(connection)
                except MienError as error:
                    change.outcome = error
                    connection.execute("ROLLBACK TO change")
                connection.execute("RELEASE change")
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise

    def _erase(self) -> None:
        """Truncates the WAL, which has what was deleted, unless somebody reads an older state."""
        if not self._unerased:
            return
        try:
            self._connection.execute(f"PRAGMA busy_timeout = {_BUSY_MS}")
            busy, _, _ = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            self._connection.execute("PRAGMA busy_timeout = 5000")
            self._unerased = bool(busy)
        except sqlite3.Error as error:
            _log.error("what was deleted from the galleries could not be erased yet: %s", error)


def _told(error: Exception) -> Exception:
    """What a caller is told of an error of SQLite's."""
    if (
        isinstance(error, sqlite3.OperationalError)
        and error.sqlite_errorcode == sqlite3.SQLITE_FULL
    ):
        return GalleryFull(
            "The disk of the galleries is full: nothing was changed. Give it more room; to delete takes"
            " some, too."
        )
    return error
