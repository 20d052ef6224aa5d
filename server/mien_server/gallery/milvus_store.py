"""Galleries in a Milvus, which several servers can share.

Searches and other reads take Milvus' consistency "Bounded", which costs nothing. So that whoever has been
told of a change finds it, from any server, a change is acknowledged only after a read of consistency
"Strong" has come back: such a read waits until everything before it is seen, and then all see it.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from mien_server.errors import InvalidRequest, Reason
from mien_server.gallery.milvus_link import WRITE_SECONDS, Gone, Link, within
from mien_server.gallery.milvus_queries import by_request, emptied, given, query, scan, wait
from mien_server.gallery.milvus_rows import (
    ALL_FIELDS,
    FACE_FIELDS,
    Ids,
    face_of,
    row_of,
    vectors_of,
)
from mien_server.gallery.milvus_search import search
from mien_server.gallery.milvus_tables import HNSW_FROM, Table, Tables
from mien_server.gallery.reading import Written, no_collection, no_face, no_person
from mien_server.gallery.record import FaceRow
from mien_server.gallery.types import (
    CollectionSize,
    EnrolledFace,
    ExportedFace,
    Found,
    Person,
    Query,
)
from mien_server.pipeline.types import ArrayF32, Call, Embedding, ModelIdentity, StageTime
from mien_server.scheduling.errors import Expired
from mien_server.threads import Threads

T = TypeVar("T")

_UNNAMED = 'person_hash == ""'

_LISTED_SECONDS = 30.0
"""How long the pages after the first one go by what that found."""


class MilvusStore:
    """`GalleryStore` over a Milvus. It is there although Milvus is not: calls are then `GalleryUnavailable`.

    Args:
        url, token: as for `Link`.
        threads: keeps the thread alive that looks for collections; None: nobody asks how it is.
        hnsw_from: see `milvus_tables.HNSW_FROM`.

    Raises:
        OperatorError: the URL is none, or pymilvus is not installed.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str = "",
        threads: Threads | None = None,
        hnsw_from: int = HNSW_FROM,
    ) -> None:
        self.link = Link(url, token)
        self.tables = Tables(self.link, threads or Threads(), hnsw_from=hnsw_from)
        self._ids = Ids()
        # Changes that read before they write: two of this server's do not undo each other.
        self._changing = threading.Lock()
        self._listed: Mapping[str, tuple[float, list[Person]]] = {}

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
        """All collections, by name."""
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

        return await self._run(table, work)

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

        return await self._run(table, work), False

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

        return await self._run(table, work)

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

        return await self._run(table, work)

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

        return await self._run(table, work), False

    async def delete_person(self, table: Table, person: str) -> tuple[int, bool]:
        """Deletes a person: how many faces, and False: see `delete`.

        Raises:
            NotInGallery: PERSON_NOT_FOUND.
        """

        def work(client: Any) -> int:
            with self._changing:
                where = self._person(client, person)
                keys = [r["id"] for rows in scan(client, table, ["id"], where=where) for r in rows]
                if not keys or not person:
                    raise no_person(table.collection, person)
                client.delete(table.name, ids=keys, timeout=WRITE_SECONDS)
                wait(client, table)
                self.tables.to_compact(table)
                table.faces -= len(keys)
                table.named -= len(keys)
                return len(keys)

        return await self._run(table, work), False

    async def of_request(self, table: Table, request_key: str) -> Written | None:
        """The face that was enrolled with a request key, if there is one."""

        def work(client: Any) -> Written | None:
            key = self.tables.hashes(client).of(request_key)
            found = by_request(client, table, [key], "Bounded").get(key)
            return Written(found["id"], 0, found["person"], existing=True) if found else None

        return await self._run(table, work)

    async def persons(self, table: Table, *, after: int, most: int) -> list[Person]:
        """The persons with keys above `after`, the first enrolled first, at most `most`.

        A person's key is that of the first face. The first page reads the person of every face, and the
        next ones soon after go by what that found.
        """
        read, listed = self._listed.get(table.name, (0.0, []))
        if after and time.monotonic() - read < _LISTED_SECONDS:
            return [person for person in listed if person.key > after][:most]

        def work(client: Any) -> list[Person]:
            found: dict[str, Person] = {}
            for rows in scan(client, table, ["id", "person", "created"]):
                for row in rows:
                    one = found.get(row["person"])
                    key, created = (one.key, one.created) if one else (row["id"], row["created"])
                    count = one.faces + 1 if one else 1
                    found[row["person"]] = Person(key, row["person"], count, created)
            found.pop("", None)
            everyone = list(found.values())
            self._listed = {table.name: (time.monotonic(), everyone)}  # of one collection at a time
            return [person for person in everyone if person.key > after][:most]

        return await self._run(table, work)

    async def person(self, table: Table, name: str) -> Person:
        """One person.

        Raises:
            NotInGallery: PERSON_NOT_FOUND.
        """

        def work(client: Any) -> Person:
            where = self._person(client, name)
            pages = scan(client, table, ["id", "created"], where=where)
            faces = [row for rows in pages for row in rows] if name else []
            if not faces:
                raise no_person(table.collection, name)
            return Person(faces[0]["id"], name, len(faces), faces[0]["created"])

        return await self._run(table, work)

    async def faces(self, table: Table, *, of: str, after: int, most: int) -> list[EnrolledFace]:
        """The faces with keys above `after`, the first enrolled first, at most `most`.

        Args:
            of: only those of this person; "": all.

        Raises:
            NotInGallery: PERSON_NOT_FOUND.
        """

        def work(client: Any) -> list[EnrolledFace]:
            where = f" and {self._person(client, of)}" if of else ""
            rows = query(client, table, f"id > {after}{where}", FACE_FIELDS, limit=most)
            if of and not rows and not query(client, table, where[5:], ["id"], limit=1):
                raise no_person(table.collection, of)
            return [face_of(row) for row in rows]

        return await self._run(table, work)

    async def exported(self, table: Table, *, after: int, most: int) -> list[ExportedFace]:
        """The first faces with keys above `after`, at most `most`, with their embeddings."""

        def work(client: Any) -> list[ExportedFace]:
            fields = [*FACE_FIELDS, "norm", "vector"]
            rows = query(client, table, f"id > {after}", fields, limit=most)
            vectors = vectors_of(rows, table.collection.dimensions)
            model = table.collection.embedder
            return [
                ExportedFace(face_of(row), Embedding(vector, row["norm"], model))
                for row, vector in zip(rows, vectors, strict=True)
            ]

        return await self._run(table, work)

    async def face(self, table: Table, key: int) -> EnrolledFace:
        """One face.

        Raises:
            NotInGallery: ENROLLED_FACE_NOT_FOUND.
        """

        def work(client: Any) -> EnrolledFace:
            rows = query(client, table, f"id == {key}", FACE_FIELDS, limit=1)
            if not rows:
                raise no_face(table.collection, key, "face_id")
            return face_of(rows[0])

        return await self._run(table, work)

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

        return await self._run(table, work)

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
        found = await self._run(table, work)
        call.add(began, StageTime("identify.compute", time.monotonic() - began))
        return found

    # What the methods have in common.

    async def _run(self, table: Table, work: Callable[[Any], T]) -> T:
        try:
            return await self.link.run(work)
        except Gone:
            self.tables.forget(table)
            raise no_collection(table.collection.name) from None

    def _person(self, client: Any, name: str) -> str:
        return f'person_hash == "{self.tables.hashes(client).of(name)}"'
