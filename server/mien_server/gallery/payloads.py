"""Vectors, names and labels in the file, kept so that deleting one leaves no trace of it.

SQLite overwrites a deleted row with zeros (secure_delete), but not the copies that it leaves behind when it
moves the rows of a page to another, as it does after deletions around them. So these rows are never deleted
and never change their size, which SQLite then overwrites in place: a payload that is dropped becomes zeros,
and its row waits for the next payload of that size. Everything else in the file is numbers and hashes.
"""

import hashlib
import sqlite3
from collections.abc import Iterable

_TEXT_STEP = 64
"""Texts are padded to a multiple of this, so that rows that are free fit others."""

_LENGTH_BYTES = 2


def put(connection: sqlite3.Connection, body: bytes) -> int:
    """Keeps a payload; its number."""
    free = connection.execute(
        "SELECT id FROM free_payloads WHERE size = ? LIMIT 1", (len(body),)
    ).fetchone()
    if free is None:
        number = connection.execute("INSERT INTO payloads (body) VALUES (?)", (body,)).lastrowid
        assert number is not None  # noqa: S101 - an INSERT has one
        return number
    key = (len(body), free[0])
    connection.execute("DELETE FROM free_payloads WHERE size = ? AND id = ?", key)
    connection.execute("UPDATE payloads SET body = ? WHERE id = ?", (body, free[0]))
    return int(free[0])


def drop(connection: sqlite3.Connection, numbers: Iterable[int]) -> None:
    """Overwrites payloads with zeros."""
    for number in numbers:
        (size,) = connection.execute(
            "SELECT length(body) FROM payloads WHERE id = ?", (number,)
        ).fetchone()
        connection.execute("UPDATE payloads SET body = ? WHERE id = ?", (bytes(size), number))
        connection.execute("INSERT INTO free_payloads (size, id) VALUES (?, ?)", (size, number))


def of_text(text: str) -> bytes:
    """A text as a payload."""
    raw = text.encode()
    body = len(raw).to_bytes(_LENGTH_BYTES, "little") + raw
    return body + bytes(-len(body) % _TEXT_STEP)


def to_text(body: bytes) -> str:
    """The text of a payload."""
    length = int.from_bytes(body[:_LENGTH_BYTES], "little")
    return body[_LENGTH_BYTES : _LENGTH_BYTES + length].decode()


def hashed(connection: sqlite3.Connection, text: str) -> bytes:
    """What a text is found by: it tells nobody without the file's salt anything of the text."""
    (salt,) = connection.execute("SELECT value FROM salt").fetchone()
    return hashlib.blake2b(text.encode(), key=salt, digest_size=16).digest()
