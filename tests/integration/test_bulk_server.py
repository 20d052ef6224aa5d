"""Real amounts, on a real server: many faces enrolled, folders added and embedded, galleries copied."""

import hashlib
import io
import itertools
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import mien
from mien import cli, gallery_files, pictures
from tests.conftest import LaunchServer
from tools.local_server import LocalServer

Sample = Callable[[str], Path]
Run = Callable[..., tuple[int, str, str]]


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
    assert {face.labels["file"] for face in gallery.faces()} == {name, r"\udcff.jpg"}


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


@pytest.fixture
def filled(gallery: mien.Gallery, embedding: mien.Embedding) -> mien.Gallery:
    """A gallery of 60 faces of 10 persons."""
    assert all(each.error is None for each in gallery.enrol_many(new_faces(embedding, 60)))
    return gallery


def assert_same(a: mien.Gallery, b: mien.Gallery) -> None:
    """Both have the same faces: persons, labels, norms and vectors, in whatever order."""

    def order(each: mien.ExportedFace) -> tuple[str, list[tuple[str, str]]]:
        return each.face.person, sorted(each.face.labels.items())

    ones, others = (sorted(gallery.export_faces(), key=order) for gallery in (a, b))
    assert list(map(order, ones)) == list(map(order, others))
    for one, other in zip(ones, others, strict=True):
        assert one.embedding.norm == other.embedding.norm
        np.testing.assert_allclose(one.embedding.values, other.embedding.values, atol=1e-7)


def test_faces_are_exported_as_they_were_enrolled(
    filled: mien.Gallery, embedding: mien.Embedding
) -> None:
    faces = list(filled.export_faces())
    assert [each.face for each in faces] == list(filled.faces())
    by_label = {each.face.labels["n"]: each for each in faces}
    assert len(by_label) == 60
    for new in new_faces(embedding, 60):
        assert isinstance(new.image, mien.Embedding)
        there = by_label[new.labels["n"]]
        assert there.face.person == new.person
        np.testing.assert_allclose(there.embedding.values, new.image.values, atol=1e-7)
        assert there.embedding.model == embedding.model
        assert there.embedding.norm == 9.0


async def test_pages_of_an_export_are_put_together(
    galleries: LocalServer, gallery: mien.Gallery, embedding: mien.Embedding
) -> None:
    async with mien.AsyncClient(galleries.address, timeout=60) as client:
        same = client.gallery(gallery.name)
        async for outcome in same.enrol_many(new_faces(embedding, 1100)):
            assert outcome.error is None
        labels = [each.face.labels["n"] async for each in same.export_faces()]
    assert sorted(labels, key=int) == [str(i) for i in range(1100)]


def test_gallery_is_exported_and_imported_elsewhere(
    run: Run, client: mien.Client, filled: mien.Gallery, tmp_path: Path
) -> None:
    file = tmp_path / "faces.jsonl"
    status, output, errors = run("gallery", "export", filled.name, file)
    assert (status, errors) == (0, "")
    assert output == f"60 faces of 10 persons in {file}\n"
    assert file.stat().st_mode & 0o077 == 0
    status, output, errors = run("gallery", "import", "elsewhere", file)
    assert (status, errors) == (0, "")
    assert (
        output
        == "60 of 60 faces enrolled, 0 before, 0 refused; elsewhere has 60 faces of 10 persons\n"
    )
    elsewhere = client.gallery("elsewhere")
    assert_same(elsewhere, filled)
    assert elsewhere.info().embedder == filled.info().embedder

    filled.enrol(
        next(iter(filled.export_faces())).embedding, "somebody new", quality_policy="accept"
    )
    assert run("gallery", "export", filled.name, tmp_path / "later.jsonl")[0] == 0
    status, output, _ = run("gallery", "import", "elsewhere", tmp_path / "later.jsonl", "--json")
    told = json.loads(output)
    assert (told["enrolled"], told["existing"], told["faces_in_gallery"]) == (1, 60, 61)
    assert_same(elsewhere, filled)


def test_import_that_was_interrupted_goes_on(
    run: Run, client: mien.Client, filled: mien.Gallery, tmp_path: Path
) -> None:
    file = tmp_path / "faces.jsonl"
    run("gallery", "export", filled.name, file)
    half = client.gallery("half")
    half.create()
    contents = gallery_files.checked(file)
    some = itertools.islice(gallery_files.faces_of(file, contents), 25)
    assert len(list(half.enrol_many(some, quality_policy="accept"))) == 25
    status, output, _ = run("gallery", "import", "half", file)
    assert status == 0
    assert "35 of 60 faces enrolled, 25 before, 0 refused; half has 60 faces" in output
    assert_same(half, filled)


def test_export_keeps_the_threshold_and_replaces_no_file(
    run: Run, client: mien.Client, embedding: mien.Embedding, tmp_path: Path
) -> None:
    strict = client.gallery("strict-one")
    strict.create(threshold=0.6)
    strict.enrol(embedding, "ann", labels={"über": "\u2028 é"})
    file = tmp_path / "faces.jsonl"
    assert run("gallery", "export", "strict-one", file)[0] == 0
    before = file.read_bytes()
    status, _, errors = run("gallery", "export", "strict-one", file)
    assert status == 1
    assert "is there already" in errors
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["faces.jsonl"]
    assert run("gallery", "import", "strict-two", file)[0] == 0
    made = client.gallery("strict-two")
    assert made.info().threshold == pytest.approx(0.6)
    assert [face.labels for face in made.faces()] == [{"über": "\u2028 é"}]


def test_file_of_another_model_is_refused_with_what_to_do(
    run: Run, client: mien.Client, filled: mien.Gallery, tmp_path: Path
) -> None:
    file = tmp_path / "faces.jsonl"
    run("gallery", "export", filled.name, file)
    fingerprint = filled.info().embedder.fingerprint
    other = tmp_path / "other.jsonl"
    other.write_bytes(resummed(file.read_bytes().replace(fingerprint.encode(), b"f" * 16, 1)))
    for name in ("made-by-import", filled.name):
        status, _, errors = run("gallery", "import", name, other)
        assert status == 1
        assert "EMBEDDING_MISMATCH" in errors
        assert "fingerprint ffffffffffffffff" in errors
        assert "version_policy" in errors
    assert "made-by-import" not in {info.name for info in client.galleries()}
    assert filled.info().faces == 60


def test_gallery_is_not_imported_into_itself(
    run: Run, filled: mien.Gallery, tmp_path: Path
) -> None:
    run("gallery", "export", filled.name, tmp_path / "faces.jsonl")
    status, _, errors = run("gallery", "import", filled.name, tmp_path / "faces.jsonl")
    assert status == 1
    assert "twice" in errors
    assert filled.info().faces == 60


def test_gallery_that_keeps_crops_takes_no_file_and_says_so_at_once(
    run: Run, client: mien.Client, filled: mien.Gallery, tmp_path: Path
) -> None:
    file = tmp_path / "faces.jsonl"
    run("gallery", "export", filled.name, file)
    keeping = client.gallery("keeps-crops")
    keeping.create(keep_crops=True)
    status, output, errors = run("gallery", "import", keeping.name, file)
    assert (status, output) == (1, "")
    assert "NO_CROPS" in errors
    assert f"mien gallery add {keeping.name} FOLDER" in errors


_DAMAGE: list[tuple[int, dict[str, object] | str, str]] = [
    (0, {"version": "\x1b[2J"}, r"the version '\x1b[2J'"),
    (0, {"dimensions": "128"}, "'128' is no whole number"),
    (0, {"threshold": "high"}, "its first line lacks something"),
    (0, {"created": None}, "None is no text"),
    (0, {"embedder": {"name": "sface", "version": "1", "fingerprint": ""}}, "whole number"),
    (1, {"norm": None}, "line 2 is no face"),
    (1, {"norm": math.inf}, "line 2 is no face: inf is no finite number"),
    (1, {"person": 7}, "7 is no text"),
    (1, {"person": "\ud800"}, "line 2 is no face"),
    (1, {"labels": {"n": 1}}, "1 is no text"),
    (1, {"labels": 5}, "line 2 is no face"),
    (1, {"face": []}, "[] is no text"),
    (1, "[" * 100_000, "line 2 is no JSON"),
]
"""A line of a file, what it has instead, and what is said of it."""


def test_damage_that_the_checksum_does_not_show_is_told_before_anything_is_enrolled(
    run: Run,
    client: mien.Client,
    filled: mien.Gallery,
    tmp_path: Path,
) -> None:
    file = tmp_path / "faces.jsonl"
    run("gallery", "export", filled.name, file)
    intact = file.read_bytes().splitlines(keepends=True)
    for line, changes, why in _DAMAGE:
        lines = intact.copy()
        if isinstance(changes, str):
            lines[line] = changes.encode() + b"\n"
        else:
            lines[line] = json.dumps(json.loads(lines[line]) | changes).encode() + b"\n"
        file.write_bytes(resummed(b"".join(lines)))
        status, output, errors = run("gallery", "import", "from-damaged", file)
        assert (status, output) == (1, "")
        assert f"{file} cannot be imported: " in errors
        assert why in errors
        assert "\x1b" not in errors
    assert "from-damaged" not in {info.name for info in client.galleries()}


def test_folder_with_hostile_names_is_enrolled_and_told_without_them(
    run: Run, client: mien.Client, sample: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = tmp_path / "people"
    for path in ("ann/\x1b]0;t\x07\n.jpg", "ann/b.jpg", "\x1b[31mbob/c.jpg"):
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(
            b"no photo" if target.name == "b.jpg" else sample("person_a_1").read_bytes()
        )
    hostile = client.gallery("hostile")
    hostile.create()
    status, output, _ = run("gallery", "add", hostile.name, folder)
    assert status == 3
    assert output.startswith("1 enrolled, 0 enrolled before, 2 refused\n")
    assert "\x1b" not in output
    assert [face.labels["file"] for face in hostile.faces("ann")] == [r"\x1b]0;t\x07\n.jpg"]
    embedding = client.embed(sample("person_b_1")).embedding
    hostile.enrol(embedding, "a\u202eb\u2028c", labels={"k": "\u2029v"}, quality_policy="accept")
    for command in (
        ("show", hostile.name),
        ("show", hostile.name, "a\u202eb\u2028c"),
        ("search", hostile.name, sample("person_b_2")),
        ("mv", hostile.name, "--all-of", "a\u202eb\u2028c", "d\u202ee"),
        ("rm", hostile.name, "d\u202ee"),
    ):
        status, output, _ = run("gallery", *command)
        assert status == 0
        assert not set("\u202e\u2028\u2029") & set(output)
        assert r"\u202" in output


def resummed(content: bytes) -> bytes:
    """The file with the checksum that its lines have now."""
    *lines, foot = content.splitlines(keepends=True)
    told = json.loads(foot) | {"sha256": hashlib.sha256(b"".join(lines)).hexdigest()}
    return b"".join([*lines, json.dumps(told).encode() + b"\n"])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[: len(content) // 2], "cut off at line"),
        (lambda content: content[: content.rindex(b'{"faces"')], "cut off at line 62"),
        (lambda content: content.replace(b'"p3"', b'"p4"', 1), "checksum"),
        (lambda content: content + b"\n", "after its end"),
        (lambda content: b"not a file of mien\n" + content, "none that `mien gallery export`"),
        (lambda content: b"", "none that `mien gallery export`"),
        (lambda content: content.replace(b'"version": 1', b'"version": 2', 1), "update it"),
        (lambda content: resummed(content.replace(b'"faces": 60', b'"faces": 61')), "says otherwise"),
        (lambda content: resummed(b"".join(content.splitlines(True)[:40] + content.splitlines(True)[41:])),
         "says otherwise"),
        (lambda content: resummed(content.replace(b'"vector": "', b'"vector": "AAAA', 1)), "line 2"),
        (lambda content: resummed(content.replace(b'"labels"', b'"stickers"', 1)), "line 2"),
    ],
)  # fmt: skip
def test_damaged_file_is_refused_before_anything_is_enrolled(
    run: Run,
    client: mien.Client,
    embedding: mien.Embedding,
    tmp_path: Path,
    damage: Callable[[bytes], bytes],
    message: str,
) -> None:
    source = client.gallery("damage")
    if "damage" not in {info.name for info in client.galleries()}:
        source.create()
        list(source.enrol_many(new_faces(embedding, 60)))
    run("gallery", "export", "damage", tmp_path / "faces.jsonl")
    bad = tmp_path / "bad.jsonl"
    bad.write_bytes(damage((tmp_path / "faces.jsonl").read_bytes()))
    status, _, errors = run("gallery", "import", "never", bad)
    assert status == 1
    assert message in errors
    assert "never" not in {info.name for info in client.galleries()}


def test_search_draws_names_into_the_photo(
    run: Run, gallery: mien.Gallery, sample: Sample, tmp_path: Path
) -> None:
    gallery.enrol(sample("person_a_1"), "ann")
    for photo, colour in (("person_a_2", pictures.BOX), ("impostor_1", pictures.STRANGER)):
        out = tmp_path / f"{photo}.png"
        status, output, _ = run("gallery", "search", gallery.name, sample(photo), "--out", out)
        assert status == 0
        assert f"picture   {out}" in output
        with Image.open(out) as drawn, Image.open(sample(photo)) as plain:
            assert drawn.size == plain.size
            pixels = np.asarray(drawn)
        assert (pixels == colour).all(axis=2).sum() > 500
    with pytest.raises(SystemExit):
        run("gallery", "search", gallery.name, sample("person_a_2"), "--out", tmp_path / "a.txt")


def test_all_of_a_person_is_moved(
    run: Run, gallery: mien.Gallery, embedding: mien.Embedding
) -> None:
    list(gallery.enrol_many(new_faces(embedding, 30)))
    status, output, _ = run("gallery", "mv", gallery.name, "--all-of", "p3", "ann")
    assert (status, output) == (0, "3 faces are ann's; gone: p3\n")
    assert gallery.person("ann").faces == 3
    (first, *_) = gallery.faces("p4")
    assert "1 face is ann's" in run("gallery", "mv", gallery.name, first.face_id, "ann")[1]
    for wrong in (["ann"], [first.face_id, "--all-of", "p5", "ann"]):
        with pytest.raises(SystemExit):
            run("gallery", "mv", gallery.name, *wrong)


@pytest.mark.long  # a server of its own; each side's part is shown without the other in the unit tests
def test_server_with_room_for_two_calls_embeds_all_photos(
    launch_server: LaunchServer, sample: Sample
) -> None:
    crop = io.BytesIO()
    with Image.open(sample("person_a_1")) as portrait:
        portrait.resize((112, 112)).save(crop, "PNG")
    with (
        launch_server("--max-pending-requests", "2") as server,
        mien.Client(server.address, timeout=60) as client,
    ):
        crops = itertools.repeat(crop.getvalue(), 60)
        found = list(client.embed_many(crops, concurrency=12, aligned=True))
        assert [each.index for each in found] == list(range(60))
        first = found[0].get().embedding
        assert all(each.get().embedding.similarity(first) > 0.9999 for each in found)
        # It was beyond what the server takes: it refused some, and they were sent again.
        assert "reason=QUEUE_FULL" in server.log.read_text()
