"""ULFD: priors and decoding, against plain loops."""

import math
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
from mien_server.models.ulfd import priors

ULFD = find_family("ulfd")
SIDE = 96
COUNT = 12 * 12 * 3 + 6 * 6 * 2 + 3 * 3 * 2 + 2 * 2 * 3


def naive_priors(height: int, width: int) -> list[tuple[float, float, float]]:
    """Centre and side of each, one at a time."""
    kinds = {8: (10, 16, 24), 16: (32, 48), 32: (64, 96), 64: (128, 192, 256)}
    return [
        ((column + 0.5) * step, (row + 0.5) * step, float(side))
        for step, sides in kinds.items()
        for row, column in product(range(math.ceil(height / step)), range(math.ceil(width / step)))
        for side in sides
    ]


def decode(outputs: list[ArrayF32], min_scores: list[float], side: int = SIDE) -> list[Detections]:
    canvas = np.zeros((side, side, 3), np.uint8)
    rows = [DetectorRow(canvas, score) for score in min_scores]
    found: list[Detections] = ULFD.results(outputs, rows, DetectorOptions(nms_threshold=1.0))
    return found


def nothing(photos: int = 1) -> list[ArrayF32]:
    """Outputs that see ground everywhere."""
    scores = np.tile(np.array([1, 0], np.float32), (photos, COUNT, 1))
    return [scores, np.zeros((photos, COUNT, 4), np.float32)]


def see(outputs: list[ArrayF32], photo: int, prior: int, score: float, *box: float) -> None:
    outputs[0][photo, prior] = [1 - score, score]
    outputs[1][photo, prior] = box


@pytest.mark.parametrize(
    ("height", "width", "count"), [(240, 320, 4420), (480, 640, 17640), (96, 96, COUNT)]
)
def test_priors_lie_where_plain_loops_put_them(height: int, width: int, count: int) -> None:
    np.testing.assert_array_equal(priors(height, width), naive_priors(height, width))
    assert len(priors(height, width)) == count
    assert not priors(height, width).flags.writeable


def test_a_box_is_its_prior_moved_and_grown() -> None:
    outputs = nothing(2)
    see(outputs, 1, 4, 0.9, 5.0, -2.5, math.log(2) / 0.2, 0.0)
    nobody, found = decode(outputs, [0.5, 0.5])
    assert len(nobody.scores) == 0
    # The second prior of the second place, 16 pixels wide around (12, 4).
    np.testing.assert_allclose(found.boxes, [[20 - 16, 0 - 8, 20 + 16, 0 + 8]], atol=1e-4)
    np.testing.assert_allclose(found.scores, [0.9])
    assert found.landmarks.shape == (1, 0, 2)
    assert nobody.landmarks.shape == (0, 0, 2)
    assert not found.placed


@given(
    st.lists(st.tuples(st.integers(0, COUNT - 1), st.floats(0, 1)), max_size=40), st.floats(0, 1)
)
def test_decoding_is_that_of_a_plain_loop(faces: list[tuple[int, float]], least: float) -> None:
    rng = np.random.default_rng(len(faces))
    outputs = nothing()
    for prior, score in faces:
        see(outputs, 0, prior, score, *rng.normal(size=4))
    expected = []
    for prior, (x, y, side) in enumerate(naive_priors(SIDE, SIDE)):
        score = outputs[0][0, prior, 1]
        if score > np.float32(least):
            dx, dy, w, h = (float(value) for value in outputs[1][0, prior])
            x, y = x + dx * 0.1 * side, y + dy * 0.1 * side
            w, h = (math.exp(value * 0.2) * side / 2 for value in (w, h))
            expected.append((x - w, y - h, x + w, y + h, score))

    (found,) = decode(outputs, [least])

    # Nothing is suppressed, as no box is another's double.
    ours = sorted(map(tuple, np.concatenate([found.boxes, found.scores[:, None]], axis=1).tolist()))
    assert len(ours) == len(expected)
    for one, two in zip(ours, sorted(expected), strict=True):
        assert one == pytest.approx(two, abs=1e-3)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_face_that_is_not_finite_is_none(value: float) -> None:
    outputs = nothing()
    see(outputs, 0, 4, 0.9, 0.0, 0.0, value, 0.0)
    assert len(decode(outputs, [0.5])[0].scores) == 0


def test_outputs_are_recognised_in_either_order_and_no_others() -> None:
    shapes = [(COUNT, 2), (COUNT, 4)]
    assert ULFD.arrange(shapes, SIDE) == [0, 1]
    assert ULFD.arrange(shapes[::-1], SIDE) == [1, 0]
    for other in (shapes[:1], [*shapes, (COUNT, 10)], [(4420, 2), (4420, 4)]):
        with pytest.raises(ValueError, match=r"ULFD gives .*: import it anew"):
            ULFD.arrange(other, SIDE)
    with pytest.raises(ValueError, match=r"534 priors, a canvas of 64 pixels has 235"):
        decode(nothing(), [0.5], side=64)


def test_it_has_no_network_in_pytorch() -> None:
    with pytest.raises(LoadError, match=r"'ulfd' has no network in PyTorch"):
        load_network(ULFD, Path("model.safetensors"))
