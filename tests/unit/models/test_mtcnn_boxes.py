"""What happens to MTCNN's candidates between its networks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mien_server.models.interface import ArrayF32
from mien_server.models.mtcnn_boxes import (
    Candidates,
    calibrate,
    join,
    merge,
    nested,
    place_in_photo,
    strongest,
    visible,
)


def boxes_of(*corners: tuple[float, float, float, float]) -> ArrayF32:
    return np.array(corners, np.float32).reshape(-1, 4)


def candidates_of(row: list[int], scores: list[float], boxes: ArrayF32 | None = None) -> Candidates:
    if boxes is None:
        boxes = np.tile(np.array([0, 0, 10, 10], np.float32), (len(row), 1))
    return Candidates(np.array(row, np.int64), boxes, np.array(scores, np.float32))


def test_offsets_are_in_units_of_the_boxs_own_size() -> None:
    moved = calibrate(boxes_of((10, 20, 30, 60)), boxes_of((0.5, -0.25, 0.0, 0.1)))
    np.testing.assert_allclose(moved, [[20, 10, 30, 64]], rtol=1e-6)


def test_a_square_has_the_same_centre_and_the_longer_side() -> None:
    found = candidates_of([0, 0], [0.9, 0.8], boxes_of((0, 10, 40, 20), (5, 5, 10, 25)))
    assert found.squared().boxes.tolist() == [[0, -5, 40, 35], [-2.5, 5, 17.5, 25]]


@pytest.mark.parametrize(
    ("box", "shown"),
    [
        ((10, 10, 20, 20), True),
        ((-30, -30, 5, 5), True),
        ((90, 40, 140, 80), True),
        ((-30, 10, 0, 20), False),
        ((10, 50, 20, 90), False),
        ((10, 10, 10.5, 20), False),
        ((10, 10, 11.5, 20), True),
        ((-30, 10, 0.5, 20), True),
        ((20, 20, 10, 10), False),
        ((np.nan, 10, 20, 20), False),
        ((10, 10, 20, np.nan), False),
        ((-np.inf, 10, 20, 20), False),
        ((10, 10, np.inf, 20), False),
    ],
)
def test_what_has_no_part_on_the_canvas_is_no_candidate(
    box: tuple[float, float, float, float], shown: bool
) -> None:
    assert visible(boxes_of(box), width=100, height=50).tolist() == [shown]


def test_each_photo_keeps_its_own_strongest_candidates() -> None:
    found = strongest(candidates_of([1, 0, 1, 0, 1], [0.1, 0.2, 0.9, 0.8, 0.5]), 2)
    assert found.row.tolist() == [0, 0, 1, 1]
    np.testing.assert_allclose(found.scores, [0.8, 0.2, 0.9, 0.5])
    assert place_in_photo(found.row).tolist() == [0, 1, 0, 1]


def test_candidates_of_different_photos_never_suppress_each_other() -> None:
    same = boxes_of((0, 0, 10, 10), (1, 0, 11, 10), (40, 0, 50, 10), (0, 0, 10, 10))
    found = merge(candidates_of([0, 0, 0, 2], [0.9, 0.8, 0.7, 0.6], same), 0.5)
    assert found.row.tolist() == [0, 0, 2]
    np.testing.assert_allclose(found.scores, [0.9, 0.7, 0.6])


def test_no_candidates_stay_none() -> None:
    none = join([])
    for found in (none, merge(strongest(none, 5), 0.5), join([none, none]), none.squared()):
        assert [part.shape for part in found] == [(0,), (0, 4), (0,)]
    assert visible(none.boxes, 10, 10).shape == nested(none.boxes, 0.7).shape == (0,)


def test_a_box_inside_a_better_one_or_around_it_is_nested() -> None:
    boxes = boxes_of((0, 0, 40, 40), (10, 10, 20, 20), (-20, -20, 60, 60), (30, 30, 60, 60))
    assert nested(boxes, 0.7).tolist() == [False, True, True, False]


def test_what_is_nested_in_a_dropped_box_only_stays() -> None:
    boxes = boxes_of((0, 0, 10, 10), (0, 0, 30, 30), (15, 15, 28, 28))
    assert nested(boxes, 0.7).tolist() == [False, True, False]


@given(
    arrays(np.int64, 12, elements=st.integers(0, 3)),
    arrays(np.float32, (12, 2), elements=st.floats(0, 50, width=32)),
    arrays(np.float32, 12, elements=st.floats(0.125, 1, width=32)),
)
def test_a_photos_candidates_do_not_depend_on_its_company(
    row: np.ndarray, corner: np.ndarray, scores: np.ndarray
) -> None:
    found = Candidates(row, np.concatenate([corner, corner + 20], axis=1), scores)
    together = merge(strongest(found, 5), 0.5)
    for photo in range(4):
        alone = merge(strongest(found.take(found.row == photo), 5), 0.5)
        for mixed, expected in zip(together.take(together.row == photo), alone, strict=True):
            np.testing.assert_array_equal(mixed, expected)
