"""Each figure of a face says one thing: worse pictures of it are worse by that figure, and by it alone."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from mien_server.pipeline import quality
from mien_server.pipeline.align import TEMPLATE, crop_faces
from mien_server.pipeline.quality import Issue, Problem, of_crop, of_face, pose, problems
from mien_server.pipeline.types import ImageU8, Quality

Portrait = tuple[ImageU8, NDArray[np.float32]]

# Of the sample portraits, as the shipped detector finds them.
LANDMARKS = {
    "person_a_2": [(267.3, 319.4), (409.2, 314.5), (321.2, 407.2), (284.8, 459.8), (408.0, 455.3)],
    "person_b_1": [(294.1, 310.8), (428.8, 297.6), (365.9, 390.4), (308.2, 436.5), (432.1, 425.8)],
    "impostor_1": [(287.8, 297.9), (399.9, 288.5), (351.1, 347.8), (297.9, 400.4), (407.8, 392.6)],
}


@pytest.fixture(scope="module", params=LANDMARKS)
def face(request: pytest.FixtureRequest, sample: Callable[[str], Path]) -> Portrait:
    """A portrait and its landmarks."""
    with Image.open(sample(request.param)) as picture:
        return np.asarray(picture.convert("RGB")), np.array(LANDMARKS[request.param], np.float32)


def judged(pixels: ImageU8, landmarks: NDArray[np.float32]) -> Quality:
    (crop,) = crop_faces(pixels, landmarks[None])
    low, high = landmarks.min(axis=0), landmarks.max(axis=0)
    box = np.concatenate([low - 0.5 * (high - low), high + 0.5 * (high - low)]).astype(np.float32)
    height, width = pixels.shape[:2]
    nobody = np.zeros((0, 4), np.float32)
    return of_face(
        crop, box=box, landmarks=landmarks, score=0.99, others=nobody, width=width, height=height
    )


def falling(values: Sequence[float]) -> bool:
    return all(b < a for a, b in pairwise(values))


def test_portraits_have_nothing_to_complain_of(face: Portrait) -> None:
    assert problems(judged(*face)) == []


def test_blur_lowers_sharpness_and_nothing_else_much(face: Portrait) -> None:
    pixels, landmarks = face
    whole = judged(pixels, landmarks)
    sigmas = (2, 4, 8, 12, 16, 24)
    blurred = [
        judged(np.asarray(cv2.GaussianBlur(pixels, (0, 0), s), np.uint8), landmarks) for s in sigmas
    ]
    assert falling([whole.sharpness, *(each.sharpness for each in blurred)])
    assert all(abs(each.brightness - whole.brightness) < 0.03 for each in blurred)
    assert [issue.problem for issue in problems(blurred[2])] == [Problem.BLURRED]


def test_shrinking_lowers_size_and_sharpness(face: Portrait) -> None:
    pixels, landmarks = face
    eyes = float(np.linalg.norm(landmarks[1] - landmarks[0]))
    shrunk = []
    for side in (60, 40, 25, 16, 10, 6):
        scale = side / eyes
        small = cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        shrunk.append(
            judged(
                np.asarray(small, np.uint8), ((landmarks + 0.5) * scale - 0.5).astype(np.float32)
            )
        )
    assert falling([each.size or 0.0 for each in shrunk])
    assert falling([each.sharpness for each in shrunk])
    assert problems(shrunk[0]) == []
    assert Problem.SMALL in [issue.problem for issue in problems(shrunk[-1])]


def test_darkening_lowers_brightness_and_contrast_but_not_sharpness(face: Portrait) -> None:
    pixels, landmarks = face
    whole = judged(pixels, landmarks)
    factors = (0.7, 0.4, 0.2, 0.1, 0.05)
    dark = [judged((pixels * factor).astype(np.uint8), landmarks) for factor in factors]
    assert falling([whole.brightness, *(each.brightness for each in dark)])
    assert falling([whole.contrast, *(each.contrast for each in dark)])
    assert all(abs(each.sharpness - whole.sharpness) < 0.1 * whole.sharpness for each in dark)
    assert Problem.DARK in [issue.problem for issue in problems(dark[-1])]


def test_washing_out_raises_brightness_and_lowers_contrast(face: Portrait) -> None:
    pixels, landmarks = face
    pale = [
        judged((255 - (255 - pixels) * factor).astype(np.uint8), landmarks)
        for factor in (1.0, 0.5, 0.2, 0.05)
    ]
    assert falling([-each.brightness for each in pale])
    assert falling([each.contrast for each in pale])
    assert {issue.problem for issue in problems(pale[-1])} == {Problem.BRIGHT, Problem.FLAT}


def test_the_further_a_face_leaves_the_photo_the_more_is_cut_off(face: Portrait) -> None:
    pixels, landmarks = face
    left, right = landmarks[0, 0], landmarks[1, 0]
    at = [left - (right - left), left - 0.3 * (right - left), left, (left + right) / 2]
    cut = [judged(pixels[:, int(x) :], landmarks - np.array([int(x), 0], np.float32)) for x in at]
    assert falling([-(each.cut_off or 0.0) for each in cut])
    assert cut[0].cut_off == 0.0
    assert cut[-1].cut_off == pytest.approx(0.5, abs=0.1)
    assert Problem.CUT_OFF in [issue.problem for issue in problems(cut[-1])]


def turned(yaw: float, pitch: float, roll: float) -> NDArray[np.float32]:
    """The landmarks of the mean face, turned: yaw first, then pitch, then roll."""
    y, p, r = np.radians([yaw, pitch, roll])
    about_y = np.array([[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]])
    about_x = np.array([[1, 0, 0], [0, np.cos(p), -np.sin(p)], [0, np.sin(p), np.cos(p)]])
    about_z = np.array([[np.cos(r), -np.sin(r), 0], [np.sin(r), np.cos(r), 0], [0, 0, 1]])
    points = quality._MODEL @ (about_z @ about_x @ about_y).T
    seen: NDArray[np.float32] = (3 * points[:, :2] + 200).astype(np.float32)
    return seen


@pytest.mark.parametrize("angle", [-60, -30, -10, 0, 10, 30, 60])
def test_pose_of_a_turned_model_is_how_it_was_turned(angle: int) -> None:
    assert pose(turned(angle, 0, 0)) == pytest.approx((angle, 0, 0), abs=0.01)
    assert pose(turned(0, angle / 2, 0))[1] == pytest.approx(angle / 2, abs=0.01)
    assert pose(turned(0, 0, angle)) == pytest.approx((0, 0, angle), abs=0.01)
    assert pose(turned(20, 0, angle)) == pytest.approx((20, 0, angle), abs=0.01)


def test_signs_of_the_angles_are_those_of_the_contract() -> None:
    """The nose to the right of the middle looks right, one that is high looks up; clockwise leans right."""
    right, up = TEMPLATE.copy(), TEMPLATE.copy()
    right[2, 0] += 8
    up[2, 1] -= 8
    assert pose(right)[0] > 15
    assert pose(up)[1] > 15
    leaning = TEMPLATE @ np.array([[0.9, 0.436], [-0.436, 0.9]], np.float32)
    assert pose(leaning)[2] > 20  # its right eye is lower than the left one


def test_other_faces_count_by_their_size() -> None:
    crop = np.random.default_rng(0).integers(0, 256, (112, 112, 3), dtype=np.uint8)

    def next_face(*others: tuple[float, float, float, float]) -> float | None:
        boxes = np.array(others, np.float32).reshape(-1, 4)
        box = np.array([0, 0, 100, 140], np.float32)
        return of_face(
            crop,
            box=box,
            landmarks=TEMPLATE,
            score=0.9,
            others=boxes,
            width=300,
            height=300,
        ).next_face

    assert next_face() == 0.0
    assert next_face((0, 0, 20, 90), (0, 0, 50, 60)) == pytest.approx(0.5)
    assert next_face((0, 0, 90, 90)) == pytest.approx(0.9)


def test_crop_alone_has_figures_of_its_pixels_only() -> None:
    crop = np.full((112, 112, 3), 128, np.uint8)
    found = of_crop(crop)
    assert found.brightness == pytest.approx(0.502, abs=1e-3)
    assert (found.sharpness, found.contrast) == pytest.approx((0.0, 0.0), abs=1e-5)
    assert (found.size, found.yaw, found.cut_off, found.next_face, found.score) == (None,) * 5
    assert {issue.problem for issue in problems(found)} == {Problem.BLURRED, Problem.FLAT}


def test_issue_tells_its_figure_and_what_would_pass() -> None:
    assert str(Issue(Problem.SMALL, 24.33, 32.0)) == "small (24.3, 32 or more passes)"
    assert str(Issue(Problem.CUT_OFF, 0.31, 0.1)) == "cut off (0.31, 0.1 or less passes)"
    like = Issue(Problem.LIKE_ANOTHER_PERSON, 0.93, 0.68, "ann")
    assert str(like) == "it is like a face of 'ann' (0.930, less than 0.680 passes)"
