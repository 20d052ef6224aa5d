"""What the galleries' file is asked and told, in SQL. Nothing here waits or keeps state.

Functions that change something run within a transaction of the writer's.
"""

import json
import sqlite3
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from mien_server.errors import AlreadyInGallery, NotInGallery, Reason
from mien_server.gallery import payloads
from mien_server.gallery.types import Collection, EnrolledFace, Labels, Person
from mien_server.pipeline.types import ArrayF32, ModelIdentity, Quality

_LOADED_AT_ONCE = 4096


@dataclass(frozen=True, slots=True)
class FaceRow:
    """A face to write: `vector` [d] of unit length, `norm` before that."""

    person: str
    labels: Labels
    request_key: str
    quality: Quality | None
    norm: float
    vector: ArrayF32


@dataclass(frozen=True, slots=True)
class Written:
    """What became of a face to write: its key, the person's, the person's name, and whether it was there."""

    face: int
    person: int
    name: str
    existing: bool


@dataclass(frozen=True, slots=True)
class Loaded:
    """Faces [n] as they are read at the start: keys, persons' keys, names, labels, vectors [n, d]."""

    faces: NDArray[np.int64]
    persons: NDArray[np.int64]
    names: list[str]
    labels: list[Labels]
    vectors: ArrayF32


class Broken(Exception):
    """Rows of the file that no mien can have written."""


# Collections.


def create_collection(
    connection: sqlite3.Connection,
    name: str,
    embedder: ModelIdentity,
    dimensions: int,
    threshold: float | None,
) -> Collection:
    """A new collection.

    Raises:
        AlreadyInGallery: COLLECTION_EXISTS.
    """
    row = (name, embedder.name, embedder.version, embedder.fingerprint, dimensions, threshold)
    created = time.time()
    if connection.execute("SELECT 1 FROM collections WHERE name = ?", (name,)).fetchone():
        raise AlreadyInGallery(
            Reason.COLLECTION_EXISTS,
            f"There is a collection {name!r} already: use it, delete it first, or choose another name.",
            field="name",
        )
    key = connection.execute(
        "INSERT INTO collections (name, model, version, fingerprint, dimensions, threshold, created)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        (*row, created),
    ).lastrowid
    assert key is not None  # noqa: S101 - an INSERT has one
    return Collection(key, name, embedder, dimensions, threshold, created)


def collections(connection: sqlite3.Connection) -> list[Collection]:
    """All collections, by name."""
    return [
        Collection(key, name, ModelIdentity(model, version, fingerprint), size, threshold, created)
        for key, name, model, version, fingerprint, size, threshold, created in connection.execute(
            "SELECT id, name, model, version, fingerprint, dimensions, threshold, created"
            " FROM collections ORDER BY name"
        )
    ]


def delete_collection(connection: sqlite3.Connection, collection: Collection) -> int:
    """Deletes a collection with all that is in it; the number of its faces."""
    _check(connection, collection)
    faces = connection.execute(
        "DELETE FROM faces WHERE collection = ? RETURNING vector, labels", (collection.key,)
    ).fetchall()
    names = connection.execute(
        "DELETE FROM persons WHERE collection = ? RETURNING name", (collection.key,)
    ).fetchall()
    connection.execute("DELETE FROM collections WHERE id = ?", (collection.key,))
    _drop_payloads(connection, [*faces, *names])
    return len(faces)


def counts(connection: sqlite3.Connection, collection: Collection) -> tuple[int, int]:
    """Persons and faces of a collection."""
    return _count(connection, "persons", collection), _count(connection, "faces", collection)


def _count(connection: sqlite3.Connection, table: str, collection: Collection) -> int:
    statement = f"SELECT count(*) FROM {table} WHERE collection = ?"  # noqa: S608 - of this module
    (count,) = connection.execute(statement, (collection.key,)).fetchone()
    return int(count)


def _check(connection: sqlite3.Connection, collection: Collection) -> None:
    """Refuses a collection that was deleted while the call was under way."""
    found = connection.execute("SELECT 1 FROM collections WHERE id = ?", (collection.key,))
    if not found.fetchone():
        raise no_collection(collection.name)


def no_collection(name: str) -> NotInGallery:
    """The error for a collection that does not exist."""
    return NotInGallery(
        Reason.COLLECTION_NOT_FOUND,
        f"There is no collection {name!r}: create it, or list those that there are.",
        field="collection",
    )


# Faces and persons.


def enrol(
    connection: sqlite3.Connection, collection: Collection, rows: Sequence[FaceRow]
) -> list[Written]:
    """Adds faces, but for those whose request key is there already.

    Raises:
        NotInGallery: COLLECTION_NOT_FOUND, it was deleted meanwhile.
    """
    _check(connection, collection)
    now = time.time()
    return [_enrol(connection, collection, row, now) for row in rows]


def _enrol(
    connection: sqlite3.Connection, collection: Collection, row: FaceRow, now: float
) -> Written:
    if row.request_key:
        existing = face_of_request(connection, collection, row.request_key)
        if existing:
            return existing
    person = _person(connection, collection, row.person, now)
    labels = json.dumps(row.labels, sort_keys=True, ensure_ascii=False) if row.labels else ""
    face = connection.execute(
        "INSERT INTO faces (collection, person, vector, labels, request, quality, norm, created)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            collection.key,
            person,
            payloads.put(connection, row.vector.astype("<f4").tobytes()),
            payloads.put(connection, payloads.of_text(labels)) if labels else None,
            payloads.hashed(connection, row.request_key) if row.request_key else None,
            json.dumps(asdict(row.quality)) if row.quality else None,
            row.norm,
            now,
        ),
    ).lastrowid
    assert face is not None  # noqa: S101 - an INSERT has one
    return Written(face, person, row.person, existing=False)


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


def _person(connection: sqlite3.Connection, collection: Collection, name: str, now: float) -> int:
    """The key of a person, who is made if need be."""
    known = _find_person(connection, collection, name)
    if known is not None:
        return known
    key = connection.execute(
        "INSERT INTO persons (collection, hash, name, created) VALUES (?, ?, ?, ?)",
        (
            collection.key,
            payloads.hashed(connection, name),
            payloads.put(connection, payloads.of_text(name)),
            now,
        ),
    ).lastrowid
    assert key is not None  # noqa: S101 - an INSERT has one
    return key


def _find_person(connection: sqlite3.Connection, collection: Collection, name: str) -> int | None:
    found = connection.execute(
        "SELECT id FROM persons WHERE collection = ? AND hash = ?",
        (collection.key, payloads.hashed(connection, name)),
    ).fetchone()
    return int(found[0]) if found else None


def move_faces(
    connection: sqlite3.Connection, collection: Collection, faces: Sequence[int], name: str
) -> tuple[int, list[str]]:
    """Gives faces to a person, who is made if need be.

    Returns:
        the person's key, and the names of persons who have no face any more and are gone.

    Raises:
        NotInGallery: COLLECTION_NOT_FOUND; ENROLLED_FACE_NOT_FOUND, none is moved.
    """
    _check(connection, collection)
    before = _persons_of(connection, collection, faces)
    person = _person(connection, collection, name, time.time())
    connection.executemany(
        "UPDATE faces SET person = ? WHERE id = ?", [(person, face) for face in faces]
    )
    return person, _drop_empty(connection, before)


def delete_faces(
    connection: sqlite3.Connection, collection: Collection, faces: Sequence[int]
) -> list[str]:
    """Deletes faces; the names of persons who have none any more and are gone.

    Raises:
        NotInGallery: COLLECTION_NOT_FOUND; ENROLLED_FACE_NOT_FOUND, none is deleted.
    """
    _check(connection, collection)
    before = _persons_of(connection, collection, faces)
    for face in faces:
        gone = connection.execute(
            "DELETE FROM faces WHERE id = ? RETURNING vector, labels", (face,)
        ).fetchall()
        _drop_payloads(connection, gone)
    return _drop_empty(connection, before)


def delete_person(connection: sqlite3.Connection, collection: Collection, name: str) -> list[int]:
    """Deletes a person; the keys of the faces that are gone, too.

    Raises:
        NotInGallery: COLLECTION_NOT_FOUND, PERSON_NOT_FOUND.
    """
    _check(connection, collection)
    person = _find_person(connection, collection, name)
    if person is None:
        raise _no_person(collection, name)
    gone = connection.execute(
        "DELETE FROM faces WHERE person = ? RETURNING id, vector, labels", (person,)
    ).fetchall()
    _drop_payloads(connection, [(vector, labels) for _, vector, labels in gone])
    _drop_empty(connection, {person})
    return [face for face, _, _ in gone]


def _drop_payloads(connection: sqlite3.Connection, rows: Sequence[tuple[int | None, ...]]) -> None:
    numbers = (number for row in rows for number in row if number is not None)
    payloads.drop(connection, numbers)


def _persons_of(
    connection: sqlite3.Connection, collection: Collection, faces: Sequence[int]
) -> set[int]:
    """The keys of the persons whose faces these are.

    Raises:
        NotInGallery: ENROLLED_FACE_NOT_FOUND.
    """
    persons = set()
    for number, face in enumerate(faces):
        found = connection.execute(
            "SELECT person FROM faces WHERE id = ? AND collection = ?", (face, collection.key)
        ).fetchone()
        if not found:
            raise _no_face(collection, face, f"face_ids[{number}]")
        persons.add(found[0])
    return persons


def _drop_empty(connection: sqlite3.Connection, persons: set[int]) -> list[str]:
    """Deletes those of the persons who have no faces; their names."""
    names = []
    for person in sorted(persons):
        gone = connection.execute(
            "DELETE FROM persons WHERE id = ?1"
            " AND NOT EXISTS (SELECT 1 FROM faces WHERE person = ?1) RETURNING name",
            (person,),
        ).fetchall()
        for (name,) in gone:
            (body,) = connection.execute(
                "SELECT body FROM payloads WHERE id = ?", (name,)
            ).fetchone()
            names.append(payloads.to_text(body))
        _drop_payloads(connection, gone)
    return names


# What is read.


_PERSON = (
    "SELECT persons.id, body, (SELECT count(*) FROM faces WHERE person = persons.id), created"
    " FROM persons JOIN payloads ON payloads.id = name"
)


def persons(
    connection: sqlite3.Connection, collection: Collection, *, after: int, most: int
) -> list[Person]:
    """The persons with keys above `after`, the first enrolled first, at most `most`."""
    rows = connection.execute(
        f"{_PERSON} WHERE collection = ? AND persons.id > ? ORDER BY persons.id LIMIT ?",
        (collection.key, after, most),
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
    if not row:
        raise _no_person(collection, name)
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
    key = _find_person(connection, collection, of)
    if key is None:
        raise _no_person(collection, of)
    rows = connection.execute(
        f"{_FACE} WHERE person = ? AND faces.id > ? ORDER BY faces.id LIMIT ?", (key, after, most)
    )
    return [_face(*row) for row in rows.fetchall()]


def face(connection: sqlite3.Connection, collection: Collection, key: int) -> EnrolledFace:
    """One face.

    Raises:
        NotInGallery: ENROLLED_FACE_NOT_FOUND.
    """
    row = connection.execute(
        f"{_FACE} WHERE faces.id = ? AND faces.collection = ?", (key, collection.key)
    ).fetchone()
    if not row:
        raise _no_face(collection, key, "face_id")
    return _face(*row)


def _face(
    key: int, name: bytes, labels: bytes | None, quality: str | None, created: float
) -> EnrolledFace:
    figures = Quality(**json.loads(quality)) if quality else None
    return EnrolledFace(key, payloads.to_text(name), _labels(labels), figures, created)


def _labels(body: bytes | None) -> Labels:
    read: Labels = json.loads(payloads.to_text(body)) if body else {}
    return read


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
    read_labels: dict[bytes | None, Labels] = {None: {}}
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
        for text in set(labels) - read_labels.keys():
            read_labels[text] = _labels(text)
        yield Loaded(
            np.array(keys, np.int64),
            np.array(of_persons, np.int64),
            [names[person] for person in of_persons],
            [read_labels[text] for text in labels],
            vectors,
        )


def _no_person(collection: Collection, name: str) -> NotInGallery:
    return NotInGallery(
        Reason.PERSON_NOT_FOUND,
        f"Collection {collection.name!r} has no person {name!r}.",
        field="person_id",
    )


def _no_face(collection: Collection, key: int, field: str) -> NotInGallery:
    return NotInGallery(
        Reason.ENROLLED_FACE_NOT_FOUND,
        f"Collection {collection.name!r} has no face {face_id(key)!r}.",
        field=field,
    )


def face_id(key: int) -> str:
    """A face's key as callers know it."""
    return f"{key:016x}"
