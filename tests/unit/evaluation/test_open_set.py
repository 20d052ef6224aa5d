"""Searches in galleries, from similarities: shares, thresholds by size, and what too few data cannot say."""

from pathlib import Path

import numpy as np
import pytest

from mien_server.evaluation.det_picture import det_picture
from mien_server.evaluation.identification import search
from mien_server.evaluation.loaded import EvaluationError
from mien_server.evaluation.open_set import Det, Searches, det, point, rank_share
from mien_server.evaluation.pairs import DatasetError
from mien_server.evaluation.persons import read_persons
from tests.unit.gallery.vectors import random_units, unit


def world(count: int, photos: int, *, spread: float = 0.5, seed: int = 1) -> list[list[np.ndarray]]:
    """Embeddings of persons: each photo lies around its person's centre."""
    random = np.random.default_rng(seed)
    centres = random_units(count, 32, seed=seed)
    noise = random.standard_normal((count, photos, 32)) * spread / np.sqrt(32)
    return [list(unit(centre + of_one)) for centre, of_one in zip(centres, noise, strict=True)]


def test_search_is_against_the_first_photos_and_without_oneself() -> None:
    a, b, c = np.eye(3, dtype=np.float32)
    like_a = unit(np.array([0.8, 0.6, 0]))
    found = search([[a, b, like_a], [], [b], [c, c]], enrolled=2)
    assert found.persons.tolist() == [0, 1, 2]
    assert found.mated.tolist() == [0]
    assert found.mate == pytest.approx([0.8])  # the better of both enrolled photos
    assert found.others == pytest.approx(np.array([[0.6, 0], [1, 0], [0, 0]]), abs=1e-6)
    with pytest.raises(EvaluationError, match="two are needed"):
        search([[a, b], []], enrolled=1)


def test_rates_are_those_of_many_galleries_drawn_by_lot() -> None:
    found = search(world(400, 3), enrolled=1)
    random = np.random.default_rng(9)
    for size in (10, 100, 399):
        told = point(found, size, 0.05)
        assert told.threshold is not None
        assert told.fnir is not None
        alarms, misses = [], []
        for _ in range(60):
            drawn = random.choice(399, size, replace=False)
            alarms.append((found.others[:, drawn].max(axis=1) >= told.threshold).mean())
            rest = drawn[: size - 1]
            best = found.others[found.mated][:, rest].max(axis=1)
            hit = (found.mate >= told.threshold) & (found.mate > best)
            misses.append(1 - hit.mean())
        assert np.mean(alarms) == pytest.approx(0.05, abs=0.01)
        assert np.mean(misses) == pytest.approx(told.fnir, abs=0.01)
        # A step lower, and too many strangers are taken for somebody.
        lower = np.mean(
            [
                (found.others[:, random.choice(399, size, replace=False)] >= told.threshold - 0.02)
                .any(axis=1)
                .mean()
                for _ in range(60)
            ]
        )
        assert lower > 0.05


def test_larger_galleries_need_higher_thresholds() -> None:
    found = search(world(400, 2), enrolled=1)
    thresholds = [point(found, size, 0.1).threshold for size in (10, 100, 399, 1000)]
    assert None not in thresholds
    assert thresholds == sorted(thresholds)  # type: ignore[type-var]
    beyond = point(found, 1000, 0.1)
    assert beyond.extrapolated
    assert not point(found, 399, 0.1).extrapolated


def test_what_the_data_cannot_carry_is_said_with_what_is_missing() -> None:
    found = search(world(100, 2), enrolled=1)
    assert point(found, 99, 0.01).needed == "300 persons"
    assert point(found, 99, 0.01).threshold is None
    # 3 x 10,000 / 0.1 pairs of persons are needed, of which 776 persons have enough.
    beyond = point(found, 10_000, 0.1)
    assert (beyond.threshold, beyond.fnir, beyond.needed) == (None, None, "776 persons")
    few = search([*world(20, 2), *world(80, 1, seed=2)], enrolled=1)
    assert rank_share(few, 1) is None
    told = point(few, 99, 0.1)
    assert told.threshold is not None
    assert told.fnir is None
    assert det(search(world(5, 1), enrolled=1)) is None


def test_rank_and_its_confidence() -> None:
    others = np.zeros((100, 9), np.float32)
    others[:5, :3] = 0.9  # three persons are better in five searches
    searches = Searches(others, np.arange(100), np.full(100, 0.5, np.float32), np.arange(100))
    first, fifth = rank_share(searches, 1), rank_share(searches, 5)
    assert first is not None
    assert fifth is not None
    assert first.value == 0.95
    assert (first.low, first.high) == pytest.approx((0.8882, 0.9785), abs=1e-3)
    assert fifth.value == 1.0
    assert fifth.low == pytest.approx(0.963, abs=1e-3)


def test_det_falls_from_all_missed_to_all_taken() -> None:
    curve = det(search(world(200, 3), enrolled=1))
    assert curve is not None
    assert (np.diff(curve.fpir) >= 0).all()
    assert (np.diff(curve.fnir) <= 1e-12).all()
    assert (curve.fpir[0], curve.fnir[0]) == (0, 1)
    assert curve.fpir[-1] == 1


def test_picture_shows_the_curve_and_what_is_unsure() -> None:
    curve = Det(np.array([0, 0.01, 1.0]), np.array([1.0, 0.1, 0.01]))
    sure, unsure = (
        np.asarray(det_picture(curve, [], sure_from=s, title="t", subtitle="s"))
        for s in (1e-3, 0.5)
    )
    assert sure.shape == (620, 880, 3)
    assert (sure != unsure).any()
    assert ((np.abs(sure.astype(int) - (0, 114, 178)).sum(axis=2) < 30).sum()) > 500


def test_folder_of_persons(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="at least two"):
        read_persons(tmp_path)
    with pytest.raises(DatasetError, match="cannot be read"):
        read_persons(tmp_path / "none")
    for name in ("bob/2.JPG", "bob/1.png", "ann/x.webp", "ann/notes.txt", ".git/a.jpg", "no/a.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(name.encode())
    data = read_persons(tmp_path)
    assert list(data.names) == ["ann", "bob"]
    assert [[p.name for p in each] for each in data.pictures] == [
        ["ann/x.webp"],
        ["bob/1.png", "bob/2.JPG"],
    ]
    assert data.pictures[1][0].read() == b"bob/1.png"


def test_galleries_beyond_the_data_are_judged_as_larger_data_are() -> None:
    """A part of the persons foretells what all of them show, and rather warns too much."""
    everyone = world(1200, 2)
    told = point(search(everyone[:500], enrolled=1), 1199, 0.1)
    shown = point(search(everyone, enrolled=1), 1199, 0.1)
    assert told.extrapolated
    assert not shown.extrapolated
    assert told.threshold is not None
    assert shown.threshold is not None
    assert told.threshold == pytest.approx(shown.threshold, abs=0.03)
    assert told.fnir == pytest.approx(shown.fnir, abs=0.03)
