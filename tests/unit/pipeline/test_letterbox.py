import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mien_server.models.detections import Detections
from mien_server.pipeline.decode import Photo
from mien_server.pipeline.finding import fine_side, letterbox, merge_passes

FILL = (123, 117, 104)


def photo(width: int, height: int, reduction: int = 1) -> Photo:
    pixels = np.full((-(-height // reduction), -(-width // reduction), 3), 255, np.uint8)
    return Photo(pixels, width, height, reduction)


def faces(*boxes: tuple[float, float, float, float, float]) -> Detections:
    """Faces as x1, y1, x2, y2, score; the landmarks are the upper left corner."""
    f = np.array(boxes, np.float32).reshape(-1, 5)
    return Detections(f[:, :4], f[:, 4], np.repeat(f[:, None, :2], 5, axis=1))


@pytest.mark.parametrize(
    ("long_side", "side"), [(1, 320), (320, 320), (321, 640), (1024, 1024), (1025, 1024)]
)
def test_the_canvas_is_the_smallest_that_holds_the_photo_or_the_largest(
    long_side: int, side: int
) -> None:
    assert fine_side((320, 640, 1024), long_side) == side


def test_a_small_photo_is_not_enlarged_and_the_rest_is_filled() -> None:
    fitted = letterbox(photo(100, 60), 320, FILL)
    assert fitted.canvas.shape == (320, 320, 3)
    assert fitted.scale.tolist() == [1, 1]
    assert (fitted.canvas[:60, :100] == 255).all()
    assert (fitted.canvas[60:] == FILL).all()
    assert (fitted.canvas[:, 100:] == FILL).all()


@given(st.integers(1, 3000), st.integers(1, 3000), st.sampled_from([1, 2, 4, 8]))
def test_the_canvas_s_content_maps_back_onto_the_whole_photo(
    width: int, height: int, reduction: int
) -> None:
    fitted = letterbox(photo(width, height, reduction), 320, FILL)
    white = (fitted.canvas == 255).all(axis=2)
    across, down = (int(white.any(axis=axis).sum()) for axis in (0, 1))
    assert max(across, down) == min(320, -(-max(width, height) // reduction))
    (box,) = fitted.to_photo(faces((0, 0, across, down, 1))).boxes
    # A reduced photo's last pixel may stand for less than a square; shrinking by a whole factor may
    # leave out less than a factor of pixels.
    slack = reduction + max(width, height) / 320 * 2
    assert abs(box[2] - width) <= slack
    assert abs(box[3] - height) <= slack


@pytest.mark.parametrize(("width", "height"), [(2000, 1500), (900, 1123), (641, 350)])
@pytest.mark.parametrize("side", [320, 640])
def test_a_point_on_the_canvas_is_where_it_is_in_the_photo(
    width: int, height: int, side: int
) -> None:
    pixels = np.zeros((height, width, 3), np.uint8)
    x1, y1, x2, y2 = width // 3, height // 2, width // 3 + 60, height // 2 + 90
    pixels[y1:y2, x1:x2] = 255
    fitted = letterbox(Photo(pixels, width, height), side, FILL)
    ys, xs = np.nonzero(fitted.canvas.min(axis=2) >= 128)
    seen = faces((xs.min(), ys.min(), xs.max() + 1, ys.max() + 1, 1))
    pixel = max(width, height) / side
    assert np.abs(fitted.to_photo(seen).boxes[0] - [x1, y1, x2, y2]).max() <= pixel
    assert np.abs(fitted.to_photo(seen).landmarks[0] - [x1, y1]).max() <= pixel


def test_shrinking_averages_instead_of_skipping() -> None:
    stripes = np.zeros((1200, 1600, 3), np.uint8)
    stripes[:, ::2] = 200
    shown = letterbox(Photo(stripes, 1600, 1200), 320, FILL).canvas[:240]
    assert np.abs(shown.astype(int) - 100).max() <= 25


def test_merging_takes_large_faces_from_the_coarse_pass_and_small_ones_from_the_fine() -> None:
    coarse = faces((100, 100, 900, 900, 0.9), (1500, 0, 1520, 20, 0.8))
    fine = faces((0, 0, 1000, 1000, 0.99), (1502, 1, 1521, 21, 0.95), (1300, 0, 1330, 30, 0.7))
    merged = merge_passes(coarse, fine, trusted=256 * 256, shaky=400, overlap=0.4)
    assert merged.boxes.tolist() == [
        [1502, 1, 1521, 21],
        [100, 100, 900, 900],
        [1300, 0, 1330, 30],
    ]
    assert merged.scores.tolist() == pytest.approx([0.95, 0.9, 0.7])
    assert merged.landmarks[:, 0].tolist() == [[1502, 1], [100, 100], [1300, 0]]


def test_merging_gives_a_face_at_the_boundary_once() -> None:
    coarse = faces((0, 0, 260, 260, 0.9))
    fine = faces((0, 0, 250, 250, 0.95))
    assert merge_passes(coarse, fine, trusted=256 * 256, shaky=400, overlap=0.4).boxes.tolist() == [
        [0, 0, 260, 260]
    ]


def test_merging_takes_parts_of_a_huge_face_for_no_faces() -> None:
    coarse = faces((100, 100, 900, 900, 0.9))
    part, small = (0, 200, 410, 610, 0.95), (700, 700, 780, 780, 0.8)
    merged = merge_passes(coarse, faces(part, small), trusted=256 * 256, shaky=400, overlap=0.4)
    assert merged.boxes.tolist() == [[100, 100, 900, 900], [700, 700, 780, 780]]


def test_merging_loses_nothing_if_the_coarse_pass_finds_nothing_large() -> None:
    fine = faces((0, 0, 1000, 1000, 0.99))
    merged = merge_passes(
        faces((0, 0, 20, 20, 0.9)), fine, trusted=256 * 256, shaky=400, overlap=0.4
    )
    assert merged.boxes.tolist() == fine.boxes.tolist()
