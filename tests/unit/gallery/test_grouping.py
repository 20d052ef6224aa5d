"""Faces without a person: which belong together, whatever their order, and what is refused."""

import numpy as np
import pytest

from mien_server.errors import InvalidRequest
from mien_server.gallery import grouping
from mien_server.gallery.grouping import group
from tests.unit.gallery.conftest import OpenStore
from tests.unit.gallery.enrolling import everyone, face, made, persons_like
from tests.unit.gallery.vectors import clustered_units, random_units, unit


def never() -> None:
    """Nobody gives up."""


def grouped(
    vectors: np.ndarray, threshold: float = 0.5, least: int = 2, first: int = 1
) -> list[list[int]]:
    keys = np.arange(first, first + len(vectors))
    found = group(keys, vectors, threshold=threshold, least=least, check=never)
    return [each.faces for each in found]


def test_faces_of_one_centre_are_one_group_and_strangers_none() -> None:
    centres, members = random_units(5, 64, seed=3), np.repeat(np.arange(5), [9, 4, 7, 1, 1])
    noise = np.random.default_rng(4).standard_normal((22, 64)) * 0.02
    vectors = unit(centres[members] + noise)
    wanted = [(np.flatnonzero(members == i) + 1).tolist() for i in (0, 2, 1)]
    assert grouped(vectors) == wanted
    assert grouped(vectors, least=1) == [*wanted, [21], [22]]
    assert grouped(vectors, least=5) == wanted[:2]


def test_order_changes_nothing() -> None:
    vectors = clustered_units(600, 32, 40, seed=5)
    keys = np.arange(1, 601)
    shuffled = np.random.default_rng(6).permutation(600)
    one = group(keys, vectors, threshold=0.4, least=1, check=never)
    two = group(keys[shuffled], vectors[shuffled], threshold=0.4, least=1, check=never)
    assert one == two
    assert sum(len(each.faces) for each in one) == 600


def test_parts_are_what_one_linkage_of_everything_gives() -> None:
    """Looking at one part at a time changes no group: compared with SciPy on all faces at once."""
    from importlib import import_module
    from typing import Any

    hierarchy: Any = import_module("scipy.cluster.hierarchy")
    vectors = random_units(700, 8, seed=7)  # in so few dimensions many are alike
    for threshold in (0.7, 0.8, 0.9):
        exact = vectors.astype(np.float64)
        distances = (1 - exact @ exact.T)[np.triu_indices(700, 1)]
        tree = hierarchy.linkage(distances, "average")
        numbers = hierarchy.fcluster(tree, 1 - threshold, "distance")
        plain = {tuple(np.flatnonzero(numbers == n) + 1) for n in np.unique(numbers)}
        assert {tuple(faces) for faces in grouped(vectors, threshold, least=1)} == plain


def test_chain_of_faces_is_no_group() -> None:
    """Each is like the next one only: a quarter turn in steps of 9 degrees is not one person."""
    angles = np.deg2rad(np.arange(0, 91, 9))
    chain = unit(np.stack([np.cos(angles), np.sin(angles)], axis=1))
    found = grouped(chain, threshold=0.95)
    assert len(found) > 1
    assert all(len(each) < 11 for each in found)


def test_similarity_is_the_mean_of_pairs() -> None:
    vectors = unit(np.array([[1, 0, 0], [1, 0.2, 0], [1, 0, 0.2]]))
    (found,) = group(np.array([7, 8, 9]), vectors, threshold=0.5, least=2, check=never)
    assert found.faces == [7, 8, 9]
    assert found.similarity == pytest.approx(
        np.mean([vectors[i] @ vectors[j] for i, j in ((0, 1), (0, 2), (1, 2))]), abs=1e-6
    )


def test_no_faces_are_no_groups() -> None:
    assert grouped(np.empty((0, 8), np.float32)) == []


def test_threshold_by_which_thousands_hang_together_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(grouping, "MAX_LINKED", 50)
    vectors = random_units(60, 16)
    with pytest.raises(InvalidRequest, match=r"60 of them hang together.*higher") as caught:
        grouped(vectors, threshold=-1.0)
    assert caught.value.field == "threshold"


def test_whoever_gives_up_ends_the_work() -> None:
    def give_up() -> None:
        raise TimeoutError

    with pytest.raises(TimeoutError):
        group(np.arange(1, 4), random_units(3, 8), threshold=0.5, least=2, check=give_up)


async def test_faces_without_a_person_are_kept_apart_until_they_get_one(
    open_store: OpenStore,
) -> None:
    rows = [face("", 1, labels={"site": "ulm"}), face("ann", 2), face("", 3), face("", 4)]
    with open_store() as store:
        live = await made(store)
        a, _, b, c = await store.enrol(live, rows)
        assert await persons_like(store, live, rows[0].vector) == []
        assert await everyone(store, live) == {"ann": 1}
        size = await store.size(live)
        assert (size.persons, size.faces, size.unnamed) == (1, 4, 3)
        assert (await store.reader.face(live, a.face)).person == ""
    with open_store() as store:
        live = store.find("staff")
        keys, vectors, left = await store.unnamed(live, 2)
        assert (keys.tolist(), left) == ([a.face, b.face], 1)
        assert vectors.tobytes() == rows[0].vector.tobytes() + rows[2].vector.tobytes()
        assert await store.move(live, [a.face, b.face], "bob") == []
        assert await persons_like(store, live, rows[0].vector) == ["bob"]
        moved = await store.reader.face(live, a.face)
        assert (moved.person, moved.labels) == ("bob", {"site": "ulm"})
        # The last one without a person leaves nobody behind.
        assert await store.delete_faces(live, [c.face]) == ([], True)
        assert (await store.unnamed(live, 9))[0].tolist() == []
        assert await everyone(store, live) == {"ann": 1, "bob": 2}
    with open_store() as store:
        live = store.find("staff")
        assert await persons_like(store, live, rows[2].vector) == ["bob"]
        assert live.faces == 3
