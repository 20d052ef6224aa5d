"""The drawing of a ROC."""

from itertools import pairwise

import numpy as np

from mien_server.evaluation.metrics import FARS, operation, roc
from mien_server.evaluation.roc_picture import roc_picture


def _draw(pairs: int) -> np.ndarray:
    generator = np.random.default_rng(0)
    same = np.arange(2 * pairs) < pairs
    similarity = generator.normal(np.where(same, 0.6, 0.1), 0.15)
    picture = roc_picture(
        roc(similarity, same),
        [operation(similarity, same, far) for far in FARS],
        sure_from=3 / pairs,
        title="a title",
        subtitle="a subtitle",
    )
    assert (picture.size, picture.mode) == ((880, 620), "RGB")
    return np.asarray(picture).astype(int)


def _curve(picture: np.ndarray) -> np.ndarray:
    near: np.ndarray = np.abs(picture - [0, 114, 178]).sum(axis=2) < 60
    return near


def test_the_curve_rises_from_left_to_right() -> None:
    drawn = _curve(_draw(3000))
    columns = np.flatnonzero(drawn.any(axis=0))
    tops = [int(np.flatnonzero(drawn[:, x])[0]) for x in columns]
    assert columns[-1] - columns[0] > 700
    # A mark is a disc on the curve, some pixels higher.
    assert all(b <= a + 8 for a, b in pairwise(tops))
    assert tops[0] > tops[-1]


def test_what_the_data_cannot_speak_of_is_grey() -> None:
    grey = [244, 245, 247]
    few, many = (np.all(_draw(pairs) == grey, axis=2).sum() for pairs in (60, 30_000))
    assert few > 100_000
    assert many == 0
