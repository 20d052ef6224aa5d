import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from mien_server.pipeline.align import (
    TEMPLATE,
    alignable,
    crop_faces,
    magnification,
    similarity,
)

ANGLES = st.floats(-np.pi, np.pi)
SCALES = st.floats(0.05, 40)
SHIFTS = st.floats(-3000, 3000)


def moved(
    angle: float, scale: float, x: float, y: float, mirrored: bool = False
) -> NDArray[np.float32]:
    """The template's points after a similarity, and perhaps a mirror before it."""
    points = TEMPLATE.astype(np.float64) * ([-1, 1] if mirrored else [1, 1])
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    face: NDArray[np.float32] = (scale * points @ turn.T + [x, y]).astype(np.float32)
    return face


def apply(matrix: NDArray[np.float64], points: NDArray[np.float32]) -> NDArray[np.float64]:
    return points @ matrix[:, :2].T + matrix[:, 2]


def test_equals_the_reference_implementation() -> None:
    # It takes a second, which every process that collects tests would spend.
    from skimage.transform import SimilarityTransform

    rng = np.random.default_rng(0)
    centres, sizes = rng.uniform(0, 2000, (200, 1, 2)), rng.uniform(5, 300, (200, 1, 1))
    faces = (centres + rng.normal(0, 1, (200, 5, 2)) * sizes).astype(np.float32)
    usable = alignable(faces)
    assert usable.sum() > 190
    for face, matrix in zip(faces[usable], similarity(faces)[usable], strict=True):
        reference = SimilarityTransform.from_estimate(face.astype(float), TEMPLATE.astype(float))
        assert np.abs(matrix - reference.params[:2]).max() < 1e-4


@given(angle=ANGLES, scale=SCALES, x=SHIFTS, y=SHIFTS)
def test_undoes_any_similarity(angle: float, scale: float, x: float, y: float) -> None:
    face = moved(angle, scale, x, y)
    (matrix,) = similarity(face[None])
    # float32 landmarks of thousands of pixels are exact to 1/4096 pixel.
    assert np.abs(apply(matrix, face) - TEMPLATE).max() < 1e-3 / min(scale, 1)
    assert magnification(face[None])[0] == pytest.approx(1 / scale, rel=1e-2)


@given(
    angle=ANGLES,
    scale=SCALES,
    x=SHIFTS,
    y=SHIFTS,
    mirrored=st.booleans(),
    noise=st.lists(st.floats(-8, 8), min_size=10, max_size=10),
)
def test_no_face_is_ever_mirrored(
    angle: float, scale: float, x: float, y: float, mirrored: bool, noise: list[float]
) -> None:
    jitter = np.array(noise, np.float32).reshape(5, 2) * scale
    face = moved(angle, scale, x, y, mirrored) + jitter
    for matrix in similarity(face[None])[alignable(face[None])]:
        assert np.linalg.det(matrix[:, :2]) > 0


@given(angle=ANGLES, scale=SCALES, x=SHIFTS, y=SHIFTS)
def test_the_left_eye_stays_left(angle: float, scale: float, x: float, y: float) -> None:
    face = moved(angle, scale, x, y)
    (matrix,) = similarity(face[None])
    left_eye, right_eye, nose, left_mouth, right_mouth = apply(matrix, face)
    assert left_eye[0] < nose[0] < right_eye[0]
    assert left_mouth[0] < right_mouth[0]
    assert left_eye[1] < nose[1] < left_mouth[1]


@pytest.mark.parametrize(
    "points",
    [
        np.zeros((5, 2)),
        np.full((5, 2), 700.0),
        np.arange(5)[:, None] * np.array([3.0, 4.0]) + 50,
        np.where(np.arange(10).reshape(5, 2) == 3, np.nan, TEMPLATE),
        np.where(np.arange(10).reshape(5, 2) == 3, np.inf, TEMPLATE),
        np.full((5, 2), np.nan),
        np.full((5, 2), 3e38),
    ],
    ids=["zero", "equal", "on a line", "nan", "infinite", "all nan", "enormous"],
)
def test_degenerate_landmarks_give_no_transform_and_spoil_no_other(
    points: NDArray[np.float64],
) -> None:
    faces = np.stack([moved(0.3, 2, 40, 50), points.astype(np.float32)])
    assert alignable(faces).tolist() == [True, False]
    assert np.isnan(similarity(faces)[1]).all()
    assert (similarity(faces)[0] == similarity(faces[:1])[0]).all()


def test_no_faces_give_no_crops() -> None:
    assert crop_faces(np.zeros((50, 50, 3), np.uint8), np.zeros((0, 5, 2), np.float32)) == []


@pytest.mark.parametrize("scale", [0.3, 1.0, 1.99])
def test_crops_of_small_faces_equal_a_warp_of_the_whole_photo(scale: float) -> None:
    photo = np.random.default_rng(3).integers(0, 256, (900, 1200, 3)).astype(np.uint8)
    faces = np.stack([moved(0.2, scale, 300, 200), moved(-1.2, scale, -30, 500)])
    for crop, matrix in zip(crop_faces(photo, faces), similarity(faces), strict=True):
        whole = cv2.warpAffine(photo, matrix, (112, 112), flags=cv2.INTER_LINEAR)
        assert np.abs(crop.astype(int) - whole).max() <= 1


def test_a_face_smaller_than_the_crop_is_only_warped() -> None:
    photo = np.random.default_rng(5).integers(0, 256, (60, 70, 3)).astype(np.uint8)
    face = moved(0.1, 0.45, 8, 3)[None]
    (crop,) = crop_faces(photo, face)
    warped = cv2.warpAffine(photo, similarity(face)[0], (112, 112), flags=cv2.INTER_LINEAR)
    assert (crop == warped).all()


def scene(height: int, width: int) -> NDArray[np.uint8]:
    """Coarse shapes under detail as fine as pixels, as photos have."""
    random = np.random.default_rng(6)
    coarse = random.uniform(0, 255, (height // 40, width // 40, 3)).astype(np.float32)
    shapes = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    photo: NDArray[np.uint8] = (
        (shapes + random.normal(0, 40, shapes.shape)).clip(0, 255).astype(np.uint8)
    )
    return photo


@pytest.mark.parametrize("scale", [4.0, 5.3, 7.9, 17.0])
@pytest.mark.parametrize("angle", [0.0, 0.3])
def test_a_large_face_has_one_crop_whatever_the_size_of_its_photo(
    scale: float, angle: float
) -> None:
    photo = scene(2400, 2400)
    half = np.asarray(cv2.resize(photo, (1200, 1200), interpolation=cv2.INTER_AREA), np.uint8)
    face = moved(angle, scale, 211.3, 97.6)
    (crop,) = crop_faces(photo, face[None])
    # Pixel i covers [i, i + 1], so halving moves centres by a quarter of a new pixel.
    (other,) = crop_faces(half, (face[None] + 0.5) / 2 - 0.5)
    # Without smoothing it is 11 to 16 levels; what is left is where the squares begin.
    assert np.abs(crop.astype(int) - other).mean() < 7


@pytest.mark.parametrize("scale", [2.0, 3.7, 4.0, 9.0])
def test_smoothing_moves_nothing(scale: float) -> None:
    # A slope is the same however it is averaged, but for half a level at each rounding.
    columns = np.linspace(0, 255, 1600)
    photo = np.stack([np.broadcast_to(columns, (1600, 1600))] * 3, axis=2).round().astype(np.uint8)
    for face in (moved(0.4, scale, 300.4, 150.7), moved(-2.0, scale, 500.2, 1300.9)):
        (crop,) = crop_faces(photo, face[None])
        rows, xs = np.mgrid[:112, :112]
        turn, shift = similarity(face[None])[0, :, :2], similarity(face[None])[0, :, 2]
        where = (np.stack([xs, rows], axis=2) - shift) @ np.linalg.inv(turn).T
        inside = ((where > 20) & (where < 1580)).all(axis=2)
        expected = where[..., 0] * 255 / 1599
        assert inside.mean() > 0.5
        assert np.abs(crop[..., 0] - expected)[inside].max() < 2


@pytest.mark.parametrize("side", [1, 3, 40, 113])
def test_a_large_face_in_a_photo_that_shows_a_sliver_of_it(side: int) -> None:
    (crop,) = crop_faces(np.full((side, side, 3), 90, np.uint8), moved(0, 30, -900, -1200)[None])
    assert crop.shape == (112, 112, 3)
    assert 0 < crop.max() <= 90


def test_a_face_at_the_border_is_black_outside_the_photo() -> None:
    photo = np.full((112, 112, 3), 200, np.uint8)
    left_half = TEMPLATE - np.array([56, 0], np.float32)
    (crop,) = crop_faces(photo, left_half[None])
    assert (crop[:, 57:] == 200).all()
    assert (crop[:, :55] == 0).all()


@pytest.mark.parametrize("away", [(5000, 5000), (5000, 0), (0, 5000), (-5000, 0), (0, -5000)])
def test_a_face_outside_the_photo_is_black(away: tuple[int, int]) -> None:
    face = TEMPLATE + np.array(away, np.float32)
    (crop,) = crop_faces(np.full((60, 60, 3), 9, np.uint8), face[None])
    assert crop.shape == (112, 112, 3)
    assert not crop.any()


def test_photos_wider_than_opencv_warps_are_cropped() -> None:
    photo = np.zeros((200, 40_000, 3), np.uint8)
    photo[:, 39_800:] = 120
    (crop,) = crop_faces(photo, (TEMPLATE + np.array([39_840, 40], np.float32))[None])
    assert (crop == 120).all()


def test_an_aligned_face_is_cropped_unchanged() -> None:
    photo = np.random.default_rng(4).integers(0, 256, (112, 112, 3)).astype(np.uint8)
    (crop,) = crop_faces(photo, TEMPLATE[None])
    assert np.abs(crop.astype(int) - photo).max() <= 1
