"""ULFD as `models install` brings it, on real photos: the published graph, and what a server says with it."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import pytest
import tritonclient.grpc as tritonclient
from numpy.typing import NDArray
from PIL import Image

import mien
from mien.cli import main as mien_main
from mien_server.backends.instance import LoadedInstance
from mien_server.commands.main import main
from mien_server.evaluation.crops import aligned_faces
from mien_server.evaluation.loaded import EvaluationError, load_models
from mien_server.models.interface import AnyRole, ImageU8
from mien_server.models.roles import DETECTOR, EMBEDDER, DetectorRow
from mien_server.models.ulfd import corners, priors
from mien_server.pipeline.types import ModelRef
from mien_server.settings import Settings
from mien_server.weights.fetch.npm import read_tarball_member
from mien_server.weights.fetch.packages import default_cache
from mien_server.weights.fetch.sources import FACEPLUGIN
from tests.conftest import LaunchServer
from tests.integration.installed_rig import install_beside, loaded, npm_or_skip, pixels_of
from tests.integration.test_triton_client import pixels_input
from tests.unit.weights.test_import_ulfd import away
from tools.local_server import LocalServer


@pytest.fixture(scope="module")
def repository(model_repository_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ulfd") / "repository"
    with npm_or_skip():
        return install_beside(model_repository_path, root, ["ulfd", "liveness"])


@pytest.fixture(scope="module")
def ulfd(repository: Path) -> Iterator[LoadedInstance]:
    with loaded(repository / "ulfd") as instance:
        yield instance


@pytest.fixture(scope="module")
def photos(portraits: list[Path]) -> list[ImageU8]:
    return pixels_of(portraits)


def fitted(photo: ImageU8, height: int, width: int) -> ImageU8:
    """The photo in the upper left corner of a grey canvas."""
    ratio = min(height / photo.shape[0], width / photo.shape[1])
    found = np.full((height, width, 3), 127, np.uint8)
    size = (round(photo.shape[1] * ratio), round(photo.shape[0] * ratio))
    found[: size[1], : size[0]] = cv2.resize(photo, size, interpolation=cv2.INTER_AREA)
    return found


def planes(canvases: list[ImageU8]) -> NDArray[np.float32]:
    """As the package prepares its pixels: [N, 3, H, W]."""
    pixels = (np.stack(canvases).astype(np.float32) - 127) / 128
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))


def test_it_equals_the_published_graph_on_canvases_of_its_size(
    repository: Path, photos: list[ImageU8]
) -> None:
    tarball = default_cache() / FACEPLUGIN.filename
    theirs = onnxruntime.InferenceSession(
        read_tarball_member(tarball, "package/model/fr_detect.onnx")
    )
    ours = onnxruntime.InferenceSession(repository / "ulfd" / "1" / "model.onnx")
    pixels = planes([fitted(photo, 240, 320) for photo in photos])
    together = ours.run(None, {"input": pixels})
    move = np.tile(away(240, 320), 2)
    for row in range(len(photos)):
        scores, boxes = theirs.run(None, {"input": pixels[row : row + 1]})
        alone = ours.run(None, {"input": pixels[row : row + 1]})
        for found, offsets in ((alone[0][0], alone[1][0]), (together[0][row], together[1][row])):
            np.testing.assert_allclose(found, scores[0], atol=1e-4)
            told = (corners(offsets, priors(240, 320)) + move) / np.tile((320, 240), 2)
            np.testing.assert_allclose(told, boxes[0], atol=1e-4)


def test_what_serves_equals_its_graph_alone_and_in_a_batch(
    ulfd: LoadedInstance, repository: Path, photos: list[ImageU8]
) -> None:
    session = onnxruntime.InferenceSession(repository / "ulfd" / "1" / "model.onnx")
    rows = [DetectorRow(fitted(photo, 320, 320), 0.5) for photo in photos]
    expected = session.run(None, {"input": planes([row.image for row in rows])})
    for found, wanted in zip(ulfd.compute(ulfd.collate(rows)), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
    for found, wanted in zip(ulfd.compute(ulfd.collate(rows[:1])), expected, strict=True):
        np.testing.assert_allclose(found, wanted[:1], rtol=1e-4, atol=1e-4)


@pytest.mark.long
def test_its_golden_file_passes(repository: Path, tmp_path: Path) -> None:
    shutil.copytree(repository / "ulfd", tmp_path / "ulfd")
    config = tmp_path / "ulfd" / "config.pbtxt"
    text = re.sub(r"batch_size: (\d+|\[ \d \])", "batch_size: 1", config.read_text())
    config.write_text(text)  # it is timed, too, and so quickly
    assert main(["models", "check", "ulfd", "--model-repository", str(tmp_path)]) == 0


@pytest.fixture(scope="module")
def running(repository: Path, launch_server: LaunchServer) -> Iterator[LocalServer]:
    galleries = str(repository.parent / "galleries")
    with launch_server("--gallery-dir", galleries, repository=repository) as server:
        yield server


def overlap(a: mien.Box, b: mien.Box) -> float:
    """Intersection over union."""
    shared = max(0.0, min(a.x2, b.x2) - max(a.x1, b.x1)) * max(
        0.0, min(a.y2, b.y2) - max(a.y1, b.y1)
    )
    return shared / (a.width * a.height + b.width * b.height - shared)


@pytest.mark.long
def test_it_finds_the_six_faces_and_nothing_else(
    running: LocalServer, portraits: list[Path]
) -> None:
    with mien.Client(running.address, timeout=60) as client:
        for path in portraits:
            (face,) = client.detect(path, detector="ulfd").faces
            (other,) = client.detect(path).faces
            assert face.box is not None
            assert other.box is not None
            assert overlap(face.box, other.box) > 0.8, path.stem
            assert face.score > 0.99
            assert face.landmarks is None
            assert face.as_dict()["landmarks"] is None


@pytest.mark.long
def test_analysers_of_the_box_and_quality_go_with_it(
    running: LocalServer, portraits: list[Path]
) -> None:
    with mien.Client(running.address, timeout=60) as client:
        for path in portraits:
            (face,) = client.analyze(path, detector="ulfd", analysers=["liveness"]).faces
            (other,) = client.analyze(path, analysers=["liveness"]).faces
            score = face["liveness"]
            assert isinstance(score, mien.Score)
            assert score.value > 0.5  # as in docs/models.md
            assert face.quality.yaw is face.quality.cut_off is None
            for name in ("sharpness", "brightness", "contrast"):
                ours, theirs = (getattr(each.quality, name) for each in (face, other))
                assert ours == pytest.approx(theirs, abs=0.04), (path.stem, name)


@pytest.mark.long
def test_where_faces_have_to_be_aligned_it_is_refused(
    running: LocalServer, portraits: list[Path]
) -> None:
    with mien.Client(running.address, timeout=60) as client:
        gallery = client.gallery("people")
        gallery.create()
        for call in (
            lambda: client.embed(portraits[0], detector="ulfd"),
            lambda: client.verify(portraits[0], portraits[1], detector="ulfd"),
            lambda: gallery.enrol(portraits[0], "somebody", detector="ulfd"),
            lambda: gallery.identify(portraits[0], detector="ulfd"),
        ):
            with pytest.raises(mien.InvalidRequest, match=r"places no landmarks.*use retinaface"):
                call()


@pytest.mark.long
def test_as_the_default_detector_it_is_warned_of_at_the_start(
    repository: Path, launch_server: LaunchServer
) -> None:
    with launch_server("--default-detector", "ulfd", repository=repository) as server:
        assert "detector 'ulfd' places no landmarks" in server.log.read_text()


@pytest.mark.long
def test_its_tensors_are_boxes_and_scores(running: LocalServer, photos: list[ImageU8]) -> None:
    client = tritonclient.InferenceServerClient(running.address)
    metadata = client.get_model_metadata("ulfd")
    assert [output.name for output in metadata.outputs] == ["boxes", "scores"]
    answer = client.infer("ulfd", pixels_input("image", np.stack([fitted(photos[0], 320, 320)])))
    assert answer.as_numpy("boxes").shape == (1, 1, 4)
    assert answer.as_numpy("scores").shape == (1, 1)
    assert answer.as_numpy("landmarks") is None
    client.close()


@pytest.mark.long
def test_its_faces_are_drawn(running: LocalServer, portraits: list[Path], tmp_path: Path) -> None:
    picture = tmp_path / "found.png"
    command = ["detect", str(portraits[0]), "--detector", "ulfd", "--out", str(picture)]
    assert mien_main([*command, "--address", running.address]) == 0
    drawn = np.asarray(Image.open(picture).convert("RGB"))
    plain = np.asarray(Image.open(portraits[0]).convert("RGB"))
    assert (drawn != plain).any()


@pytest.mark.long
def test_people_are_not_evaluated_with_it(repository: Path, portraits: list[Path]) -> None:
    settings = Settings(model_repository=(repository,), default_detector="ulfd")
    problem = "detector 'ulfd' places no landmarks, and without these no face can be aligned"
    with pytest.raises(EvaluationError, match=problem):
        aligned_faces(settings, portraits)
    wanted: dict[AnyRole, ModelRef] = {DETECTOR: ModelRef("ulfd"), EMBEDDER: ModelRef("sface")}
    with pytest.raises(EvaluationError, match=problem), load_models(settings, wanted):
        pass
