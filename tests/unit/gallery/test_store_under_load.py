"""Changes and searches at the same time: each call sees what was acknowledged before it began."""

import asyncio
import time

import numpy as np
import pytest

from mien_server.errors import NotInGallery
from mien_server.gallery.live import Live
from mien_server.gallery.store import Store
from mien_server.gallery.types import Query
from mien_server.pipeline.types import Call
from mien_server.scheduling.errors import Draining, Expired
from tests.unit.gallery.conftest import OpenStore
from tests.unit.gallery.enrolling import D, as_rows, face, made, persons_like
from tests.unit.gallery.vectors import best, random_units


async def test_callers_see_their_own_changes_and_whole_states(store: Store) -> None:
    """Writers add, move and delete persons of their own; searchers look for those that stay."""
    live = await made(store)
    staying = as_rows(random_units(300, D, seed=1))
    await store.enrol(live, staying)
    vectors = np.stack([row.vector for row in staying])
    over = asyncio.Event()

    async def write(number: int) -> None:
        for turn in range(12):
            name, new = f"w{number}-{turn}", f"moved{number}-{turn}"
            row = face(name, 1000 + 100 * number + turn)
            (written,) = await store.enrol(live, [row])
            assert name in await persons_like(store, live, row.vector)
            await store.move(live, [written.face], new)
            assert await persons_like(store, live, row.vector) == [new]
            await store.delete_person(live, new)
            assert await persons_like(store, live, row.vector) == []

    async def look(number: int) -> int:
        looked = 0
        while not over.is_set():
            query = vectors[(37 * number + looked) % len(vectors)]
            (found,) = await store.search(live, [Query(query, 400, -1.0)], Call(), passed=0)
            names = [m.person for m in found.matches if m.person.startswith("p")]
            ranked = best(vectors, range(300), query, 300)
            assert names == [f"p{i:05}" for i, _ in ranked]
            assert found.faces == len(found.matches)
            looked += 1
        return looked

    async with asyncio.TaskGroup() as group:
        looking = [group.create_task(look(number)) for number in range(4)]
        await asyncio.gather(*(write(number) for number in range(4)))
        over.set()
    assert min(task.result() for task in looking) > 0
    assert live.index.snapshot.faces == 300


async def test_searches_of_callers_share_products(store: Store) -> None:
    live = await made(store)
    await store.enrol(live, as_rows(random_units(2000, D)))
    queries = [Query(vector, 3, 0.9) for vector in random_units(2000, D)[:200]]
    found = await asyncio.gather(
        *(store.search(live, [query], Call(), passed=0) for query in queries)
    )
    assert [each[0].matches[0].person for each in found] == [f"p{i:05}" for i in range(200)]
    statistics = live.slot.statistics()
    assert statistics.rows == 200
    assert statistics.batches < 100


async def test_search_ends_at_its_deadline(store: Store) -> None:
    live = await made(store)
    query = Query(random_units(1, D)[0], 3, 0.9)
    with pytest.raises(Expired):
        await store.search(live, [query], Call(deadline=time.monotonic() - 1), passed=0)
    assert live.slot.pending == 0


async def test_search_in_a_collection_that_goes_says_that_it_is_gone(store: Store) -> None:
    live = await made(store)
    await store.delete(live)
    query = Query(random_units(1, D)[0], 3, 0.9)
    async with asyncio.timeout(10):
        while True:
            try:
                await store.search(live, [query], Call(), passed=0)
            except NotInGallery:
                break


async def test_closed_store_refuses_changes(open_store: OpenStore) -> None:
    with open_store() as store:
        live: Live = await made(store)
    with pytest.raises(Draining):
        await store.enrol(live, [face("ann", 1)])
