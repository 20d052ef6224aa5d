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
from mien_server.gallery.milvus_access import NO_ACCESS, MilvusAccess
from mien_server.gallery.milvus_failures import Failure, failure_of
from mien_server.scheduling.errors import SchedulingError
from mien_server.settings import name_of

_log = logging.getLogger(__name__)

T = TypeVar("T")

READ_SECONDS = 5.0
WRITE_SECONDS = 15.0
"""How long one call may take: writing waits for what was written to be seen."""

_CALLS = 16
_NOT_FOUND = 100


class Gone(Exception):
    """Milvus has no such collection."""


class Link:
    """A connection to Milvus that begins when it is first needed, and again after every outage.

    While Milvus is known to be away, only `probe` tries it: others are refused at once, so that they hold no
    thread and no caller until a timeout.

    Args:
        url: milvus://host:port or milvus+tls://host:port, and /database where it is not the default one.
        access: what it is shown, and known by; over plain text, its token alone counts.

    Raises:
        OperatorError: the URL is none, or pymilvus is not installed.
    """

    def __init__(self, url: str, access: MilvusAccess = NO_ACCESS) -> None:
        scheme, self.place, database = _parts(url)
        try:
            self._pymilvus: Any = importlib.import_module("pymilvus")
        except ImportError as error:
            raise OperatorError(
                "galleries in a Milvus need pymilvus: pip install 'mien[milvus]'."
            ) from error
        # It logs every failed call with its traceback; what callers are told is logged here, once an outage.
        logging.getLogger("pymilvus").setLevel(logging.CRITICAL)
        self._access = access
        self._tls = scheme == "https"
        self._options = {
            "uri": f"{scheme}://{self.place}",
            "token": access.token,
            "db_name": database,
            "timeout": READ_SECONDS,
            # pymilvus shares connections of one address and token, whatever they trust, and never ends them.
            "dedicated": True,
            **(access.options() if self._tls else {}),
        }
        self._lock = threading.Lock()
        self._client: Any = None
        self._away = ""
        self._noted: Failure | None = None
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
        self.refuse()
        return await asyncio.wrap_future(self._threads.submit(self.probe, work, patient=False))

    def probe(self, work: Callable[[Any], T], *, patient: bool = True) -> T:
        """Runs work on this thread, also while Milvus is away; that it succeeds ends the outage.

        Args:
            patient: try although it is away.

        Raises:
            GalleryUnavailable: Milvus is away or failed. Gone: the collection is.
        """
        if not patient:
            self.refuse()
        try:
            result = work(self._connected())
        except (MienError, SchedulingError, Gone):
            raise
        except Exception as error:
            # pymilvus raises its own exceptions and gRPC's, and has no class for what may pass.
            code = getattr(error, "code", None)
            if code == _NOT_FOUND:
                raise Gone from error
            failure = failure_of(error, self._access, tls=self._tls)
            self._note(failure)
            raise GalleryUnavailable(
                f"The galleries are in a Milvus that cannot be asked now ({failure.told}): try again. A"
                " change may have been made or not; with request keys it is safe to repeat."
            ) from error
        if patient:
            self._noted = None
        if self._away:
            _log.warning("the galleries' Milvus at %s answers again", self.place)
            self._away = ""
        return result

    def refuse(self) -> None:
        """Nothing, unless Milvus is known to be away.

        Raises:
            GalleryUnavailable: it is.
        """
        if self._away:
            raise GalleryUnavailable(
                f"The galleries are in a Milvus that is away ({self._away}): try again."
            )

    @property
    def trouble(self) -> str:
        """What went wrong last, for who runs the server; "": nothing since `probe` last succeeded."""
        return str(self._noted or "")

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

    def _note(self, failure: Failure) -> None:
        """Logs a failure, once for as long as it goes on: Milvus is asked every second."""
        before, self._noted = self._noted, failure
        if before is None or (before.told, before.advice) != (failure.told, failure.advice):
            _log.warning("the galleries' Milvus at %s failed: %s", self.place, failure)
        if failure.away:
            self._away = failure.told


def within(deadline: float | None) -> float:
    """Seconds that a read may take."""
    if deadline is None:
        return READ_SECONDS
    return max(0.01, min(READ_SECONDS, deadline - time.monotonic()))


def _parts(url: str) -> tuple[str, str, str]:
    """The scheme that pymilvus takes, host and port, and the database, "" for the default one.

    Raises:
        OperatorError: the URL is none of a Milvus.
    """
    name = name_of("gallery_url")
    if "@" in url:  # the message must not have the password that is in it
        raise OperatorError(
            f"{name}: it has a user in it, whom everybody sees who sees this machine's processes: write"
            f" user:password into a file, and name that with {name_of('gallery_token_file')}."
        )
    try:
        parts = urlsplit(url)
        port = parts.port or 19530
    except ValueError:
        scheme = None
    else:
        scheme = {"milvus": "http", "milvus+tls": "https"}.get(parts.scheme)
    if scheme is None or not parts.hostname or parts.query:
        raise OperatorError(
            f"{name} {url!r} is none of a Milvus: it looks like milvus://host:19530, or"
            " milvus+tls://host:19530/database."
        )
    if ":" in parts.hostname:  # pymilvus takes it out of its brackets, and then gRPC cannot read it
        raise OperatorError(
            f"{name} {url!r}: pymilvus takes no IPv6 address. Name the host: {parts.scheme}://host:{port}."
        )
    return scheme, f"{parts.hostname}:{port}", parts.path.strip("/")
