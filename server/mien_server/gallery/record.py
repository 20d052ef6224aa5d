"""What the galleries' file is told, in SQL. All of it runs within a transaction of the writer's."""

import json
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from mien_server.errors import AlreadyInGallery, Reason, Unmet
from mien_server.gallery import payloads
from mien_server.gallery.labels import to_text
from mien_server.gallery.reading import (
    Written,
    face_of_request,
    find_person,
    no_collection,
    no_face,
    no_person,
)
from mien_server.gallery.types import Collection, Labels, StoredFace
from mien_server.pipeline.types import ArrayF32, ModelIdentity, Quality


@dataclass(frozen=True, slots=True)
class FaceRow:
    """A face to write: `vector` [d] of unit length, `norm` before that; `person` "" for nobody yet."""

    person: str
    labels: Labels
    request_key: str
    quality: Quality | None
    norm: float
    vector: ArrayF32
    crop: bytes | None = None


# Collections.


def create_collection(
    connection: sqlite3.Connection,
    name: str,
    embedder: ModelIdentity,
    dimensions: int,
    threshold: float | None,
    *,
    created: float | None = None,
    keep_crops: bool = False,
) -> Collection:
    """A new collection, made now, or of another store when it was `created` there.

    Raises:
        AlreadyInGallery: COLLECTION_EXISTS.
    """
    row = (name, embedder.name, embedder.version, embedder.fingerprint, dimensions, threshold)
    created = time.time() if created is None else created
    if connection.execute("SELECT 1 FROM collections WHERE name = ?", (name,)).fetchone():
        raise AlreadyInGallery(
            Reason.COLLECTION_EXISTS,
            f"There is a collection {name!r} already: use it, delete it first, or choose another name.",
            field="name",
        )
    key = connection.execute(
        "INSERT INTO collections (name, model, version, fingerprint, dimensions, threshold, created, crops)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (*row, created, keep_crops),
    ).lastrowid
    assert key is not None  # noqa: S101 - an INSERT has one
    return Collection(key, name, embedder, dimensions, threshold, created, keep_crops)


def delete_collection(connection: sqlite3.Connection, collection: Collection) -> int:
    """Deletes a collection with all that is in it; the number of its faces."""
    _check(connection, collection)
    faces = _drop_faces(connection, "collection = ?", collection.key)
    names = connection.execute(
        "DELETE FROM persons WHERE collection = ? RETURNING name", (collection.key,)
    ).fetchall()
    connection.execute("DELETE FROM collections WHERE id = ?", (collection.key,))
    drop_payloads(connection, names)
    return len(faces)


def _check(connection: sqlite3.Connection, collection: Collection) -> str:
    """Refuses a collection that was deleted while the call was under way; its model's fingerprint now."""
    found = connection.execute(
        "SELECT fingerprint FROM collections WHERE id = ?", (collection.key,)
    ).fetchone()
    if not found:
        raise no_collection(collection.name)
    return str(found[0])


# Faces and persons.


def enrol(
    connection: sqlite3.Connection, collection: Collection, rows: Sequence[FaceRow]
) -> list[Written]:
    """Adds faces, but for those whose request key is there already.

    Raises:
        NotInGallery: COLLECTION_NOT_FOUND, it was deleted meanwhile.
        Unmet: EMBEDDING_MISMATCH, it has got another model meanwhile.
    """
    if _check(connection, collection) != collection.embedder.fingerprint:
        raise Unmet(
            Reason.EMBEDDING_MISMATCH,
            f"Collection {collection.name!r} has got another model while these faces were embedded: enrol"
            " them once more.",
            field="collection",
        )
    now = time.time()
    return [_enrol(connection, collection, row, now) for row in rows]


def _enrol(
    connection: sqlite3.Connection, collection: Collection, row: FaceRow, now: float
) -> Written:
    if row.request_key:
        existing = face_of_request(connection, collection, row.request_key)
        if existing:
            return existing
    request = payloads.hashed(connection, row.request_key) if row.request_key else None
    who, labels, quality = row.person, row.labels, row.quality
    face = StoredFace(0, who, labels, quality, request, row.norm, now, row.vector, row.crop)
    key, person = insert_face(connection, collection, face)
    return Written(key, person, row.person, existing=False)


def insert_face(
    connection: sqlite3.Connection, collection: Collection, face: StoredFace
) -> tuple[int, int]:
    """Adds a face as it is, with a key of its own where that is 0: its key and its person's.

    Raises:
        sqlite3.IntegrityError: there is one of this key.
    """
    person = _person(connection, collection, face.person, face.created)
    labels = to_text(face.labels)
    key = connection.execute(
        "INSERT INTO faces"
        " (id, collection, person, vector, labels, request, quality, norm, created, crop)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            face.key or None,
            collection.key,
            person,
            payloads.put(connection, face.vector.astype("<f4").tobytes()),
            payloads.put(connection, payloads.of_text(labels)) if labels else None,
            face.request,
            json.dumps(asdict(face.quality)) if face.quality else None,
            face.norm,
            face.created,
            payloads.put(connection, face.crop) if face.crop else None,
        ),
    ).lastrowid
    assert key is not None  # noqa: S101 - an INSERT has one
    return key, person


def _person(connection: sqlite3.Connection, collection: Collection, name: str, now: float) -> int:
    """The key of a person, who is made if need be."""
    known = find_person(connection, collection, name)
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
        _drop_faces(connection, "id = ?", face)
    return _drop_empty(connection, before)


def delete_person(connection: sqlite3.Connection, collection: Collection, name: str) -> list[int]:
    """Deletes a person; the keys of the faces that are gone, too.

    Raises:
        NotInGallery: COLLECTION_NOT_FOUND, PERSON_NOT_FOUND.
    """
    _check(connection, collection)
    person = find_person(connection, collection, name)
    if person is None or not name:
        raise no_person(collection, name)
    gone = _drop_faces(connection, "person = ?", person)
    _drop_empty(connection, {person})
    return gone


def _drop_faces(connection: sqlite3.Connection, condition: str, value: int) -> list[int]:
    """Deletes the faces of a condition and all that is kept of them; their keys."""
    anew = connection.execute(
        f"DELETE FROM reembedded WHERE face IN (SELECT id FROM faces WHERE {condition})"  # noqa: S608
        " RETURNING vector",
        (value,),
    ).fetchall()
    gone = connection.execute(
        f"DELETE FROM faces WHERE {condition} RETURNING id, vector, labels, crop",  # noqa: S608
        (value,),
    ).fetchall()
    drop_payloads(connection, [*anew, *(row[1:] for row in gone)])
    return [row[0] for row in gone]


def drop_payloads(connection: sqlite3.Connection, rows: Sequence[tuple[int | None, ...]]) -> None:
    """Overwrites the payloads of these numbers."""
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
            raise no_face(collection, face, f"face_ids[{number}]")
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
        drop_payloads(connection, gone)
    return [name for name in names if name]
