"""A folder's galleries as an end of a copy."""

import contextlib
import json
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from mien_server.errors import OperatorError
from mien_server.gallery import payloads, reading, record
from mien_server.gallery.database import FILENAME, lock, open_database, unusable
from mien_server.gallery.labels import from_text
from mien_server.gallery.types import Collection, StoredFace
from mien_server.pipeline.types import Quality

_PAGE = 1024


class FolderEnd:
    """The SQLite file of a folder: `copying.Target`.

    Args:
        connection: to the file, used by nobody else.
    """

    takes_crops = True

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    @classmethod
    @contextlib.contextmanager
    def opened(cls, folder: Path) -> Iterator["FolderEnd"]:
        """That of a folder, which is made if need be, and which no server has meanwhile.

        Raises:
            OperatorError: it cannot be used, another process has it, or its file is damaged.
        """
        with lock(folder):
            connection = open_database(folder / FILENAME)
            try:
                yield cls(connection)
            except sqlite3.IntegrityError as error:
                raise OperatorError(
                    f"{folder} has other faces of the same ids ({error}): copy into an empty folder"
                ) from error
            except sqlite3.Error as error:
                raise unusable(folder / FILENAME, error) from error
            finally:
                connection.close()

    def collections(self) -> list[Collection]:
        """What is in it."""
        return reading.collections(self._connection)

    def salt(self) -> bytes:
        """What its hashes are made with."""
        (salt,) = self._connection.execute("SELECT value FROM salt").fetchone()
        return bytes(salt)

    def take_salt(self, salt: bytes) -> bool:
        """Takes a salt if nothing was hashed with its own; whether it is the salt now."""
        if salt != self.salt() and not self.collections():
            self._connection.execute("UPDATE salt SET value = ?", (salt,))
        return salt == self.salt()

    def count(self, collection: Collection) -> tuple[int, int]:
        """Faces and persons."""
        persons, faces = reading.counts(self._connection, collection)
        return faces, persons

    def make(self, collection: Collection) -> Collection:
        """The collection, made as the source has it."""
        with self._transaction():
            return record.create_collection(
                self._connection,
                collection.name,
                collection.embedder,
                collection.dimensions,
                collection.threshold,
                created=collection.created,
                keep_crops=collection.keeps_crops,
            )

    def read(self, collection: Collection) -> Iterator[list[StoredFace]]:
        """All faces, some at a time."""
        rows = self._connection.execute(
            "SELECT faces.id, names.body, texts.body, quality, request, norm, faces.created, vectors.body,"
            " (SELECT body FROM payloads WHERE id = crop)"
            " FROM faces JOIN persons ON persons.id = person JOIN payloads AS names ON names.id = name"
            " JOIN payloads AS vectors ON vectors.id = vector"
            " LEFT JOIN payloads AS texts ON texts.id = labels"
            " WHERE faces.collection = ? ORDER BY faces.id",
            (collection.key,),
        )
        while some := rows.fetchmany(_PAGE):
            yield [
                StoredFace(
                    key,
                    payloads.to_text(name),
                    from_text(payloads.to_text(labels) if labels else ""),
                    Quality(**json.loads(quality)) if quality else None,
                    request,
                    norm,
                    created,
                    np.frombuffer(vector, "<f4").astype(np.float32, copy=False),
                    crop,
                )
                for key, name, labels, quality, request, norm, created, vector, crop in some
            ]

    def missing(self, collection: Collection, keys: Sequence[int]) -> set[int]:
        """Those of the keys that no face of the collection has."""
        marks = ", ".join("?" * len(keys))
        rows = self._connection.execute(
            f"SELECT id FROM faces WHERE collection = ? AND id IN ({marks})",  # noqa: S608 - marks only
            (collection.key, *keys),
        )
        return set(keys) - {key for (key,) in rows}

    def write(self, collection: Collection, faces: Sequence[StoredFace]) -> None:
        """Writes faces in one transaction."""
        with self._transaction():
            for face in faces:
                record.insert_face(self._connection, collection, face)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise
