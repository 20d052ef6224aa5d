"""The collections in a Milvus as this server knows them: looked for every second, made, indexed, loaded."""

import logging
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from mien_server.errors import AlreadyInGallery, GalleryUnavailable, Reason
from mien_server.gallery.milvus_failures import is_away
from mien_server.gallery.milvus_link import READ_SECONDS, WRITE_SECONDS, Gone, Link
from mien_server.gallery.milvus_rows import (
    PREFIX,
    SALT_TABLE,
    Hashes,
    Ids,
    collection_of,
    description_of,
    schema_of,
    table_of,
)
from mien_server.gallery.reading import no_collection
from mien_server.gallery.types import Collection
from mien_server.pipeline.types import ModelIdentity
from mien_server.threads import Threads

T = TypeVar("T")

_log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
"""How often collections that other servers made or deleted are looked for."""

HNSW_FROM = 200_000
"""Faces from which on a collection is searched by HNSW, which looks at a part of them."""

_COMPACT_SECONDS = 30.0
_LOAD_SECONDS = 120.0

_FLAT: Mapping[str, Any] = {"index_type": "FLAT", "params": {}}
_HNSW: Mapping[str, Any] = {"index_type": "HNSW", "params": {"M": 32, "efConstruction": 256}}


@dataclass(slots=True)
class Table:
    """A collection in Milvus. The numbers are those of the last look, and of what this server did since."""

    collection: Collection
    name: str
    faces: int = 0
    named: int = 0
    hnsw: bool = False
    nbytes: int = field(default=0, init=False)
    slot: None = field(default=None, init=False)


class Tables:
    """Knows the collections. `find` and `all_tables` answer from memory; the rest blocks, on any thread.

    Args:
        link: to Milvus.
        threads: keeps the thread alive that looks.
        hnsw_from: see `HNSW_FROM`.
    """

    def __init__(self, link: Link, threads: Threads, *, hnsw_from: int = HNSW_FROM) -> None:
        self._link = link
        self._hnsw_from = hnsw_from
        self._known: Mapping[str, Table] | None = None
        self._guard = threading.Lock()
        self._hashes: Hashes | None = None
        self._uncompacted: set[str] = set()
        self._compacted = time.monotonic()
        self._closed = threading.Event()
        self._first = threading.Event()
        self._thread = threads.start("mien-milvus", self._watch)
        self._first.wait(2 * READ_SECONDS)

    def close(self) -> None:
        """Ends the thread."""
        self._closed.set()
        self._thread.join()

    async def run(self, table: Table, work: Callable[[Any], T]) -> T:
        """What work that has to do with a collection comes to, as `Link.run` does it.

        Raises:
            NotInGallery: COLLECTION_NOT_FOUND, it is not there any more.
        """
        try:
            return await self._link.run(work)
        except Gone:
            self.forget(table)
            raise no_collection(table.collection.name) from None

    def of_person(self, client: Any, name: str) -> str:
        """The condition that a face is a person's."""
        return f'person_hash == "{self.hashes(client).of(name)}"'

    def find(self, name: str) -> Table:
        """The collection of this name.

        Raises:
            NotInGallery: COLLECTION_NOT_FOUND. GalleryUnavailable: Milvus has not been asked yet.
        """
        table = self._seen().get(name)
        if table is None:
            raise no_collection(name)
        return table

    def all_tables(self) -> list[Table]:
        """All collections, by name.

        Raises:
            GalleryUnavailable: Milvus has not been asked yet.
        """
        return [table for _, table in sorted(self._seen().items())]

    def _seen(self) -> Mapping[str, Table]:
        if self._known is None:
            self._link.refuse()  # which says more
            raise GalleryUnavailable(
                "The galleries are in a Milvus that has not answered yet: try again."
            )
        return self._known

    def hashes(self, client: Any) -> Hashes:
        """What texts are found by: the same for all servers on one Milvus."""
        if self._hashes is None:
            self._hashes = Hashes(self._salt(client, secrets.token_bytes(32)))
        return self._hashes

    def bring_salt(self, salt: bytes) -> bool:
        """Makes the hashes those of another store, if Milvus has none yet; whether they are now."""
        self._hashes = Hashes(self._link.probe(lambda client: self._salt(client, salt)))
        return self._hashes.salt == salt

    def _salt(self, client: Any, new: bytes) -> bytes:
        if not client.has_collection(SALT_TABLE, timeout=READ_SECONDS):
            schema = client.create_schema(auto_id=False, description=new.hex())
            kind = self._link.pymilvus.DataType
            schema.add_field("id", kind.INT64, is_primary=True)
            schema.add_field("vector", kind.FLOAT_VECTOR, dim=2)
            # Another server's is the error "different parameters", and is taken.
            self._only_one(client, SALT_TABLE, schema)
        return bytes.fromhex(client.describe_collection(SALT_TABLE)["description"])

    def create(
        self,
        client: Any,
        name: str,
        embedder: ModelIdentity,
        dimensions: int,
        threshold: float | None,
        *,
        created: float | None = None,
    ) -> Table:
        """Makes a collection.

        Raises:
            AlreadyInGallery: COLLECTION_EXISTS.
        """
        self.hashes(client)
        when = time.time() if created is None else created
        (key,) = Ids().take(1)
        collection = Collection(key, name, embedder, dimensions, threshold, when)
        table = Table(collection, table_of(name))
        schema = schema_of(self._link.pymilvus, dimensions, description_of(collection))
        if client.has_collection(table.name, timeout=READ_SECONDS) or not self._only_one(
            client, table.name, schema
        ):
            raise AlreadyInGallery(
                Reason.COLLECTION_EXISTS,
                f"There is a collection {name!r} already: use it, delete it first, or choose another name.",
                field="name",
            )
        self._serve(client, table)
        self._learn({**(self._known or {}), name: table})
        return table

    def _only_one(self, client: Any, table: str, schema: Any) -> bool:
        """Makes a collection of Milvus', unless somebody has made it meanwhile; whether it did."""
        try:
            client.create_collection(
                table, schema=schema, consistency_level="Bounded", timeout=WRITE_SECONDS
            )
        except self._link.pymilvus.MilvusException as error:
            if "different parameters" in str(error):
                return False
            raise
        return True

    def forget(self, table: Table) -> None:
        """Takes a collection that was deleted out of memory."""
        known = self._known or {}
        self._learn({name: each for name, each in known.items() if each is not table})

    def to_compact(self, table: Table) -> None:
        """Notes that faces were deleted, which Milvus drops from its files by compaction only."""
        with self._guard:
            self._uncompacted.add(table.name)

    def _learn(self, known: Mapping[str, Table]) -> None:
        self._known = known

    def _watch(self) -> None:
        while not self._closed.is_set():
            try:
                self._link.probe(self._look)
                if time.monotonic() - self._compacted > _COMPACT_SECONDS:
                    self._compact()
            except (GalleryUnavailable, Gone):
                pass  # the link has logged it
            self._first.set()
            self._closed.wait(LOOK_SECONDS)

    def _look(self, client: Any) -> None:
        """What collections there are, and how much is in them."""
        before = {table.name: table for table in (self._known or {}).values()}
        there = client.list_collections(timeout=READ_SECONDS)
        found = {}
        for name in there:
            if not name.startswith(PREFIX):
                continue
            table = before.get(name)
            try:
                table = self._as_it_is(client, name, table)
                if table is not None:
                    self.count(client, table)
            except self._link.pymilvus.MilvusException as error:
                if is_away(error):
                    raise
                # It is being loaded, deleted or given another index: that is no reason to lose the others.
                _log.info("collection %s cannot be looked at now: %s", name, error)
            if table is not None:
                found[table.collection.name] = table
        mine = {name: t for name, t in (self._known or {}).items() if t.name not in before}
        self._learn({**found, **mine})  # what was made here during the look is there, too
        for table in found.values():
            if table.faces >= self._hnsw_from and not table.hnsw:
                self._to_hnsw(client, table)

    def _as_it_is(self, client: Any, name: str, known: Table | None) -> Table | None:
        """A collection as Milvus has it now: another server may have deleted it and made it anew."""
        told = client.describe_collection(name, timeout=READ_SECONDS)
        collection = collection_of(told.get("description", ""))
        if collection is None or (known and known.collection == collection):
            return known if collection else None
        table = Table(collection, name)
        self._serve(client, table)
        return table

    def _serve(self, client: Any, table: Table) -> None:
        """Gives a collection an index and loads it, where that is missing."""
        kinds = self._indexes(client, table)
        if not kinds:
            self._index(client, table, _FLAT)
        table.hnsw = "HNSW" in kinds.values()
        client.load_collection(table.name, timeout=_LOAD_SECONDS)

    def _indexes(self, client: Any, table: Table) -> dict[str, str]:
        """The kinds of the indexes that a collection has, by their names."""
        return {
            index: client.describe_index(table.name, index, timeout=READ_SECONDS)["index_type"]
            for index in client.list_indexes(table.name, timeout=READ_SECONDS)
        }

    def _index(self, client: Any, table: Table, kind: Mapping[str, Any]) -> None:
        indexes = client.prepare_index_params()
        indexes.add_index("vector", metric_type="IP", **kind)
        client.create_index(table.name, indexes, timeout=_LOAD_SECONDS)

    def _to_hnsw(self, client: Any, table: Table) -> None:
        """Exchanges the index. Milvus has to let go of the collection for that: searches are refused."""
        name = table.collection.name
        indexes = self._indexes(client, table)
        if "HNSW" not in indexes.values():  # no other server has begun
            _log.warning(
                "collection %s gets an index of HNSW: it is away until that is built", name
            )
            client.release_collection(table.name, timeout=WRITE_SECONDS)
            for index in indexes:
                client.drop_index(table.name, index, timeout=WRITE_SECONDS)
            self._index(client, table, _HNSW)
        client.load_collection(table.name, timeout=_LOAD_SECONDS)
        table.hnsw = True
        _log.warning("collection %s is searched by HNSW now", name)

    def _compact(self) -> None:
        with self._guard:
            tables, self._uncompacted = self._uncompacted, set()
        self._compacted = time.monotonic()

        def work(client: Any) -> None:
            for table in tables:
                client.flush(table, timeout=_LOAD_SECONDS)
                client.compact(table, timeout=WRITE_SECONDS)

        try:
            if tables:
                self._link.probe(work)
        except (GalleryUnavailable, Gone):
            with self._guard:
                self._uncompacted |= tables

    def count(self, client: Any, table: Table, *, strong: bool = False) -> None:
        """Counts the faces of a collection anew."""
        level = "Strong" if strong else "Bounded"

        def counted(where: str) -> int:
            (row,) = client.query(
                table.name,
                filter=where,
                output_fields=["count(*)"],
                consistency_level=level,
                timeout=READ_SECONDS,
            )
            return int(row["count(*)"])

        table.faces = counted("")
        table.named = table.faces - counted('person_hash == ""')
