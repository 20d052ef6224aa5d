"""Reading the galleries' file while one thread writes to it: on connections of its own, one for a thread."""

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from mien_server.gallery import reading, reembedding
from mien_server.gallery.database import connect
from mien_server.gallery.live import Live
from mien_server.gallery.reading import Written
from mien_server.gallery.types import EnrolledFace, ExportedFace, Person
from mien_server.pipeline.types import ArrayF32

T = TypeVar("T")

_READERS = 2


class FileReader:
    """Tells of the persons and faces in the file: `FaceReader`.

    Args:
        path: the file, which is there.

    Attributes:
        threads: that read; whatever else has to wait may do so on them.
    """

    def __init__(self, path: Path) -> None:
        self._file = path
        self._local = threading.local()
        self._opened: list[sqlite3.Connection] = []
        self.threads = ThreadPoolExecutor(_READERS, thread_name_prefix="gallery-read")

    def close(self) -> None:
        """Ends the threads. No other thread may read any more."""
        self.threads.shutdown()
        for connection in self._opened:
            connection.close()

    def vectors(self, keys: Sequence[int]) -> dict[int, ArrayF32]:
        """As `reading.vectors`, on the thread that asks."""
        return reading.vectors(self._connection(), keys)

    async def of_request(self, live: Live, request_key: str) -> Written | None:
        """The face that was enrolled with a request key, if there is one."""
        return await self.read(reading.face_of_request, live, request_key)

    async def persons(self, live: Live, *, after: int, most: int) -> list[Person]:
        """As `reading.persons`."""
        return await self.read(reading.persons, live, after=after, most=most)

    async def person(self, live: Live, name: str) -> Person:
        """As `reading.person`."""
        return await self.read(reading.person, live, name)

    async def faces(self, live: Live, *, of: str, after: int, most: int) -> list[EnrolledFace]:
        """As `reading.faces`."""
        return await self.read(reading.faces, live, of=of, after=after, most=most)

    async def exported(self, live: Live, *, after: int, most: int) -> list[ExportedFace]:
        """As `reading.exported`."""
        return await self.read(reading.exported, live, after=after, most=most)

    async def face(self, live: Live, key: int) -> EnrolledFace:
        """As `reading.face`."""
        return await self.read(reading.face, live, key)

    async def crop(self, live: Live, key: int) -> bytes:
        """As `reading.crop`."""
        return await self.read(reading.crop, live, key)

    async def to_reembed(self, live: Live, fingerprint: str, most: int) -> list[tuple[int, bytes]]:
        """As `reembedding.left`."""
        return await self.read(reembedding.left, live, fingerprint, most)

    async def read(self, function: Callable[..., T], live: Live, *args: Any, **options: Any) -> T:
        """What a function of `reading` or `reembedding` reads, on a thread and a connection of its own."""

        def run() -> T:
            return function(self._connection(), live.collection, *args, **options)

        return await asyncio.wrap_future(self.threads.submit(run))

    def _connection(self) -> sqlite3.Connection:
        """The connection of this thread."""
        if not hasattr(self._local, "connection"):
            self._local.connection = connect(self._file, read_only=True)
            self._opened.append(self._local.connection)
        connection: sqlite3.Connection = self._local.connection
        return connection
