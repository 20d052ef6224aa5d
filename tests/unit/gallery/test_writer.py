"""The thread that writes, when its own code dies."""

import sqlite3
from pathlib import Path
from typing import NoReturn

import pytest

from mien_server.gallery.database import open_database
from mien_server.gallery.writer import Writer
from mien_server.threads import Threads


def count(connection: sqlite3.Connection) -> int:
    (found,) = connection.execute("SELECT count(*) FROM collections").fetchone()
    return int(found)


def dies(_: object) -> NoReturn:
    raise SystemExit(3)


def test_a_thread_that_dies_leaves_nobody_waiting_and_begins_anew(tmp_path: Path) -> None:
    threads = Threads()
    writer = Writer(open_database(tmp_path / "gallery.db"), threads)
    with pytest.raises(RuntimeError, match="writer died"):
        writer.submit(dies, lambda _: None).result(30)
    assert writer.submit(count, lambda _: None).result(30) == (0, True)
    assert writer.submit(count, lambda _: None).result(30) == (0, True)
    assert threads.deaths() == {"mien-gallery": 1}
    assert "mien-gallery" in threads.unwell()
    writer.close()
