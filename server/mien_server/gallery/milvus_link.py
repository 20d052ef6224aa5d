"""The way to a Milvus: calls on threads, within time, and refused at once while it is known to be away."""

import asyncio
import importlib
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar
from urllib.parse import urlsplit

from mien_server.errors import GalleryUnavailable, MienError, OperatorError
from mien_server.scheduling.errors import SchedulingError
from mien_server.settings import name_of

_log = logging.getLogger(__name__)

T = TypeVar("T")

READ_SECONDS = 5.0
WRITE_SECONDS = 15.0
"""How long one call may take: writing waits for what was written to be seen."""

_CALLS = 16
_UNREACHABLE = 2
_NOT_FOUND = 100


class Gone(Exception):
    """Milvus has no such collection."""


class Link:
    """A connection to Milvus that begins when it is first needed, and again after every outage.

    While Milvus is known to be away, only `probe` tries it: others are refused at once, so that they hold no
    thread and no caller until a timeout.

    Args:
        url: milvus://host:port or milvus+tls://host:port, and /database where it is not the default one.
        token: "user:password", or what else Milvus takes; "": none.

    Raises:
        OperatorError: the URL is none, or pymilvus is not installed.
    """

    def __init__(self, url: str, token: str) -> None:
        parts = urlsplit(url)
        scheme = {"milvus": "http", "milvus+tls": "https"}.get(parts.scheme)
        if scheme is None or not parts.hostname or parts.username or parts.query:
            raise OperatorError(
                f"{name_of('gallery_url')} {url!r} is none of a Milvus: it looks like milvus://host:19530, or"
                " milvus+tls://host:19530/database."
            )
        try:
            self._pymilvus: Any = importlib.import_module("pymilvus")
        except ImportError as error:
            raise OperatorError(
                "galleries in a Milvus need pymilvus: pip install 'mien[milvus]'."
            ) from error
        # It logs every failed call with its traceback; what callers are told is logged here, once an outage.
        logging.getLogger("pymilvus").setLevel(logging.CRITICAL)
        self.place = f"{parts.hostname}:{parts.port or 19530}"
        self._options = {
            "uri": f"{scheme}://{self.place}",
            "token": token,
            "db_name": parts.path.strip("/"),
            "timeout": READ_SECONDS,
        }
        self._lock = threading.Lock()
        self._client: Any = None
        self._away = ""
        self._threads = ThreadPoolExecutor(_CALLS, thread_name_prefix="milvus")

    @property
    def pymilvus(self) -> Any:
        """The package."""
        return self._pymilvus

    async def run(self, work: Callable[[Any], T]) -> T:
        """Runs work with pymilvus' client on a thread.

        Raises:
            GalleryUnavailable: Milvus is away or failed. Gone: the collection is.
        """
        self._refuse()
        return await asyncio.wrap_future(self._threads.submit(self.probe, work, patient=False))

    def probe(self, work: Callable[[Any], T], *, patient: bool = True) -> T:
        """Runs work on this thread, also while Milvus is away; that it succeeds ends the outage.

        Args:
            patient: try although it is away.

        Raises:
            GalleryUnavailable: Milvus is away or failed. Gone: the collection is.
        """
        if not patient:
            self._refuse()
        try:
            result = work(self._connected())
        except (MienError, SchedulingError, Gone):
            raise
        except Exception as error:
            # pymilvus raises its own exceptions and gRPC's, and has no class for what may pass.
            code = getattr(error, "code", None)
            if code == _NOT_FOUND:
                raise Gone from error
            self._note(error, away=is_away(error))
            raise GalleryUnavailable(
                f"The galleries are in a Milvus that cannot be asked now ({_told(error)}): try again. A"
                " change may have been made or not; with request keys it is safe to repeat."
            ) from error
        if self._away:
            _log.warning("the galleries' Milvus at %s answers again", self.place)
            self._away = ""
        return result

    def close(self) -> None:
        """Ends the threads and the connection."""
        self._threads.shutdown()
        if self._client is not None:
            self._client.close()

    def _connected(self) -> Any:
        with self._lock:
            if self._client is None:
                self._client = self._pymilvus.MilvusClient(**self._options)
            return self._client

    def _refuse(self) -> None:
        if self._away:
            raise GalleryUnavailable(
                f"The galleries are in a Milvus that is away ({self._away}): try again."
            )

    def _note(self, error: Exception, *, away: bool) -> None:
        if not self._away:
            _log.warning("the galleries' Milvus at %s failed: %s", self.place, _told(error))
        if away:
            self._away = _told(error)


def is_away(error: Exception) -> bool:
    """Whether an exception of pymilvus' says that Milvus cannot be reached at all."""
    return getattr(error, "code", None) == _UNREACHABLE


def within(deadline: float | None) -> float:
    """Seconds that a read may take."""
    if deadline is None:
        return READ_SECONDS
    return max(0.01, min(READ_SECONDS, deadline - time.monotonic()))


def _told(error: Exception) -> str:
    """What an error says, in one line, and not where Milvus is."""
    if is_away(error):
        return "it cannot be reached"
    code = getattr(error, "code", None)
    # gRPC's own exceptions have a method of that name.
    text = getattr(error, "message", "") or (
        code().name if callable(code) else type(error).__name__
    )
    return " ".join(str(text).split())[:200]
