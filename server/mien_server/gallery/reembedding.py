"""A collection on its way to another embedder, in SQL: what has been embedded anew, and the swap."""

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, replace

from mien_server.gallery import payloads, reading
from mien_server.gallery.reading import Loaded
from mien_server.gallery.record import drop_payloads
from mien_server.gallery.types import Collection
from mien_server.pipeline.types import ArrayF32, ModelIdentity

_LEFT = (
    "FROM faces WHERE collection = ? AND NOT EXISTS"
    " (SELECT 1 FROM reembedded WHERE face = faces.id AND fingerprint = ?)"
)


@dataclass(frozen=True, slots=True)
class Anew:
    """A face embedded anew: its key, the vector [d] of unit length, and the norm before that."""

    face: int
    vector: ArrayF32
    norm: float


def left(
    connection: sqlite3.Connection, collection: Collection, fingerprint: str, most: int
) -> list[tuple[int, bytes]]:
    """The first faces that a model has not embedded: their keys and crops."""
    rows = connection.execute(
        f"SELECT faces.id, (SELECT body FROM payloads WHERE id = crop) {_LEFT}"  # noqa: S608 - of this module
        " ORDER BY faces.id LIMIT ?",
        (collection.key, fingerprint, most),
    )
    return [(face, body) for face, body in rows.fetchall()]


def count_left(connection: sqlite3.Connection, collection: Collection, fingerprint: str) -> int:
    """How many faces a model has not embedded."""
    statement = f"SELECT count(*) {_LEFT}"
    (count,) = connection.execute(statement, (collection.key, fingerprint)).fetchone()
    return int(count)


def put(
    connection: sqlite3.Connection,
    collection: Collection,
    fingerprint: str,
    faces: Sequence[Anew],
) -> None:
    """Keeps what a model has made of faces, in place of what another one has."""
    for each in faces:
        there = connection.execute(
            "SELECT 1 FROM faces WHERE id = ? AND collection = ?", (each.face, collection.key)
        ).fetchone()
        if not there:
            continue  # it was deleted meanwhile
        older = connection.execute(
            "DELETE FROM reembedded WHERE face = ? RETURNING vector", (each.face,)
        ).fetchall()
        drop_payloads(connection, older)
        vector = payloads.put(connection, each.vector.astype("<f4").tobytes())
        connection.execute(
            "INSERT INTO reembedded (face, fingerprint, vector, norm) VALUES (?, ?, ?, ?)",
            (each.face, fingerprint, vector, each.norm),
        )


def swap(
    connection: sqlite3.Connection,
    collection: Collection,
    embedder: ModelIdentity,
    dimensions: int,
) -> tuple[Collection, list[Loaded]] | None:
    """Makes the other model that of the collection, if it has embedded every face.

    Returns:
        the collection and its faces as they are now; None: faces are left, or it was deleted meanwhile.
    """
    if count_left(connection, collection, embedder.fingerprint):
        return None
    anew = connection.execute(
        "SELECT faces.id, faces.vector, reembedded.vector, reembedded.norm FROM faces"
        " JOIN reembedded ON face = faces.id WHERE collection = ?",
        (collection.key,),
    ).fetchall()
    for face, before, vector, norm in anew:
        connection.execute("DELETE FROM reembedded WHERE face = ?", (face,))
        connection.execute(
            "UPDATE faces SET vector = ?, norm = ? WHERE id = ?", (vector, norm, face)
        )
        payloads.drop(connection, [before])
    changed = connection.execute(
        "UPDATE collections SET model = ?, version = ?, fingerprint = ?, dimensions = ? WHERE id = ?",
        (embedder.name, embedder.version, embedder.fingerprint, dimensions, collection.key),
    )
    if not changed.rowcount:
        return None
    now = replace(collection, embedder=embedder, dimensions=dimensions)
    return now, list(reading.load(connection, now))
