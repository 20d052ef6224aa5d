"""Real amounts, on a real server: many faces enrolled, folders added and embedded, galleries copied."""

import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import mien
from mien import cli
from tests.conftest import LaunchServer
from tools.local_server import LocalServer

Sample = Callable[[str], Path]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def galleries(
    launch_server: LaunchServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LocalServer]:
    """A server that keeps galleries."""
    with launch_server("--gallery-dir", str(tmp_path_factory.mktemp("galleries"))) as running:
        yield running


@pytest.fixture(scope="module")
def client(galleries: LocalServer) -> Iterator[mien.Client]:
    with mien.Client(galleries.address, timeout=60) as client:
        yield client


@pytest.fixture
def gallery(client: mien.Client, request: pytest.FixtureRequest) -> mien.Gallery:
    """An empty gallery."""
    made = client.gallery(request.node.name.partition("[")[0][-60:].strip("_"))
    made.create()
    return made


@pytest.fixture
def run(galleries: LocalServer, capsys: pytest.CaptureFixture[str]) -> Run:
    """`run("gallery", "ls")`: the exit status, standard output and standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        status = cli.main(["--address", galleries.address, *map(str, arguments)])
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def photos(tmp_path: Path, sample: Sample) -> Path:
    """Five photos of two persons in their folders; one is no photo, one has no face."""
    folder = tmp_path / "photos"
    for who in ("person_a", "person_b"):
        (folder / who).mkdir(parents=True)
        shutil.copy(sample(f"{who}_1"), folder / who / "1.jpg")
    shutil.copy(sample("person_b_2"), folder / "person_b" / "2.jpg")
    (folder / "person_a" / "broken.jpg").write_text("no photo")
    (folder / "person_a" / "grey.bmp").write_bytes(grey_bmp())
    return folder


def grey_bmp(side: int = 64) -> bytes:
    """A grey square, as a BMP file."""
    file = io.BytesIO()
    Image.new("RGB", (side, side), "gray").save(file, "BMP")
    return file.getvalue()


def random_embedding(like: mien.Embedding, seed: int) -> mien.Embedding:
    values = np.random.default_rng(seed).standard_normal(len(like.values))
    return mien.Embedding(values / np.linalg.norm(values), 9.0, like.model)


@pytest.fixture(scope="module")
def embedding(client: mien.Client, sample: Sample) -> mien.Embedding:
    return client.embed(sample("person_a_1")).embedding


def new_faces(embedding: mien.Embedding, count: int, *, start: int = 0) -> Iterator[mien.NewFace]:
    for i in range(start, start + count):
        yield mien.NewFace(random_embedding(embedding, i), f"p{i % 10}", {"n": str(i)})


def test_many_faces_are_enrolled_once_whatever_is_repeated(
    gallery: mien.Gallery, embedding: mien.Embedding
) -> None:
    first = list(gallery.enrol_many(new_faces(embedding, 100), concurrency=4))
    assert [each.index for each in first] == list(range(100))
    assert {each.get().outcome for each in first} == {"enrolled"}
    again = list(gallery.enrol_many(new_faces(embedding, 150), concurrency=4, ordered=False))
    assert sorted(each.index for each in again) == list(range(150))
    outcomes = {each.index: each.get().outcome for each in again}
    assert {i for i, outcome in outcomes.items() if outcome == "existing"} == set(range(100))
    assert gallery.info().faces == 150
    labels = {face.labels["n"] for face in gallery.faces()}
    assert labels == {str(i) for i in range(150)}


async def test_many_faces_are_enrolled_by_the_async_client(
    galleries: LocalServer, gallery: mien.Gallery, embedding: mien.Embedding
) -> None:
    async with mien.AsyncClient(galleries.address, timeout=60) as client:
        same = client.gallery(gallery.name)
        for expected in ("enrolled", "existing"):
            found = [each async for each in same.enrol_many(new_faces(embedding, 70))]
            assert [each.index for each in found] == list(range(70))
            assert {each.get().outcome for each in found} == {expected}
        assert (await same.info()).faces == 70


def test_face_that_is_refused_keeps_no_other_one_out(
    gallery: mien.Gallery, embedding: mien.Embedding, sample: Sample, tmp_path: Path
) -> None:
    other = mien.Embedding(embedding.values, 9.0, mien.ModelIdentity("sface", 1, "0" * 16))
    faces = [
        mien.NewFace(random_embedding(embedding, 1), "a"),
        mien.NewFace(random_embedding(embedding, 2), ""),  # this one ends the call that it shares
        mien.NewFace(other, "b"),
        mien.NewFace(random_embedding(embedding, 3), "c"),
        mien.NewFace(tmp_path / "none.jpg", "d"),
        mien.NewFace(grey_bmp(), "e"),
        mien.NewFace(sample("person_b_1"), "f"),
    ]
    found = list(gallery.enrol_many(faces, concurrency=2))
    assert [type(each.error) for each in found] == [
        type(None),
        mien.InvalidRequest,
        mien.EmbeddingMismatch,
        type(None),
        FileNotFoundError,
        mien.FaceNotFound,
        type(None),
    ]
    refused = found[2].result
    assert refused is not None
    assert (refused.outcome, refused.reason) == ("refused", "EMBEDDING_MISMATCH")
    assert [person.person for person in gallery.persons()] == ["a", "c", "f"]


def test_gallery_that_is_not_there_is_told_once(
    client: mien.Client, embedding: mien.Embedding
) -> None:
    with pytest.raises(mien.NotInGallery):
        list(client.gallery("none").enrol_many(new_faces(embedding, 1000)))


def test_folder_is_added_and_what_failed_is_told(
    run: Run, gallery: mien.Gallery, photos: Path
) -> None:
    status, output, errors = run("gallery", "add", gallery.name, photos)
    assert (status, errors) == (3, "")
    assert "3 enrolled, 0 enrolled before, 2 refused" in output
    assert f"{photos / 'person_a' / 'broken.jpg'}: Not an image" in output
    assert "[FACE_NOT_FOUND]" in output
    for name in ("broken.jpg", "grey.bmp"):
        (photos / "person_a" / name).unlink()
    status, output, _ = run("gallery", "add", gallery.name, photos, "--json")
    assert status == 0
    assert json.loads(output) == {"enrolled": 0, "existing": 3, "refused": []}
    assert {p.person: p.faces for p in gallery.persons()} == {"person_a": 1, "person_b": 2}


def test_folder_of_which_nothing_can_be_enrolled_is_a_failure(
    run: Run, gallery: mien.Gallery, tmp_path: Path
) -> None:
    (tmp_path / "photos" / "ann").mkdir(parents=True)
    (tmp_path / "photos" / "ann" / "1.jpg").write_text("no photo")
    status, output, errors = run("gallery", "add", gallery.name, tmp_path / "photos")
    assert status == 1
    assert "0 enrolled, 0 enrolled before, 1 refused" in output
    assert "none of the photos" in errors


def test_file_name_that_no_label_holds_is_cut(
    run: Run, gallery: mien.Gallery, sample: Sample, tmp_path: Path
) -> None:
    (tmp_path / "photos" / "ann").mkdir(parents=True)
    name = "ü" * 123 + ".jpg"  # 250 bytes, near what a file's name may have
    shutil.copy(sample("person_a_1"), tmp_path / "photos" / "ann" / name)
    other = tmp_path / "photos" / "ann" / os.fsdecode(b"\xff.jpg")  # no UTF-8
    shutil.copy(sample("person_a_2"), other)
    status, output, _ = run("gallery", "add", gallery.name, tmp_path / "photos")
    assert status == 0, output
    assert {face.labels["file"] for face in gallery.faces()} == {name, ".jpg"}


def test_folder_is_embedded_into_a_file(
    run: Run, client: mien.Client, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "faces.npz"
    status, output, errors = run("embed", photos, "--out", out)
    assert (status, errors) == (3, "")
    assert "5 photos: 3 embedded, 0 before, 2 failed; 3 faces in" in output
    assert "[INVALID_IMAGE]" in output
    assert "[FACE_NOT_FOUND]" in output
    with np.load(out, allow_pickle=False) as found:
        names = found["photo"].tolist()
        assert names == ["person_a/1.jpg", "person_b/1.jpg", "person_b/2.jpg"]
        for name, values, norm in zip(names, found["embedding"], found["norm"], strict=True):
            embedding = client.embed(photos / name).embedding
            np.testing.assert_allclose(values, embedding.values, atol=1e-5)
            assert norm == pytest.approx(embedding.norm, rel=1e-4)
            assert str(found["fingerprint"]) == embedding.model.fingerprint
