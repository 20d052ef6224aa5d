"""The one number of a face's quality: what it is made of, and that worse pictures have less of it."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby, pairwise
from pathlib import Path

import numpy as np
import pytest

from bench.quality import WAYS, Made, measure
from mien_server.engine import build_engine
from mien_server.pipeline.quality import LIMITS, overall, problems
from mien_server.pipeline.types import Quality
from mien_server.settings import Settings

FINE = Quality(
    sharpness=0.2,
    brightness=0.5,
    contrast=0.15,
    size=120.0,
    yaw=10.0,
    pitch=-15.0,
    roll=70.0,
    cut_off=0.0,
    next_face=0.9,
    score=0.99,
)


def test_a_good_face_has_1_whatever_leans_or_stands_beside_it() -> None:
    assert overall(FINE) == 1.0
    assert overall(Quality(0.2, 0.5, 0.15)) == 1.0, "what is unknown of a crop does not count"


@pytest.mark.parametrize(
    ("figure", "values"),
    [
        ("size", (40, 24, 16, 8)),
        ("sharpness", (0.14, 0.08, 0.05, 0.02)),
        ("brightness", (0.1, 0.05, 0.02, 0.0)),
        ("brightness", (0.85, 0.9, 0.95, 1.0)),
        ("contrast", (0.04, 0.02, 0.01, 0.0)),
        ("yaw", (-15, -30, -45, -60)),
        ("pitch", (15, 30, 45, 60)),
        ("cut_off", (0.0, 0.1, 0.2, 0.4)),
        ("score", (0.9, 0.7, 0.6, 0.5)),
    ],
)
def test_each_figure_takes_it_from_1_to_0(figure: str, values: Sequence[float]) -> None:
    found = [overall(replace(FINE, **{figure: value})) for value in values]
    assert (found[0], found[-1]) == (1.0, 0.0)
    assert all(after < before for before, after in pairwise(found))


def test_sides_multiply_and_what_is_one_side_counts_once() -> None:
    dark, turned = replace(FINE, brightness=0.05), replace(FINE, yaw=-40, pitch=0)
    both = replace(turned, brightness=0.05)
    assert overall(both) == pytest.approx(overall(dark) * overall(turned))
    assert overall(replace(dark, contrast=0.03)) == overall(dark) == pytest.approx(0.5)
    assert overall(replace(FINE, size=24, sharpness=0.08)) == pytest.approx(0.5)


def test_what_passes_every_limit_of_enrolment_is_of_some_use() -> None:
    at_each = (
        {"size": LIMITS.min_size},
        {"sharpness": LIMITS.min_sharpness},
        {"brightness": LIMITS.min_brightness},
        {"brightness": LIMITS.max_brightness},
        {"contrast": LIMITS.min_contrast},
        {"yaw": LIMITS.max_yaw},
        {"pitch": LIMITS.max_pitch},
        {"cut_off": LIMITS.max_cut_off},
        {"score": LIMITS.min_score},
    )
    for figures in at_each:
        face = replace(FINE, next_face=0.0, **figures)
        assert problems(face) == []
        assert 0.25 < overall(face) < 0.85, figures


@pytest.fixture(scope="module")
def made(model_repository_path: Path) -> list[Made]:
    """The sample portraits, blurred, shrunk, darkened and turned, as the default models see them."""
    engine = build_engine(Settings(model_repository=(model_repository_path,)))
    engine.loader.start()
    try:
        return asyncio.run(measure(engine.pipeline))
    finally:
        engine.close()


@pytest.mark.long
def test_it_never_rises_as_a_portrait_gets_worse(made: list[Made]) -> None:
    series = [list(group) for _, group in groupby(made, lambda each: (each.portrait, each.way))]
    assert len(series) == 6 * len(WAYS)
    for steps in series:
        numbers = [overall(step.quality) for step in steps]
        what = (steps[0].portrait, steps[0].way, numbers)
        assert numbers[0] == 1.0, what
        assert len(numbers) >= 5, what
        assert all(after <= before for before, after in pairwise(numbers)), what
        assert numbers[-1] < 0.6, what


@pytest.mark.long
def test_it_says_how_far_the_embedding_has_gone(made: list[Made]) -> None:
    """What docs/analysis.md tells of it."""
    worse = [each for each in made if each.step]
    numbers = np.array([overall(each.quality) for each in worse])
    cosines = np.array([each.cosine for each in worse])
    assert cosines[numbers == 1].min() > 0.75
    assert cosines[numbers < 0.05].max() < 0.65
    ranks = np.argsort(np.argsort(numbers, kind="stable")), np.argsort(np.argsort(cosines))
    assert np.corrcoef(*ranks)[0, 1] > 0.85
