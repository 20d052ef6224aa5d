"""The galleries of one server: the file, the faces in memory, and the threads and slots between them.

The file is the record and memory its image: every change is committed first and then shown to searches.
Coroutines run on one event loop and block it with nothing; the rest is safe for threads.
"""

import asyncio
import contextlib
import logging
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from mien_server.backends.devices import CpuDevice
from mien_server.errors import GalleryFull
from mien_server.gallery import reading, record, reembedding
from mien_server.gallery.database import FILENAME, damaged, lock, open_database, unusable
from mien_server.gallery.file_reader import FileReader
from mien_server.gallery.index import Index, NewRow
from mien_server.gallery.labels import nbytes_of, to_text
from mien_server.gallery.live import Live
from mien_server.gallery.reading import Loaded, Written, no_collection
from mien_server.gallery.record import FaceRow
from mien_server.gallery.reembedding import Anew
from mien_server.gallery.search import TOGETHER, Lanes, Search
from mien_server.gallery.types import (
    Collection,
    CollectionSize,
    Found,
    Query,
)
from mien_server.gallery.writer import Writer
from mien_server.pipeline.running import run_in_slot
from mien_server.pipeline.types import ArrayF32, Call, ModelIdentity
from mien_server.scheduling.batching import BatchingPolicy
from mien_server.scheduling.errors import Draining
from mien_server.scheduling.interface import PlacedInstance
from mien_server.scheduling.scheduler import Scheduler
from mien_server.settings import flag_of
from mien_server.threads import Threads

_log = logging.getLogger(__name__)

T = TypeVar("T")

SEARCHES = BatchingPolicy(
    max_batch_size=32,
    preferred_batch_sizes=tuple(range(TOGETHER, 33, TOGETHER)),
    split_rows=True,
)
"""How searches of different callers share a product: beyond some 32 it takes as long for each of them.

None waits for others to come. What is beyond a multiple of `TOGETHER` goes into the next product; that one
then runs while the callers of this one are answered, and so there is always enough to do for every core.
"""


class Store:
    """Opens the galleries of a folder, and keeps other servers out of it until `close`. Blocking.

    Args:
        folder: made if it does not exist.
        max_bytes: what the faces of all collections may take in memory.
        scheduler: runs the searches.
        device: the processor that it runs them on.
        threads: keeps the thread alive that writes; None: nobody asks how it is.

    Raises:
        OperatorError: the folder cannot be used, or its file is damaged.
    """

    def __init__(
        self,
        folder: Path,
        *,
        max_bytes: int,
        scheduler: Scheduler,
        device: CpuDevice,
        threads: Threads | None = None,
    ) -> None:
        self._path = folder / FILENAME
        self._max_bytes = max_bytes
        self._scheduler = scheduler
        self._device = device
        self._reserved = 0
        self._guard = threading.Lock()
        with contextlib.ExitStack() as undo:
            undo.enter_context(lock(folder))
            connection = open_database(self._path)
            undo.callback(connection.close)
            self._lanes = Lanes(device)
            undo.callback(self._lanes.close)
            self.reader = FileReader(self._path)
            undo.callback(self.reader.close)
            self._live: Mapping[str, Live] = self._load(connection)
            self._writer = Writer(connection, threads or Threads())
            self._close = undo.pop_all().close

    def close(self) -> None:
        """Makes the changes that wait, and ends the threads. Searches must have ended."""
        self._writer.close()
        self._close()

    # Collections.

    def find(self, name: str) -> Live:
        """The collection of this name.

        Raises:
            NotInGallery: COLLECTION_NOT_FOUND.
        """
        live = self._live.get(name)
        if live is None:
            raise no_collection(name)
        return live

    def collections(self) -> list[Live]:
        """All collections, by name."""
        return [live for _, live in sorted(self._live.items())]

    async def size(self, live: Live) -> CollectionSize:
        """How much is in a collection."""
        persons, faces = await self.reader.read(reading.counts, live)
        return CollectionSize(persons, faces, live.unnamed.snapshot.faces, live.nbytes)

    async def create(
        self,
        name: str,
        embedder: ModelIdentity,
        dimensions: int,
        threshold: float | None,
        *,
        keep_crops: bool = False,
    ) -> Live:
        """Makes a collection.

        Raises:
            AlreadyInGallery: COLLECTION_EXISTS.
        """
        await self._write(
            lambda c: record.create_collection(
                c, name, embedder, dimensions, threshold, keep_crops=keep_crops
            ),
            lambda made: self._show(self._opened(made, Index(dimensions), Index(dimensions))),
        )
        return self.find(name)

    async def delete(self, live: Live) -> tuple[int, bool]:
        """Deletes a collection: how many faces went with it, and whether they are erased."""
        collection = live.collection
        return await self._write(
            lambda c: record.delete_collection(c, collection),
            lambda _: self._hide(self._now(live)),
            erases=True,
        )

    # Faces and persons.

    async def enrol(self, live: Live, rows: Sequence[FaceRow]) -> list[Written]:
        """Adds faces: all of them durably, or none.

        Raises:
            GalleryFull: there is no room for them.
            NotInGallery: COLLECTION_NOT_FOUND, it was deleted meanwhile.
        """
        texts = [to_text(row.labels) for row in rows]

        def publish(written: Sequence[Written]) -> None:
            added = [
                NewRow(w.face, w.person, sys.intern(w.name), text, row.vector)
                for w, row, text in zip(written, rows, texts, strict=True)
                if not w.existing
            ]
            now = self._now(live)
            now.index.add([row for row in added if row.name])
            now.unnamed.add([row for row in added if not row.name])

        written, _ = await self._write(
            lambda c: record.enrol(c, live.collection, rows),
            publish,
            nbytes=len(rows) * live.index.row_bytes + sum(map(nbytes_of, texts)),
        )
        return written

    async def move(self, live: Live, faces: Sequence[int], person: str) -> list[str]:
        """Gives faces to a person; the names of those who have none any more.

        Raises:
            NotInGallery: as `record.move_faces` says.
        """

        def publish(moved: tuple[int, list[str]]) -> None:
            key, name, now = moved[0], sys.intern(person), self._now(live)
            now.index.move(faces, key, name)
            named = now.unnamed.take(self.reader.vectors(faces))
            now.index.add([replace(row, person=key, name=name) for row in named])

        (_, emptied), _ = await self._write(
            lambda c: record.move_faces(c, live.collection, faces, person),
            publish,
            # The file has the names of those who are gone.
            erases=True,
        )
        return emptied

    async def delete_faces(self, live: Live, faces: Sequence[int]) -> tuple[list[str], bool]:
        """Deletes faces: the names of persons who have none any more, and whether they are erased.

        Raises:
            NotInGallery: as `record.delete_faces` says.
        """

        def publish(_: object) -> None:
            now = self._now(live)
            now.index.remove(faces)
            now.unnamed.remove(faces)

        return await self._write(
            lambda c: record.delete_faces(c, live.collection, faces), publish, erases=True
        )

    async def delete_person(self, live: Live, person: str) -> tuple[int, bool]:
        """Deletes a person: how many faces, and whether they are erased.

        Raises:
            NotInGallery: as `record.delete_person` says.
        """
        gone, erased = await self._write(
            lambda c: record.delete_person(c, live.collection, person),
            lambda gone: self._now(live).index.remove(gone),
            erases=True,
        )
        return len(gone), erased

    async def unnamed(self, live: Live, most: int) -> tuple[NDArray[np.int64], ArrayF32, int]:
        """The first faces without a person, at most `most`: keys [n], vectors [n, d], how many are left."""
        keys = live.unnamed.snapshot.keys

        def run() -> tuple[NDArray[np.int64], ArrayF32, int]:
            found = sorted(self.reader.vectors(keys[:most].tolist()).items())
            vectors = [vector for _, vector in found]
            return (
                np.array([key for key, _ in found], np.int64),
                np.stack(vectors)
                if vectors
                else np.empty((0, live.collection.dimensions), np.float32),
                max(0, len(keys) - most),
            )

        return await asyncio.wrap_future(self.reader.threads.submit(run))

    async def reembedded(self, live: Live, fingerprint: str, faces: Sequence[Anew]) -> int:
        """Keeps what another model has made of faces, durably; how many faces it has left."""
        await self._write(
            lambda c: reembedding.put(c, live.collection, fingerprint, faces), lambda _: None
        )
        return await self.reader.read(reembedding.count_left, live, fingerprint)

    async def swap(self, live: Live, embedder: ModelIdentity, dimensions: int) -> bool:
        """Makes another model that of a collection, if it has embedded every face; whether it did.

        Raises:
            GalleryFull: there is no room for both, which it takes for a moment.
        """
        faces = live.faces

        def publish(swapped: tuple[Collection, list[Loaded]] | None) -> None:
            if swapped is not None:
                before = self._now(live)
                self._show(self._filled(*swapped))
                self.reader.threads.submit(self._scheduler.close_slot, before.slot)

        swapped, _ = await self._write(
            lambda c: reembedding.swap(c, live.collection, embedder, dimensions),
            publish,
            nbytes=faces * Index(dimensions).row_bytes,
            erases=True,
        )
        return swapped is not None

    def _now(self, live: Live) -> Live:
        """A collection as it is after a swap that came in between."""
        key = live.collection.key
        return next((each for each in self._live.values() if each.collection.key == key), live)

    async def search(
        self, live: Live, queries: Sequence[Query], call: Call, *, passed: int
    ) -> Sequence[Found]:
        """Looks for faces in a collection, together with those of other callers.

        Args:
            queries: at least one.
            passed: how many slots the call has passed already.

        Raises:
            SchedulingError: why there is no result.
            NotInGallery: COLLECTION_NOT_FOUND, it was deleted meanwhile.
        """
        try:
            return await run_in_slot(
                live.slot,
                "identify",
                queries,
                call,
                nbytes=sum(query.vector.nbytes for query in queries),
                passed=passed,
                deadline=call.deadline,
            )
        except Draining:
            # One that has got another model meanwhile is there again at once.
            if live.collection.name not in self._live:
                raise no_collection(live.collection.name) from None
            raise

    def _load(self, connection: sqlite3.Connection) -> dict[str, Live]:
        live = {}
        try:
            for collection in reading.collections(connection):
                started = time.monotonic()
                opened = self._filled(collection, reading.load(connection, collection))
                live[collection.name] = opened
                faces, seconds = opened.faces, round(time.monotonic() - started, 2)
                facts = {"collection": collection.name, "faces": faces, "seconds": seconds}
                _log.info("collection loaded", extra=facts)
        except sqlite3.Error as error:
            raise unusable(self._path, error) from error
        except (reading.Broken, ValueError, KeyError) as error:
            raise damaged(self._path, str(error)) from error
        if (used := sum(each.nbytes for each in live.values())) > self._max_bytes:
            _log.warning(
                "the galleries take %d bytes, more than %s allows (%d): no face can be enrolled",
                *(used, flag_of("gallery_max_bytes"), self._max_bytes),
            )
        return live

    def _filled(self, collection: Collection, parts: Iterable[Loaded]) -> Live:
        index, unnamed = Index(collection.dimensions), Index(collection.dimensions)
        for part in parts:
            named = np.array([bool(name) for name in part.names])
            for into, chosen in ((index, named), (unnamed, ~named)):
                if chosen.any():
                    into.add_arrays(*part.only(chosen))
        return self._opened(collection, index, unnamed)

    def _opened(self, collection: Collection, index: Index, unnamed: Index) -> Live:
        # One product at a time, on all cores that are free: others gather meanwhile and share the next.
        placed = [
            PlacedInstance(Search(index, self._lanes, self.reader.vectors), self._device.name)
        ]
        slot = self._scheduler.open_slot(f"collection {collection.name}", 1, SEARCHES, placed)
        return Live(collection, index, unnamed, slot)

    def _show(self, live: Live) -> None:
        self._live = {**self._live, live.collection.name: live}

    def _hide(self, live: Live) -> None:
        self._live = {name: each for name, each in self._live.items() if each is not live}
        # It waits for searches that are under way; nobody else needs to.
        self.reader.threads.submit(self._scheduler.close_slot, live.slot)

    async def _write(
        self,
        work: Callable[[sqlite3.Connection], T],
        publish: Callable[[T], None],
        *,
        nbytes: int = 0,
        erases: bool = False,
    ) -> tuple[T, bool]:
        """Makes a change that may take so many bytes of memory: see `Writer.submit`."""
        self._reserve(nbytes)
        try:
            future = self._writer.submit(work, publish, erases=erases)
        except BaseException:
            self._release(nbytes)
            raise
        # When the caller has gone, the change may still be made: it counts until it is.
        future.add_done_callback(partial(self._release, nbytes))
        return await asyncio.wrap_future(future)

    def _reserve(self, nbytes: int) -> None:
        with self._guard:
            used = sum(live.nbytes for live in self._live.values())
            if nbytes and used + self._reserved + nbytes > self._max_bytes:
                raise GalleryFull(
                    f"The galleries take {used:,} bytes of memory, and these faces {nbytes:,} more, which"
                    f" is beyond the {self._max_bytes:,} that they may take"
                    f" ({flag_of('gallery_max_bytes')}): delete faces, or allow more."
                )
            self._reserved += nbytes

    def _release(self, nbytes: int, _: "Future[Any] | None" = None) -> None:
        with self._guard:
            self._reserved -= nbytes
