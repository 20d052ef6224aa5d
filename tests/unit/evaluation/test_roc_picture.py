"""The drawing of a ROC."""

from itertools import pairwise

import numpy as np

from mien_server.evaluation.metrics import FARS, operation, roc
from mien_server.evaluation.roc_picture import roc_picture

LEFT, TOP, RIGHT, BOTTOM = 76, 128, 840, 540
"""Where the axes are."""
GREY = (244, 245, 247)
"""What the data cannot speak of."""


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
    few, many = (np.all(_draw(pairs) == GREY, axis=2).sum() for pairs in (60, 30_000))
    assert few > 100_000
    assert many == 0


def test_a_line_stands_at_every_decade_and_every_fifth() -> None:
    picture = _draw(60)
    near = (picture.sum(axis=2) < sum(GREY) - 15) & (picture[..., 0] > 200)  # and not the curve
    rows = np.flatnonzero(near[:, LEFT + 20 : LEFT + 60].all(axis=1))
    wanted = [BOTTOM - (BOTTOM - TOP) * fifth / 5 for fifth in range(6)]
    assert all(np.abs(rows - y).min() <= 1 for y in wanted)
    assert all(min(abs(row - y) for y in wanted) <= 1 for row in rows)
    columns = np.flatnonzero(near[BOTTOM - 60 : BOTTOM - 40].all(axis=0))
    wanted = [LEFT + (RIGHT - LEFT) * decade / 4 for decade in (1, 2)]  # the curve hides the others
    assert all(np.abs(columns - x).min() <= 1 for x in wanted)


def test_insufficient_data_is_written_where_there_is_room_for_it() -> None:
    written = []
    for pairs in (60, 6_000, 30_000):  # of which the data speak from 0.05, 0.0005 and 0.0001 on
        corner = _draw(pairs)[BOTTOM - 30 : BOTTOM - 12, LEFT + 8 : LEFT + 120]
        written.append(bool((corner.sum(axis=2) < 450).any()))
    assert written == [True, True, False]
