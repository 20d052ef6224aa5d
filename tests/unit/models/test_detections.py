"""Faces of a canvas as one value."""

import numpy as np

from mien_server.models.detections import CANDIDATES, Detections, candidates, detections

FACES = Detections(
    np.array([[0, 0, 10, 20], [10, 10, 30, 30], [100, 0, 110, 10]], np.float32),
    np.array([0.9, 0.8, 0.7], np.float32),
    np.arange(30, dtype=np.float32).reshape(3, 5, 2),
)


def test_a_selection_keeps_what_belongs_together() -> None:
    for index in (np.array([2, 0]), np.array([True, False, True])):
        taken = FACES.take(index)
        for part, of in zip(taken, FACES, strict=True):
            np.testing.assert_array_equal(part, of[index])


def test_scaling_divides_along_each_axis() -> None:
    scaled = FACES.scaled(np.array([2, 0.5], np.float32))
    np.testing.assert_array_equal(scaled.boxes[1], [5, 20, 15, 60])
    np.testing.assert_array_equal(scaled.landmarks[0, 1], [1, 6])
    np.testing.assert_array_equal(scaled.scores, FACES.scores)
    assert {part.dtype for part in scaled} == {np.dtype(np.float32)}


def test_overlap_is_the_share_of_the_union() -> None:
    other = Detections(
        np.array([[0, 0, 10, 10], [5, 5, 15, 25]], np.float32),
        FACES.scores[:2],
        FACES.landmarks[:2],
    )
    expected = np.array([[0.5, 75 / 325], [0, 75 / 525], [0, 0]])
    np.testing.assert_allclose(FACES.iou(other), expected, rtol=1e-6)
    flat = Detections(np.zeros((1, 4), np.float32), FACES.scores[:1], FACES.landmarks[:1])
    assert FACES.iou(flat).max() == flat.iou(flat).max() == 0


def test_the_best_candidates_of_each_photo_are_looked_at_in_their_order() -> None:
    scores = np.array([[0.1, 0.9, 0.5, np.nan], [0.2, np.inf, 0.7, 0.7]], np.float32)
    row, candidate = candidates(scores, [0.1, 0.2])
    assert list(zip(row.tolist(), candidate.tolist(), strict=True)) == [
        *((0, 1), (0, 2)),
        *((1, 2), (1, 3)),
    ]


def test_no_photo_has_more_candidates_than_the_limit() -> None:
    scores = np.linspace(0.1, 0.9, CANDIDATES + 10, dtype=np.float32)[None].repeat(2, axis=0)
    row, candidate = candidates(scores, [0.0, 0.5])
    assert np.bincount(row)[0] == CANDIDATES
    assert candidate[0] == CANDIDATES + 9
    assert candidate[row == 0].min() == 10


def test_what_has_no_area_or_no_place_is_no_face() -> None:
    boxes = np.array(
        [[0, 0, 10, 10], [20, 0, 20, 10], [40, 10, 50, 10], [60, 9, 70, 0], [80, 0, 90, 9]],
        np.float32,
    )
    landmarks = np.zeros((5, 5, 2), np.float32)
    landmarks[4, 3, 1] = np.nan
    scores = np.array([1.5, 0.9, 0.9, 0.9, 0.9], np.float32)
    (found, none) = detections(
        np.zeros(5, np.intp), boxes, scores, landmarks, photos=2, nms_threshold=0.4
    )
    np.testing.assert_array_equal(found.boxes, boxes[:1])
    np.testing.assert_array_equal(found.scores, [1])
    assert [part.shape for part in none] == [(0, 4), (0,), (0, 5, 2)]
