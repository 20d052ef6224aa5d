"""The SDK and the command against the true server, with real weights and photos."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import mien

Sample = Callable[[str], Path]
SAME = {("person_a_1", "person_a_2"), ("person_b_1", "person_b_2")}


@pytest.fixture(scope="module")
def client(server_address: str) -> Iterator[mien.Client]:
    with mien.Client(server_address, timeout=60) as client:
        yield client


def test_every_kind_of_picture_gives_the_same_face(client: mien.Client, sample: Sample) -> None:
    path = sample("person_b_1")
    with Image.open(path) as picture:
        rgb = np.asarray(picture.convert("RGB"))
        opaque = np.dstack([rgb, np.full(rgb.shape[:2], 255, np.uint8)])
        given: list[mien.ImageLike] = [str(path), path.read_bytes(), rgb, opaque, picture]
        expected = client.embed(path)
        for image in given:
            result = client.embed(image)
            cosine = float(result.embedding.values @ expected.embedding.values)
            assert cosine > 0.999
            box, reference = result.faces[0].box, expected.faces[0].box
            assert box is not None
            assert reference is not None
            np.testing.assert_allclose(box.as_list(), reference.as_list(), atol=1)
            assert (result.image_width, result.image_height) == picture.size


@pytest.mark.long
def test_pil_images_as_large_as_a_phones_photos_are_taken(
    client: mien.Client, sample: Sample
) -> None:
    with Image.open(sample("person_b_1")) as picture:
        large = picture.resize((3024, 4032))
    assert len(client.detect(large).faces) == 1
    assert client.verify(large, large).similarity == pytest.approx(1, abs=1e-3)


def test_verify_by_photos_and_by_embeddings_agree(client: mien.Client, sample: Sample) -> None:
    names = [f"{who}_{i}" for who in ("person_a", "person_b", "impostor") for i in (1, 2)]
    embeddings = {name: client.embed(sample(name)).embedding for name in names}
    for a, b in combinations(names, 2):
        by_photo = client.verify(sample(a), sample(b))
        mixed = client.verify(embeddings[a], sample(b))
        by_vector = client.verify(embeddings[a], embeddings[b])
        assert by_photo.matched is mixed.matched is by_vector.matched is ((a, b) in SAME)
        assert by_photo.similarity == pytest.approx(by_vector.similarity, abs=5e-3)
        assert by_vector.detector is None
        here = embeddings[a].similarity(embeddings[b])
        assert here == pytest.approx(by_vector.similarity, abs=1e-6)


async def test_both_clients_answer_alike(
    client: mien.Client, server_address: str, sample: Sample
) -> None:
    photo = sample("person_a_1")
    blocking = client.detect(photo)
    async with mien.AsyncClient(server_address) as other:
        awaited = await other.detect(photo)
    assert awaited.detector == blocking.detector
    [a], [b] = blocking.faces, awaited.faces
    assert a.box is not None
    assert b.box is not None
    np.testing.assert_allclose(a.box.as_list(), b.box.as_list(), atol=0.1)


def test_timing_names_the_stages(client: mien.Client, sample: Sample) -> None:
    timing = client.embed(sample("person_a_1"), timing=True).timing
    assert "decode" in {stage.name for stage in timing}
    assert all(stage.milliseconds >= 0 for stage in timing)
    assert any(stage.batch for stage in timing)
    assert client.embed(sample("person_a_1")).timing == ()


def test_the_servers_refusals_arrive_as_their_exceptions(
    client: mien.Client, sample: Sample
) -> None:
    photo, grey = sample("person_a_1"), np.full((200, 200, 3), 128, np.uint8)
    assert client.detect(grey).faces == ()
    with pytest.raises(mien.FaceNotFound):
        client.embed(grey)
    with pytest.raises(mien.FaceTooSmall):
        client.embed(photo, min_face_size=5000)
    with pytest.raises(mien.ModelNotFound):
        client.embed(photo, embedder="no_such_model")
    with pytest.raises(mien.InvalidRequest) as caught:
        client.verify(photo, b"text")
    assert caught.value.field.startswith("b.image")
    with pytest.raises(mien.InvalidRequest) as caught:
        client.detect(photo, min_score=7)
    assert caught.value.reason == "INVALID_OPTION"
    embedding = client.embed(photo).embedding
    stranger = mien.Embedding(
        embedding.values, embedding.norm, mien.ModelIdentity("sface", 1, "0" * 16)
    )
    with pytest.raises(mien.EmbeddingMismatch):
        client.verify(embedding, stranger)


def test_detect_draws_and_verify_tells(server_address: str, sample: Sample, tmp_path: Path) -> None:
    def run(*arguments: object) -> str:
        command = [Path(sys.executable).parent / "mien", "--address", server_address, *arguments]
        return subprocess.run(
            list(map(str, command)), capture_output=True, text=True, timeout=60, check=True
        ).stdout

    out = tmp_path / "annotated.png"
    [face] = json.loads(run("detect", sample("person_a_1"), "--out", out, "--json"))
    assert len(face["box"]) == 4
    assert out.is_file()
    verdict = run("verify", sample("person_a_1"), sample("person_a_2"))
    assert "same person" in verdict
    assert "different" in run("verify", sample("person_a_1"), sample("impostor_1"))
