"""Galleries over the wire: created, filled, searched and emptied, by both clients and from a shell."""

import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import cv2
import numpy as np
import pytest

import mien
from mien import cli
from tests.conftest import ROOT
from tests.exposition import Exposition
from tools.local_server import LocalServer

Sample = Callable[[str], Path]
_NAMES = count(1)


@pytest.fixture(scope="module")
def client(galleries: LocalServer) -> Iterator[mien.Client]:
    with mien.Client(galleries.address, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def embeddings(client: mien.Client, sample: Sample) -> dict[str, mien.Embedding]:
    """Those of the sample portraits, by name."""
    names = [f"{who}_{i}" for who in ("person_a", "person_b", "impostor") for i in (1, 2)]
    return {name: client.embed(sample(name)).embedding for name in names}


@pytest.fixture
def gallery(client: mien.Client) -> mien.Gallery:
    """An empty gallery."""
    made = client.gallery(f"gallery-{next(_NAMES)}")
    made.create()
    return made


def vector(embedding: mien.Embedding, seed: int) -> mien.Embedding:
    """Somebody else's embedding, of the same model."""
    values = np.random.default_rng(seed).standard_normal(len(embedding.values))
    return mien.Embedding(values / np.linalg.norm(values), 9.0, embedding.model)


def test_portraits_are_enrolled_found_and_forgotten(gallery: mien.Gallery, sample: Sample) -> None:
    for who in ("person_a", "person_b"):
        result = gallery.enrol(sample(f"{who}_1"), who, labels={"file": f"{who}_1.jpg"})
        assert (result.outcome, result.person, result.issues) == ("enrolled", who, ())
        assert result.face is not None
        assert result.face.box_normalized is not None
        assert result.quality is not None
        assert result.quality.next_face == 0
    for who in ("person_a", "person_b"):
        found = gallery.identify(sample(f"{who}_2"), timing=True)
        assert [match.person for match in found.persons] == [who]
        assert found.best is not None
        assert found.best.samples[0].labels == {"file": f"{who}_1.jpg"}
        (searched,) = found.searched
        assert (searched.gallery, searched.faces, searched.threshold_source) == (
            gallery.name,
            2,
            "model",
        )
        assert "identify.compute" in {stage.name for stage in found.timing}
    assert gallery.identify(sample("impostor_1")).best is None

    assert gallery.delete_person("person_a").as_dict() == {
        "faces": 1,
        "erased": True,
        "emptied": ["person_a"],
    }
    assert gallery.identify(sample("person_a_2")).persons == ()
    assert [person.person for person in gallery.persons()] == ["person_b"]
    assert gallery.delete() == mien.Deleted(1, True)
    with pytest.raises(mien.NotInGallery) as caught:
        gallery.info()
    assert caught.value.reason == "COLLECTION_NOT_FOUND"


def test_similarity_is_that_of_verify(
    client: mien.Client, gallery: mien.Gallery, embeddings: dict[str, mien.Embedding]
) -> None:
    gallery.enrol(embeddings["person_a_1"], "a")
    (found,) = gallery.identify(embeddings["person_a_2"], threshold=-1).persons
    verified = client.verify(embeddings["person_a_1"], embeddings["person_a_2"])
    assert found.similarity == pytest.approx(verified.similarity, abs=1e-6)


def test_one_bad_face_keeps_no_other_one_out(
    gallery: mien.Gallery, sample: Sample, embeddings: dict[str, mien.Embedding]
) -> None:
    with_blur = np.asarray(cv2.imread(str(sample("person_b_2"))))[..., ::-1]
    blurred = np.asarray(cv2.GaussianBlur(np.ascontiguousarray(with_blur), (0, 0), 10), np.uint8)
    stranger = mien.Embedding(
        embeddings["impostor_1"].values, 9.0, mien.ModelIdentity("sface", 1, "0" * 16)
    )
    faces = [
        mien.NewFace(sample("person_a_1"), "a"),
        mien.NewFace(b"no photo", "nobody"),
        mien.NewFace(np.full((300, 300, 3), 128, np.uint8), "nobody"),
        mien.NewFace(blurred, "b"),
        mien.NewFace(stranger, "i"),
        mien.NewFace(sample("person_a_1"), "somebody else"),
        mien.NewFace(embeddings["person_b_1"], "b"),
    ]
    results = gallery.enrol_faces(faces)
    assert [(result.outcome, result.reason) for result in results] == [
        ("enrolled", ""),
        ("refused", "INVALID_IMAGE"),
        ("refused", "FACE_NOT_FOUND"),
        ("refused", "LOW_QUALITY"),
        ("refused", "EMBEDDING_MISMATCH"),
        ("refused", "LOW_QUALITY"),
        ("enrolled", ""),
    ]
    assert [issue.problem for issue in results[3].issues] == ["blurred"]
    assert [(i.problem, i.person) for i in results[5].issues] == [("like_another_person", "a")]
    assert results[1].field == "faces[1].subject.image.encoded"
    assert results[4].field == "faces[4].subject.embedding.model"
    assert gallery.info().faces == 2
    for face, kind in zip(
        faces[1:6],
        (
            mien.InvalidRequest,
            mien.FaceNotFound,
            mien.LowQuality,
            mien.EmbeddingMismatch,
            mien.LowQuality,
        ),
        strict=True,
    ):
        with pytest.raises(kind):
            gallery.enrol(face.image, face.person)

    warned = gallery.enrol(blurred, "b", quality_policy="warn")
    assert (warned.outcome, [issue.problem for issue in warned.issues]) == ("enrolled", ["blurred"])
    accepted = gallery.enrol(sample("person_a_1"), "somebody else", quality_policy="accept")
    assert (accepted.outcome, accepted.issues) == ("enrolled", ())


def test_several_faces_of_a_photo(gallery: mien.Gallery, sample: Sample) -> None:
    portraits = [
        cv2.resize(np.asarray(cv2.imread(str(sample(name)))), (500, 600))[..., ::-1]
        for name in ("person_a_2", "person_b_2", "impostor_1")
    ]
    crowd = np.hstack(portraits).astype(np.uint8)
    refused = gallery.enrol_faces([mien.NewFace(crowd, "a")])[0]
    assert [issue.problem for issue in refused.issues] == ["several_faces"]
    for who in ("person_a", "person_b"):
        gallery.enrol(sample(f"{who}_1"), who)
    found = gallery.identify(crowd, policy="all")
    assert len(found.faces) == 3
    by_place = sorted(
        found.faces, key=lambda each: each.face.box.x1 if each.face and each.face.box else 0
    )
    assert [[p.person for p in each.persons] for each in by_place] == [
        ["person_a"],
        ["person_b"],
        [],
    ]
    with pytest.raises(mien.InvalidRequest, match=r"selection\.policy"):
        gallery.enrol(crowd, "a", policy="all")
    assert gallery.identify(np.full((300, 300, 3), 90, np.uint8), policy="all").faces == ()


def test_request_keys_make_enrolling_again_safe(
    gallery: mien.Gallery, embeddings: dict[str, mien.Embedding]
) -> None:
    face = mien.NewFace(embeddings["person_a_1"], "a", request_key="photo 1")
    (first,) = gallery.enrol_faces([face])
    gallery.move(first.face_id, "b")
    (again,) = gallery.enrol_faces([face])
    assert (again.outcome, again.face_id, again.person) == ("existing", first.face_id, "b")
    assert gallery.info().faces == 1


def test_faces_are_listed_moved_and_deleted(
    gallery: mien.Gallery, embeddings: dict[str, mien.Embedding]
) -> None:
    some = embeddings["person_a_1"]
    faces = [
        mien.NewFace(vector(some, i), f"p{i % 3}", {"n": str(i)}, aligned=False) for i in range(9)
    ]
    ids = [result.face_id for result in gallery.enrol_faces(faces)]
    assert [face.face_id for face in gallery.faces()] == ids
    assert [face.labels["n"] for face in gallery.faces("p1")] == ["1", "4", "7"]
    assert gallery.face(ids[4]).person == "p1"
    assert gallery.person("p1").faces == 3
    assert gallery.move([ids[1], ids[4], ids[7]], "p2") == ("p1",)
    assert {person.person: person.faces for person in gallery.persons()} == {"p0": 3, "p2": 6}
    assert gallery.delete_faces(ids[:6]) == mien.Deleted(6, True)
    only = gallery.identify(vector(some, 8), labels={"n": "7"}, threshold=-1)
    assert [match.person for match in only.persons] == ["p2"]
    with pytest.raises(mien.NotInGallery) as caught:
        gallery.delete_faces([ids[8], ids[0]])
    assert (caught.value.reason, caught.value.field) == ("ENROLLED_FACE_NOT_FOUND", "face_ids[1]")
    assert gallery.info().faces == 3


def test_metrics_tell_of_faces_and_searches(
    galleries: LocalServer, gallery: mien.Gallery, embeddings: dict[str, mien.Embedding]
) -> None:
    gallery.enrol(embeddings["person_a_1"], "a", quality_policy="accept")
    for _ in range(3):
        gallery.identify(embeddings["person_a_2"])
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(galleries.metrics_url, timeout=10) as response:
        told = Exposition(response.read().decode())
    assert told.one("mien_gallery_faces", collection=gallery.name) == 1
    assert told.one("mien_gallery_bytes", collection=gallery.name) > 128
    searched = {"model": f"collection {gallery.name}", "version": "", "outcome": "succeeded"}
    assert told.one("mien_slot_requests_total", **searched) == 3


def test_several_galleries_are_searched_together(
    client: mien.Client, embeddings: dict[str, mien.Embedding]
) -> None:
    strict, usual = client.gallery("strict"), client.gallery("usual")
    assert strict.create(threshold=0.99).threshold == pytest.approx(0.99)
    usual.create(embedder="sface:1")
    strict.enrol(embeddings["person_a_1"], "ann")
    usual.enrol(embeddings["person_a_1"], "anna")
    found = client.identify(embeddings["person_a_2"], ["strict", "usual"])
    assert [(match.gallery, match.person) for match in found.persons] == [("usual", "anna")]
    assert [each.threshold_source for each in found.searched] == ["collection", "model"]
    everybody = client.identify(embeddings["person_a_2"], ["strict", "usual"], threshold=0)
    assert [match.person for match in everybody.persons] == ["ann", "anna"]
    one = client.identify(embeddings["person_a_2"], ["strict", "usual"], threshold=0, top_k=1)
    assert len(one.persons) == 1
    assert {"strict", "usual"} <= {info.name for info in client.galleries()}


@pytest.mark.parametrize(
    ("refused", "kind", "field"),
    [
        (lambda g, e: g.create(), mien.GalleryExists, "name"),
        (lambda g, e: g._client.gallery("no/slash").create(), mien.InvalidRequest, "name"),
        (lambda g, e: g._client.gallery("x").create(threshold=2), mien.InvalidRequest, "threshold"),
        (
            lambda g, e: g._client.gallery("x").create(embedder="retinaface"),
            mien.InvalidRequest,
            "embedder",
        ),
        (lambda g, e: g.enrol(e, ""), mien.InvalidRequest, "faces[0].person_id"),
        (lambda g, e: g.enrol(e, "a\nb"), mien.InvalidRequest, "faces[0].person_id"),
        (lambda g, e: g.enrol(e, "a" * 257), mien.InvalidRequest, "faces[0].person_id"),
        (lambda g, e: g.enrol(e, "a", labels={"": "x"}), mien.InvalidRequest, "faces[0].labels"),
        (lambda g, e: g.enrol(e, "a", request_key="k" * 129), mien.InvalidRequest, "faces[0].request_key"),
        (lambda g, e: g.enrol_faces([]), mien.InvalidRequest, "faces"),
        (lambda g, e: g.enrol_faces([mien.NewFace(e, "a")] * 65), mien.InvalidRequest, "faces"),
        (lambda g, e: g.identify(e, top_k=0), mien.InvalidRequest, "top_k"),
        (lambda g, e: g.identify(e, threshold=-2), mien.InvalidRequest, "threshold"),
        (lambda g, e: g._client.identify(e, []), mien.InvalidRequest, "collections"),
        (lambda g, e: g._client.identify(e, [g.name, "none"]), mien.NotInGallery, "collections[1]"),
        (lambda g, e: g.face("xyz"), mien.NotInGallery, "face_id"),
        (lambda g, e: g.move([], "a"), mien.InvalidRequest, "face_ids"),
        (lambda g, e: g.person("nobody"), mien.NotInGallery, "person_id"),
        (lambda g, e: list(g.faces("nobody")), mien.NotInGallery, "person_id"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_with_its_field(
    refused: Callable[[mien.Gallery, mien.Embedding], object],
    kind: type[mien.MienError],
    field: str,
    client: mien.Client,
    embeddings: dict[str, mien.Embedding],
) -> None:
    gallery = client.gallery("refusing")
    if "refusing" not in {info.name for info in client.galleries()}:
        gallery.create()
    with pytest.raises(kind) as caught:
        refused(gallery, embeddings["person_a_1"])
    assert caught.value.field == field
    assert gallery.info().faces == 0


async def test_async_client_does_all_of_it(
    galleries: LocalServer, embeddings: dict[str, mien.Embedding]
) -> None:
    async with mien.AsyncClient(galleries.address, timeout=60) as client:
        gallery = client.gallery("async")
        assert (await gallery.create(threshold=0.5)).name == "async"
        a = await gallery.enrol(embeddings["person_a_1"], "a", labels={"x": "y"})
        (b,) = await gallery.enrol_faces([mien.NewFace(embeddings["person_b_1"], "b")])
        found = await gallery.identify(embeddings["person_a_2"])
        assert found.best is not None
        assert found.best.person == "a"
        assert [p.person async for p in gallery.persons()] == ["a", "b"]
        assert [f.face_id async for f in gallery.faces()] == [a.face_id, b.face_id]
        assert (await gallery.face(a.face_id)).labels == {"x": "y"}
        assert (await gallery.person("b")).faces == 1
        assert await gallery.move(a.face_id, "b") == ("a",)
        assert (await gallery.delete_faces(a.face_id)).erased
        assert (await gallery.delete_person("b")).faces == 1
        assert (await gallery.info()).faces == 0
        assert "async" in {info.name for info in await client.galleries()}
        assert (await gallery.delete()).faces == 0


@pytest.mark.long
def test_examples_of_the_page_run_in_their_order(
    galleries: LocalServer, portraits: list[Path], tmp_path: Path
) -> None:
    page = (ROOT / "docs" / "galleries.md").read_text()
    examples = re.findall(r"^```(python|sh)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert {language for language, _ in examples} == {"python", "sh"}
    for portrait in portraits:
        shutil.copy(portrait, tmp_path)
    scripts = str(Path(sys.executable).parent)
    for language, code in examples:
        interpreter = [sys.executable, "-c"] if language == "python" else ["sh", "-euc"]
        done = subprocess.run(
            [*interpreter, code],
            cwd=tmp_path,
            env=os.environ
            | {"MIEN_ADDRESS": galleries.address, "PATH": f"{scripts}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, ""), code
        assert done.stdout
        for told in re.findall(r"^```text\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
            shown = {line for line in told.splitlines() if not line.startswith("person_a ")}
            assert language == "python" or shown <= set(done.stdout.splitlines())


def test_server_without_galleries_says_so(server_address: str) -> None:
    with mien.Client(server_address) as client, pytest.raises(mien.MienError) as caught:
        client.galleries()
    assert caught.value.reason == "UNIMPLEMENTED"
    assert "--gallery-dir" in caught.value.message


def test_folder_is_added_once_and_searched_from_a_shell(
    galleries: LocalServer, sample: Sample, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: object, status: int = 0) -> str:
        given = ["--address", galleries.address, "gallery", *map(str, arguments)]
        assert cli.main(given) == status
        output, errors = capsys.readouterr()
        return errors if status == 1 else output

    for who in ("person_a", "person_b"):
        (tmp_path / "photos" / who).mkdir(parents=True)
        shutil.copy(sample(f"{who}_1"), tmp_path / "photos" / who)
    (tmp_path / "photos" / "person_a" / "broken.jpg").write_text("no photo")
    run("create", "shell", "--threshold", "0.45")
    added = run("add", "shell", tmp_path / "photos", status=3)
    assert "2 enrolled, 0 enrolled before, 1 refused" in added
    assert "broken.jpg" in added
    again = json.loads(run("add", "shell", tmp_path / "photos", "--json", status=3))
    assert (again["enrolled"], again["existing"], len(again["refused"])) == (0, 2, 1)
    assert "person_a" in run("search", "shell", sample("person_a_2"))
    assert "nobody known" in run("search", "shell", sample("impostor_1"))
    (face,) = json.loads(run("show", "shell", "person_a", "--json"))
    assert "gone: person_a" in run("mv", "shell", face["face_id"], "ann")
    assert "ann" in run("show", "shell")
    assert "erased" in run("rm", "shell", "ann")
    assert "PERSON_NOT_FOUND" in run("rm", "shell", "ann", status=1)
    assert "deleted 1 face" in run("rm", "shell", "--everything")
    assert "shell" not in run("ls")
    assert "is no folder" in run("add", "refusing", tmp_path / "none", status=1)


def test_unknown_faces_are_grouped_named_and_then_found(
    galleries: LocalServer,
    client: mien.Client,
    gallery: mien.Gallery,
    embeddings: dict[str, mien.Embedding],
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = ["person_a_1", "impostor_1", "person_b_1", "person_a_2", "person_b_2"]
    ids = {
        name: result.face_id
        for name, result in zip(
            names,
            gallery.enrol_faces([mien.NewFace(embeddings[name], None) for name in names]),
            strict=True,
        )
    }
    assert gallery.identify(embeddings["person_a_1"], threshold=-1).persons == ()
    info = gallery.info()
    assert (info.persons, info.faces, info.unnamed_faces) == (0, 5, 5)
    assert {face.person for face in gallery.faces()} == {""}

    found = gallery.group()
    assert [group.face_ids for group in found.groups] == [
        (ids["person_a_1"], ids["person_a_2"]),
        (ids["person_b_1"], ids["person_b_2"]),
    ]
    same = client.verify(embeddings["person_a_1"], embeddings["person_a_2"]).similarity
    assert found.groups[0].similarity == pytest.approx(same, abs=1e-5)
    assert (found.faces, found.left_out, found.threshold_source) == (5, 0, "model")
    assert len(gallery.group(min_faces=1).groups) == 3
    assert gallery.group(threshold=0.999).groups == ()

    command = ["gallery", "group", gallery.name, "--address", galleries.address]
    assert cli.main(command) == 0
    assert "4 of 5 faces without a person are in 2 groups" in capsys.readouterr().out
    assert cli.main([*command, "--json", "--min-faces", "3"]) == 0
    assert json.loads(capsys.readouterr().out)["groups"] == []

    assert gallery.move(found.groups[0].face_ids, "ann") == ()
    (match,) = gallery.identify(embeddings["person_a_1"]).persons
    assert (match.person, len(match.samples)) == ("ann", 2)
    assert gallery.info().unnamed_faces == 3
    for never in (gallery.person, gallery.delete_person):
        with pytest.raises(mien.NotInGallery):
            never("")
    for ask, field in (
        (lambda: gallery.group(min_faces=0), "min_faces"),
        (lambda: gallery.group(threshold=2), "threshold"),
        (lambda: gallery.move(ids["impostor_1"], ""), "person_id"),
        (lambda: gallery.enrol(embeddings["impostor_1"], ""), "faces[0].person_id"),
    ):
        with pytest.raises(mien.InvalidRequest) as caught:
            ask()
        assert caught.value.field == field


async def test_async_client_groups(
    galleries: LocalServer, gallery: mien.Gallery, embeddings: dict[str, mien.Embedding]
) -> None:
    async with mien.AsyncClient(galleries.address, timeout=60) as client:
        unknown = client.gallery(gallery.name)
        for name in ("person_a_1", "person_a_2"):
            await unknown.enrol(embeddings[name], None)
        (found,) = (await unknown.group()).groups
        assert len(found.face_ids) == 2


def test_gallery_that_keeps_crops_takes_photos_and_is_reembedded(
    galleries: LocalServer,
    client: mien.Client,
    gallery: mien.Gallery,
    sample: Sample,
    embeddings: dict[str, mien.Embedding],
    capsys: pytest.CaptureFixture[str],
) -> None:
    keeping = client.gallery(f"{gallery.name}-crops")
    assert keeping.create(keep_crops=True).keeps_crops
    assert not gallery.info().keeps_crops
    keeping.enrol(sample("person_a_1"), "a")
    for refused in (
        lambda: keeping.enrol(embeddings["person_b_1"], "b"),
        gallery.reembed,
    ):
        with pytest.raises(mien.FailedPrecondition) as caught:
            refused()
        assert caught.value.reason == "NO_CROPS"
    with pytest.raises(mien.InvalidRequest) as out_of_range:
        keeping.reembed(max_faces=20_000)
    assert out_of_range.value.field == "max_faces"
    # Its own model: there is nothing to do. What another model does, test_reembedding.py has.
    kept = keeping.crop(next(keeping.faces()).face_id)
    assert kept.shape == (112, 112, 3)
    assert client.embed(kept, aligned=True).embedding.similarity(embeddings["person_a_1"]) > 0.999
    done = keeping.reembed()
    assert (done.reembedded, done.left, done.done) == (1, 0, True)
    assert done.embedder == keeping.info().embedder
    command = ["gallery", "reembed", keeping.name, "--address", galleries.address, "--json"]
    assert cli.main(command) == 0
    assert json.loads(capsys.readouterr().out)["done"] is True
    assert [match.person for match in keeping.identify(sample("person_a_2")).persons] == ["a"]


async def test_enrolled_face_is_drawn_beside_the_one_that_was_found(
    galleries: LocalServer,
    client: mien.Client,
    gallery: mien.Gallery,
    sample: Sample,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keeping = client.gallery(f"{gallery.name}-crops")
    keeping.create(keep_crops=True)
    face_id = keeping.enrol(sample("person_a_1"), "a").face_id
    gallery.enrol(sample("person_a_1"), "a")

    def drawn(name: str) -> np.ndarray:
        out = tmp_path / "found.png"
        command = ["gallery", "search", name, str(sample("person_a_2")), "--out", str(out)]
        assert cli.main([*command, "--address", galleries.address]) == 0
        return np.asarray(cv2.imread(str(out)), np.int32)[..., ::-1]

    without = drawn(gallery.name)
    assert capsys.readouterr().err == ""
    beside = drawn(keeping.name)
    assert capsys.readouterr().err == ""
    rows, columns = np.nonzero((without != beside).any(axis=2))
    found = keeping.identify(sample("person_a_2")).faces[0].face
    assert found is not None
    assert found.box is not None
    place = beside[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    assert abs(place.shape[0] - 0.6 * min(found.box.width, found.box.height)) < 10
    enrolled = cv2.resize(keeping.crop(face_id), place.shape[1::-1]).astype(np.int32)
    assert np.abs(place - enrolled)[10:-10, 10:-10].mean() < 12

    def refuse(*_: object, **__: object) -> None:
        raise mien.PermissionDenied("no", reason="ROLE_MISSING")

    monkeypatch.setattr(mien.Gallery, "crop", refuse)
    assert (drawn(keeping.name) == without).all()
    assert "role admin" in capsys.readouterr().err
    async with mien.AsyncClient(galleries.address, timeout=60) as asynchronous:
        assert (await asynchronous.gallery(keeping.name).crop(face_id)).shape == (112, 112, 3)
