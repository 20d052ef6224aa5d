"""A Milvus' galleries as an end of a copy."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from mien_server.errors import MienError, OperatorError
from mien_server.gallery.milvus_access import NO_ACCESS, MilvusAccess
from mien_server.gallery.milvus_link import WRITE_SECONDS, Gone
from mien_server.gallery.milvus_queries import query, scan, wait
from mien_server.gallery.milvus_rows import ALL_FIELDS, face_of, stored_row_of, vectors_of
from mien_server.gallery.milvus_store import MilvusStore
from mien_server.gallery.milvus_tables import Table
from mien_server.gallery.types import Collection, StoredFace

T = TypeVar("T")


class MilvusEnd:
    """The galleries of a Milvus: `copying.Target`.

    Args:
        url, access: as for `milvus_link.Link`.

    Raises:
        OperatorError: the URL is none, or pymilvus is not installed.
    """

    takes_crops = False

    def __init__(self, url: str, access: MilvusAccess = NO_ACCESS) -> None:
        self._store = MilvusStore(url, access=access)
        self._waited: set[str] = set()

    def close(self) -> None:
        """Ends the threads."""
        self._store.close()

    def collections(self) -> list[Collection]:
        """What is in it."""
        self._run(lambda client: client.list_collections())  # an answer from memory may be old
        return [table.collection for table in self._run(lambda _: self._store.collections())]

    def salt(self) -> bytes:
        """What its hashes are made with."""
        return self._run(self._store.tables.hashes).salt

    def take_salt(self, salt: bytes) -> bool:
        """Takes a salt if nothing was hashed with its own; whether it is the salt now."""
        return self._run(lambda _: self._store.tables.bring_salt(salt))

    def count(self, collection: Collection) -> tuple[int, int]:
        """Faces and persons."""
        table = self._table(collection)

        def work(client: Any) -> tuple[int, int]:
            wait(client, table)
            faces, persons = 0, set()
            for rows in scan(client, table, ["person_hash"]):
                faces += len(rows)
                persons |= {row["person_hash"] for row in rows}
            return faces, len(persons - {""})

        return self._run(work)

    def make(self, collection: Collection) -> Collection:
        """The collection, made as the source has it."""
        facts = (collection.name, collection.embedder, collection.dimensions, collection.threshold)
        created = collection.created
        return self._run(
            lambda client: self._store.tables.create(client, *facts, created=created)
        ).collection

    def read(self, collection: Collection) -> Iterator[list[StoredFace]]:
        """All faces, some at a time."""
        table = self._table(collection)
        pages = scan(self._run(lambda client: client), table, ALL_FIELDS)
        while rows := self._run(lambda _: next(pages, None)):
            vectors = vectors_of(rows, collection.dimensions)
            yield [
                StoredFace(
                    told.key,
                    told.person,
                    told.labels,
                    told.quality,
                    bytes.fromhex(row["request"]) or None,
                    row["norm"],
                    told.created,
                    vector,
                )
                for row, vector, told in zip(rows, vectors, map(face_of, rows), strict=True)
            ]

    def missing(self, collection: Collection, keys: Sequence[int]) -> set[int]:
        """Those of the keys that no face of the collection has."""
        table = self._table(collection)
        where = f"id in [{', '.join(map(str, keys))}]"
        if table.name not in self._waited:  # what an earlier copy wrote last may not be seen yet
            self._run(lambda client: wait(client, table))
            self._waited.add(table.name)
        rows = self._run(lambda client: query(client, table, where, ["id"], limit=len(keys)))
        return set(keys) - {row["id"] for row in rows}

    def write(self, collection: Collection, faces: Sequence[StoredFace]) -> None:
        """Writes faces."""
        table, hashes = self._table(collection), self._store.tables.hashes

        def work(client: Any) -> None:
            rows = [stored_row_of(face, hashes(client)) for face in faces]
            client.insert(table.name, rows, timeout=WRITE_SECONDS)

        self._run(work)

    def _table(self, collection: Collection) -> Table:
        return self._run(lambda _: self._store.find(collection.name))

    def _run(self, work: Callable[[Any], T]) -> T:
        try:
            return self._store.link.probe(work)
        except (MienError, Gone) as error:
            why = self._store.link.trouble or error
            raise OperatorError(f"the galleries cannot be copied: {why}") from error
