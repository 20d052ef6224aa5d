"""What analysers' outputs mean, and how answers of two versions compare."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mien_server.models.analyser import (
    ANALYSER,
    Activation,
    Analysed,
    AnalyserOptions,
    AnalyserRow,
)
from mien_server.models.crops import Crop
from mien_server.models.families import find_family
from mien_server.models.interface import NoNetwork, TensorSpec
from mien_server.repository.manifest import fingerprint
from tests.unit.repository.test_manifest import NORMALISATION

FAMILY = find_family("analyser")
OUTPUT = (TensorSpec("values", "TYPE_FP32", (3,)),)


def results(outputs: Any, **options: Any) -> list[Analysed]:
    """What the family makes of a graph's output, a row of it for each crop."""
    array = np.array(outputs, np.float32)
    row = AnalyserRow(np.zeros((16, 16, 3), np.uint8))
    found = FAMILY.results([array], [row] * len(array), AnalyserOptions(**options))
    return list(found)


def values(*args: Any, **options: Any) -> list[Any]:
    return [result.values.tolist() for result in results(*args, **options)]


def said(*numbers: float) -> Analysed:
    return Analysed("number", np.array(numbers, np.float32))


def test_probabilities_are_the_graphs_or_made_of_its_logits() -> None:
    options: dict[str, Any] = {"kind": "classification", "labels": ("a", "b")}
    assert values([[0.25, 0.75]], **options) == [[0.25, 0.75]]
    (soft,) = values([[1000.0, 1000.0 + np.log(3)]], **options, activation="softmax")
    np.testing.assert_allclose(soft, [0.25, 0.75], atol=1e-4)
    (apart,) = values([[0.0, np.log(3)]], **options, activation="sigmoid")
    np.testing.assert_allclose(apart, [0.5, 0.75], rtol=1e-6)
    (far,) = values([[-1e4, 1e4]], **options, activation="sigmoid")
    assert far == [0, 1]


def test_a_score_is_one_of_the_classes() -> None:
    rows = [[0.2, 0.5, 0.3], [0.7, 0.1, 0.2]]
    np.testing.assert_allclose(values(rows, kind="score", score_class=1), [[0.5], [0.1]], rtol=1e-6)
    np.testing.assert_allclose(values(rows, kind="score"), [[0.2], [0.7]], rtol=1e-6)
    assert values([[0.4]], kind="score", score_class=1) == [[]], "refused by check_first"


def test_a_number_is_the_graphs_or_the_mean_of_what_its_outputs_stand_for() -> None:
    assert values([[41.5]], kind="number") == [[41.5]]
    ages = (0.25, 10.0, 20.0)
    np.testing.assert_allclose(
        values([[0, 0.5, 0.5], [1, 0, 0]], kind="number", values=ages), [[15.0], [0.25]]
    )
    (even,) = values([[2.0, 2.0, 2.0]], kind="number", values=ages, activation="softmax")
    assert even[0] == pytest.approx(30.25 / 3)
    assert values([[0.5, 0.5]], kind="number", values=ages) == [[0.5, 0.5]], "refused"


def test_points_are_pixels_of_the_crop() -> None:
    shaped = [[[1.0, 2.0], [3.0, 4.0]]]
    assert values(shaped, kind="points") == [[1, 2, 3, 4]]
    # Half of 64 pixels is the border between two of them, whose centres are at 31 and 32.
    halves = values([[0.5, 0.0]], kind="points", points_in="fractions", crop=Crop(64))
    assert halves == [[31.5, -0.5]]


def test_there_is_one_output_and_no_network() -> None:
    assert list(FAMILY.arrange([(7,)], 64)) == [0]
    assert list(FAMILY.arrange([(1, 68, 2)], 64)) == [0]
    with pytest.raises(ValueError, match="one output"):
        FAMILY.arrange([(7,), (2,)], 64)
    with pytest.raises(NoNetwork):
        FAMILY.network()


@pytest.mark.parametrize(
    ("ours", "theirs", "agree"),
    [
        (said(0.5, 0.5), said(0.54, 0.46), True),
        (said(0.5, 0.5), said(0.56, 0.44), False),
        (said(0.0001), said(0.0009), True),
        (said(40.0), said(41.9), True),
        (said(40.0), said(42.1), False),
        (said(100.0, 3.0), said(100.0, 7.9), True),
    ],
)
def test_versions_agree_to_a_twentieth(ours: Analysed, theirs: Analysed, agree: bool) -> None:
    assert ANALYSER.agree(ours, theirs) is agree


def test_the_first_answer_is_looked_at() -> None:
    ANALYSER.check_first(said(1, 2, 3), OUTPUT)
    probable = Analysed("classification", np.array([0.5, 0.5, 0.0], np.float32))
    ANALYSER.check_first(probable, OUTPUT)
    for wrong, problem in (
        (said(1, 2), r"shape \[2\], but config.pbtxt says output.dims \[3\]"),
        (said(1, np.nan, 3), "not finite"),
        (Analysed("classification", np.array([0.5, 1.01, 0], np.float32)), "no probabilities"),
        (Analysed("score", np.array([-0.01, 0, 0], np.float32)), "no probabilities"),
    ):
        with pytest.raises(ValueError, match=problem):
            ANALYSER.check_first(wrong, OUTPUT)


def test_answers_are_compared_by_how_far_off_they_are() -> None:
    """Of vectors of one length it is the cosine; of single numbers, whose cosine is always 1, it tells."""
    expected = np.array([[0.6, 0.8], [1.0, 0.0]], np.float32)
    turned = np.array([[0.8, 0.6], [1.0, 0.0]], np.float32)
    np.testing.assert_allclose(ANALYSER.cosines(expected, turned), [0.96, 1], atol=1e-6)
    ages = np.array([[40.0], [20.0]], np.float32)
    near = ANALYSER.cosines(ages, ages * np.float32(1.001))
    assert (near > 0.99999).all()
    assert (ANALYSER.cosines(ages, ages * np.float32(1.02)) < 0.99999).all()
    zeros = np.zeros((2, 1), np.float32)
    assert ANALYSER.cosines(zeros, zeros).tolist() == [1, 1]
    assert ANALYSER.cosines(zeros, ages).tolist() == [0, 0]
    assert ANALYSER.cosines(ages, ages[:, :0]).tolist() == [0, 0]
    assert ANALYSER.cosines(ages, np.full_like(ages, np.nan)).tolist() == [0, 0]


def test_golden_pictures_have_the_crops_side() -> None:
    options = AnalyserOptions("score", Crop(48))
    golden = ANALYSER.golden_pictures(options)
    assert golden.shape == (4, 48, 48, 3)
    assert [row.image.shape for row in ANALYSER.golden_rows(golden)] == [(48, 48, 3)] * 4
    assert ANALYSER.well_formed(golden, np.zeros((4, 2), np.float32))
    assert not ANALYSER.well_formed(golden, np.zeros((3, 2), np.float32))
    assert not ANALYSER.well_formed(golden[:, :40], np.zeros((4, 2), np.float32))
    assert not ANALYSER.well_formed(golden, np.zeros(4, np.float32))


SCORE = AnalyserOptions("score", Crop(64, "box", margin=2.7), "softmax")


@pytest.mark.parametrize(
    "other",
    [
        AnalyserOptions("score", Crop(64, "box", margin=4.0), "softmax"),
        AnalyserOptions("score", Crop(80, "box", margin=2.7), "softmax"),
        AnalyserOptions("score", Crop(64), "softmax"),
        AnalyserOptions("score", Crop(64, window=(1, 0, 112)), "softmax"),
        AnalyserOptions("score", Crop(64, "box", margin=2.7), "sigmoid"),
        AnalyserOptions("score", Crop(64, "box", margin=2.7), "softmax", score_class=1),
        AnalyserOptions("number", Crop(64, "box", margin=2.7), "softmax"),
    ],
)
def test_what_changes_answers_changes_the_fingerprint_and_is_loaded_again(
    other: AnalyserOptions,
) -> None:
    def identity(options: AnalyserOptions) -> str:
        return fingerprint("ab" * 32, "analyser", NORMALISATION, ANALYSER.describe(options))

    assert identity(other) != identity(SCORE)
    assert not ANALYSER.run_alike(SCORE, other)


def test_words_and_who_else_is_asked_change_neither() -> None:
    plain = AnalyserOptions("classification", labels=("a", "b"))
    told = AnalyserOptions("classification", labels=("c", "d"), by_default=True, unit="x")
    told = replace(told, average_with=("other",))
    assert ANALYSER.run_alike(plain, told)


def test_options_that_are_not_described_would_leave_fingerprints_as_they_are() -> None:
    assert fingerprint("ab" * 32, "sface", NORMALISATION, "") == fingerprint(
        "ab" * 32, "sface", NORMALISATION
    )


@pytest.mark.parametrize("activation", ["none", "softmax", "sigmoid"])
def test_rows_do_not_change_each_other(activation: Activation) -> None:
    rows = np.random.default_rng(3).normal(size=(5, 4)).astype(np.float32)
    options: dict[str, Any] = {
        "kind": "classification",
        "labels": tuple("abcd"),
        "activation": activation,
    }
    together = values(rows, **options)
    assert together == [values(row[None], **options)[0] for row in rows]
