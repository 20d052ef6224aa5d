"""Embeddings and faces as an application holds them: equal by value, compared, printed, cut out."""

import inspect
import io
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import mien
from mien.async_gallery import AsyncGallery
from mien.gallery import Gallery

Call = Callable[..., Any]
SFACE = mien.ModelIdentity("sface", 1, "0123456789abcdef")


def embedding(seed: int = 7, model: mien.ModelIdentity = SFACE, d: int = 128) -> mien.Embedding:
    values = np.random.default_rng(seed).standard_normal(d).astype(np.float32)
    return mien.Embedding(values / np.linalg.norm(values), 21.7, model)


def test_embeddings_are_equal_by_value_and_so_are_their_hashes() -> None:
    known = embedding()
    again = mien.Embedding.from_dict(known.as_dict())
    assert again == known
    assert len({again, known, embedding(8)}) == 2


@pytest.mark.parametrize(
    "other",
    [
        embedding(8),
        replace(embedding(), norm=21.8),
        embedding(model=replace(SFACE, fingerprint="0" * 16)),
        embedding(d=64),
        "embedding",
    ],
    ids=["values", "norm", "model", "length", "type"],
)
def test_what_differs_is_not_equal(other: object) -> None:
    assert embedding() != other


def test_both_zeros_are_equal_and_hash_alike() -> None:
    plus = mien.Embedding(np.array([1, 0], np.float32), 1, SFACE)
    minus = mien.Embedding(np.array([1, -0.0], np.float32), 1, SFACE)
    assert plus == minus
    assert hash(plus) == hash(minus)


def test_similarity_is_the_cosine() -> None:
    a, b = embedding(1), embedding(2)
    assert a.similarity(b) == b.similarity(a) == pytest.approx(float(a.values @ b.values), abs=1e-6)
    assert a.similarity(a) == pytest.approx(1, abs=1e-6)
    assert -1 <= a.similarity(mien.Embedding(-a.values, 1, SFACE)) < -0.999999


def test_embeddings_of_other_models_are_not_compared() -> None:
    other = mien.ModelIdentity("sface", 2, "f" * 16)
    with pytest.raises(
        mien.EmbeddingMismatch, match=r"sface version 1 .* sface version 2 "
    ) as caught:
        embedding().similarity(embedding(model=other))
    assert caught.value.reason == "EMBEDDING_MISMATCH"
    with pytest.raises(mien.InvalidRequest, match="128 and 64 values"):
        embedding().similarity(embedding(d=64))


def test_results_print_shortly_and_as_people_write_numbers(call: Call) -> None:
    result = call("verify", b"photo", b"other")
    assert (result.threshold, result.similarity) == (0.363, 0.61)
    assert (
        mien.Embedding(np.ones(1, np.float32), float(np.float32(13.177166)), SFACE).norm
        == 13.177166
    )
    text = repr(result)
    assert "similarity=0.61, threshold=0.363," in text
    assert (
        "Face(box=Box(10.5, 20.25, 60, 90), score=0.97, embedding=Embedding(4 values, norm=9.5,"
        in text
    )
    assert len(text) < 800
    assert len(repr(embedding(d=512))) < 130
    face = call("detect", b"photo").faces[0]
    assert repr(face.landmarks.nose) == "Point(13, 23)"
    assert str(result.embedder) == "sface version 2 (fingerprint 0123456789abcdef)"


@pytest.mark.parametrize(
    ("blocking", "other"), [(mien.Client, mien.AsyncClient), (Gallery, AsyncGallery)]
)
def test_both_clients_explain_each_call_alike_and_every_argument_of_it(
    blocking: type, other: type
) -> None:
    for name, method in inspect.getmembers(blocking, inspect.isfunction):
        if not name.startswith("_"):
            told = inspect.getdoc(method) or ""
            assert inspect.getdoc(getattr(other, name)) == told, name
            for argument in list(inspect.signature(method).parameters)[1:]:
                listed = rf"^    [\w, ]*\b{argument}\b[\w, ]*:(\s|$)"
                assert re.search(listed, told, re.MULTILINE), (name, argument)


def gradient() -> np.ndarray[Any, np.dtype[np.uint8]]:
    """100 x 100 pixels whose red is x and green is y."""
    y, x = np.mgrid[:100, :100]
    return np.dstack([x, y, np.zeros_like(x)]).astype(np.uint8)


def test_a_face_is_cut_out_of_an_array_with_a_margin(call: Call) -> None:
    photo = gradient()
    face = call("detect", photo).faces[0]  # from 10.5, 20.25 to 60, 90
    tight = face.crop(photo, margin=0)
    assert (tight[0, 0].tolist(), tight[-1, -1].tolist()) == ([10, 20, 0], [60, 90, 0])
    wide = face.crop(photo)  # a quarter of 49.5 x 69.75 on each side, as far as the photo goes
    assert (wide[0, 0].tolist(), wide[-1, -1].tolist()) == ([0, 2, 0], [73, 99, 0])


@pytest.mark.parametrize("kind", ["path", "text", "bytes", "picture"])
def test_a_face_is_cut_out_of_what_pillow_reads(call: Call, tmp_path: Path, kind: str) -> None:
    face = call("detect", gradient()).faces[0]
    path = tmp_path / "photo.png"
    turned = Image.fromarray(gradient()).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x112] = 6  # to be turned by 90 degrees, clockwise
    turned.save(path, exif=exif)
    with Image.open(path) as picture:
        photos: dict[str, str | os.PathLike[str] | bytes | Image.Image] = {
            "path": path,
            "text": str(path),
            "bytes": path.read_bytes(),
            "picture": picture,
        }
        crop = face.crop(photos[kind], margin=0)
    assert np.array_equal(np.asarray(crop), face.crop(gradient(), margin=0))


def test_what_cannot_be_cut_out_is_said(call: Call) -> None:
    face = call("detect", gradient()).faces[0]
    with pytest.raises(
        ValueError, match="in a photo of 100 x 100 pixels, and this one has 50 x 50"
    ):
        face.crop(gradient()[::2, ::2])
    with pytest.raises(ValueError, match="margin must be 0 or more"):
        face.crop(gradient(), margin=-1)
    with pytest.raises(ValueError, match="no box"):
        call("embed", b"photo", aligned=True).faces[0].crop(gradient())
    with pytest.raises(OSError, match="cannot identify"):
        face.crop(io.BytesIO(b"no photo").read())


@pytest.mark.parametrize("x", [-300.0, 300.0])
def test_a_box_outside_of_the_photo_is_cut_to_at_least_a_pixel(x: float) -> None:
    face = mien.Face(mien.Box(x, x, x + 10, x + 10), None, 0.9, None)
    assert face.crop(gradient()).shape == (1, 1, 3)
