import math

import numpy as np
import pytest

from mien_server.errors import InvalidRequest, Reason, Unmet, at
from mien_server.models.detections import Detections
from mien_server.pipeline.selection import check_selection, select_faces
from mien_server.pipeline.types import FacePolicy, FaceSelection, Limits

ALL, LARGEST, CENTER, ONE = (
    FacePolicy.ALL,
    FacePolicy.LARGEST,
    FacePolicy.CENTER_LARGEST,
    FacePolicy.REQUIRE_ONE,
)


def found(*faces: tuple[float, float, float, float, float]) -> Detections:
    """Faces as x, y, width, height, score."""
    f = np.array(faces, np.float32).reshape(-1, 5)
    boxes = np.concatenate([f[:, :2], f[:, :2] + f[:, 2:4]], axis=1)
    return Detections(boxes, f[:, 4], np.zeros((len(f), 5, 2), np.float32))


def select(
    faces: Detections,
    selection: FaceSelection,
    *,
    limits: Limits = Limits(),  # noqa: B008 - frozen
    required: bool = True,
) -> list[int]:
    with at("image.encoded"):
        return select_faces(
            faces, selection, width=200, height=100, limits=limits, required=required
        )


def test_largest_is_the_largest_area() -> None:
    faces = found((0, 0, 30, 30, 0.99), (0, 0, 20, 50, 0.6), (0, 0, 60, 11, 0.9))
    assert select(faces, FaceSelection(LARGEST)) == [1]


def test_equal_areas_go_to_the_higher_score_then_the_first() -> None:
    faces = found((0, 0, 20, 40, 0.7), (50, 0, 40, 20, 0.8), (90, 0, 40, 20, 0.8))
    assert select(faces, FaceSelection(LARGEST)) == [1]
    assert select(found(*[(0, 0, 20, 20, 0.9)] * 3), FaceSelection(LARGEST)) == [0]


def test_center_largest_weighs_distance_from_the_photo_s_centre() -> None:
    # Areas 900 and 400; the centre is (100, 50). At (15, 15): 900 - 2*(85² + 35²) < 400.
    faces = found((0, 0, 30, 30, 0.9), (90, 40, 20, 20, 0.9))
    assert select(faces, FaceSelection(CENTER)) == [1]
    assert select(faces, FaceSelection(LARGEST)) == [0]
    # 10 pixels off the centre cost 200 of 900.
    near = found((75, 35, 30, 30, 0.9), (90, 40, 20, 20, 0.9))
    assert select(near, FaceSelection(CENTER)) == [0]


def test_all_goes_by_falling_score_and_stops_at_the_limit() -> None:
    faces = found((0, 0, 20, 20, 0.7), (0, 0, 30, 30, 0.9), (0, 0, 40, 40, 0.8))
    assert select(faces, FaceSelection(ALL)) == [1, 2, 0]
    assert select(faces, FaceSelection(ALL, max_faces=2)) == [1, 2]
    assert select(faces, FaceSelection(ALL), limits=Limits(max_faces=1)) == [1]


def test_require_one_takes_the_only_face() -> None:
    assert select(found((0, 0, 20, 20, 0.7)), FaceSelection(ONE)) == [0]


def test_require_one_refuses_several_and_says_how_many() -> None:
    faces = found((0, 0, 20, 20, 0.7), (50, 0, 20, 20, 0.7))
    for required in (True, False):
        with pytest.raises(Unmet, match="2 faces") as caught:
            select(faces, FaceSelection(ONE), required=required)
        assert caught.value.reason is Reason.MULTIPLE_FACES
        assert caught.value.field == "image.encoded"


def test_require_one_ignores_faces_that_are_too_small() -> None:
    faces = found((0, 0, 9, 30, 0.9), (50, 0, 20, 20, 0.7))
    assert select(faces, FaceSelection(ONE)) == [1]


def test_the_shorter_side_decides_what_is_too_small() -> None:
    faces = found((0, 0, 9.9, 80, 0.9), (0, 0, 10, 10, 0.8))
    assert select(faces, FaceSelection(LARGEST)) == [1]
    assert select(faces, FaceSelection(LARGEST, min_face_size=0)) == [0]


@pytest.mark.parametrize("policy", [LARGEST, CENTER, ONE])
def test_no_face_is_an_error_only_where_one_is_required(policy: FacePolicy) -> None:
    with pytest.raises(Unmet) as caught:
        select(found(), FaceSelection(policy))
    assert caught.value.reason is Reason.FACE_NOT_FOUND
    assert select(found(), FaceSelection(policy), required=False) == []


@pytest.mark.parametrize("policy", [LARGEST, CENTER, ONE])
def test_only_small_faces_are_an_error_of_their_own(policy: FacePolicy) -> None:
    with pytest.raises(Unmet, match=r"30\.0 pixels, below the 50") as caught:
        select(found((0, 0, 30, 40, 0.9)), FaceSelection(policy, min_face_size=50))
    assert caught.value.reason is Reason.FACE_TOO_SMALL


def test_all_of_nothing_is_nothing() -> None:
    assert select(found(), FaceSelection(ALL)) == []
    assert select(found((0, 0, 5, 5, 0.9)), FaceSelection(ALL)) == []


@pytest.mark.parametrize(
    ("selection", "option"),
    [
        (FaceSelection(ALL, min_score=0.019), "min_score"),
        (FaceSelection(ALL, min_score=-0.5), "min_score"),
        (FaceSelection(ALL, min_score=1.001), "min_score"),
        (FaceSelection(ALL, min_score=math.nan), "min_score"),
        (FaceSelection(ALL, min_score=math.inf), "min_score"),
        (FaceSelection(ALL, min_face_size=-1), "min_face_size"),
        (FaceSelection(ALL, min_face_size=math.nan), "min_face_size"),
        (FaceSelection(ALL, min_face_size=math.inf), "min_face_size"),
        (FaceSelection(ALL, max_faces=0), "max_faces"),
        (FaceSelection(ALL, max_faces=101), "max_faces"),
        (FaceSelection(ALL, max_faces=4_294_967_295), "max_faces"),
        (FaceSelection(LARGEST, max_faces=1), "max_faces"),
        (FaceSelection(ONE, max_faces=1), "max_faces"),
    ],
)
def test_absurd_options_are_refused_by_name(selection: FaceSelection, option: str) -> None:
    with pytest.raises(InvalidRequest) as caught, at("selection"):
        check_selection(selection, Limits())
    assert caught.value.reason is Reason.INVALID_OPTION
    assert caught.value.field == f"selection.{option}"


def test_the_limits_themselves_are_allowed() -> None:
    lowest = float(np.float32(0.02))
    check_selection(FaceSelection(ALL, lowest, 0.0, 100), Limits())
    check_selection(FaceSelection(ALL, 1.0, 1e6, 1), Limits())


def test_a_comparison_is_of_one_face() -> None:
    with pytest.raises(InvalidRequest) as caught, at("selection"):
        check_selection(FaceSelection(ALL), Limits(), one_face=True)
    assert caught.value.field == "selection.policy"
    check_selection(FaceSelection(ONE), Limits(), one_face=True)
