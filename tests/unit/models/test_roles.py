"""What detectors and embedders take and give."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mien_server.models import portraits
from mien_server.models.detections import Detections
from mien_server.models.interface import TensorSpec
from mien_server.models.roles import (
    DETECTOR,
    EMBEDDER,
    DetectorOptions,
    DetectorRow,
    EmbedderOptions,
    EmbedderRow,
)
from mien_server.repository.config.parameters import Parameters
from mien_server.repository.config.pbtxt import ConfigError, ConfigText

Given = Callable[..., Parameters]
Box = tuple[float, float, float, float]

ONE: Box = (0.0, 0.0, 10.0, 10.0)
TWO: Box = (20.0, 0.0, 40.0, 30.0)


@pytest.fixture
def given(tmp_path: Path) -> Given:
    """The parameters of a config.pbtxt, by keyword."""

    def read(**values: str) -> Parameters:
        path = tmp_path / "config.pbtxt"
        path.write_text(
            "".join(
                f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n'
                for key, value in values.items()
            )
        )
        return Parameters(ConfigText.read(path), DETECTOR.parameters | EMBEDDER.parameters)

    return read


def found(*boxes: Box, score: float = 1.0) -> Detections:
    count = len(boxes)
    return Detections(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.full(count, score, np.float32),
        np.arange(count * 10, dtype=np.float32).reshape(count, 5, 2),
    )


def boxes_alone(*boxes: Box, score: float = 1.0) -> Detections:
    """What a detector finds that places no landmarks."""
    faces = found(*boxes, score=score)
    return faces._replace(landmarks=faces.landmarks[:, :0])


def test_the_options_of_a_detector(given: Given) -> None:
    assert DETECTOR.read_options(given(buckets="32, 4096")) == DetectorOptions((32, 4096), 0.5, 0.4)
    options = DETECTOR.read_options(given(buckets="64", score_threshold="1", nms_threshold="0"))
    assert options == DetectorOptions((64,), 1.0, 0.0)
    assert DETECTOR.sides(DetectorOptions((32, 64))) == (32, 64)
    assert not DETECTOR.run_alike(options, DetectorOptions((64,), 1.0, 0.1))
    assert DETECTOR.run_alike(options, DetectorOptions((64,), 1.0, 0.0))


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({}, "buckets: is missing"),
        ({"buckets": "100"}, "buckets: 100 must be a multiple of 32, at most 4096"),
        ({"buckets": "64, 4128"}, "buckets: 4128 must be a multiple of 32, at most 4096"),
        ({"buckets": "0"}, "buckets: is 0; must be at least 1"),
        ({"buckets": "64, 32"}, "buckets: must be ascending, without repetition"),
        ({"buckets": "64, 64"}, "buckets: must be ascending, without repetition"),
        ({"buckets": "64", "score_threshold": "1.1"}, "score_threshold: is 1.1; must be in [0, 1]"),
        ({"buckets": "64", "score_threshold": "-1"}, "score_threshold: is -1; must be in [0, 1]"),
        ({"buckets": "64", "nms_threshold": "2"}, "nms_threshold: is 2; must be in [0, 1]"),
        ({"buckets": "64", "nms_threshold": "-.1"}, "nms_threshold: is -.1; must be in [0, 1]"),
    ],
)
def test_what_no_detector_can_have(given: Given, values: dict[str, str], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        DETECTOR.read_options(given(**values))
    assert problem in str(caught.value)


def test_the_options_of_an_embedder_do_not_change_what_runs(given: Given) -> None:
    none = EMBEDDER.read_options(given())
    assert none == EmbedderOptions(None, ())
    some = EMBEDDER.read_options(given(match_threshold="-1", thresholds_by_far="0: 1, 1: -1"))
    assert some == EmbedderOptions(-1.0, ((0.0, 1.0), (1.0, -1.0)))
    assert EMBEDDER.run_alike(none, some)


@pytest.mark.parametrize(
    "values",
    [
        {"match_threshold": "-1.1"},
        {"match_threshold": "1.1"},
        {"thresholds_by_far": "-0.1: 0"},
        {"thresholds_by_far": "1.1: 0"},
        {"thresholds_by_far": "0.1: 1.1"},
        {"thresholds_by_far": "0.1: -1.1"},
    ],
)
def test_what_no_embedder_can_have(given: Given, values: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=rf"{next(iter(values))}: is .*; must be in"):
        EMBEDDER.read_options(given(**values))


def test_an_embedding_has_a_fixed_size_and_faces_have_not() -> None:
    spec = EMBEDDER.outputs[0]
    assert not EMBEDDER.output_problem(TensorSpec(spec.name, spec.data_type, (1,)))
    assert EMBEDDER.output_problem(spec) == "must be the embedding's size, for example [ 512 ]"
    assert not any(DETECTOR.output_problem(output) for output in DETECTOR.outputs)


def test_rows_share_batches_by_their_side() -> None:
    crop, canvas = np.zeros((112, 112, 3), np.uint8), np.zeros((64, 64, 3), np.uint8)
    assert EMBEDDER.row(crop, EmbedderOptions()) == EmbedderRow(crop)
    row = DETECTOR.row(canvas, DetectorOptions((64,), score_threshold=0.7))
    assert row.image is canvas
    assert row.min_score == 0.7
    assert DETECTOR.shape(row) == 64
    assert DETECTOR.shape(DetectorRow(crop, 0.1)) == EMBEDDER.shape(EmbedderRow(crop)) == 112


def test_rows_with_fewer_faces_are_filled_up_with_zeros() -> None:
    boxes, scores, landmarks = DETECTOR.arrays([found(ONE), found(), found(TWO, ONE, score=0.5)])
    np.testing.assert_array_equal(boxes, [[ONE, [0] * 4], [[0] * 4] * 2, [TWO, ONE]])
    np.testing.assert_array_equal(scores, [[1, 0], [0, 0], [0.5, 0.5]])
    assert landmarks.shape == (3, 2, 5, 2)
    np.testing.assert_array_equal(landmarks[2].reshape(-1), np.arange(20))
    assert not landmarks[1].any()
    assert [part.shape for part in DETECTOR.arrays([found()])] == [(1, 1, 4), (1, 1), (1, 1, 5, 2)]
    assert {part.dtype for part in DETECTOR.arrays([found()])} == {np.dtype(np.float32)}


def test_a_detector_without_an_output_for_landmarks_places_none(given: Given) -> None:
    parameters = given(buckets="64")
    options = DETECTOR.read_options(parameters)
    assert DETECTOR.with_tensors(options, parameters, (), DETECTOR.outputs).landmarks
    without = DETECTOR.with_tensors(options, parameters, (), DETECTOR.outputs[:2])
    assert not without.landmarks
    assert not DETECTOR.run_alike(options, without)

    arrays = DETECTOR.arrays([boxes_alone(), boxes_alone(ONE)])
    assert [part.shape for part in arrays] == [(2, 1, 4), (2, 1)]
    assert DETECTOR.agree(boxes_alone(ONE), boxes_alone(ONE))


@pytest.mark.parametrize("faces", [(), (ONE,)])
def test_the_first_faces_have_landmarks_as_the_configuration_promises(
    faces: tuple[Box, ...],
) -> None:
    DETECTOR.check_first(found(*faces), DETECTOR.outputs)
    DETECTOR.check_first(boxes_alone(*faces), DETECTOR.outputs[:2])
    with pytest.raises(ValueError, match=r"places landmarks, but config\.pbtxt has no output for"):
        DETECTOR.check_first(found(*faces), DETECTOR.outputs[:2])
    with pytest.raises(ValueError, match=r"no landmarks, but config\.pbtxt has the output 'landm"):
        DETECTOR.check_first(boxes_alone(*faces), DETECTOR.outputs)


def test_answers_without_landmarks_are_compared_by_box_and_score() -> None:
    answers = DETECTOR.answers([boxes_alone(ONE, score=0.75), boxes_alone(), boxes_alone(TWO)])
    np.testing.assert_array_equal(answers[:, 0], [0, 2])
    np.testing.assert_array_equal(answers[:, 1:5], [ONE, TWO])
    assert answers.shape == (2, 6)
    assert DETECTOR.well_formed(np.zeros((3, 64, 64, 3), np.uint8), answers)
    np.testing.assert_allclose(DETECTOR.cosines(answers, answers), 1)
    moved = DETECTOR.answers([boxes_alone((5.0, 0.0, 15.0, 10.0), score=0.75)])
    assert DETECTOR.cosines(answers, moved)[0] < 0.95
    assert DETECTOR.cosines(answers, moved)[1] == 0
    with_landmarks = DETECTOR.answers([found(ONE, score=0.75), found(), found(TWO)])
    np.testing.assert_array_equal(DETECTOR.cosines(answers, with_landmarks), [0, 0])


def test_vectors_are_stacked() -> None:
    vectors = np.arange(6, dtype=np.float32).reshape(2, 3)
    (stacked,) = EMBEDDER.arrays(list(vectors))
    np.testing.assert_array_equal(stacked, vectors)


def test_vectors_agree_by_their_direction() -> None:
    vector = np.random.default_rng(0).standard_normal(128).astype(np.float32)
    assert EMBEDDER.agree(vector, 3 * vector)
    assert not EMBEDDER.agree(vector, -vector)
    assert not EMBEDDER.agree(vector, np.zeros(128, np.float32))
    assert not EMBEDDER.agree(vector, np.full(128, np.nan, np.float32))
    assert not EMBEDDER.agree(vector, vector[::-1].copy())


@pytest.mark.parametrize(("degrees", "same"), [(8.0, True), (8.2, False)])
def test_vectors_agree_from_a_cosine_of_0_99(degrees: float, same: bool) -> None:
    angle = np.radians(degrees)
    ours = np.array([2, 0], np.float32)
    theirs = np.array([np.cos(angle), np.sin(angle)], np.float32)
    assert EMBEDDER.agree(ours, theirs) is same


def test_faces_agree_if_each_has_its_box() -> None:
    assert DETECTOR.agree(found(), found())
    assert DETECTOR.agree(found(ONE, TWO), found(TWO, ONE))
    assert DETECTOR.agree(found(ONE), found((0.0, 0.0, 10.0, 11.0)))
    assert not DETECTOR.agree(found(ONE), found())
    assert not DETECTOR.agree(found(), found(ONE))
    assert not DETECTOR.agree(found(ONE), found(TWO))
    assert not DETECTOR.agree(found(ONE), found((0.0, 0.0, 10.0, 14.0)))
    assert DETECTOR.agree(found((0.0, 0.0, 3.0, 10.0)), found((0.0, 0.0, 4.0, 10.0)))
    assert not DETECTOR.agree(found(ONE, TWO), found(ONE, ONE))


@pytest.mark.parametrize(
    ("result", "problem"),
    [
        (np.zeros(3), r"shape \[3\], but config.pbtxt says output.dims \[4\]"),
        (np.zeros((1, 4)), r"shape \[1, 4\], but"),
        (np.array([0, 1, np.nan, 0]), "not finite: the weights are broken"),
        (np.array([0, 1, np.inf, 0]), "not finite: the weights are broken"),
    ],
)
def test_the_first_embedding_is_what_the_configuration_promises(result: Any, problem: str) -> None:
    promised = (TensorSpec("embedding", "TYPE_FP32", (4,)),)
    EMBEDDER.check_first(np.ones(4, np.float32), promised)
    with pytest.raises(ValueError, match=problem):
        EMBEDDER.check_first(result, promised)


def test_the_faces_of_all_pictures_stand_in_one_array() -> None:
    answers = DETECTOR.answers([found(ONE, score=0.75), found(), found(TWO, ONE, score=0.5)])
    assert answers.dtype == np.float32
    np.testing.assert_array_equal(answers[:, 0], [0, 2, 2])
    np.testing.assert_array_equal(answers[:, 1:5], [ONE, TWO, ONE])
    np.testing.assert_array_equal(answers[:, 6:], [range(10), range(10), range(10, 20)])
    np.testing.assert_array_equal(DETECTOR.reference(answers), answers[:1])


def test_golden_canvases_show_faces_of_three_sizes_and_have_a_low_score_to_beat() -> None:
    pictures = DETECTOR.golden_pictures(DetectorOptions((96, 640)))
    assert pictures.shape == (2, 96, 96, 3)
    rows = DETECTOR.golden_rows(pictures)
    assert [row.min_score for row in rows] == [0.3, 0.3]
    np.testing.assert_array_equal(rows[1].image, pictures[1])
    large = portraits.canvases(400)
    assert (large[:, 320:] == 96).all()
    assert (large[:, :, 320:] == 96).all()
    # The small copy of the whole, and the enlarged portrait.
    original = large[0, :320, :320].astype(int)
    assert np.abs(original[24:136:28, 184:296:28] - original[:320:80, :320:80]).mean() < 40
    assert np.abs(large[1, :320:2, :320:2].astype(int) - original[160:, 160:]).mean() < 5


def test_golden_pictures_show_the_same_whoever_decodes_them() -> None:
    sums = [int(part.sum(dtype=np.int64)) for part in (portraits.crops(), portraits.canvases(320))]
    assert sums == pytest.approx([16_845_486, 71_520_850], rel=1e-3)


def test_crops_are_contiguous_rows() -> None:
    pictures = EMBEDDER.golden_pictures(EmbedderOptions())
    assert pictures.shape == (4, 112, 112, 3)
    np.testing.assert_array_equal(pictures[3], pictures[2][:, ::-1])
    assert not np.array_equal(pictures[0], pictures[2])
    rows = EMBEDDER.golden_rows(pictures[:, :, ::-1])
    assert all(row.image.flags.c_contiguous for row in rows)
    np.testing.assert_array_equal(rows[0].image, pictures[1])


@pytest.mark.parametrize(
    ("pictures", "expected", "canvases", "crops"),
    [
        ((2, 64, 64, 3), np.eye(2, 16), True, True),
        ((2, 64, 64, 3), np.eye(2, 16) * 2, False, True),
        ((2, 64, 32, 3), np.eye(2, 16), False, False),
        ((2, 64, 64), np.eye(2, 16), False, False),
        ((2, 64, 64, 3), np.eye(2, 15), False, True),
        ((2, 112, 112, 3), np.eye(2, 15), False, True),
        ((2, 112, 112, 3), np.eye(3, 15), False, False),
        ((2, 112, 64, 3), np.eye(2, 15), False, False),
        ((2, 112, 112, 1), np.eye(2, 15), False, False),
    ],
)
def test_golden_files_of_other_shapes_are_none(
    pictures: tuple[int, ...], expected: np.ndarray, canvases: bool, crops: bool
) -> None:
    shown = np.zeros(pictures, np.uint8)
    assert DETECTOR.well_formed(shown, expected.astype(np.float32)) is canvases
    assert EMBEDDER.well_formed(shown, expected.astype(np.float32)) is crops
