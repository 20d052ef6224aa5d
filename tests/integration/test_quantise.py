"""`models quantize`: real SFace weights to int8, on the portraits' faces."""

import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from mien_server.backends.devices import CpuDevice
from mien_server.backends.instance import LoadedInstance
from mien_server.commands.main import main
from mien_server.models.interface import ArrayF32, ImageU8
from mien_server.models.roles import DetectorRow, EmbedderRow
from mien_server.pipeline.align import crop_faces
from mien_server.repository.config.model import ModelConfig, read_config
from mien_server.repository.golden import PrecisionError, check_golden, read_golden
from mien_server.repository.instances import load_instance
from mien_server.repository.manifest import read_manifest, verify_version
from mien_server.weights.quantise import QuantiseError, quantise
from tests.small_models import PIXELS, add_model
from tests.unit.weights.test_quantise_graph import SLOPES, network

pytestmark = pytest.mark.long
"""All of it quantises SFace; tests/unit/weights does the same with small networks."""

SIDE = 640


def load(root: Path, model: str, version: int) -> LoadedInstance:
    config = read_config(root / model / "config.pbtxt")
    assert isinstance(config, ModelConfig)
    verify_version(root / model / str(version), root, config.default_model_filename)
    return load_instance(config, root / model / str(version), CpuDevice(2))


def embed(instance: LoadedInstance, crops: list[ImageU8]) -> ArrayF32:
    rows = [EmbedderRow(crop) for crop in crops]
    vectors = np.stack(instance.split(instance.compute(instance.collate(rows)), rows))
    unit: ArrayF32 = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


@pytest.fixture(scope="module")
def crops(portraits: list[Path], model_repository_path: Path) -> list[ImageU8]:
    """The portraits' faces, aligned."""
    detector = load(model_repository_path, "retinaface", 1)
    found = []
    for path in portraits:
        photo = np.asarray(cv2.imread(str(path), cv2.IMREAD_COLOR_RGB), np.uint8)
        scale = SIDE / max(photo.shape)
        photo = np.asarray(cv2.resize(photo, None, fx=scale, fy=scale), np.uint8)[:SIDE, :SIDE]
        canvas = np.zeros((SIDE, SIDE, 3), np.uint8)
        canvas[: photo.shape[0], : photo.shape[1]] = photo
        rows = [DetectorRow(canvas, 0.5)]
        (faces,) = detector.split(detector.compute(detector.collate(rows)), rows)
        found += crop_faces(canvas, faces.landmarks)
    return found


@pytest.fixture(scope="module")
def calibration(crops: list[ImageU8], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The crops and their mirror images as files."""
    folder = tmp_path_factory.mktemp("crops")
    for index, crop in enumerate(crops):
        (folder / str(index)).mkdir()
        for name, picture in (("as_is", crop), ("mirrored", crop[:, ::-1])):
            cv2.imwrite(str(folder / str(index) / f"{name}.png"), picture[..., ::-1])
    return folder


@pytest.fixture(scope="module")
def original(model_repository_path: Path) -> Path:
    return model_repository_path


@pytest.fixture(scope="module")
def quantised(original: Path, calibration: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with sface and what the command made of it."""
    root = tmp_path_factory.mktemp("quantised")
    shutil.copytree(original / "sface", root / "sface")
    arguments = ["models", "quantize", "sface", "--calibration", str(calibration)]
    assert main([*arguments, "--model-repository", str(root)]) == 0
    return root


@pytest.fixture
def root(original: Path, tmp_path: Path) -> Iterator[Path]:
    """A repository with sface, to fail in."""
    shutil.copytree(original / "sface", tmp_path / "models" / "sface")
    before = files(tmp_path / "models")
    yield tmp_path / "models"
    assert files(tmp_path / "models") == before


def files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.name != ".install.lock"}


def test_an_int8_model_appears_beside_the_original(quantised: Path) -> None:
    config = read_config(quantised / "sface-int8" / "config.pbtxt")
    assert isinstance(config, ModelConfig)
    assert (config.backend, config.precision) == ("onnxruntime", "int8")
    assert config.options.match_threshold is None, "it was measured with other weights"
    manifest = read_manifest(quantised / "sface-int8" / "1")
    assert manifest.source.startswith("sface version 1 quantised to int8 on 12 crops; OpenCV Zoo")
    assert manifest.license == "Apache-2.0"


def test_its_answers_are_near_and_tell_the_portraits_people_apart(
    quantised: Path, crops: list[ImageU8], portraits: list[Path]
) -> None:
    exact, near = load(quantised, "sface", 1), load(quantised, "sface-int8", 1)
    assert near.precision == "int8"
    expected, found = embed(exact, crops), embed(near, crops)
    assert ((expected * found).sum(axis=1) >= 0.99).all()
    similarity: NDArray[np.float32] = found @ found.T
    for a, b in itertools.combinations(range(len(portraits)), 2):
        same = portraits[a].stem[:-1] == portraits[b].stem[:-1] and "person" in portraits[a].stem
        assert (similarity[a, b] >= 0.5) if same else (similarity[a, b] <= 0.35)


def test_a_face_alone_or_among_others_gives_the_same_answer(
    quantised: Path, crops: list[ImageU8]
) -> None:
    instance = load(quantised, "sface-int8", 1)
    together = embed(instance, crops)
    alone = np.concatenate([embed(instance, [crop]) for crop in crops])
    assert ((together * alone).sum(axis=1) >= 1 - 1e-5).all()


def test_a_model_on_onnxruntime_gets_it_as_its_next_version(
    calibration: Path, tmp_path: Path
) -> None:
    root = tmp_path / "models"
    graph = onnx.load_from_string(network(SLOPES["none above one"], side=112))
    add_model(root, "own", graph, "embedder", PIXELS, dimensions=8)

    done = quantise(root, "own", calibration)

    assert (done.model, done.version, done.folder) == ("own", 2, root / "own" / "2")
    assert load(root, "own", 2).precision == "int8"
    assert {path.name for path in root.iterdir()} == {"own"}
    with pytest.raises(QuantiseError, match="computes in int8; quantise the fp32 version"):
        quantise(root, "own", calibration)


def test_weights_that_are_not_the_golden_files_are_refused_at_load(
    quantised: Path, crops: list[ImageU8]
) -> None:
    golden = read_golden(quantised / "sface-int8" / "1")
    assert golden is not None
    wrong = load(quantised, "sface-int8", 1)
    mirrored = type(golden)(golden.role, golden.input, golden.pictures[:, ::-1], golden.expected)
    with pytest.raises(PrecisionError, match=r"in int8 on cpu.*below the bound of 0\.99"):
        check_golden(mirrored, wrong, 8, precision="int8", device="cpu")


def test_what_loses_too_much_is_not_written(root: Path, tmp_path: Path) -> None:
    grey = tmp_path / "grey"
    grey.mkdir()
    for index in range(8):
        cv2.imwrite(str(grey / f"{index}.png"), np.full((112, 112, 3), 128, np.uint8))
    with pytest.raises(QuantiseError, match=r"nothing was written: in int8.*more crops"):
        quantise(root, "sface", grey)


def test_a_few_crops_are_refused(root: Path, tmp_path: Path, crops: list[ImageU8]) -> None:
    few = tmp_path / "few"
    few.mkdir()
    cv2.imwrite(str(few / "one.png"), crops[0])
    with pytest.raises(QuantiseError, match="has 1 pictures; at least 8 faces"):
        quantise(root, "sface", few)


def test_photos_are_no_crops(root: Path, portraits: list[Path], tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for index, path in enumerate([*portraits, *portraits]):
        shutil.copy(path, photos / f"{index}.jpg")
    with pytest.raises(QuantiseError, match=r"0\.jpg is no picture of 112x112 pixels"):
        quantise(root, "sface", photos)


def test_a_version_that_is_not_there_is_refused(root: Path, calibration: Path) -> None:
    with pytest.raises(QuantiseError, match=r"sface has no version 7, only \[1\]"):
        quantise(root, "sface", calibration, version=7)


def test_a_detector_is_refused(original: Path, calibration: Path) -> None:
    with pytest.raises(QuantiseError, match="no embedding model"):
        quantise(original, "retinaface", calibration)


def test_another_models_configuration_is_left_alone(root: Path, calibration: Path) -> None:
    other = root / "sface-int8"
    shutil.copytree(root / "sface", other, ignore=shutil.ignore_patterns("1", ".*"))
    config = other / "config.pbtxt"
    config.write_text(config.read_text().replace('name: "sface"', 'name: "sface-int8"'))
    try:
        with pytest.raises(QuantiseError, match="cannot serve sface in int8: backend must be"):
            quantise(root, "sface", calibration)
        assert [path.name for path in other.iterdir()] == ["config.pbtxt"]
    finally:
        shutil.rmtree(other)


def test_the_command_says_why_it_failed(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["models", "quantize", "nobody", "--calibration", str(root)]
    assert main([*arguments, "--model-repository", str(root)]) == 1
    assert "nobody" in capsys.readouterr().err
