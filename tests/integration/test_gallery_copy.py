"""`mien-server gallery copy`: a folder to another and, among the long tests, to a real Milvus and back."""

import contextlib
import json
import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mien_server.backends.devices import CpuDevice
from mien_server.commands.main import main
from mien_server.gallery.copying import CopyTarget, copy
from mien_server.gallery.copying_folder import FolderEnd
from mien_server.gallery.copying_milvus import MilvusEnd
from mien_server.gallery.database import FILENAME
from mien_server.gallery.milvus_store import MilvusStore
from mien_server.gallery.record import FaceRow
from mien_server.gallery.store import Store
from mien_server.gallery.types import Query, StoredFace
from mien_server.pipeline.types import Call, ModelIdentity, Quality
from mien_server.scheduling.scheduler import Scheduler
from tests.milvus_rig import running_milvus

MODEL = ModelIdentity("sface", 1, "0123456789abcdef")
D = 16
FACES = 5000


@contextlib.contextmanager
def opened(folder: Path) -> Iterator[Store]:
    device = CpuDevice(1)
    scheduler = Scheduler([device])
    store = Store(folder, max_bytes=1 << 30, scheduler=scheduler, device=device)
    try:
        yield store
    finally:
        scheduler.close()
        store.close()


def rows() -> list[FaceRow]:
    vectors = np.random.default_rng(3).standard_normal((FACES, D)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return [
        FaceRow(
            f"p{i % 700} é" if i % 5 else "",
            {"site": "ulm", "n": str(i)} if i % 2 else {},
            f"key-{i}" if i % 3 else "",
            Quality(0.2, 0.5, 0.1, size=float(i)) if i % 2 else None,
            9.0 + i,
            vector,
        )
        for i, vector in enumerate(vectors)
    ]


@pytest.fixture
async def folder(tmp_path: Path) -> Path:
    """Galleries with two collections, of which one has faces of every kind, and gaps."""
    path = tmp_path / "source"
    with opened(path) as store:
        live = await store.create("staff", MODEL, D, 0.5)
        all_rows = rows()
        for start in range(0, FACES, 1000):
            written = await store.enrol(live, all_rows[start : start + 1000])
            await store.delete_faces(live, [written[7].face, written[500].face])
        await store.create("guests-1.x", MODEL, D, None)
    return path


def content(end: CopyTarget) -> dict[str, tuple[Any, list[StoredFace]]]:
    """All that is in an end, without what is its own."""
    found = {}
    for collection in end.collections():
        faces = [face for some in end.read(collection) for face in some]
        found[collection.name] = (replace(collection, key=0), faces)
    return found


def plain(found: dict[str, tuple[Any, list[StoredFace]]]) -> object:
    return {
        name: (collection, [(replace(f, vector=None), f.vector.tobytes()) for f in faces])  # type: ignore[arg-type]
        for name, (collection, faces) in found.items()
    }


def run(*arguments: object) -> int:
    return main(["gallery", "copy", *map(str, arguments)])


async def test_copy_of_a_folder_is_the_same(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "target"
    assert run(folder, target, "--json") == 0
    (guests, staff) = json.loads(capsys.readouterr().out)["collections"]
    assert (guests["faces"], guests["copied"]) == (0, 0)
    assert (staff["faces"], staff["persons"], staff["copied"]) == (FACES - 10, 560, FACES - 10)
    with FolderEnd.opened(folder) as one, FolderEnd.opened(target) as other:
        assert plain(content(one)) == plain(content(other))
    with opened(target) as store:  # and a server goes on with it
        live = store.find("staff")
        wanted = rows()[1]
        (again,) = await store.enrol(live, [wanted])
        assert again.existing
        (found,) = await store.search(live, [Query(wanted.vector, 1, 0.9)], Call(), passed=0)
        assert found.matches[0].samples[0].key == again.face
        (new,) = await store.enrol(live, [replace(wanted, request_key="new")])
        assert new.face > again.face
    assert run(folder, target) == 1  # the counts differ now
    assert "somebody changed one of them" in capsys.readouterr().err


async def test_crops_are_copied_where_they_can_be_kept(tmp_path: Path) -> None:
    crop = np.random.default_rng(5).integers(0, 256, 112 * 112 * 3, np.uint8).tobytes()
    with opened(tmp_path / "source") as store:
        live = await store.create("kept", MODEL, D, None, keep_crops=True)
        await store.enrol(live, [replace(row, crop=crop) for row in rows()[:3]])
    assert run(tmp_path / "source", tmp_path / "target") == 0
    with FolderEnd.opened(tmp_path / "target") as end:
        collection, faces = content(end)["kept"]
    assert collection.keeps_crops
    assert [face.crop for face in faces] == [crop] * 3

    class WithoutCrops(Breaking):
        takes_crops = False

    told: list[str] = []
    with (
        FolderEnd.opened(tmp_path / "source") as source,
        FolderEnd.opened(tmp_path / "plain") as end,
    ):
        copy(source, WithoutCrops(end, 9), step=lambda *_: None, warn=told.append)
        collection, faces = content(end)["kept"]
    assert not collection.keeps_crops
    assert [face.crop for face in faces] == [None] * 3
    assert "'kept' is copied without" in told[0]


class Interrupted(Exception):
    """Somebody pulled the plug."""


class Breaking:
    """A target that breaks after so many writes."""

    def __init__(self, end: CopyTarget, writes: int) -> None:
        self._end = end
        self._writes = writes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._end, name)

    def write(self, collection: Any, faces: Sequence[StoredFace]) -> None:
        if not self._writes:
            # As where a part of a page has arrived.
            self._end.write(collection, faces[:100])
            raise Interrupted
        self._writes -= 1
        self._end.write(collection, faces)


def copied(source: CopyTarget, target: CopyTarget) -> list[int]:
    done = copy(source, target, step=lambda *_: None, warn=pytest.fail)
    return [each.copied for each in done]


def check_resumes(source: CopyTarget, target: CopyTarget) -> None:
    """Interrupted twice, and each face is there once at the end."""
    for writes in (0, 1):
        with pytest.raises(Interrupted):
            copied(source, Breaking(target, writes))
    (_, rest) = copied(source, target)
    assert 0 < rest < FACES - 10
    assert copied(source, target) == [0, 0]
    assert plain(content(source)) == plain(content(target))


def test_interrupted_copy_goes_on(folder: Path, tmp_path: Path) -> None:
    with FolderEnd.opened(folder) as source, FolderEnd.opened(tmp_path / "target") as target:
        check_resumes(source, target)


async def test_what_cannot_be_copied_is_told(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "target"
    with opened(target) as store:
        await store.create("staff", MODEL, D, 0.5)
    assert run(folder, target) == 1
    told = capsys.readouterr().err
    assert "without theirs" in told
    assert "another collection 'staff'" in told
    with opened(folder):
        assert run(folder, tmp_path / "other") == 1
        assert "another server keeps its galleries" in capsys.readouterr().err
    assert run(tmp_path / "none", target) == 1
    assert "is not a folder" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
    assert run(folder, folder) == 1
    assert run(folder, "redis://localhost") == 1
    assert "milvus://" in capsys.readouterr().err


async def test_faces_of_another_store_with_the_same_ids_are_not_overwritten(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "target"
    with opened(target) as store:
        live = await store.create("others", MODEL, D, None)
        await store.enrol(live, rows()[:3])
    before = sqlite3.connect(target / FILENAME).execute("SELECT * FROM faces").fetchall()
    assert run(folder, target) == 1
    assert "copy into an empty folder" in capsys.readouterr().err
    assert sqlite3.connect(target / FILENAME).execute("SELECT * FROM faces").fetchall() == before


@pytest.mark.long
@pytest.mark.timeout(600)
async def test_to_milvus_and_back(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with running_milvus(tmp_path / "milvus") as milvus:
        with (
            FolderEnd.opened(folder) as source,
            contextlib.closing(MilvusEnd(milvus.url)) as target,
        ):
            check_resumes(source, target)
        store = MilvusStore(milvus.url)
        try:
            live = store.find("staff")
            wanted = rows()[1]
            (again,) = await store.enrol(live, [wanted])  # its request key came along
            assert again.existing
            (found,) = await store.search(live, [Query(wanted.vector, 1, 0.9)], Call(), passed=0)
            assert found.matches[0].samples[0].key == again.face
        finally:
            store.close()
        back = tmp_path / "back"
        assert run(milvus.url, back) == 0
        assert f"{FACES - 10:,} copied" in capsys.readouterr().out
    with FolderEnd.opened(folder) as one, FolderEnd.opened(back) as other:
        assert plain(content(one)) == plain(content(other))
    shutil.rmtree(tmp_path / "milvus")
