"""What is told of the persons and faces in a Milvus."""

import time
from collections.abc import Mapping
from typing import Any

from mien_server.gallery.milvus_queries import by_request, query, scan
from mien_server.gallery.milvus_rows import FACE_FIELDS, face_of, vectors_of
from mien_server.gallery.milvus_tables import Table, Tables
from mien_server.gallery.reading import Written, no_face, no_person
from mien_server.gallery.types import EnrolledFace, ExportedFace, Person
from mien_server.pipeline.types import Embedding

_LISTED_SECONDS = 30.0
"""How long the pages after the first one go by what that found."""


class MilvusReader:
    """`FaceReader` over a Milvus."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._listed: Mapping[str, tuple[float, list[Person]]] = {}

    async def of_request(self, table: Table, request_key: str) -> Written | None:
        """The face that was enrolled with a request key, if there is one."""

        def work(client: Any) -> Written | None:
            key = self._tables.hashes(client).of(request_key)
            found = by_request(client, table, [key], "Bounded").get(key)
            return Written(found["id"], 0, found["person"], existing=True) if found else None

        return await self._tables.run(table, work)

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

        return await self._tables.run(table, work)

    async def person(self, table: Table, name: str) -> Person:
        """One person.

        Raises:
            NotInGallery: PERSON_NOT_FOUND.
        """

        def work(client: Any) -> Person:
            where = self._tables.of_person(client, name)
            pages = scan(client, table, ["id", "created"], where=where)
            faces = [row for rows in pages for row in rows] if name else []
            if not faces:
                raise no_person(table.collection, name)
            return Person(faces[0]["id"], name, len(faces), faces[0]["created"])

        return await self._tables.run(table, work)

    async def faces(self, table: Table, *, of: str, after: int, most: int) -> list[EnrolledFace]:
        """The faces with keys above `after`, the first enrolled first, at most `most`.

        Args:
            of: only those of this person; "": all.

        Raises:
            NotInGallery: PERSON_NOT_FOUND.
        """

        def work(client: Any) -> list[EnrolledFace]:
            where = f" and {self._tables.of_person(client, of)}" if of else ""
            rows = query(client, table, f"id > {after}{where}", FACE_FIELDS, limit=most)
            if of and not rows and not query(client, table, where[5:], ["id"], limit=1):
                raise no_person(table.collection, of)
            return [face_of(row) for row in rows]

        return await self._tables.run(table, work)

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

        return await self._tables.run(table, work)

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

        return await self._tables.run(table, work)
