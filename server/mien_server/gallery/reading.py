"""What the galleries' file is asked, in SQL. Nothing here changes it, waits or keeps state."""

import json
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import compress

import numpy as np
from numpy.typing import NDArray

from mien_server.errors import NotInGallery, Reason
from mien_server.gallery import payloads
from mien_server.gallery.labels import from_text
from mien_server.gallery.types import Collection, EnrolledFace, ExportedFace, Person
from mien_server.pipeline.types import ArrayF32, Embedding, ModelIdentity, Quality

_LOADED_AT_ONCE = 4096


@dataclass(frozen=True, slots=True)
class Written:
    """What became of a face to write: its key, the person's, the person's name, and whether it was there."""

    face: int
    person: int
    name: str
    existing: bool


@dataclass(frozen=True, slots=True)
class Loaded:
    """Faces [n] as they are read at the start: keys, persons' keys, names, labels' texts, vectors [n, d]."""

    faces: NDArray[np.int64]
    persons: NDArray[np.int64]
    names: list[str]
    labels: list[str]
    vectors: ArrayF32

    def only(
        self, chosen: NDArray[np.bool_]
    ) -> tuple[ArrayF32, NDArray[np.int64], NDArray[np.int64], list[str], list[str]]:
        """Those of the faces that are chosen [n], as `Index.add_arrays` takes them."""
        if chosen.all():
            return self.vectors, self.faces, self.persons, self.names, self.labels
        names, labels = (list(compress(each, chosen)) for each in (self.names, self.labels))
        return self.vectors[chosen], self.faces[chosen], self.persons[chosen], names, labels


class Broken(Exception):
    """Rows of the file that no mien can have written."""


def collections(connection: sqlite3.Connection) -> list[Collection]:
    """All collections, by name."""
    return [
        Collection(
            key,
            name,
            ModelIdentity(model, version, fingerprint),
            size,
            threshold,
            created,
            bool(crops),
        )
        for key, name, model, version, fingerprint, size, threshold, created, crops in connection.execute(
            "SELECT id, name, model, version, fingerprint, dimensions, threshold, created, crops"
            " FROM collections ORDER BY name"
        )
    ]


def counts(connection: sqlite3.Connection, collection: Collection) -> tuple[int, int]:
    """Persons and faces of a collection. Those without a person are of one who does not count."""
    persons = _count(connection, "persons", collection)
    if find_person(connection, collection, "") is not None:
        persons -= 1
    return persons, _count(connection, "faces", collection)


def _count(connection: sqlite3.Connection, table: str, collection: Collection) -> int:
    statement = f"SELECT count(*) FROM {table} WHERE collection = ?"  # noqa: S608 - of this module
    (count,) = connection.execute(statement, (collection.key,)).fetchone()
    return int(count)


def face_of_request(
    connection: sqlite3.Connection, collection: Collection, request_key: str
) -> Written | None:
    """The face that was enrolled with a request key, if there is one."""
    found = connection.execute(
        "SELECT faces.id, person, body FROM faces JOIN persons ON persons.id = person"
        " JOIN payloads ON payloads.id = name WHERE faces.collection = ? AND request = ?",
        (collection.key, payloads.hashed(connection, request_key)),
    ).fetchone()
    if not found:
        return None
    face, person, name = found
    return Written(face, person, payloads.to_text(name), existing=True)


def find_person(connection: sqlite3.Connection, collection: Collection, name: str) -> int | None:
    """The key of a person, if there is one of this name. Faces without a person are of one called ""."""
    found = connection.execute(
        "SELECT id FROM persons WHERE collection = ? AND hash = ?",
        (collection.key, payloads.hashed(connection, name)),
    ).fetchone()
    return int(found[0]) if found else None


_PERSON = (
    "SELECT persons.id, body, (SELECT count(*) FROM faces WHERE person = persons.id), created"
    " FROM persons JOIN payloads ON payloads.id = name"
)


def persons(
    connection: sqlite3.Connection, collection: Collection, *, after: int, most: int
) -> list[Person]:
    """The persons with keys above `after`, the first enrolled first, at most `most`."""
    rows = connection.execute(
        f"{_PERSON} WHERE collection = ? AND hash <> ? AND persons.id > ? ORDER BY persons.id LIMIT ?",
        (collection.key, payloads.hashed(connection, ""), after, most),
    )
    return [_told_person(*row) for row in rows.fetchall()]


def person(connection: sqlite3.Connection, collection: Collection, name: str) -> Person:
    """One person.

    Raises:
        NotInGallery: PERSON_NOT_FOUND.
    """
    row = connection.execute(
        f"{_PERSON} WHERE collection = ? AND hash = ?",
        (collection.key, payloads.hashed(connection, name)),
    ).fetchone()
    if not row or not name:
        raise no_person(collection, name)
    return _told_person(*row)


def _told_person(key: int, name: bytes, faces: int, created: float) -> Person:
    return Person(key, payloads.to_text(name), faces, created)


_FACE = (
    "SELECT faces.id, names.body, texts.body, quality, faces.created FROM faces"
    " JOIN persons ON persons.id = person JOIN payloads AS names ON names.id = name"
    " LEFT JOIN payloads AS texts ON texts.id = labels"
)


def faces(
    connection: sqlite3.Connection, collection: Collection, *, of: str, after: int, most: int
) -> list[EnrolledFace]:
    """The faces with keys above `after`, the first enrolled first, at most `most`.

    Args:
        of: only those of this person; "": all.

    Raises:
        NotInGallery: PERSON_NOT_FOUND.
    """
    if not of:
        rows = connection.execute(
            f"{_FACE} WHERE faces.collection = ? AND faces.id > ? ORDER BY faces.id LIMIT ?",
            (collection.key, after, most),
        )
        return [_face(*row) for row in rows.fetchall()]
    key = find_person(connection, collection, of)
    if key is None:
        raise no_person(collection, of)
    rows = connection.execute(
        f"{_FACE} WHERE person = ? AND faces.id > ? ORDER BY faces.id LIMIT ?", (key, after, most)
    )
    return [_face(*row) for row in rows.fetchall()]


def exported(
    connection: sqlite3.Connection, collection: Collection, *, after: int, most: int
) -> list[ExportedFace]:
    """The faces with keys above `after` and their embeddings, the first enrolled first, at most `most`."""
    rows = connection.execute(
        "SELECT faces.id, names.body, texts.body, quality, faces.created, norm, vectors.body FROM faces"
        " JOIN persons ON persons.id = person JOIN payloads AS names ON names.id = name"
        " JOIN payloads AS vectors ON vectors.id = vector"
        " LEFT JOIN payloads AS texts ON texts.id = labels"
        " WHERE faces.collection = ? AND faces.id > ? ORDER BY faces.id LIMIT ?",
        (collection.key, after, most),
    )
    return [
        ExportedFace(
            _face(*told), Embedding(np.frombuffer(vector, "<f4"), norm, collection.embedder)
        )
        for *told, norm, vector in rows.fetchall()
    ]


def vectors(connection: sqlite3.Connection, keys: Sequence[int]) -> dict[int, ArrayF32]:
    """The vectors [d] of faces by their keys, as they were enrolled; none of a face that is not there."""
    rows = connection.execute(
        "SELECT faces.id, body FROM faces JOIN payloads ON payloads.id = vector"
        " WHERE faces.id IN (SELECT value FROM json_each(?))",
        (json.dumps(list(keys)),),
    )
    return {key: np.frombuffer(body, "<f4") for key, body in rows.fetchall()}


def face(connection: sqlite3.Connection, collection: Collection, key: int) -> EnrolledFace:
    """One face.

    Raises:
        NotInGallery: ENROLLED_FACE_NOT_FOUND.
    """
    row = connection.execute(
        f"{_FACE} WHERE faces.id = ? AND faces.collection = ?", (key, collection.key)
    ).fetchone()
    if not row:
        raise no_face(collection, key, "face_id")
    return _face(*row)


def crop(connection: sqlite3.Connection, collection: Collection, key: int) -> bytes:
    """The crop of a face of a collection that keeps them.

    Raises:
        NotInGallery: ENROLLED_FACE_NOT_FOUND.
    """
    row = connection.execute(
        "SELECT body FROM faces JOIN payloads ON payloads.id = crop"
        " WHERE faces.id = ? AND faces.collection = ?",
        (key, collection.key),
    ).fetchone()
    if not row:
        raise no_face(collection, key, "face_id")
    return bytes(row[0])


def _face(
    key: int, name: bytes, labels: bytes | None, quality: str | None, created: float
) -> EnrolledFace:
    figures = Quality(**json.loads(quality)) if quality else None
    return EnrolledFace(key, payloads.to_text(name), from_text(_text(labels)), figures, created)


def _text(body: bytes | None) -> str:
    return payloads.to_text(body) if body else ""


def load(connection: sqlite3.Connection, collection: Collection) -> Iterator[Loaded]:
    """All faces of a collection, some at a time, the first enrolled first.

    Raises:
        Broken: rows that cannot be what was written.
    """
    names = {
        person: payloads.to_text(body)
        for person, body in connection.execute(
            "SELECT persons.id, body FROM persons JOIN payloads ON payloads.id = name"
            " WHERE collection = ?",
            (collection.key,),
        )
    }
    rows = connection.execute(
        "SELECT faces.id, person, texts.body, vectors.body FROM faces"
        " JOIN payloads AS vectors ON vectors.id = vector"
        " LEFT JOIN payloads AS texts ON texts.id = labels"
        " WHERE collection = ? ORDER BY faces.id",
        (collection.key,),
    )
    while some := rows.fetchmany(_LOADED_AT_ONCE):
        keys, of_persons, labels, blobs = zip(*some, strict=True)
        vectors = np.frombuffer(b"".join(blobs), "<f4").astype(np.float32, copy=False)
        if vectors.size != len(some) * collection.dimensions:
            raise Broken(f"faces {keys[0]} to {keys[-1]} have vectors of a wrong length")
        vectors = vectors.reshape(len(some), collection.dimensions)
        norms = np.einsum("ij,ij->i", vectors, vectors)
        wrong = np.flatnonzero(~(np.abs(norms - 1.0) < 1e-3))
        if len(wrong):
            raise Broken(f"the vector of face {keys[wrong[0]]} is not of unit length")
        yield Loaded(
            np.array(keys, np.int64),
            np.array(of_persons, np.int64),
            [names[person] for person in of_persons],
            [_text(body) for body in labels],
            vectors,
        )


def no_person(collection: Collection, name: str) -> NotInGallery:
    """The error for a person who does not exist."""
    return NotInGallery(
        Reason.PERSON_NOT_FOUND,
        f"Collection {collection.name!r} has no person {name!r}.",
        field="person_id",
    )


def no_face(collection: Collection, key: int, field: str) -> NotInGallery:
    """The error for a face that does not exist."""
    return NotInGallery(
        Reason.ENROLLED_FACE_NOT_FOUND,
        f"Collection {collection.name!r} has no face {face_id(key)!r}.",
        field=field,
    )


def face_id(key: int) -> str:
    """A face's key as callers know it."""
    return f"{key:016x}"


def no_collection(name: str) -> NotInGallery:
    """The error for a collection that does not exist."""
    return NotInGallery(
        Reason.COLLECTION_NOT_FOUND,
        f"There is no collection {name!r}: create it, or list those that there are.",
        field="collection",
    )
