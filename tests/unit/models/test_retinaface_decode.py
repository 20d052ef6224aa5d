"""Priors, decoding and suppression against plain loops."""

import math
import random as stdlib_random
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mien_server.models.detections import FACES, Detections, suppress
from mien_server.models.families import find_family
from mien_server.models.interface import ArrayF32
from mien_server.models.retinaface import decode, priors
from mien_server.models.roles import DetectorOptions, DetectorRow

SIDE = 64
COUNT = 2 * (8 * 8 + 4 * 4 + 2 * 2)

Raw = tuple[ArrayF32, ArrayF32, ArrayF32]


def naive_priors(side: int) -> list[tuple[float, float, float, float]]:
    """Centre and size as fractions of the canvas: level, row, column, size."""
    found = []
    for step, sizes in ((8, (16, 32)), (16, (64, 128)), (32, (256, 512))):
        cells = math.ceil(side / step)
        for i, j, size in product(range(cells), range(cells), sizes):
            found.append(
                ((j + 0.5) * step / side, (i + 0.5) * step / side, size / side, size / side)
            )
    return found


def iou(a: ArrayF32, b: ArrayF32) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    inter = max(width, 0.0) * max(height, 0.0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter
    return float(inter / union)


def naive_suppress(boxes: ArrayF32, scores: ArrayF32, threshold: float) -> list[int]:
    kept: list[int] = []
    for i in sorted(range(len(boxes)), key=lambda i: -scores[i]):
        if all(iou(boxes[i], boxes[k]) <= threshold for k in kept):
            kept.append(i)
    return kept


def naive_decode(loc: ArrayF32, scores: ArrayF32, points: ArrayF32, min_score: float) -> Detections:
    boxes, confidence, landmarks = [], [], []
    for k, (cx, cy, w, h) in enumerate(naive_priors(SIDE)):
        if not scores[k] > min_score:
            continue
        x, y = cx + loc[k, 0] * 0.1 * w, cy + loc[k, 1] * 0.1 * h
        bw, bh = w * math.exp(loc[k, 2] * 0.2), h * math.exp(loc[k, 3] * 0.2)
        boxes.append([SIDE * v for v in (x - bw / 2, y - bh / 2, x + bw / 2, y + bh / 2)])
        landmarks.append(
            [
                (SIDE * (cx + px * 0.1 * w), SIDE * (cy + py * 0.1 * h))
                for px, py in points[k].reshape(5, 2)
            ]
        )
        confidence.append(scores[k])
    found = Detections(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(confidence, np.float32),
        np.array(landmarks, np.float32).reshape(-1, 5, 2),
    )
    kept = naive_suppress(found.boxes, found.scores, 0.4)
    return Detections(*(part[kept] for part in found))


def random_outputs(photos: int, seed: int = 3) -> Raw:
    rng = np.random.default_rng(seed)
    loc = rng.normal(size=(photos, COUNT, 4)).astype(np.float32)
    landmarks = rng.normal(size=(photos, COUNT, 10)).astype(np.float32)
    scores = rng.random((photos, COUNT), dtype=np.float32)
    return loc, scores, landmarks


def found_in(outputs: Raw, min_scores: list[float]) -> list[Detections]:
    return decode(*outputs, side=SIDE, min_scores=min_scores, nms_threshold=0.4)


@pytest.mark.parametrize("side", [64, 100, 320])  # 100 is no multiple of a stride
def test_priors_are_those_of_a_plain_loop(side: int) -> None:
    expected = np.array(naive_priors(side)) * side
    np.testing.assert_allclose(priors(side), expected[:, :3], rtol=1e-6)


def test_a_canvas_of_640_has_16800_priors() -> None:
    assert priors(640).shape == (16_800, 3)


def test_shared_priors_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="read-only"):
        priors(64)[0] = 0


@pytest.mark.parametrize("seed", range(5))
def test_decoding_is_that_of_a_plain_loop(seed: int) -> None:
    outputs = random_outputs(1, seed)

    (found,) = found_in(outputs, [0.3])

    loc, scores, landmarks = outputs
    expected = naive_decode(loc[0], scores[0], landmarks[0], 0.3)
    assert len(expected.scores) > 5
    for part, expected_part in zip(found, expected, strict=True):
        assert part.dtype == np.float32
        np.testing.assert_allclose(part, expected_part, atol=1e-3)


def test_a_batch_decodes_as_its_photos_do_one_by_one() -> None:
    loc, scores, landmarks = random_outputs(4)
    minima = [0.5, 0.9, 0.1, 1.0]

    together = found_in((loc, scores, landmarks), minima)

    for i, found in enumerate(together):
        (alone,) = found_in((loc[i : i + 1], scores[i : i + 1], landmarks[i : i + 1]), [minima[i]])
        for part, expected in zip(found, alone, strict=True):
            np.testing.assert_array_equal(part, expected)


def test_each_photo_has_its_own_score_to_beat() -> None:
    outputs = random_outputs(3)
    outputs[1][:] = outputs[1][0]

    low, high, none = found_in(outputs, [0.1, 0.8, 1.0])

    assert low.scores.min() < 0.8
    assert high.scores.min() > 0.8
    assert len(none.scores) == 0


def test_the_score_to_beat_is_not_enough_itself() -> None:
    outputs = random_outputs(1)
    outputs[1][:] = 0.25
    assert len(found_in(outputs, [0.25])[0].scores) == 0


def test_faces_come_by_falling_score() -> None:
    (found,) = found_in(random_outputs(1), [0.0])
    assert (np.diff(found.scores) <= 0).all()


def test_photos_without_faces_have_none() -> None:
    loc, scores, landmarks = random_outputs(2)

    for found in found_in((loc, np.zeros_like(scores), landmarks), [0.5, 0.0]):
        assert found.boxes.shape == (0, 4)
        assert found.scores.shape == (0,)
        assert found.landmarks.shape == (0, 5, 2)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30])
@pytest.mark.parametrize("output", [0, 1, 2])
def test_what_is_not_finite_is_no_face_and_hurts_no_other(output: int, bad: float) -> None:
    outputs = random_outputs(2)
    clean = found_in(outputs, [0.5, 0.5])[1]
    outputs[output][0] = bad

    first, second = found_in(outputs, [0.5, 0.5])

    assert all(np.isfinite(part).all() for part in first)
    assert (first.scores <= 1).all()
    for part, expected in zip(second, clean, strict=True):
        np.testing.assert_array_equal(part, expected)


def test_a_single_bad_prior_hides_no_good_one() -> None:
    loc, scores, landmarks = random_outputs(1)
    (before,) = found_in((loc, scores, landmarks), [0.5])
    worst = int(scores[0].argmin())
    loc[0, worst], scores[0, worst] = np.nan, 1.0

    (after,) = found_in((loc, scores, landmarks), [0.5])

    np.testing.assert_array_equal(after.boxes, before.boxes)


def test_no_photo_has_more_faces_than_the_limit() -> None:
    side = 640
    count = len(priors(side))
    loc = np.zeros((1, count, 4), np.float32)
    loc[..., 2:] = -20  # boxes so small that none overlaps another
    scores = np.linspace(0.5, 0.9, count, dtype=np.float32)[None]
    landmarks = np.zeros((1, count, 10), np.float32)

    (found,) = decode(loc, scores, landmarks, side=side, min_scores=[0.1], nms_threshold=0.4)

    assert len(found.scores) == FACES
    np.testing.assert_array_equal(found.scores, np.sort(scores[0])[::-1][:FACES])


def test_outputs_of_another_canvas_are_refused() -> None:
    loc, scores, landmarks = random_outputs(1)
    with pytest.raises(ValueError, match=r"168 priors.*128 pixels"):
        decode(loc, scores, landmarks, side=128, min_scores=[0.5], nms_threshold=0.4)


def test_the_family_takes_the_faces_column_and_the_rows_scores() -> None:
    loc, scores, landmarks = random_outputs(2)
    conf = np.stack([1 - scores, scores], axis=-1)
    canvas = np.zeros((SIDE, SIDE, 3), np.uint8)
    rows = [DetectorRow(canvas, 0.5), DetectorRow(canvas, 0.9)]

    results = find_family("retinaface_mobilenet0.25").results(
        [loc, conf, landmarks], rows, DetectorOptions(nms_threshold=0.4)
    )

    for found, expected in zip(
        results, found_in((loc, scores, landmarks), [0.5, 0.9]), strict=True
    ):
        np.testing.assert_array_equal(found.boxes, expected.boxes)


corner = st.integers(0, 60)
length = st.integers(1, 40)


@given(
    st.lists(st.tuples(corner, corner, length, length), max_size=30),
    st.sampled_from([0.0, 0.3, 0.4, 0.7, 1.0]),
    st.randoms(use_true_random=False),
)
def test_suppression_is_that_of_a_plain_loop(
    rectangles: list[tuple[int, int, int, int]], threshold: float, random: stdlib_random.Random
) -> None:
    boxes = np.array([(x, y, x + w, y + h) for x, y, w, h in rectangles], np.float32).reshape(-1, 4)
    scores = np.array([random.choice([0.25, 0.5, 0.75, 1.0]) for _ in rectangles], np.float32)

    kept = suppress(boxes, scores, threshold)

    assert kept.tolist() == naive_suppress(boxes, scores, threshold)
