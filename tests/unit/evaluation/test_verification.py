"""Labelled pairs through a small embedder: the figures, what is left out, and how it is reported."""

from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest

from mien_server.evaluation.loaded import EvaluationError, LoadedModels
from mien_server.evaluation.metrics import FARS, rates_at
from mien_server.evaluation.pairs import Pairs, Picture
from mien_server.evaluation.reports import (
    accuracy_text,
    pairs_text,
    verification_document,
    verification_text,
    verification_title,
)
from mien_server.evaluation.verification import Failure, Verification, verify_pairs
from tests import graphs
from tests.unit.evaluation.conftest import THRESHOLD

PEOPLE = 6


def crop(person: int, picture: int) -> np.ndarray:
    """A person's colours, a little different in each picture."""
    rng = np.random.default_rng(person)
    tiles = rng.integers(30, 220, (4, 4, 3)) + np.random.default_rng(picture).integers(-9, 9, 3)
    return tiles.astype(np.uint8).repeat(28, axis=0).repeat(28, axis=1)


def encoded(pixels: np.ndarray) -> bytes:
    data = cv2.imencode(".png", pixels[..., ::-1])[1].tobytes()
    assert isinstance(data, bytes)
    return data


def picture(name: str, pixels: np.ndarray) -> Picture:
    return Picture(name, lambda: encoded(pixels))


def labelled(pictures: list[Picture]) -> Pairs:
    """Every pair of the pictures, two of which show each person."""
    left, right = np.triu_indices(len(pictures), 1)
    same = left // 2 == right // 2
    folds = np.arange(len(same)) % 3
    return Pairs("all.csv", pictures, left, right, same, folds, aligned=True)


@pytest.fixture(scope="module")
def crops() -> list[np.ndarray]:
    return [crop(person, picture) for person in range(PEOPLE) for picture in (10, 11)]


@pytest.fixture(scope="module")
def pairs(crops: list[np.ndarray]) -> Pairs:
    return labelled([picture(f"{i}.png", pixels) for i, pixels in enumerate(crops)])


@pytest.fixture(scope="module")
def found(loaded: LoadedModels, pairs: Pairs) -> Verification:
    return verify_pairs(loaded, pairs, aligned=True)


def test_similarities_and_rates_are_those_of_the_embeddings(
    crops: list[np.ndarray], pairs: Pairs, found: Verification
) -> None:
    pixels = np.stack(crops).astype(np.float32).transpose(0, 3, 1, 2)
    vectors = graphs.embeddings((pixels - 127.5) / 127.5)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    expected = (vectors[pairs.left] * vectors[pairs.right]).sum(axis=1)
    np.testing.assert_allclose(found.similarity, expected, atol=1e-4)
    assert found.same.tolist() == pairs.same.tolist()
    assert (found.genuine, found.impostor, found.left_out) == (PEOPLE, 60, 0)
    assert found.configured == rates_at(found.similarity, found.same, THRESHOLD)
    assert [each.far for each in found.operations] == list(FARS)
    assert found.best.accuracy >= max(
        rates_at(found.similarity, found.same, t).accuracy for t in found.similarity
    )
    assert found.accuracy is not None
    assert found.accuracy.folds == 3
    assert found.failures == []


def test_pictures_that_fail_are_named_and_their_pairs_left_out(
    loaded: LoadedModels, pairs: Pairs
) -> None:
    def gone() -> bytes:
        raise FileNotFoundError("no such picture")

    broken = {3: Picture("3.png", lambda: b"no picture"), 8: Picture("8.png", gone)}
    pictures = [broken.get(i, each) for i, each in enumerate(pairs.pictures)]
    found = verify_pairs(loaded, labelled(pictures), aligned=True)
    assert [each.picture for each in found.failures] == ["3.png", "8.png"]
    assert found.failures[1].reason == "no such picture"
    assert (found.genuine, found.impostor) == (4, 41)
    assert found.left_out == 66 - 45
    assert "21 left out" in pairs_text(pairs, found)
    lines = verification_text(loaded, pairs, found).splitlines()
    assert lines[-3] == "2 pictures failed"
    assert lines[-1] == "  8.png: no such picture"
    failures = verification_document(loaded, pairs, found)["failures"]
    assert failures[1] == {"picture": "8.png", "reason": "no such picture"}


@pytest.mark.parametrize(("kept", "counts"), [((0, 1), "1 pairs of one person and 0 of two")])
def test_both_kinds_of_pairs_are_needed(
    loaded: LoadedModels, pairs: Pairs, kept: tuple[int, ...], counts: str
) -> None:
    pictures = [
        each if i in kept else Picture(each.name, lambda: b"no picture")
        for i, each in enumerate(pairs.pictures)
    ]
    with pytest.raises(EvaluationError, match=rf"all\.csv leaves {counts}.*10 pictures failed; 2"):
        verify_pairs(loaded, labelled(pictures), aligned=True)


def test_photos_go_through_the_detector_first(loaded: LoadedModels) -> None:
    """It sees a face in what is bright only; the crops of one bright photo are alike."""
    light, dark = (np.full((64, 64, 3), grey, np.uint8) for grey in (255, 0))
    pictures = [
        picture(name, dark if name == "c.png" else light) for name in ("a", "b", "c.png", "d")
    ]
    same = np.array([True, False])
    pairs = Pairs("p", pictures, np.array([0, 1]), np.array([1, 3]), same, np.array([0, 1]))
    found = verify_pairs(loaded, pairs, aligned=False)
    assert [each.picture for each in found.failures] == ["c.png"]
    assert "No face was found" in found.failures[0].reason
    np.testing.assert_allclose(found.similarity, [1, 1], atol=1e-4)
    assert found.accuracy is None
    assert accuracy_text(found.accuracy) == "insufficient data"


def test_report_for_machines(loaded: LoadedModels, pairs: Pairs, found: Verification) -> None:
    document: Any = verification_document(loaded, pairs, found)
    assert document["embedder"] == {
        "name": "colours",
        "version": 1,
        "fingerprint": next(iter(loaded.models.values())).fingerprint,
    }
    assert document["pairs"] == {
        "source": "all.csv",
        "genuine": 6,
        "impostor": 60,
        "left_out": 0,
    }
    assert found.accuracy is not None
    assert document["accuracy"] == {
        "mean": found.accuracy.mean,
        "std": found.accuracy.std,
        "folds": 3,
        "thresholds": list(found.accuracy.thresholds),
    }
    assert found.configured is not None
    assert document["configured"] == {
        "threshold": THRESHOLD,
        "accuracy": found.configured.accuracy,
        "far": found.configured.far,
        "tar": found.configured.tar,
    }
    tenth, hundredth, *_ = document["tar_at_far"]
    assert not tenth["insufficient_data"]
    assert (tenth["far"], tenth["tar"]) == (0.1, found.operations[0].tar)
    assert hundredth == {
        "far": 0.01,
        "tar": None,
        "threshold": None,
        "insufficient_data": True,
        "impostor_pairs_needed": 300,
    }


def test_report_for_people(loaded: LoadedModels, pairs: Pairs, found: Verification) -> None:
    title, count, accuracy, best, configured, blank, head, *rows = verification_text(
        loaded, pairs, found
    ).splitlines()
    assert title == verification_title(loaded) == "colours version 1 on faces of bright version 1"
    assert count == "pairs       6 of one person and 60 of two, all.csv"
    assert accuracy.startswith("accuracy    ")
    assert accuracy.endswith(" over 3 folds")
    assert best.startswith("best        threshold 0.")
    assert configured.startswith("configured  threshold 0.9000: accuracy ")
    assert (blank, head.split()) == ("", ["FAR", "TAR", "threshold"])
    assert [row.split()[0] for row in rows] == ["0.1", "0.01", "0.001", "0.0001"]
    assert "insufficient data: 3,000 pairs of two people needed" in rows[2]
    assert float(rows[0].split()[1]) == pytest.approx(found.operations[0].tar, abs=1e-4)


def test_only_the_first_failures_are_shown(
    loaded: LoadedModels, pairs: Pairs, found: Verification
) -> None:
    failures = [Failure(f"{i}.png", "why") for i in range(12)]
    lines = verification_text(loaded, pairs, replace(found, failures=failures)).splitlines()
    assert lines[-12:-10] == ["12 pictures failed", "  0.png: why"]
    assert lines[-1] == "  and 2 more, see --json"
    lines = verification_text(loaded, pairs, replace(found, failures=failures[:10])).splitlines()
    assert lines[-1] == "  9.png: why"
    lines = verification_text(loaded, pairs, replace(found, failures=failures[:1])).splitlines()
    assert lines[-3:] == ["", "1 picture failed", "  0.png: why"]
