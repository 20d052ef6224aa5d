"""Changes and searches at the same time: each call sees what was acknowledged before it began."""

import asyncio
import math
import time
from dataclasses import dataclass

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


@dataclass
class Life:
    """When a person was enrolled and deleted: before the first moment surely not, after the second surely."""

    begins: float
    kept: float = math.inf
    deleting: float = math.inf
    gone: float = math.inf

    def may_be_seen(self, since: float, until: float) -> bool:
        """Whether the person was there at some moment of a stretch of time, for all that is known."""
        return self.begins <= until and since <= self.gone

    def must_be_seen(self, since: float, until: float) -> bool:
        """Whether the person was surely there for all of it."""
        return self.kept <= since and until <= self.deleting


@pytest.mark.parametrize(
    ("writers", "searchers", "seconds"),
    [(4, 4, 0.5), pytest.param(8, 16, 60.0, marks=pytest.mark.long)],
)
async def test_answers_are_right_for_a_state_between_their_start_and_end(
    writers: int, searchers: int, seconds: float, store: Store
) -> None:
    """Writers add, move and delete persons of their own; searchers look for all there are."""
    live = await made(store)
    staying = as_rows(random_units(300, D, seed=1))
    await store.enrol(live, staying)
    vectors = np.stack([row.vector for row in staying])
    lives: dict[str, Life] = {}
    ends = time.monotonic() + seconds

    async def write(number: int) -> int:
        turn = 0
        while time.monotonic() < ends:
            name, new = f"w{number}-{turn}", f"moved{number}-{turn}"
            row = face(name, 1000 + 100_000 * number + turn)
            lives[name] = Life(time.monotonic())
            (written,) = await store.enrol(live, [row])
            lives[name].kept = time.monotonic()
            assert name in await persons_like(store, live, row.vector)
            lives[name].deleting = time.monotonic()
            lives[new] = Life(time.monotonic())
            await store.move(live, [written.face], new)
            lives[name].gone = lives[new].kept = time.monotonic()
            assert await persons_like(store, live, row.vector) == [new]
            lives[new].deleting = time.monotonic()
            await store.delete_person(live, new)
            lives[new].gone = time.monotonic()
            assert await persons_like(store, live, row.vector) == []
            turn += 1
            for done in [name for name, life in lives.items() if life.gone < time.monotonic() - 5]:
                del lives[done]
        return turn

    async def look(number: int) -> int:
        looked = 0
        while time.monotonic() < ends:
            query = vectors[(37 * number + looked) % len(vectors)]
            began = time.monotonic()
            (found,) = await store.search(live, [Query(query, 400, -1.0)], Call(), passed=0)
            ended = time.monotonic()
            names = [match.person for match in found.matches]
            ranked = best(vectors, range(300), query, 300)
            assert [n for n in names if n.startswith("p")] == [f"p{i:05}" for i, _ in ranked]
            assert found.faces == len(names) == len(set(names)), "not one state"
            others = {name for name in names if not name.startswith("p")}
            for name in others:
                assert lives[name].may_be_seen(began, ended), f"{name} was not there"
            for name, life in lives.items():
                assert name in others or not life.must_be_seen(began, ended), f"{name} was there"
            # A face that is moved has its old person or its new one, never both or none.
            pairs = {name.removeprefix("moved").removeprefix("w") for name in others}
            assert len(pairs) == len(others)
            looked += 1
        return looked

    async with asyncio.TaskGroup() as group:
        looking = [group.create_task(look(number)) for number in range(searchers)]
        writing = [group.create_task(write(number)) for number in range(writers)]
    assert min(task.result() for task in [*looking, *writing]) > 0
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
