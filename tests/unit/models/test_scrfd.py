"""SCRFD: anchors, decoding and the recognition of its outputs, against plain loops."""

import random as stdlib_random
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mien_server.backends.checkpoint import load_network
from mien_server.backends.weights_file import LoadError
from mien_server.models.detections import Detections
from mien_server.models.families import find_family
from mien_server.models.interface import ArrayF32
from mien_server.models.roles import DetectorOptions, DetectorRow
from mien_server.models.scrfd import anchors
from tests.unit.models.scrfd_outputs import SIDE, Face, encode, shapes

SCRFD = find_family("scrfd")


def naive_anchors(side: int) -> list[tuple[int, int, int]]:
    """Column times stride, row times stride and stride: grid, row, column, anchor."""
    found = []
    for stride in (8, 16, 32):
        cells = side // stride
        for row, column, _ in product(range(cells), range(cells), range(2)):
            found.append((column * stride, row * stride, stride))
    return found


def naive_decode(outputs: list[ArrayF32], photo: int, min_score: float) -> list[Face]:
    """Every face above the score, one at a time, before suppression."""
    found = []
    start = 0
    points = naive_anchors(SIDE)
    for grid in range(3):
        scores, boxes, marks = (outputs[3 * kind + grid][photo] for kind in range(3))
        for index in range(len(scores)):
            x, y, stride = points[start + index]
            if scores[index, 0] > min_score:
                left, top, right, bottom = (float(d) * stride for d in boxes[index])
                landmarks = [
                    (
                        x + float(marks[index, 2 * k]) * stride,
                        y + float(marks[index, 2 * k + 1]) * stride,
                    )
                    for k in range(5)
                ]
                box = (x - left, y - top, x + right, y + bottom)
                found.append(Face(box, float(scores[index, 0]), landmarks))
        start += len(scores)
    return found


def decode(outputs: list[ArrayF32], min_scores: list[float]) -> list[Detections]:
    canvas = np.zeros((SIDE, SIDE, 3), np.uint8)
    rows = [DetectorRow(canvas, score) for score in min_scores]
    found: list[Detections] = SCRFD.results(outputs, rows, DetectorOptions())
    return found


FACES = [
    Face(
        (3.0, 5.0, 20.0, 26.0),
        0.9,
        [(8.0, 12.0), (15.0, 12.5), (11.0, 16.0), (9.0, 21.0), (14.0, 21.0)],
    ),
    Face((30.0, 28.0, 61.0, 63.0), 0.75, [(38, 40), (52, 41), (45, 48), (40, 55), (51, 56)]),
    Face((-6.0, 40.0, 12.0, 70.0), 0.6, [(-1, 50), (8, 50), (3, 56), (0, 62), (7, 63)]),
]


@pytest.mark.parametrize("side", [32, 64, 320])
def test_anchors_are_those_of_a_plain_loop(side: int) -> None:
    np.testing.assert_array_equal(anchors(side), naive_anchors(side))


def test_a_canvas_of_640_has_16800_anchors_that_cannot_be_changed() -> None:
    assert anchors(640).shape == (16_800, 3)
    with pytest.raises(ValueError, match="read-only"):
        anchors(64)[0] = 0


@pytest.mark.parametrize("grid", [0, 1, 2])
@pytest.mark.parametrize("anchor", [0, 1])
@pytest.mark.parametrize("face", FACES)
def test_a_face_is_found_where_it_was_encoded(grid: int, anchor: int, face: Face) -> None:
    (found,) = decode(encode([[face]], grid=grid, anchor=anchor), [0.5])
    np.testing.assert_allclose(found.boxes, [face.box], atol=1e-4)
    np.testing.assert_allclose(found.scores, [face.score], atol=1e-6)
    np.testing.assert_allclose(found.landmarks, [face.landmarks], atol=1e-4)


def test_each_photo_has_its_own_faces_and_its_own_threshold() -> None:
    outputs = encode([FACES, [], FACES, FACES[1:]])
    found = decode(outputs, [0.5, 0.5, 0.7, 0.8])
    assert [len(each.scores) for each in found] == [3, 0, 2, 0]
    np.testing.assert_allclose(found[2].boxes, [face.box for face in FACES[:2]], atol=1e-4)


def test_a_face_that_several_anchors_see_is_found_once() -> None:
    outputs = encode([[FACES[0]]], grid=0)
    weaker = Face(FACES[0].box, 0.8, FACES[0].landmarks)
    for other, again in zip(outputs, encode([[weaker]], grid=1), strict=True):
        other += again
    (found,) = decode(outputs, [0.5])
    np.testing.assert_allclose(found.scores, [0.9], atol=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", [0, 1, 2])
def test_what_is_not_finite_is_no_face(kind: int, value: float) -> None:
    outputs = encode([FACES], grid=0)
    seen = outputs[0][0, :, 0] > 0
    outputs[3 * kind][0, seen] = value
    (found,) = decode(outputs, [0.5])
    assert len(found.scores) == 0


@given(st.integers(0, 40), st.floats(0, 1), st.randoms(use_true_random=False))
def test_decoding_is_that_of_a_plain_loop(
    count: int, min_score: float, random: stdlib_random.Random
) -> None:
    rng = np.random.default_rng(random.randrange(1 << 30))
    outputs = [np.zeros((1, *shape), np.float32) for shape in shapes(SIDE)]
    for _ in range(count):
        grid = rng.integers(3)
        index = rng.integers(len(outputs[grid][0]))
        outputs[grid][0, index] = rng.random()
        outputs[3 + grid][0, index] = rng.uniform(0.1, 4, 4)
        outputs[6 + grid][0, index] = rng.normal(size=10)
    naive = naive_decode(outputs, 0, min_score)

    (found,) = decode(outputs, [min_score])

    boxes = np.array([face.box for face in naive]).reshape(-1, 4)
    for box, score, marks in zip(found.boxes, found.scores, found.landmarks, strict=True):
        at = np.abs(boxes - box).max(axis=1).argmin()
        np.testing.assert_allclose(box, naive[at].box, atol=1e-3)
        np.testing.assert_allclose(score, naive[at].score, atol=1e-6)
        np.testing.assert_allclose(marks, naive[at].landmarks, atol=1e-3)
    assert (np.diff(found.scores) <= 0).all()
    if naive:
        assert found.scores[0] == pytest.approx(max(face.score for face in naive))


@given(st.permutations(range(9)))
def test_outputs_are_recognised_in_any_order(order: list[int]) -> None:
    given_shapes = shapes(64)
    arranged = SCRFD.arrange([given_shapes[index] for index in order], 64)
    assert [order[index] for index in arranged] == list(range(9))


@pytest.mark.parametrize(
    ("given_shapes", "problem"),
    [
        (shapes(64)[:6], "no landmarks, without which no face can be aligned"),
        (shapes(64)[:8], "SCRFD with landmarks gives"),
        (shapes(96), "SCRFD with landmarks gives"),
        ([*shapes(64), (1,)], "SCRFD with landmarks gives"),
    ],
)
def test_other_outputs_are_refused(given_shapes: list[tuple[int, ...]], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        SCRFD.arrange(given_shapes, 64)


def test_outputs_of_another_canvas_are_refused() -> None:
    canvas = np.zeros((96, 96, 3), np.uint8)
    with pytest.raises(ValueError, match=r"168 anchors.*96 pixels has 378"):
        SCRFD.results(encode([[]]), [DetectorRow(canvas, 0.5)], DetectorOptions())


def test_it_has_no_network_in_pytorch() -> None:
    with pytest.raises(
        LoadError, match=r"'scrfd' has no network in PyTorch .*backend: \"onnxruntime\""
    ):
        load_network(SCRFD, Path("model.safetensors"))
