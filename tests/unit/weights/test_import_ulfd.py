"""ULFD's graphs: known by their structure, freed of one size of canvas, and the same network still."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from mien_server.backends.devices import CpuDevice
from mien_server.models.interface import Normalisation
from mien_server.models.roles import DetectorRow
from mien_server.models.ulfd import corners, priors
from mien_server.repository.config.model import ModelConfig, read_config
from mien_server.repository.config.pbtxt import ConfigText
from mien_server.repository.instances import load_instance
from mien_server.weights.errors import WeightsError
from mien_server.weights.recognise.checkpoint import recognise
from mien_server.weights.recognise.ulfd_graph import read_ulfd
from tests.unit.weights.conftest import Import
from tests.unit.weights.public_ulfd import (
    SIDES,
    STRIDES,
    PublicUlfd,
    exported_ulfd,
    public_priors,
)


def made(path: Path, height: int = 240, width: int = 320, seed: int = 0, **kind: Any) -> Path:
    torch.manual_seed(seed)
    return exported_ulfd(PublicUlfd(height, width, **kind), path, height, width)


def run(graph: Path | bytes, pixels: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(graph)
    return [np.asarray(each) for each in session.run(None, {"input": pixels})]


def away(height: int, width: int) -> np.ndarray:
    """How far trained priors lie from ours, less what that is on average: [P, 2], in pixels."""
    trained = public_priors(height, width)[0, :, :2].numpy() * (width, height)
    found, start = trained - priors(height, width)[:, :2], 0
    for stride, kinds in zip(STRIDES, SIDES, strict=True):
        end = start + len(kinds) * int(-(-height // stride) * -(-width // stride))
        found[start:end] -= found[start:end].mean(axis=0)
        start = end
    return found


@pytest.mark.parametrize(
    ("rfb", "height", "width", "count"),
    [(False, 240, 320, 4420), (True, 240, 320, 4420), (False, 480, 640, 17640)],
)
def test_it_is_the_same_network_on_canvases_of_the_graphs_own_size(
    tmp_path: Path, rfb: bool, height: int, width: int, count: int
) -> None:
    path = made(tmp_path / "public.onnx", height, width, rfb=rfb)
    pixels = np.random.default_rng(1).uniform(-1, 1, (2, 3, height, width)).astype(np.float32)
    alone = [run(path, row[None]) for row in pixels]

    scores, offsets = run(read_ulfd(path.read_bytes()), pixels)

    assert scores.shape == (2, count, 2)
    for row, (expected, boxes) in enumerate(alone):
        np.testing.assert_allclose(scores[row], expected[0], atol=1e-4)
        found = corners(offsets[row], priors(height, width)) + np.tile(away(height, width), 2)
        np.testing.assert_allclose(found / np.tile((width, height), 2), boxes[0], atol=1e-4)
    assert np.ptp(alone[0][0]) > 0.01, "a graph that says the same everywhere shows nothing"


def test_what_is_imported_serves_square_canvases_without_landmarks(
    tmp_path: Path, repository: Path, bring: Import
) -> None:
    (done,), said = bring("mine", made(tmp_path / "version-slim-320.onnx"))

    assert done.recognised.kind == "architecture 'ulfd' on backend 'onnxruntime'"
    assert "a ULFD detector, which places no landmarks" in said
    assert "was taken out of the graph" in said
    config = read_config(repository / "mine" / "config.pbtxt")
    assert isinstance(config, ModelConfig)
    assert config.normalisation == Normalisation("RGB", (127, 127, 127), 1 / 128)
    assert [output.name for output in config.outputs] == ["boxes", "scores"]
    assert not config.options.landmarks
    message = ConfigText.read(repository / "mine" / "config.pbtxt").message
    assert message.parameters["buckets"].string_value == "320, 640"
    instance = load_instance(config, done.folder, CpuDevice(1))
    rows = [DetectorRow(np.full((side, side, 3), 90, np.uint8), 0.0) for side in (320, 320)]
    found = instance.split(instance.compute(instance.collate(rows)), rows)
    config.role.check_first(found[0], config.outputs)
    assert len(found) == 2
    assert len(found[0].scores)
    instance.close()


def test_a_graph_that_is_not_decoded_becomes_the_same(tmp_path: Path) -> None:
    decoded, plain = (
        made(tmp_path / f"{kind}.onnx", decoded=kind, seed=3) for kind in (True, False)
    )
    pixels = np.random.default_rng(1).uniform(-1, 1, (1, 3, 128, 192)).astype(np.float32)
    for ours, theirs in zip(
        run(read_ulfd(decoded.read_bytes()), pixels),
        run(read_ulfd(plain.read_bytes()), pixels),
        strict=True,
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_what_is_made_of_it_is_recognised_and_left_as_it_is(tmp_path: Path) -> None:
    path = made(tmp_path / "public.onnx")
    (first,) = recognise(path)
    path.write_bytes(first.weights if isinstance(first.weights, bytes) else b"")
    (again,) = recognise(path)
    assert again.architecture == "ulfd"
    assert again.weights == first.weights


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ({"sides": ((8.0, 16.0, 24.0), *SIDES[1:])}, "its priors are others than ULFD's"),
        ({"sides": ((10.0, 24.0), *SIDES[1:])}, "not the four convolutions of ULFD"),
        ({"pool": True}, "its layers are not ULFD's: MaxPool"),
        ({"sigmoid": True}, "its scores are not made as ULFD's are"),
    ],
)
def test_other_detectors_of_boxes_are_refused(
    tmp_path: Path, kind: dict[str, Any], why: str
) -> None:
    path = made(tmp_path / "other.onnx", **kind)
    with pytest.raises(WeightsError, match=why):
        read_ulfd(path.read_bytes())
    with pytest.raises(WeightsError, match=r"other.onnx: .* nor a ULFD \(two\)"):
        recognise(path)


def test_what_is_no_graph_is_refused() -> None:
    with pytest.raises(WeightsError, match="no ONNX file"):
        read_ulfd(b"\x08nothing")
