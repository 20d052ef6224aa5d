"""Models of unstated origin that `models install` brings when asked: the published graphs, on real photos."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime
import pytest
import tritonclient.grpc as tritonclient
from numpy.typing import NDArray

import mien
from mien_server.backends.devices import CpuDevice
from mien_server.commands.main import main
from mien_server.models.analyser import AnalyserRow
from mien_server.models.roles import EmbedderRow
from mien_server.repository.config.model import ModelConfig, read_config
from mien_server.repository.instances import load_instance
from mien_server.weights.fetch.npm import read_tarball_member
from mien_server.weights.fetch.packages import default_cache
from mien_server.weights.fetch.sources import FACEPLUGIN
from tests.conftest import LaunchServer
from tests.integration.installed_rig import install_beside, npm_or_skip
from tests.integration.test_analysers_published import seen
from tests.integration.test_triton_client import pixels_input
from tools.local_server import LocalServer


def unit(vector: Any) -> Any:
    """The same direction, of length 1."""
    return vector / np.linalg.norm(vector)


pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def repository(model_repository_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("opt-in") / "repository"
    with npm_or_skip():
        return install_beside(model_repository_path, root, list(PUBLISHED))


@pytest.fixture(scope="module")
def running(repository: Path, launch_server: LaunchServer) -> Iterator[LocalServer]:
    galleries = str(repository.parent / "galleries")
    with launch_server("--gallery-dir", galleries, repository=repository) as server:
        yield server


PUBLISHED = {
    "liveness": ("fr_liveness", "output"),
    "mobilefacenet": ("fr_feature", "output"),
    "expression_densenet": ("fr_expression", "output"),
    "landmarks68": ("fr_landmark", "output"),
    "pose_yaw": ("fr_pose", "output"),
    "pose_pitch": ("fr_pose", "617"),
    "pose_roll": ("fr_pose", "618"),
}
"""The published graphs, and which of their outputs. The detector has tests of its own."""


def as_published(name: str, crops: list[NDArray[np.uint8]]) -> NDArray[np.float32]:
    """The graph's input, as the package prepares its pixels: [N, channels, S, S]."""
    rgb = np.stack(crops).astype(np.float64)
    if name == "landmarks68":
        grey = [cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY) for crop in crops]
        pixels = np.stack(grey)[..., None] / 256
    else:
        pixels = {
            "liveness": lambda: rgb[..., ::-1],
            "mobilefacenet": lambda: (rgb[..., ::-1] - 127) / 128,
            "expression_densenet": lambda: rgb / 255,
        }.get(name, lambda: (rgb / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225))()
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), np.float32)


def as_told(name: str, outputs: NDArray[np.float32]) -> NDArray[np.float64]:
    """What the package makes of the graph's outputs, in mien's units and directions."""
    if name == "mobilefacenet":
        return outputs.astype(np.float64)
    if name == "landmarks68":
        return outputs * np.float64(64) - 0.5
    powers = np.exp(outputs.astype(np.float64))
    shares: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    if name == "liveness":
        return shares[:, :1]
    if name == "expression_densenet":
        return shares
    degrees: NDArray[np.float64] = (shares * np.arange(66)).sum(axis=1, keepdims=True) * 3 - 99
    return -degrees if name == "pose_yaw" else degrees


@pytest.mark.parametrize("name", PUBLISHED)
def test_it_equals_the_published_graph_alone_and_in_a_batch(
    repository: Path, portraits: list[Path], name: str
) -> None:
    config = read_config(repository / name / "config.pbtxt")
    assert isinstance(config, ModelConfig)
    crops = seen(portraits, config.sides[0])
    file, output = PUBLISHED[name]
    tarball = default_cache() / FACEPLUGIN.filename
    session = onnxruntime.InferenceSession(
        read_tarball_member(tarball, f"package/model/{file}.onnx")
    )
    (first,) = session.get_inputs()
    planes = as_published(name, crops)
    outputs = [session.run([output], {first.name: row[None]})[0] for row in planes]
    expected = as_told(name, np.concatenate(outputs))
    kind = EmbedderRow if name == "mobilefacenet" else AnalyserRow
    rows: list[Any] = [kind(crop) for crop in crops]
    instance = load_instance(config, repository / name / "1", CpuDevice(1))

    def run(part: list[Any]) -> list[Any]:
        found = instance.split(instance.compute(instance.collate(part)), part)
        return list(found) if name == "mobilefacenet" else [each.values for each in found]

    np.testing.assert_allclose(run(rows), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose([run([row])[0] for row in rows], expected, rtol=1e-4, atol=1e-4)
    instance.close()


@pytest.mark.parametrize("name", PUBLISHED)
def test_its_golden_file_passes(repository: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(repository / name, tmp_path / name)
    config = tmp_path / name / "config.pbtxt"
    text = re.sub(r"batch_size: (\d+|\[ \d \])", "batch_size: 1", config.read_text())
    config.write_text(text)  # it is timed, too, and so quickly
    assert main(["models", "check", name, "--model-repository", str(tmp_path)]) == 0


def test_points_lie_where_the_detector_sees_eyes_nose_and_mouth(
    running: LocalServer, portraits: list[Path]
) -> None:
    with mien.Client(running.address, timeout=60) as client:
        for path in portraits:
            (face,) = client.analyze(path, analysers=["landmarks68"], policy="largest").faces
            told = face["landmarks68"]
            assert isinstance(told, mien.Points)
            points = np.array(told.points)
            assert points.shape == (68, 2)
            marks = face.face.landmarks
            assert marks is not None
            eyes = np.linalg.norm(np.subtract(marks.left_eye, marks.right_eye))
            for own, theirs in (
                (points[36:42].mean(axis=0), marks.left_eye),
                (points[42:48].mean(axis=0), marks.right_eye),
                (points[30], marks.nose),
                (points[48], marks.left_mouth),
                (points[54], marks.right_mouth),
            ):
                assert np.linalg.norm(own - theirs) < 0.15 * eyes, path.stem


def test_smiles_are_told_by_either_expression_model(
    running: LocalServer, portraits: list[Path]
) -> None:
    with mien.Client(running.address, timeout=60) as client:
        for path in portraits:
            (face,) = client.analyze(
                path, analysers=["expression_densenet"], policy="largest"
            ).faces
            told = face["expression_densenet"]
            assert isinstance(told, mien.Classification)
            assert told.label == ("neutral" if path.stem == "person_a_1" else "happy")


def test_pose_follows_a_face_that_leans_and_has_the_signs_of_quality(
    running: LocalServer, portraits: list[Path]
) -> None:
    names = ["pose_yaw", "pose_pitch", "pose_roll"]
    figures: list[tuple[float, float]] = []
    with mien.Client(running.address, timeout=60) as client:
        for path in portraits:
            photo = np.asarray(cv2.imread(str(path)), np.uint8)
            height, width = photo.shape[:2]
            for mirrored in (False, True):
                picture = photo[:, ::-1].copy() if mirrored else photo
                for lean in (-20, 0, 20):
                    turn = cv2.getRotationMatrix2D((width / 2, height / 2), -lean, 1)
                    border = cv2.BORDER_REPLICATE
                    leaning = cv2.warpAffine(picture, turn, (width, height), borderMode=border)
                    encoded = cv2.imencode(".png", leaning)[1].tobytes()
                    (face,) = client.analyze(encoded, analysers=names, policy="largest").faces
                    yaw, roll = face["pose_yaw"], face["pose_roll"]
                    assert isinstance(yaw, mien.Number)
                    assert isinstance(roll, mien.Number)
                    assert roll.value == pytest.approx(lean, abs=15), path.stem
                    if not lean:
                        assert face.quality.yaw is not None
                        figures.append((face.quality.yaw, yaw.value))
    assert np.corrcoef(np.array(figures).T)[0, 1] > 0.85


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


def test_two_embedders_have_galleries_of_their_own(
    running: LocalServer, portraits: list[Path]
) -> None:
    with mien.Client(running.address, timeout=60) as client:
        for name in ("sface", "mobilefacenet"):
            gallery = client.gallery(name)
            assert gallery.create(embedder=name).embedder.name == name
            firsts = [path for path in portraits if path.stem.endswith("1")]
            for path in firsts:
                assert gallery.enrol(path, path.stem).outcome == "enrolled"
            for path in portraits:
                (face,) = gallery.identify(path, threshold=0.4).faces
                told = [person.person for person in face.persons]
                person = path.stem[:-2] if path.stem.startswith("person") else path.stem
                own = [each.stem for each in firsts if each.stem.startswith(person)]
                assert told == own, (name, path.stem)
        vector = client.embed(portraits[0], embedder="mobilefacenet").embedding
        with pytest.raises(mien.EmbeddingMismatch):
            client.gallery("sface").identify(vector)
        with pytest.raises(mien.EmbeddingMismatch):
            client.gallery("sface").enrol(vector, "somebody")


def test_model_infer_gives_the_embedders_own_vectors(
    running: LocalServer, portraits: list[Path]
) -> None:
    crops = np.stack(seen(portraits, 112))
    with (
        mien.Client(running.address, timeout=60) as client,
        tritonclient.InferenceServerClient(running.address) as triton,
    ):
        answer = triton.infer("mobilefacenet", pixels_input("face", crops))
        vectors = answer.as_numpy("embedding")
        assert vectors.shape == (len(portraits), 512)
        for crop, vector in zip(crops, vectors, strict=True):
            embedded = client.embed(crop, aligned=True, embedder="mobilefacenet").embedding
            np.testing.assert_allclose(unit(vector), embedded.values, atol=1e-5)
