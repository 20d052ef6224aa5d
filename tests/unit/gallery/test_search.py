"""What a search finds is what a plain product finds, whatever shares the batch."""

from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from mien_server.backends.devices import CpuDevice
from mien_server.gallery.rounding import MIDDLE, rounded, widened
from mien_server.gallery.search import MAX_SAMPLES, Lanes, Search
from mien_server.gallery.types import Found, Query
from mien_server.pipeline.types import ArrayF32
from tests.unit.gallery.vectors import (
    Kept,
    best,
    clustered_units,
    filled,
    random_units,
    rows,
    unit,
)

DEVICE = CpuDevice(2)


@pytest.fixture(scope="module")
def lanes() -> Iterator[Lanes]:
    made = Lanes(DEVICE)
    yield made
    made.close()


def search(index: Kept, lanes: Lanes, *queries: Query, cores: int = 1) -> list[Found]:
    DEVICE.begin(cores)
    instance = Search(index, lanes, index.record)
    return instance.split(instance.compute(instance.collate(queries)), queries)


def told(found: Found) -> list[tuple[int, float]]:
    return [(int(match.person[1:]), match.similarity) for match in found.matches]


@pytest.mark.parametrize("kind", ["random", "clustered"])
@pytest.mark.parametrize("cores", [1, 2])
def test_top_k_is_that_of_a_plain_product(kind: str, cores: int, lanes: Lanes) -> None:
    count, d = 20_000, 64
    vectors = random_units(count, d) if kind == "random" else clustered_units(count, d, 50)
    persons = np.random.default_rng(1).integers(1, count // 3, count).tolist()
    index = filled(vectors, persons)
    asked = np.concatenate([vectors[::2500], random_units(8, d, seed=9)])
    queries = [Query(vector, 5, -1.0) for vector in asked]
    for query, found in zip(queries, search(index, lanes, *queries, cores=cores), strict=True):
        expected = best(vectors, persons, query.vector, 5)
        assert [person for person, _ in told(found)] == [person for person, _ in expected]
        np.testing.assert_allclose(
            [cosine for _, cosine in told(found)], [cosine for _, cosine in expected], atol=1e-12
        )
        assert found.faces == count


@pytest.mark.long
@pytest.mark.parametrize("kind", ["random", "clustered"])
def test_top_k_of_a_thousand_queries_is_that_of_a_plain_product(kind: str, lanes: Lanes) -> None:
    count, d, top = 100_000, 512, 10
    vectors = random_units(count, d) if kind == "random" else clustered_units(count, d, 500)
    index = filled(vectors, range(1, count + 1))
    asked = np.concatenate([vectors[::200], random_units(500, d, seed=9)])
    exact = vectors.astype(np.float64)
    for start in range(0, len(asked), 50):
        some = asked[start : start + 50]
        cosines = some.astype(np.float64) @ exact.T
        likest = np.argpartition(-cosines, top, axis=1)[:, :top]
        order = np.argsort(-np.take_along_axis(cosines, likest, 1), axis=1)
        expected = np.take_along_axis(likest, order, 1) + 1
        found = search(index, lanes, *(Query(vector, top, -1.0) for vector in some), cores=2)
        assert [[person for person, _ in told(each)] for each in found] == expected.tolist()


def test_face_gets_one_similarity_alone_and_in_any_batch(lanes: Lanes) -> None:
    vectors = random_units(3000, 128)
    index = filled(vectors, range(1, 3001))
    queries = [Query(vector, 3, 0.0) for vector in random_units(32, 128, seed=5)]
    alone = [search(index, lanes, query)[0] for query in queries]
    for count in range(1, len(queries) + 1):
        assert search(index, lanes, *queries[:count], cores=2) == alone[:count]


@pytest.mark.parametrize("seed", range(100))
def test_any_gallery_gives_the_persons_and_samples_of_a_plain_product(
    seed: int, lanes: Lanes
) -> None:
    random = np.random.default_rng(seed)
    size, d = int(random.choice([1, 63, 65, 700, 3000])), int(random.choice([4, 64]))
    vectors = clustered_units(size, d, int(random.integers(1, size + 1)), seed)
    vectors[size // 2 : size // 2 * 2] = vectors[: size // 2]  # of two equals, the first
    persons = random.integers(1, size // int(random.choice([1, 3, 50])) + 2, size).tolist()
    index = filled(vectors, persons)
    deleted = random.choice(size, int(random.integers(0, size)), replace=False) + 1
    index.remove(deleted.tolist())
    kept = sorted({*range(1, size + 1)} - {*deleted.tolist()})
    top, threshold = int(random.choice([1, 3, 100])), float(random.choice([-1.0, 0.3, 1.0]))
    asked = np.concatenate([vectors[:3], random_units(3, d, seed)])
    queries = [Query(vector, top, threshold) for vector in asked]
    for query, found in zip(queries, search(index, lanes, *queries, cores=2), strict=True):
        products = vectors.astype(np.float64) * query.vector.astype(np.float64)
        cosines = np.clip(products.sum(axis=1), -1.0, 1.0).tolist()
        expected: dict[str, list[tuple[int, float]]] = {}
        for key in sorted(kept, key=lambda key: (-cosines[key - 1], key)):
            if cosines[key - 1] >= threshold:
                samples = expected.setdefault(f"p{persons[key - 1]}", [])
                samples.append((key, cosines[key - 1]))
        assert [
            (match.person, [(sample.key, sample.similarity) for sample in match.samples])
            for match in found.matches
        ] == [(name, samples[:MAX_SAMPLES]) for name, samples in expected.items()][:top]


@pytest.mark.parametrize("count", [1, 4, 5, 8, 11])
@pytest.mark.parametrize("cores", [1, 2])
def test_cosines_are_at_most_what_the_rounded_vectors_say(
    count: int, cores: int, lanes: Lanes
) -> None:
    size, d = 40_000, 256  # blocks of several pieces, and pieces of several strips
    vectors, asked = random_units(size, d), random_units(count, d, seed=3)
    index = filled(vectors, range(1, size + 1))
    index.remove([20_000, 30_000])
    snapshot = index.snapshot
    DEVICE.begin(cores)
    highest = lanes.highest(snapshot, asked)
    faces = snapshot.faces_of(np.arange(snapshot.rows))
    gone = faces == 0
    assert gone.sum() == 2
    assert (highest[:, gone] == -np.inf).all()
    cosines = asked.astype(np.float64) @ vectors[faces[~gone] - 1].astype(np.float64).T
    assert (cosines <= highest[:, ~gone]).all()
    assert (cosines >= highest[:, ~gone] - 2 * snapshot.errors[~gone]).all()


def test_persons_below_the_threshold_are_left_out_and_those_at_it_are_not(lanes: Lanes) -> None:
    vectors = unit(np.array([[1, 0], [0.8, 0.6], [0, 1]]))
    index = filled(vectors, [1, 2, 3])
    query = vectors[0]
    exactly = float(vectors[1].astype(np.float64) @ query.astype(np.float64))
    assert [p for p, _ in told(search(index, lanes, Query(query, 5, exactly))[0])] == [1, 2]
    above = np.nextafter(exactly, 1)
    assert [p for p, _ in told(search(index, lanes, Query(query, 5, above))[0])] == [1]
    assert told(search(index, lanes, Query(-query, 5, 0.5))[0]) == []


def test_person_scores_by_the_best_face_and_lists_those_above_the_threshold(lanes: Lanes) -> None:
    angles = np.radians([0, 10, 20, 40, 5])
    vectors = unit(np.stack([np.cos(angles), np.sin(angles)], axis=1))
    index = filled(vectors, [1, 1, 1, 1, 2])
    (found,) = search(index, lanes, Query(vectors[0], 5, float(np.cos(np.radians(30)))))
    first, second = found.matches
    assert (first.person, second.person) == ("p1", "p2")
    assert [sample.key for sample in first.samples] == [1, 2, 3]
    assert first.similarity == first.samples[0].similarity == pytest.approx(1)


def test_person_with_very_many_faces_hides_nobody(lanes: Lanes) -> None:
    random = np.random.default_rng(3)
    centre = random_units(1, 32)[0]
    crowd = unit(centre + 0.01 * random.standard_normal((5000, 32)))
    others = unit(centre + 0.2 * random.standard_normal((10, 32)))
    vectors = np.concatenate([crowd, others])
    index = filled(vectors, [1] * 5000 + list(range(2, 12)))
    (found,) = search(index, lanes, Query(centre, 4, -1.0))
    expected = best(vectors, [1] * 5000 + list(range(2, 12)), centre, 4)
    assert [person for person, _ in told(found)] == [person for person, _ in expected]
    assert len(found.matches[0].samples) == MAX_SAMPLES


def test_of_equal_faces_the_one_enrolled_first_comes_first(lanes: Lanes) -> None:
    vectors = np.repeat(random_units(1, 16), 300, axis=0)
    index = filled(vectors, range(1, 301))
    (found,) = search(index, lanes, Query(vectors[0], 3, 0.5))
    assert [person for person, _ in told(found)] == [1, 2, 3]


def test_only_faces_with_all_labels_are_looked_at(lanes: Lanes) -> None:
    vectors = random_units(400, 16)
    labels = [{"site": f"s{i % 4}", "kind": f"k{i % 3}"} for i in range(400)]
    index = Kept(16)
    index.add(rows(vectors, range(1, 401), labels=labels))
    (found,) = search(index, lanes, Query(vectors[0], 100, -1.0, {"site": "s1", "kind": "k2"}))
    fitting = [i + 1 for i in range(400) if i % 4 == 1 and i % 3 == 2]
    assert sorted(person for person, _ in told(found)) == fitting
    assert found.matches[0].samples[0].labels == {"site": "s1", "kind": "k2"}
    (nobody,) = search(index, lanes, Query(vectors[0], 5, -1.0, {"site": "elsewhere"}))
    assert nobody.matches == []


def test_collection_without_faces_has_nobody(lanes: Lanes) -> None:
    vector = random_units(1, 8)[0]
    assert search(Kept(8), lanes, Query(vector, 5, -1.0)) == [Found([], 0)]
    index = filled(random_units(3, 8), [1, 2, 3])
    index.remove([1, 2, 3])
    assert search(index, lanes, Query(vector, 5, -1.0)) == [Found([], 0)]


def test_deleted_and_moved_faces_are_found_where_they_are(lanes: Lanes) -> None:
    vectors = random_units(1000, 16)
    index = filled(vectors, range(1, 1001))
    index.remove([1])
    index.move([2], 5000, "p5000")
    (gone,) = search(index, lanes, Query(vectors[0], 1000, -1.0))
    assert 1 not in [person for person, _ in told(gone)]
    assert gone.faces == 999
    (moved,) = search(index, lanes, Query(vectors[1], 1, 0.99))
    assert [match.person for match in moved.matches] == ["p5000"]


@pytest.mark.parametrize("meanwhile", ["deleted", "embedded anew", "embedded by a larger model"])
def test_face_that_has_changed_since_is_found_as_it_was(meanwhile: str, lanes: Lanes) -> None:
    """The record stays ahead of the state that a search sees: what is in memory of the face counts."""
    vectors = random_units(300, 32)
    index = filled(vectors, range(1, 301))
    query = Query(random_units(1, 32, seed=7)[0], 300, -1.0)
    (before,) = search(index, lanes, query)
    index.vectors |= dict.fromkeys(index.vectors, random_units(1, 32, seed=8)[0])
    if meanwhile == "deleted":
        index.vectors.clear()
    elif meanwhile == "embedded by a larger model":
        index.vectors |= dict.fromkeys(index.vectors, random_units(1, 48, seed=8)[0])
    (found,) = search(index, lanes, query)
    as_it_was, off = dict(told(before)), float(rounded(vectors).errors.max())
    assert len(found.matches) == 300
    for person, similarity in told(found):
        assert similarity == pytest.approx(as_it_was[person], abs=off)


def test_search_that_a_deletion_overtakes_is_one_of_the_state_after_it(lanes: Lanes) -> None:
    vectors = random_units(300, 32)
    index = filled(vectors, range(1, 301))
    query = Query(vectors[0], 3, -1.0)
    ((first, second, third),) = (
        [match.person for match in each.matches] for each in search(index, lanes, query)
    )
    asked: list[Sequence[int]] = []

    def record(keys: Sequence[int]) -> dict[int, ArrayF32]:
        if not asked:
            index.remove([1, int(second[1:])])
            del index.vectors[1], index.vectors[int(second[1:])]
        asked.append(keys)
        return index.record(keys)

    instance = Search(index, lanes, record)
    (found,) = instance.compute(instance.collate([query]))
    (expected,) = search(index, lanes, query)
    assert len(asked) == 2
    assert first == "p1"
    assert found == expected
    assert found.matches[0].person == third
    assert found.faces == 298


def test_search_that_the_last_deletion_overtakes_finds_nobody(lanes: Lanes) -> None:
    index = filled(random_units(2, 8), [1, 2])

    def record(_: Sequence[int]) -> dict[int, ArrayF32]:
        index.remove([1, 2])
        return {}

    instance = Search(index, lanes, record)
    queries = [Query(random_units(1, 8)[0], 3, -1.0)] * 2
    assert instance.compute(instance.collate(queries)) == [Found([], 0)] * 2


def test_bytes_are_the_nearest_and_no_product_is_off_by_more_than_is_said() -> None:
    random = np.random.default_rng(2)
    # The last are the worst: all of their numbers but one are rounded to one side, by as much as can be.
    worst = random.choice([1.5, 2.5, 3.5], (4, 512)) / 127
    worst[:, 0] = 1.0
    one = np.zeros((1, 512))
    one[0, 3] = -1.0
    vectors = np.concatenate(
        [random_units(200, 512), clustered_units(200, 512, 5), unit(worst), unit(one)]
    )
    codes, scales, errors = rounded(vectors)
    wide = widened(codes, np.zeros_like(vectors))
    assert np.array_equal(wide, codes.astype(np.float32))
    kept = scales[:, None] * (wide - MIDDLE)
    assert (np.abs(vectors - kept) <= 0.5001 * scales[:, None]).all()
    exact = vectors.astype(np.float64)
    off = np.abs(exact @ exact.T - exact @ kept.astype(np.float64).T)
    assert (off <= errors).all()
    assert np.median(errors) < 0.011
    # As far off as can be: the query is what is left.
    left = unit((vectors - kept)[:-1])
    off = (left.astype(np.float64) * (vectors - kept)[:-1]).sum(axis=1)
    assert (off <= errors[:-1]).all()
    assert (off > 0.8 * errors[:-1]).all()
    assert rounded(vectors[:0]).codes.shape == widened(codes[:0], vectors).shape == (0, 512)


def test_scores_of_many_queries_are_bounded_in_memory(
    lanes: Lanes, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = random_units(1000, 16)
    index = filled(vectors, range(1, 1001))
    queries = [Query(vector, 2, -1.0) for vector in vectors[:7]]
    whole = search(index, lanes, *queries)
    sizes = []
    highest = lanes.highest

    def noted(snapshot: object, some: np.ndarray) -> np.ndarray:
        sizes.append(len(some))
        return highest(snapshot, some)  # type: ignore[arg-type]

    monkeypatch.setattr("mien_server.gallery.search._SCORES_BYTES", 3 * 4 * 1000)
    monkeypatch.setattr(lanes, "highest", noted)
    assert search(index, lanes, *queries) == whole
    assert sizes == [3, 3, 1]
