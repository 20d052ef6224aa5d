"""Galleries in a Milvus, which several servers can share.

Searches and other reads take Milvus' consistency "Bounded", which costs nothing. So that whoever has been
told of a change finds it, from any server, a change is acknowledged only after a read of consistency
"Strong" has come back: such a read waits until everything before it is seen, and then all see it.
"""

import threading
import time
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from mien_server.errors import InvalidRequest, Reason
from mien_server.gallery.milvus_access import NO_ACCESS, MilvusAccess
from mien_server.gallery.milvus_link import WRITE_SECONDS, Link, within
from mien_server.gallery.milvus_queries import by_request, emptied, given, scan, wait
from mien_server.gallery.milvus_reader import MilvusReader
from mien_server.gallery.milvus_rows import (
    ALL_FIELDS,
    Ids,
    row_of,
    vectors_of,
)
from mien_server.gallery.milvus_search import search
from mien_server.gallery.milvus_tables import HNSW_FROM, Table, Tables
from mien_server.gallery.reading import Written, no_person
from mien_server.gallery.record import FaceRow
from mien_server.gallery.types import (
    CollectionSize,
    Found,
    Query,
)
from mien_server.pipeline.types import ArrayF32, Call, ModelIdentity, StageTime
from mien_server.scheduling.errors import Expired
from mien_server.threads import Threads

T = TypeVar("T")

_UNNAMED = 'person_hash == ""'


class MilvusStore:
    """`GalleryStore` over a Milvus. It is there although Milvus is not: calls are then `GalleryUnavailable`.

    Args:
        url, access: as for `Link`.
        threads: keeps the thread alive that looks for collections; None: nobody asks how it is.
        hnsw_from: see `milvus_tables.HNSW_FROM`.

    Raises:
        OperatorError: the URL is none, or pymilvus is not installed.
    """

    def __init__(
        self,
        url: str,
        *,
        access: MilvusAccess = NO_ACCESS,
        threads: Threads | None = None,
        hnsw_from: int = HNSW_FROM,
    ) -> None:
        self.link = Link(url, access)
        self.tables = Tables(self.link, threads or Threads(), hnsw_from=hnsw_from)
        self._ids = Ids()
        # Changes that read before they write: two of this server's do not undo each other.
        self._changing = threading.Lock()
        self.reader = MilvusReader(self.tables)

    def close(self) -> None:
        """Ends the threads. What was acknowledged is in Milvus."""
        self.tables.close()
        self.link.close()

    # Collections.

    def find(self, name: str) -> Table:
        """The collection of this name.

        Raises:
            NotInGallery: COLLECTION_NOT_FOUND. GalleryUnavailable: Milvus has not been asked yet.
        """
        return self.tables.find(name)

    def collections(self) -> list[Table]:
        """All collections, by name.

        Raises:
            GalleryUnavailable: Milvus has not been asked yet.
        """
        return self.tables.all_tables()

    async def size(self, table: Table) -> CollectionSize:
        """How much is in a collection. Reads the hash of every face's person."""

        def work(client: Any) -> CollectionSize:
            persons: dict[str, int] = {}
            for rows in scan(client, table, ["person_hash"]):
                for row in rows:
                    persons[row["person_hash"]] = persons.get(row["person_hash"], 0) + 1
            unnamed = persons.pop("", 0)
            return CollectionSize(len(persons), sum(persons.values()) + unnamed, unnamed, 0)

        return await self.tables.run(table, work)

    async def create(
        self,
        name: str,
        embedder: ModelIdentity,
        dimensions: int,
        threshold: float | None,
        *,
        keep_crops: bool = False,
    ) -> Table:
        """Makes a collection.

        Raises:
            AlreadyInGallery: COLLECTION_EXISTS. InvalidRequest: INVALID_OPTION, it keeps no crops.
        """
        if keep_crops:
            raise InvalidRequest(
                Reason.INVALID_OPTION,
                "keep_crops: galleries in a Milvus keep no crops; those in a folder can.",
                field="keep_crops",
            )
        return await self.link.run(
            lambda client: self.tables.create(client, name, embedder, dimensions, threshold)
        )

    async def delete(self, table: Table) -> tuple[int, bool]:
        """Deletes a collection: how many faces went with it, and False: Milvus erases files later."""

        def work(client: Any) -> int:
            self.tables.count(client, table, strong=True)
            client.drop_collection(table.name, timeout=WRITE_SECONDS)
            self.tables.forget(table)
            return table.faces

        return await self.tables.run(table, work), False

    # Faces and persons.

    async def enrol(self, table: Table, rows: Sequence[FaceRow]) -> list[Written]:
        """Adds faces: all of them durably, or none.

        Of two with the same request key, at two servers at once, the one with the higher number goes.
        """

        def work(client: Any) -> list[Written]:
            hashes = self.tables.hashes(client)
            now = time.time()
            made = [
                row_of(row, key, hashes, now)
                for row, key in zip(rows, self._ids.take(len(rows)), strict=True)
            ]
            keys = sorted({row["request"] for row in made} - {""})
            known = by_request(client, table, keys, "Bounded")
            new, written = [], []
            for row in made:
                first = known.get(row["request"]) if row["request"] else None
                if first is None:
                    new.append(row)
                    known[row["request"]] = first = row
                written.append((row, first))
            if new:
                client.insert(table.name, new, timeout=WRITE_SECONDS)
            seen = by_request(client, table, keys, "Strong")
            late = [r["id"] for r in new if r["request"] and seen[r["request"]]["id"] < r["id"]]
            if late:
                client.delete(table.name, ids=late, timeout=WRITE_SECONDS)
            if not keys or late:
                wait(client, table)
            table.faces += len(new) - len(late)
            table.named += sum(bool(row["person"]) for row in new if row["id"] not in late)
            results = []
            for row, first in written:
                there = seen.get(row["request"], first) if row["request"] else row
                results.append(Written(there["id"], 0, there["person"], there["id"] != row["id"]))
            return results

        return await self.tables.run(table, work)

    async def move(self, table: Table, faces: Sequence[int], person: str) -> list[str]:
        """Gives faces to a person; the names of those who have none any more.

        Raises:
            NotInGallery: ENROLLED_FACE_NOT_FOUND, none is moved.
        """

        def work(client: Any) -> list[str]:
            with self._changing:
                rows = given(client, table, faces, ALL_FIELDS)
                before = {row["person_hash"]: row["person"] for row in rows}
                to = {"person": person, "person_hash": self.tables.hashes(client).of(person)}
                client.upsert(table.name, [row | to for row in rows], timeout=WRITE_SECONDS)
                wait(client, table)
                before.pop(to["person_hash"], None)
                self.tables.to_compact(table)
                return emptied(client, table, before)

        return await self.tables.run(table, work)

    async def delete_faces(self, table: Table, faces: Sequence[int]) -> tuple[list[str], bool]:
        """Deletes faces: the names of persons who have none any more, and False: see `delete`.

        Raises:
            NotInGallery: ENROLLED_FACE_NOT_FOUND, none is deleted.
        """

        def work(client: Any) -> list[str]:
            with self._changing:
                rows = given(client, table, faces, ["id", "person", "person_hash"])
                client.delete(table.name, ids=list(faces), timeout=WRITE_SECONDS)
                wait(client, table)
                self.tables.to_compact(table)
                table.faces -= len(rows)
                table.named -= sum(bool(row["person"]) for row in rows)
                return emptied(client, table, {r["person_hash"]: r["person"] for r in rows})

        return await self.tables.run(table, work), False

    async def delete_person(self, table: Table, person: str) -> tuple[int, bool]:
        """Deletes a person: how many faces, and False: see `delete`.

        Raises:
            NotInGallery: PERSON_NOT_FOUND.
        """

        def work(client: Any) -> int:
            with self._changing:
                where = self.tables.of_person(client, person)
                keys = [r["id"] for rows in scan(client, table, ["id"], where=where) for r in rows]
                if not keys or not person:
                    raise no_person(table.collection, person)
                client.delete(table.name, ids=keys, timeout=WRITE_SECONDS)
                wait(client, table)
                self.tables.to_compact(table)
                table.faces -= len(keys)
                table.named -= len(keys)
                return len(keys)

        return await self.tables.run(table, work), False

    async def unnamed(self, table: Table, most: int) -> tuple[NDArray[np.int64], ArrayF32, int]:
        """The first faces without a person, at most `most`: keys [n], vectors [n, d], how many are left."""

        def work(client: Any) -> tuple[NDArray[np.int64], ArrayF32, int]:
            rows: list[dict[str, Any]] = []
            for some in scan(client, table, ["id", "vector"], where=_UNNAMED):
                rows += some
                if len(rows) >= most:
                    break
            del rows[most:]
            self.tables.count(client, table)
            left = max(0, table.faces - table.named - len(rows))
            keys = np.array([row["id"] for row in rows], np.int64)
            return keys, vectors_of(rows, table.collection.dimensions), left

        return await self.tables.run(table, work)

    async def search(
        self,
        table: Table,
        queries: Sequence[Query],
        call: Call,
        *,
        passed: int,  # noqa: ARG002 - Milvus has no order of its own for calls
    ) -> Sequence[Found]:
        """Looks for faces in a collection.

        Raises:
            NotInGallery: COLLECTION_NOT_FOUND, it was deleted meanwhile. Expired: there was no time left.
        """

        def work(client: Any) -> list[Found]:
            def ask(vectors: Sequence[Any], where: str, limit: int) -> Any:
                if call.deadline is not None and call.deadline <= time.monotonic():
                    raise Expired("the call's time was over before Milvus had answered")
                return client.search(
                    table.name,
                    data=list(vectors),
                    filter=where,
                    limit=limit,
                    output_fields=["person", "person_hash", "labels"],
                    # FLAT has no use for it, and another server may have given it HNSW just now.
                    search_params={"metric_type": "IP", "params": {"ef": max(128, 2 * limit)}},
                    consistency_level="Bounded",
                    timeout=within(call.deadline),
                )

            found = search(queries, self.tables.hashes(client), ask)
            return [Found(matches, table.named) for matches in found]

        began = time.monotonic()
        found = await self.tables.run(table, work)
        call.add(began, StageTime("identify.compute", time.monotonic() - began))
        return found
