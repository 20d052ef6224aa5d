"""The record: what was acknowledged is there after a restart, and what was deleted is nowhere."""

import asyncio
import logging
import os
import random
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from mien_server.errors import AlreadyInGallery, GalleryFull, NotInGallery, OperatorError
from mien_server.gallery import database, payloads
from mien_server.gallery.database import FILENAME, connect
from mien_server.gallery.store import Store
from tests.unit.gallery.conftest import OpenStore
from tests.unit.gallery.enrolling import (
    D,
    as_rows,
    everyone,
    face,
    in_memory,
    made,
    persons_like,
)
from tests.unit.gallery.vectors import random_units


async def test_everything_is_there_after_a_restart(open_store: OpenStore) -> None:
    with open_store() as store:
        live = await store.create("staff", (await made(store, "other")).collection.embedder, D, 0.5)
        rows = [face("ann", 1, labels={"site": "ulm"}), face("bob", 2, key="k"), face("ann", 3)]
        written = await store.enrol(live, rows)
        await store.move(live, [written[2].face], "cy")
        before, collection = in_memory(live), live.collection
    with open_store() as store:
        live = store.find("staff")
        assert live.collection == collection
        assert in_memory(live) == before
        assert await everyone(store, live) == {"ann": 1, "bob": 1, "cy": 1}
        assert await persons_like(store, live, rows[2].vector) == ["cy"]
        stored = await store.reader.face(live, written[0].face)
        assert (stored.person, stored.labels) == ("ann", {"site": "ulm"})
        assert [each.collection.name for each in store.collections()] == ["other", "staff"]
        # Ids are not used twice, not even those of the last faces.
        await store.delete_faces(live, [each.face for each in written])
    with open_store() as store:
        (again,) = await store.enrol(store.find("staff"), rows[:1])
        assert again.face > max(each.face for each in written)


async def test_request_key_enrols_once(open_store: OpenStore) -> None:
    with open_store() as store:
        live = await made(store)
        first, twin = await store.enrol(live, [face("ann", 1, key="a"), face("ann", 2, key="a")])
        assert (first.existing, twin.existing) == (False, True)
        assert twin.face == first.face
        other = await made(store, "other")
        (elsewhere,) = await store.enrol(other, [face("ann", 1, key="a")])
        assert not elsewhere.existing
    with open_store() as store:
        live = store.find("staff")
        await store.move(live, [first.face], "bob")
        (again,) = await store.enrol(live, [face("ann", 1, key="a")])
        assert (again.face, again.name, again.existing) == (first.face, "bob", True)
        assert live.index.snapshot.faces == 1
        await store.delete_faces(live, [first.face])
        (new,) = await store.enrol(live, [face("ann", 1, key="a")])
        assert not new.existing


async def test_changes_that_come_together_share_a_commit(store: Store, tmp_path: Path) -> None:
    live = await made(store)
    (tmp_path / "galleries" / f"{FILENAME}-wal").stat()
    commits = []
    connection = store._writer._connection
    connection.set_trace_callback(lambda sql: commits.append(sql) if sql == "COMMIT" else None)
    await asyncio.gather(*(store.enrol(live, [face(f"p{i}", i)]) for i in range(200)))
    assert live.index.snapshot.faces == 200
    assert len(commits) <= 20


async def test_refused_change_leaves_its_companions_alone(store: Store) -> None:
    live = await made(store)
    changes: list[Any] = [store.enrol(live, [face("ann", 1)]), store.delete_faces(live, [77])]
    changes += [store.enrol(live, [face("bob", 2)]), made(store)]
    done = await asyncio.gather(*changes, return_exceptions=True)
    assert isinstance(done[1], NotInGallery)
    assert isinstance(done[3], AlreadyInGallery)
    assert await everyone(store, live) == {"ann": 1, "bob": 1}
    assert live.index.snapshot.faces == 2


def traces(folder: Path, *needles: bytes) -> list[tuple[str, int]]:
    """The files that hold one of the needles, and which."""
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    return [
        (name, i)
        for name, content in files.items()
        for i, needle in enumerate(needles)
        if needle in content
    ]


@pytest.mark.parametrize("dimensions", [16, 512])
async def test_what_is_deleted_is_in_no_file(dimensions: int, store: Store, tmp_path: Path) -> None:
    """Many faces come and go in random order, so that SQLite splits and merges its pages."""
    folder = tmp_path / "galleries"
    random_order = random.Random(7)  # noqa: S311 - it decides an order
    live = await made(store, dimensions=dimensions)
    kept: dict[int, tuple[bytes, ...]] = {}
    gone: list[bytes] = []
    for turn in range(6):
        rows = [
            face(
                f"person-{turn}-{i}-xyzzy" + "x" * (i % 100),
                turn * 1000 + i,
                labels={"secret": f"label-{turn}-{i}#"},
                key=f"key-{turn}-{i}#",
                dimensions=dimensions,
            )
            for i in range(50)
        ]
        for row, written in zip(rows, await store.enrol(live, rows), strict=True):
            vector = row.vector.tobytes()
            pieces = [vector[i : i + 16] for i in (0, len(vector) // 2, len(vector) - 16)]
            kept[written.face] = (row.person.encode(), row.labels["secret"].encode(), *pieces)
        assert len(traces(folder, *kept[written.face])) >= len(kept[written.face])
        chosen = random_order.sample(sorted(kept), len(kept) // 2)
        emptied, erased = await store.delete_faces(live, chosen)
        assert erased
        assert len(emptied) == len(chosen)
        gone += [piece for key in chosen for piece in kept.pop(key)]
        assert traces(folder, *gone, b"key-") == []
    assert await store.delete(live) == (len(kept), True)
    assert traces(folder, *gone, *(piece for pieces in kept.values() for piece in pieces)) == []


async def test_moving_the_last_face_erases_the_name(store: Store, tmp_path: Path) -> None:
    live = await made(store)
    (a,) = await store.enrol(live, [face("wrong-name-xyzzy", 1)])
    await store.move(live, [a.face], "right")
    assert traces(tmp_path / "galleries", b"wrong-name-xyzzy") == []


async def test_erasure_waits_for_a_reader_and_says_so(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "galleries"
    live = await made(store)
    (a,) = await store.enrol(live, [face("ann-xyzzy", 1)])
    backup = connect(folder / FILENAME, read_only=True)
    backup.execute("BEGIN")
    backup.execute("SELECT * FROM persons").fetchall()
    emptied, erased = await store.delete_faces(live, [a.face])
    assert (emptied, erased) == (["ann-xyzzy"], False)
    assert live.index.snapshot.faces == 0
    backup.execute("COMMIT")
    backup.close()
    async with asyncio.timeout(10):
        while traces(folder, b"ann-xyzzy"):  # noqa: ASYNC110 - files tell nobody
            await asyncio.sleep(0.05)


async def test_more_than_the_limit_is_refused_and_the_rest_goes_on(open_store: OpenStore) -> None:
    with open_store() as measured:
        row_bytes = (await made(measured)).index.row_bytes
    with open_store(max_bytes=10 * row_bytes) as store:
        live = store.find("staff")
        rows = as_rows(random_units(12, D))
        written = await store.enrol(live, rows[:6])
        with pytest.raises(GalleryFull, match="gallery-max-bytes"):
            await store.enrol(live, rows[6:])
        refused = await asyncio.gather(
            *(store.enrol(live, [row]) for row in rows[6:]), return_exceptions=True
        )
        assert [isinstance(each, GalleryFull) for each in refused] == [False] * 4 + [True] * 2
        assert await persons_like(store, live, rows[0].vector) == ["p00000"]
        await store.delete_faces(live, [each.face for each in written])
        await store.enrol(live, rows[:4])
    with open_store(max_bytes=2 * row_bytes) as store:
        assert store.find("staff").index.snapshot.faces == 8
        with pytest.raises(GalleryFull):
            await store.enrol(store.find("staff"), rows[:1])


async def test_full_disk_refuses_what_it_cannot_hold_and_nothing_else(store: Store) -> None:
    live = await made(store, dimensions=512)
    few, many = as_rows(random_units(20, 512)), as_rows(random_units(600, 512, seed=1))
    await store.enrol(live, few)
    connection = store._writer._connection
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages + 3}")
    done = await asyncio.gather(
        store.enrol(live, many), store.enrol(live, few[:2]), return_exceptions=True
    )
    assert isinstance(done[0], GalleryFull)
    assert "disk" in done[0].message
    assert not isinstance(done[1], Exception)
    assert live.index.snapshot.faces == 22
    assert await persons_like(store, live, few[3].vector) == ["p00003"]
    assert await store.delete_person(live, "p00003") == (1, True)
    connection.execute("PRAGMA max_page_count = 100000")
    assert len(await store.enrol(live, many)) == 600


async def test_change_that_nobody_waits_for_any_more_is_not_made(store: Store) -> None:
    live = await made(store)
    begun, go = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def held(connection: sqlite3.Connection) -> None:
        loop.call_soon_threadsafe(begun.set)
        asyncio.run_coroutine_threadsafe(go.wait(), loop).result(10)

    first = store._writer.submit(held, lambda _: None)
    await begun.wait()
    late = asyncio.create_task(store.enrol(live, [face("ann", 1)]))
    await asyncio.sleep(0)
    late.cancel()
    await asyncio.gather(late, return_exceptions=True)
    go.set()
    await asyncio.wrap_future(first)
    await store.enrol(live, [face("bob", 2)])
    assert await everyone(store, live) == {"bob": 1}
    assert store._reserved == 0


def test_folder_belongs_to_one_server(open_store: OpenStore) -> None:
    with open_store(), pytest.raises(OperatorError, match="another server keeps its galleries"):
        open_store().__enter__()
    with open_store():
        pass


def test_folder_is_made_for_its_owner_alone(open_store: OpenStore, tmp_path: Path) -> None:
    with open_store(tmp_path / "deep" / "galleries"):
        assert (tmp_path / "deep" / "galleries").stat().st_mode & 0o777 == 0o700


def test_folder_that_cannot_be_made_is_told(open_store: OpenStore, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OperatorError, match="--gallery-dir"):
        open_store(tmp_path / "file" / "sub").__enter__()


def test_file_that_cannot_be_opened_is_told_and_not_called_damaged(
    open_store: OpenStore, tmp_path: Path
) -> None:
    (tmp_path / "galleries" / FILENAME).mkdir(parents=True)
    with pytest.raises(OperatorError, match="cannot be opened for writing"):
        open_store().__enter__()


@pytest.mark.parametrize("what", ["header", "middle", "cut", "vector", "newer", "foreign"])
async def test_file_that_cannot_be_right_is_refused_at_the_start(
    what: str, open_store: OpenStore, tmp_path: Path
) -> None:
    path = tmp_path / "galleries" / FILENAME
    with open_store() as store:
        live = await made(store, dimensions=512)
        await store.enrol(live, as_rows(random_units(100, 512)))
    size = os.stat(path).st_size  # noqa: PTH116
    with path.open("r+b") as file:
        match what:
            case "header":
                file.write(b"not SQLite")
            case "middle":
                file.seek(size // 2)
                file.write(b"\xff" * 16384)
            case "cut":
                file.truncate(size // 2)
    if what in ("vector", "newer", "foreign"):
        connection = sqlite3.connect(path)
        script = {
            "vector": "UPDATE payloads SET body = zeroblob(2048) WHERE length(body) = 2048",
            "newer": "PRAGMA user_version = 99",
            "foreign": "PRAGMA application_id = 7",
        }[what]
        connection.execute(script)
        connection.commit()
        connection.close()
    expected = {"newer": "a newer mien", "foreign": "not a file of mien's"}
    with pytest.raises(OperatorError, match=expected.get(what, "is damaged")):
        open_store().__enter__()


async def test_backup_while_serving_is_a_gallery(
    store: Store, open_store: OpenStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    live = await made(store)
    rows = as_rows(random_units(50, D))
    await store.enrol(live, rows)
    copy = tmp_path / "copy"
    copy.mkdir()
    source, target = connect(tmp_path / "galleries" / FILENAME), connect(copy / FILENAME)
    source.backup(target)
    source.close()
    target.close()
    with caplog.at_level(logging.INFO), open_store(copy) as restored:
        again = restored.find("staff")
        assert in_memory(again) == in_memory(live)
        assert await persons_like(restored, again, rows[7].vector) == ["p00007"]
    assert "collection loaded" in caplog.text


async def test_file_of_the_first_schema_is_brought_up_to_date(
    open_store: OpenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "galleries").mkdir()
    vector = random_units(1, D)[0]
    with monkeypatch.context() as older:
        older.setattr(database, "_MIGRATIONS", database._MIGRATIONS[:1])
        connection = database.open_database(tmp_path / "galleries" / FILENAME)
    connection.execute(
        "INSERT INTO collections (name, model, version, fingerprint, dimensions, created)"
        " VALUES ('staff', 'sface', 1, '0123456789abcdef', ?, 5)",
        (D,),
    )
    name, body = payloads.put(connection, payloads.of_text("ann")), vector.tobytes()
    connection.execute(
        "INSERT INTO persons (collection, hash, name, created) VALUES (1, ?, ?, 6)",
        (payloads.hashed(connection, "ann"), name),
    )
    connection.execute(
        "INSERT INTO faces (collection, person, vector, norm, created) VALUES (1, 1, ?, 9, 6)",
        (payloads.put(connection, body),),
    )
    connection.close()
    with open_store() as store:
        live = store.find("staff")
        assert not live.collection.keeps_crops
        assert await persons_like(store, live, vector) == ["ann"]
        assert await store.delete_person(live, "ann") == (1, True)
        keeping = await store.create("keeping", live.collection.embedder, D, None, keep_crops=True)
        assert keeping.collection.keeps_crops
