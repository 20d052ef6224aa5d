"""What every store of galleries does, whichever it is: SQLite, and a real Milvus among the long tests."""

import asyncio
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest

from mien_server.errors import AlreadyInGallery, NotInGallery
from mien_server.gallery.interface import AnyStore, OpenCollection
from mien_server.gallery.milvus_store import MilvusStore
from mien_server.gallery.record import FaceRow
from mien_server.gallery.types import Query
from mien_server.pipeline.types import Call, Quality
from tests.milvus_rig import running_milvus
from tests.unit.gallery.conftest import OpenStore
from tests.unit.gallery.enrolling import MODEL, D, everyone, face, made, persons_like
from tests.unit.gallery.vectors import best, clustered_units, random_units, unit

_NAMES = map("c-{}_x.y".format, itertools.count())


@dataclass
class Kept:
    """A store, and whether it tells that what was deleted is erased."""

    store: AnyStore
    erases: bool


@pytest.fixture(scope="module")
def milvus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MilvusStore]:
    with running_milvus(tmp_path_factory.mktemp("milvus")) as running:
        store = MilvusStore(running.url)
        yield store
        store.close()


@pytest.fixture(params=["sqlite", pytest.param("milvus", marks=pytest.mark.long)])
def kept(request: pytest.FixtureRequest, open_store: OpenStore) -> Iterator[Kept]:
    if request.param == "milvus":
        yield Kept(request.getfixturevalue("milvus"), erases=False)
        return
    with open_store() as store:
        yield Kept(store, erases=True)


@pytest.fixture
def store(kept: Kept) -> AnyStore:
    return kept.store


async def new(store: AnyStore, dimensions: int = D) -> OpenCollection:
    return await made(store, next(_NAMES), dimensions)


async def test_collection_is_what_was_asked_for(store: AnyStore) -> None:
    name = next(_NAMES)
    live = await store.create(name, MODEL, D, 0.5)
    told = live.collection
    assert (told.name, told.embedder, told.dimensions, told.threshold) == (name, MODEL, D, 0.5)
    assert store.find(name).collection == told
    assert name in [each.collection.name for each in store.collections()]
    with pytest.raises(AlreadyInGallery):
        await store.create(name, MODEL, D, None)
    with pytest.raises(NotInGallery):
        store.find("nobody")
    plain = await new(store)
    assert plain.collection.threshold is None


async def test_face_is_told_as_it_was_enrolled(store: AnyStore) -> None:
    live = await new(store)
    labels = {"site": 'ulm "\\', "é": "日本", "empty": ""}
    quality = Quality(0.2, 0.5, 0.1, size=80.0)
    row = FaceRow('ann "\\é', labels, "", quality, 9.0, random_units(1, D)[0])
    (written,) = await store.enrol(live, [row])
    told = await store.reader.face(live, written.face)
    assert (told.person, told.labels, told.quality) == ('ann "\\é', labels, quality)
    assert told.created > 1_700_000_000
    (found,) = await store.search(live, [Query(row.vector, 5, 0.9)], Call(), passed=0)
    (match,) = found.matches
    assert match.person == 'ann "\\é'
    assert match.samples[0].labels == labels
    assert match.similarity == pytest.approx(1.0, abs=1e-6)
    assert found.faces == 1


async def test_request_key_enrols_once(store: AnyStore) -> None:
    live, other = await new(store), await new(store)
    first, twin = await store.enrol(live, [face("ann", 1, key="a"), face("ann", 2, key="a")])
    assert (first.existing, twin.existing, twin.face) == (False, True, first.face)
    (elsewhere,) = await store.enrol(other, [face("ann", 1, key="a")])
    assert not elsewhere.existing
    await store.move(live, [first.face], "bob")
    (again,) = await store.enrol(live, [face("ann", 1, key="a")])
    assert (again.face, again.name, again.existing) == (first.face, "bob", True)
    found = await store.reader.of_request(live, "a")
    assert found is not None
    assert (found.face, found.name) == (first.face, "bob")
    assert await store.reader.of_request(live, "b") is None
    await store.delete_faces(live, [first.face])
    (anew,) = await store.enrol(live, [face("ann", 1, key="a")])
    assert not anew.existing
    assert anew.face > first.face


async def test_persons_begin_and_end_with_their_faces(kept: Kept) -> None:
    store, erased = kept.store, kept.erases
    live = await new(store)
    a, b, c = await store.enrol(live, [face("ann", 1), face("ann", 2), face("bob", 3)])
    assert await store.delete_faces(live, [a.face]) == ([], erased)
    assert await store.move(live, [b.face], "bob") == ["ann"]
    assert await everyone(store, live) == {"bob": 2}
    assert (await store.reader.person(live, "bob")).faces == 2
    assert await store.delete_faces(live, [b.face, c.face]) == (["bob"], erased)
    assert await everyone(store, live) == {}
    for gone in (store.delete_person(live, "bob"), store.reader.person(live, "bob")):
        with pytest.raises(NotInGallery, match="no person 'bob'"):
            await gone
    with pytest.raises(NotInGallery):
        await store.reader.faces(live, of="bob", after=0, most=1)
    await store.enrol(live, [face("cy", 1), face("cy", 2), face("dee", 3)])
    assert await store.delete_person(live, "cy") == (2, erased)
    assert await everyone(store, live) == {"dee": 1}
    assert await persons_like(store, live, face("cy", 1).vector) == []


async def test_change_with_an_unknown_face_changes_nothing(store: AnyStore) -> None:
    live, other = await new(store), await new(store)
    (a,) = await store.enrol(live, [face("ann", 1)])
    (b,) = await store.enrol(other, [face("bob", 2)])
    for stranger in (b.face if b.face != a.face else 10**5, 10**6):
        with pytest.raises(NotInGallery) as caught:
            await store.delete_faces(live, [a.face, stranger])
        assert caught.value.field == "face_ids[1]"
        with pytest.raises(NotInGallery):
            await store.move(live, [a.face, stranger], "cy")
        with pytest.raises(NotInGallery):
            await store.reader.face(live, stranger)
    assert await everyone(store, live) == {"ann": 1}
    assert await persons_like(store, live, face("ann", 1).vector) == ["ann"]


async def test_collections_are_apart_and_go_with_everything(kept: Kept) -> None:
    store = kept.store
    live, other = await new(store), await new(store)
    await store.enrol(live, [face("ann", 1), face("bob", 2)])
    await store.enrol(other, [face("ann", 1)])
    assert await store.delete(live) == (2, kept.erases)
    with pytest.raises(NotInGallery):
        store.find(live.collection.name)
    for late in (store.enrol(live, [face("cy", 3)]), store.delete(live)):
        with pytest.raises(NotInGallery):
            await late
    assert await everyone(store, other) == {"ann": 1}
    again = await made(store, live.collection.name)
    assert await persons_like(store, again, face("ann", 1).vector, -1.0) == []


async def test_pages_go_on_where_the_last_one_ended(store: AnyStore) -> None:
    live = await new(store)
    names = ["ann", "Bob", "é", "日本", "zoe"]
    written = await store.enrol(live, [face(name, i) for i, name in enumerate(names * 2)])
    after, told = 0, []
    while page := await store.reader.persons(live, after=after, most=2):
        told += [person.name for person in page]
        after = page[-1].key
    assert told == names
    faces = await store.reader.faces(live, of="", after=written[3].face, most=3)
    assert [each.key for each in faces] == [each.face for each in written[4:7]]
    of_one = await store.reader.faces(live, of="é", after=0, most=10)
    assert [each.key for each in of_one] == [written[2].face, written[7].face]
    assert await store.reader.faces(live, of="é", after=written[7].face, most=10) == []


async def test_pages_of_an_export_have_every_face_with_its_embedding(store: AnyStore) -> None:
    live = await new(store)
    rows = [
        face(person, seed, labels={"n": str(seed)})
        for seed, person in enumerate(["ann", "", "bob"])
    ]
    written = await store.enrol(live, rows)
    exported = await store.reader.exported(live, after=0, most=2)
    exported += await store.reader.exported(live, after=exported[-1].face.key, most=2)
    assert [each.face.key for each in exported] == [each.face for each in written]
    for each, row in zip(exported, rows, strict=True):
        assert (each.face.person, each.face.labels) == (row.person, row.labels)
        assert each.embedding.norm == pytest.approx(row.norm)
        assert each.embedding.model == MODEL
        np.testing.assert_allclose(each.embedding.values, row.vector, atol=1e-7)


async def test_faces_without_a_person_are_kept_apart_until_they_get_one(store: AnyStore) -> None:
    live = await new(store)
    rows = [face("", 1, labels={"site": "ulm"}), face("ann", 2), face("", 3), face("", 4)]
    a, _, b, c = await store.enrol(live, rows)
    assert await persons_like(store, live, rows[0].vector, -1.0) == ["ann"]
    size = await store.size(live)
    assert (size.persons, size.faces, size.unnamed) == (1, 4, 3)
    keys, vectors, left = await store.unnamed(live, 2)
    assert (keys.tolist(), left) == ([a.face, b.face], 1)
    assert vectors.tobytes() == rows[0].vector.tobytes() + rows[2].vector.tobytes()
    assert await store.move(live, [a.face, b.face], "bob") == []
    assert await persons_like(store, live, rows[0].vector) == ["bob"]
    moved = await store.reader.face(live, a.face)
    assert (moved.person, moved.labels) == ("bob", {"site": "ulm"})
    assert (await store.delete_faces(live, [c.face]))[0] == []
    assert (await store.unnamed(live, 9))[0].tolist() == []
    for gone in (store.reader.person(live, ""), store.delete_person(live, "")):
        with pytest.raises(NotInGallery):
            await gone


@pytest.mark.parametrize("clustered", [False, True])
async def test_search_finds_what_a_plain_product_does(store: AnyStore, clustered: bool) -> None:
    count, dimensions = 2000, 32
    vectors = (
        clustered_units(count, dimensions, 9) if clustered else random_units(count, dimensions)
    )
    persons = np.random.default_rng(2).integers(0, 300, count).tolist()
    live = await new(store, dimensions)
    rows = [
        FaceRow(f"p{person}", {"odd": str(person % 2)}, "", None, 1.0, vector)
        for person, vector in zip(persons, vectors, strict=True)
    ]
    for start in range(0, count, 500):
        await store.enrol(live, rows[start : start + 500])
    queries = [*random_units(4, dimensions, seed=8), *vectors[:4]]
    for top_k, threshold in ((1, -1.0), (5, -1.0), (100, -1.0), (5, 0.3)):
        asked = [Query(query, top_k, threshold) for query in queries]
        found = await store.search(live, asked, Call(), passed=0)
        for query, each in zip(queries, found, strict=True):
            wanted = best(vectors, persons, query, top_k, threshold)
            told = [match.similarity for match in each.matches]
            assert told == pytest.approx([similarity for _, similarity in wanted], abs=2e-6)
            if not clustered:
                assert [match.person for match in each.matches] == [f"p{who}" for who, _ in wanted]
            for match in each.matches:
                of_person = [i for i, who in enumerate(persons) if f"p{who}" == match.person]
                above = [c for c in vectors[of_person] @ query if c >= threshold]
                assert [s.similarity for s in match.samples] == pytest.approx(
                    sorted(above, reverse=True)[:10], abs=2e-6
                )
    (odd,) = await store.search(
        live, [Query(queries[0], 100, -1.0, {"odd": "1"})], Call(), passed=0
    )
    assert len(odd.matches) == 100
    assert all(int(match.person[1:]) % 2 for match in odd.matches)


async def test_person_with_very_many_faces_hides_nobody(store: AnyStore) -> None:
    live = await new(store)
    near = unit(random_units(1, D, seed=1) + 0.01 * random_units(400, D, seed=2))
    await store.enrol(live, [FaceRow("twin", {}, "", None, 1.0, vector) for vector in near])
    await store.enrol(live, [face("ann", 5), face("bob", 6)])
    (found,) = await store.search(live, [Query(near[0], 3, -1.0)], Call(), passed=0)
    assert {match.person for match in found.matches} == {"twin", "ann", "bob"}
    assert found.matches[0].person == "twin"
    assert len(found.matches[0].samples) == 10


async def test_whoever_was_told_of_a_change_sees_it(store: AnyStore) -> None:
    live = await new(store)

    async def come_and_go(number: int) -> None:
        row = face(f"p{number}", number)
        for _ in range(3):
            (written,) = await store.enrol(live, [row])
            assert await persons_like(store, live, row.vector) == [row.person]
            await store.move(live, [written.face], f"q{number}")
            assert await persons_like(store, live, row.vector) == [f"q{number}"]
            await store.delete_faces(live, [written.face])
            assert await persons_like(store, live, row.vector) == []

    await asyncio.gather(*(come_and_go(number) for number in range(4)))
    size = await store.size(live)
    assert (size.persons, size.faces, size.unnamed) == (0, 0, 0)


@pytest.mark.long
async def test_large_collection_is_searched_by_hnsw_and_found_again(milvus: MilvusStore) -> None:
    count, dimensions = 3000, 32
    vectors = random_units(count, dimensions, seed=11)
    live = await made(milvus, next(_NAMES), dimensions)
    rows = [FaceRow(f"p{i}", {}, "", None, 1.0, vector) for i, vector in enumerate(vectors)]
    await milvus.enrol(live, rows[:2900])
    growing = MilvusStore(f"milvus://{milvus.link.place}", hnsw_from=2000)
    try:
        name = live.collection.name
        async with asyncio.timeout(120):
            while not growing.find(name).hnsw:  # noqa: ASYNC110 - it tells nobody
                await asyncio.sleep(0.2)
        await growing.enrol(growing.find(name), rows[2900:])
        queries = random_units(50, dimensions, seed=12)
        hits = 0
        for store in (growing, milvus):  # the other server learns of it, too
            table = store.find(name)
            found = await store.search(
                table, [Query(query, 10, -1.0) for query in queries], Call(), passed=0
            )
            for query, each in zip(queries, found, strict=True):
                wanted = {f"p{i}" for i, _ in best(vectors, list(range(count)), query, 10)}
                hits += len(wanted & {match.person for match in each.matches})
        assert hits >= 0.98 * 2 * 50 * 10
    finally:
        growing.close()


@pytest.mark.long
async def test_collection_that_another_server_made_anew_is_known_as_it_is(
    milvus: MilvusStore,
) -> None:
    other = MilvusStore(f"milvus://{milvus.link.place}")
    try:
        old = await made(milvus, next(_NAMES))
        name = old.collection.name
        async with asyncio.timeout(60):
            while name not in [each.collection.name for each in other.collections()]:  # noqa: ASYNC110
                await asyncio.sleep(0.2)
        await other.enrol(other.find(name), [face("ann", 1)])
        await milvus.delete(milvus.find(name))
        anew = await made(milvus, name, 2 * D)
        async with asyncio.timeout(60):
            while other.find(name).collection != anew.collection:  # noqa: ASYNC110
                await asyncio.sleep(0.2)
        row = face("bob", 2, dimensions=2 * D)
        await other.enrol(other.find(name), [row])
        assert await persons_like(milvus, anew, row.vector) == ["bob"]
        assert await everyone(milvus, anew) == {"bob": 1}
    finally:
        other.close()
