"""The file of the galleries: opened, brought up to date, and checked before anything is served from it.

SQLite in WAL mode with synchronous FULL: what was committed survives SIGKILL and loss of power. `payloads`
says how what is deleted leaves the file; the WAL still has it until it is truncated.
"""

import fcntl
import sqlite3
from pathlib import Path
from typing import IO

from mien_server.errors import OperatorError
from mien_server.settings import name_of

FILENAME = "gallery.db"
LOCK = "gallery.lock"

_APPLICATION = 0x6D69656E
"""What marks a SQLite file as mien's: "mien"."""

_PAGE_BYTES = 16384
"""Holds seven embeddings of 512 numbers; a page of 4096 would hold one."""

_MIGRATIONS = (
    """
    CREATE TABLE salt (value BLOB NOT NULL) STRICT;
    INSERT INTO salt VALUES (randomblob(32));
    CREATE TABLE payloads (id INTEGER PRIMARY KEY AUTOINCREMENT, body BLOB NOT NULL) STRICT;
    CREATE TABLE free_payloads (size INTEGER NOT NULL, id INTEGER NOT NULL, PRIMARY KEY (size, id))
        STRICT, WITHOUT ROWID;
    CREATE TABLE collections (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        name TEXT NOT NULL UNIQUE,
        model TEXT NOT NULL,
        version INTEGER NOT NULL,
        fingerprint TEXT NOT NULL,
        dimensions INTEGER NOT NULL,
        threshold REAL,
        created REAL NOT NULL
    ) STRICT;
    CREATE TABLE persons (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        collection INTEGER NOT NULL REFERENCES collections,
        hash BLOB NOT NULL,
        name INTEGER NOT NULL REFERENCES payloads,
        created REAL NOT NULL,
        UNIQUE (collection, hash)
    ) STRICT;
    CREATE TABLE faces (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        collection INTEGER NOT NULL REFERENCES collections,
        person INTEGER NOT NULL REFERENCES persons,
        vector INTEGER NOT NULL REFERENCES payloads,
        labels INTEGER REFERENCES payloads,
        request BLOB,
        quality TEXT,
        norm REAL NOT NULL,
        created REAL NOT NULL
    ) STRICT;
    CREATE INDEX faces_of_collection ON faces (collection);
    CREATE INDEX faces_of_person ON faces (person);
    CREATE UNIQUE INDEX requests ON faces (collection, request) WHERE request IS NOT NULL;
    """,
    """
    ALTER TABLE collections ADD COLUMN crops INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE faces ADD COLUMN crop INTEGER REFERENCES payloads;
    CREATE TABLE reembedded (
        face INTEGER PRIMARY KEY REFERENCES faces,
        fingerprint TEXT NOT NULL,
        vector INTEGER NOT NULL REFERENCES payloads,
        norm REAL NOT NULL
    ) STRICT;
    """,
)
"""What makes each version of the schema from the one before; user_version counts them."""


_NOT_DAMAGED = (
    *(sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_READONLY),
    *(sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY),
)
"""Codes of SQLite's that say nothing of what is in the file."""


class GalleryDamaged(OperatorError):
    """The file of the galleries cannot be used; the message says why and what to do."""


def lock(folder: Path) -> IO[bytes]:
    """Makes the folder if need be, for its owner alone, and keeps other servers out of it.

    Returns:
        what keeps them out, until it is closed.

    Raises:
        OperatorError: it cannot be made, or another server has it.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = (folder / LOCK).open("wb")
    except OSError as error:
        raise OperatorError(
            f"the galleries cannot be kept in {folder}: {error.strerror}. Name another folder with"
            f" {name_of('gallery_dir')}."
        ) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise OperatorError(
            f"another server keeps its galleries in {folder}: stop it, or name another folder with"
            f" {name_of('gallery_dir')}."
        ) from error
    return file


def open_database(path: Path) -> sqlite3.Connection:
    """Opens the file for writing, makes it if need be, brings it up to date and checks its structure.

    Raises:
        GalleryDamaged: it is damaged, of a newer mien, or no file of mien's.
    """
    try:
        connection = connect(path)
        try:
            _prepare(connection, path)
        except BaseException:
            connection.close()
            raise
    except sqlite3.Error as error:
        raise unusable(path, error) from error
    return connection


def unusable(path: Path, error: sqlite3.Error) -> OperatorError:
    """The error to raise for one of SQLite's at the start."""
    if error.sqlite_errorcode & 0xFF in _NOT_DAMAGED:
        return OperatorError(
            f"{path} cannot be opened for writing: {error}. Give this user the right to, and the disk room,"
            f" or name another folder with {name_of('gallery_dir')}."
        )
    return damaged(path, str(error))


def connect(path: Path, *, read_only: bool = False) -> sqlite3.Connection:
    """A connection that any one thread at a time may use. Transactions are begun by hand."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA busy_timeout = 5000")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA temp_store = MEMORY")
    if read_only:
        connection.execute("PRAGMA query_only = ON")
    return connection


def damaged(path: Path, what: str) -> GalleryDamaged:
    """The error for a file in which `what` was found."""
    return GalleryDamaged(
        f"{path} is damaged: {what}. Put a backup in its place (docs/galleries.md), or move it away to begin"
        " with empty galleries."
    )


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    connection.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA secure_delete = ON")
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if application != _APPLICATION and tables:
        raise GalleryDamaged(f"{path} is not a file of mien's: name another folder for galleries.")
    if version > len(_MIGRATIONS):
        raise GalleryDamaged(
            f"{path} was written by a newer mien (schema {version}, this one knows"
            f" {len(_MIGRATIONS)}): run that one."
        )
    if tables:
        problems = [row[0] for row in connection.execute("PRAGMA quick_check(1)")]
        if problems != ["ok"]:
            raise damaged(path, problems[0])
    for number, script in enumerate(_MIGRATIONS[version:], version + 1):
        connection.executescript(
            f"BEGIN IMMEDIATE; PRAGMA application_id = {_APPLICATION}; {script}"
            f"PRAGMA user_version = {number}; COMMIT;"
        )
