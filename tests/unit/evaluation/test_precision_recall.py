"""Average precision, where it is known by hand and against a slow rewriting of the protocol."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mien_server.evaluation.precision_recall import STEPS, average_precision, match, overlaps

FACES = np.array([[10.0, 10, 30, 30], [100, 100, 140, 140], [200, 10, 230, 40]])
ALL = np.ones(3, np.bool_)


def test_the_overlap_counts_both_ends_of_a_box() -> None:
    ten = np.array([[0.0, 0, 9, 9]])
    assert overlaps(ten, np.array([[0.0, 0, 9, 4], [5, 0, 14, 9], [20, 20, 29, 29]])) == (
        pytest.approx(np.array([[0.5, 1 / 3, 0]]))
    )


def test_all_faces_found_and_nothing_else_is_perfect() -> None:
    outcome = match(FACES, np.array([1.0, 0.9, 0.8]), FACES, ALL)
    assert average_precision([outcome], 3) == pytest.approx(1.0)


def test_a_false_box_before_the_second_of_two_faces_costs_a_sixth() -> None:
    # Precision 1 up to recall 1/2, then 2/3.
    boxes = np.array([FACES[0], [300.0, 300, 330, 330], FACES[1]])
    outcome = match(boxes, np.array([1.0, 0.6, 0.5]), FACES[:2], ALL[:2])
    assert average_precision([outcome], 2) == pytest.approx(1 / 2 + 1 / 2 * 2 / 3)


def test_a_second_box_on_a_face_is_false() -> None:
    boxes = np.array([FACES[0], FACES[0] + 1, FACES[1]])
    outcome = match(boxes, np.array([1.0, 0.6, 0.5]), FACES[:2], ALL[:2])
    assert outcome.found.tolist() == [1, 1, 2]
    assert outcome.proposed.tolist() == [1, 2, 3]


def test_a_box_on_a_face_that_does_not_count_is_neither_right_nor_wrong() -> None:
    counting = np.array([True, False, True])
    outcome = match(FACES, np.array([1.0, 0.6, 0.5]), FACES, counting)
    assert outcome.proposed.tolist() == [1, 1, 2]
    assert average_precision([outcome], 2) == pytest.approx(1.0)


def test_faces_of_photos_without_boxes_lower_the_recall() -> None:
    outcome = match(FACES[:1], np.array([1.0]), FACES[:1], ALL[:1])
    assert average_precision([outcome], 4) == pytest.approx(0.25)
    assert average_precision([], 4) == 0.0


def _slowly(photos: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]) -> float:
    """The protocol as its description reads: threshold by threshold, box by box."""
    overlapping = [
        [overlaps(box[None], faces)[0] for box in boxes] for boxes, _, faces, _ in photos
    ]
    curve = []
    total = sum(int(counting.sum()) for *_, counting in photos)
    for step in range(1, STEPS + 1):
        threshold = 1 - step / STEPS
        proposals = hits = 0
        for (_, scores, _, counting), shares_of in zip(photos, overlapping, strict=True):
            seen: set[int] = set()
            for shares, score in zip(shares_of, scores, strict=True):
                if score < threshold:
                    continue
                best = int(shares.argmax())
                if shares[best] >= 0.5 and not counting[best]:
                    continue
                proposals += 1
                if shares[best] >= 0.5 and best not in seen:
                    seen.add(best)
                    hits += 1
        curve.append((hits / total, hits / proposals if proposals else 0.0))
    area, before = 0.0, 0.0
    for at, (recall, _) in enumerate(curve):
        area += (recall - before) * max(precision for _, precision in curve[at:])
        before = recall
    return area


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_it_equals_the_protocol_followed_step_by_step(seed: int) -> None:
    generator = np.random.default_rng(seed)
    photos = []
    for _ in range(3):
        faces = generator.uniform(0, 60, (4, 2))
        faces = np.concatenate([faces, faces + generator.uniform(10, 30, (4, 2))], axis=1)
        chosen = faces[generator.integers(0, 4, 6)]
        boxes = chosen + generator.normal(0, 4, (6, 4))
        scores = -np.sort(-generator.uniform(size=6).round(2))
        photos.append((boxes, scores, faces, generator.uniform(size=4) < 0.7))
    photos[0][3][0] = True
    outcomes = [match(*photo) for photo in photos]
    faces_that_count = sum(int(counting.sum()) for *_, counting in photos)
    assert average_precision(outcomes, faces_that_count) == pytest.approx(_slowly(photos))
