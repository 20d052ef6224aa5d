from itertools import pairwise
from random import Random
from statistics import fmean, pvariance

import pytest

from mien_server.load.shapes import SHAPES, Shape, Stretch, arrivals, ramp, soak, spike, steady


def test_a_level_goes_evenly_from_one_end_of_a_stage_to_the_other() -> None:
    shape = Shape((Stretch(10, 0, 20), Stretch(5, 20, 10)))

    assert [shape.level(moment) for moment in (0, 5, 10, 12.5)] == [0, 10, 20, 15]
    assert shape.level(15) is None
    assert (shape.seconds, shape.peak) == (15, 20)


@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_takes_its_time_and_reaches_its_level_and_no_more(name: str) -> None:
    shape = SHAPES[name](30, 60)

    levels = [shape.level(moment / 10) for moment in range(600)]
    assert shape.seconds == pytest.approx(60)
    assert shape.peak == 30
    assert max(level for level in levels if level is not None) == pytest.approx(30, rel=0.01)
    assert None not in levels
    assert shape.level(60.001) is None


def test_what_each_shape_looks_like() -> None:
    assert [steady(8, 10).level(moment) for moment in (0, 9)] == [8, 8]
    assert [ramp(8, 10).level(moment) for moment in (0, 5)] == [0, 4]
    assert [spike(10, 10).level(moment) for moment in (1, 5, 7)] == [2, 10, 2]
    assert [soak(8, 100).level(moment) for moment in (0, 5, 10, 99)] == [0, 4, 8, 8]
    assert soak(8, 7200).level(60) == 8, "an hour's soak climbs for a minute, not for twelve"


def test_arrivals_are_a_poisson_process() -> None:
    dues = list(arrivals(steady(200, 100), Random(1)))  # noqa: S311

    gaps = [later - earlier for earlier, later in pairwise(dues)]
    counts = [sum(1 for due in dues if second <= due < second + 1) for second in range(100)]
    assert dues == sorted(dues)
    assert dues[0] > 0
    assert dues[-1] < 100
    assert fmean(gaps) == pytest.approx(1 / 200, rel=0.03)
    assert pvariance(gaps) == pytest.approx(1 / 200**2, rel=0.1)
    assert pvariance(counts) == pytest.approx(fmean(counts), rel=0.4)


def test_arrivals_follow_the_shape() -> None:
    dues = list(arrivals(spike(500, 20), Random(2)))  # noqa: S311

    calm = sum(1 for due in dues if due < 8)
    high = sum(1 for due in dues if 8 <= due < 12)
    assert calm == pytest.approx(100 * 8, rel=0.15)
    assert high == pytest.approx(500 * 4, rel=0.1)


def test_the_same_seed_gives_the_same_arrivals() -> None:
    first, second = (list(arrivals(ramp(50, 5), Random(3))) for _ in range(2))  # noqa: S311

    assert first == second
