"""YuNet: cells, decoding and the recognition of its outputs, against plain loops."""

import math
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
from mien_server.models.yunet import cells
from tests.unit.models.scrfd_outputs import Face

YUNET = find_family("yunet")
SIDE = 64
STRIDES = (8, 16, 32)


def shapes(side: int) -> list[tuple[int, ...]]:
    """Of the twelve outputs for one canvas: two scores, box and landmarks, each by stride."""
    return [((side // stride) ** 2, values) for values in (1, 1, 4, 10) for stride in STRIDES]


def naive_cells(side: int) -> list[tuple[int, int, int]]:
    """Column times stride, row times stride and stride: grid, row, column."""
    return [
        (column * stride, row * stride, stride)
        for stride in STRIDES
        for row, column in product(range(side // stride), repeat=2)
    ]


def naive_decode(outputs: list[ArrayF32], photo: int, min_score: float) -> list[Face]:
    """Every face above the score, one at a time, before suppression."""
    found = []
    start = 0
    points = naive_cells(SIDE)
    for grid in range(3):
        a, b, boxes, marks = (outputs[3 * kind + grid][photo] for kind in range(4))
        for index in range(len(a)):
            x, y, stride = points[start + index]
            score = math.sqrt(float(a[index, 0]) * float(b[index, 0]))
            if score > min_score:
                dx, dy, w, h = (float(value) for value in boxes[index])
                w, h = math.exp(w) * stride / 2, math.exp(h) * stride / 2
                cx, cy = x + dx * stride, y + dy * stride
                landmarks = [
                    (x + float(left) * stride, y + float(down) * stride)
                    for left, down in marks[index].reshape(5, 2)
                ]
                found.append(Face((cx - w, cy - h, cx + w, cy + h), score, landmarks))
        start += len(a)
    return found


def decode(outputs: list[ArrayF32], min_scores: list[float], side: int = SIDE) -> list[Detections]:
    canvas = np.zeros((side, side, 3), np.uint8)
    rows = [DetectorRow(canvas, score) for score in min_scores]
    found: list[Detections] = YUNET.results(outputs, rows, DetectorOptions())
    return found


def one_face(score: tuple[float, float] = (0.9, 0.4)) -> list[ArrayF32]:
    """What is said of one photo with a face in the second row and third column of the middle grid."""
    outputs = [np.zeros((1, *shape), np.float32) for shape in shapes(SIDE)]
    outputs[1][0, 6], outputs[4][0, 6] = score
    outputs[7][0, 6] = (0.25, 0.5, math.log(2), math.log(3))
    outputs[10][0, 6] = np.arange(10) / 10
    return outputs


@pytest.mark.parametrize("side", [32, 64, 320])
def test_cells_are_those_of_a_plain_loop(side: int) -> None:
    np.testing.assert_array_equal(cells(side), naive_cells(side))


def test_a_canvas_of_640_has_8400_cells_that_cannot_be_changed() -> None:
    assert cells(640).shape == (8_400, 3)
    with pytest.raises(ValueError, match="read-only"):
        cells(64)[0] = 0


def test_a_face_is_where_its_cell_says() -> None:
    (found,) = decode(one_face(), [0.5])
    np.testing.assert_allclose(found.boxes, [[36 - 16, 24 - 24, 36 + 16, 24 + 24]], atol=1e-5)
    np.testing.assert_allclose(found.scores, [0.6], atol=1e-6)
    marks = np.array([32, 16]) + 1.6 * np.arange(10).reshape(5, 2)
    np.testing.assert_allclose(found.landmarks, [marks], atol=1e-5)


def test_each_photo_has_its_own_threshold_and_a_score_above_1_counts_as_1() -> None:
    outputs = [np.repeat(output, 3, axis=0) for output in one_face((1.2, 1.0))]
    outputs[1][1, 6] = 0.49
    found = decode(outputs, [0.9, 0.75, 0.65])
    assert [each.scores.tolist() for each in found] == [[1.0], [], [1.0]]


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("kind", [2, 3])
def test_a_face_that_is_not_finite_is_none(kind: int, value: float) -> None:
    outputs = one_face()
    outputs[3 * kind + 1][0, 6] = value
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
        outputs[grid][0, index], outputs[3 + grid][0, index] = rng.random(2)
        outputs[6 + grid][0, index] = rng.normal(size=4)
        outputs[9 + grid][0, index] = rng.normal(size=10)
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


@given(st.permutations(range(12)))
def test_outputs_are_recognised_in_any_order(order: list[int]) -> None:
    """Both scores of a stride look alike, and may change places."""
    given_shapes = shapes(64)
    arranged = YUNET.arrange([given_shapes[index] for index in order], 64)
    places = [order[index] for index in arranged]
    assert sorted(places) == list(range(12))
    assert [given_shapes[place] for place in places] == given_shapes


@pytest.mark.parametrize("given_shapes", [shapes(64)[:9], shapes(96), [*shapes(64), (1,)]])
def test_other_outputs_are_refused(given_shapes: list[tuple[int, ...]]) -> None:
    with pytest.raises(ValueError, match="YuNet gives"):
        YUNET.arrange(given_shapes, 64)


def test_outputs_of_another_canvas_are_refused() -> None:
    with pytest.raises(ValueError, match=r"84 cells, a canvas of 96 pixels has 189"):
        decode(one_face(), [0.5], side=96)


def test_it_has_no_network_in_pytorch() -> None:
    with pytest.raises(
        LoadError, match=r"'yunet' has no network in PyTorch .*backend: \"onnxruntime\""
    ):
        load_network(YUNET, Path("model.safetensors"))
