"""Copies for a shadow version: they are work that nobody waits for, and harm no call."""

import asyncio
import threading
import time

import numpy as np
import pytest

from mien_server.models.detections import Detections
from mien_server.models.roles import DETECTOR, EMBEDDER, EmbedderRow
from mien_server.pipeline.mirroring import MOST_WAITING, mirror
from mien_server.pipeline.types import AlignedFace, ArrayF32, Call, RawPixels
from mien_server.repository.traffic import ShadowStatistics, Traffic
from mien_server.scheduling.interface import BACKGROUND, Work
from tests.unit.pipeline.scripted import ALL, Scripted, World, mean_colour, painted, until

PHOTO = painted(200, 100, (10, 10, 80))


SHADOW = Traffic(shadow_version=2)


def counted(world: World) -> ShadowStatistics:
    """What became of the copies, of whichever model has a shadow."""
    split = [each.traffic for each in world.catalogue.statistics() if each.traffic]
    return split[0].shadows.get(2, ShadowStatistics())


async def settled(world: World, rows: int) -> ShadowStatistics:
    """The counts, once so many rows have been dealt with."""

    def done() -> bool:
        counts = counted(world)
        return counts.compared + counts.failed + counts.dropped >= rows

    await until(done)
    return counted(world)


async def test_copies_are_work_that_nobody_waits_for(world: World) -> None:
    world.add("vectors", EMBEDDER, Scripted(mean_colour), version=2, traffic=SHADOW)
    begun = time.monotonic()
    call = Call(priority=1)
    answer = await world.embed(PHOTO, call=call)
    assert answer.faces[0].embedding.model.version == 1
    assert await settled(world, 1) == ShadowStatistics(compared=1, agreed=1)
    (original,), (copy,) = world.requests("vectors"), world.requests("vectors", 2)
    assert copy.rows == original.rows
    assert (copy.shape, copy.nbytes) == (original.shape, original.nbytes)
    assert (copy.passed, copy.priority) == (BACKGROUND, 0)
    assert copy.deadline is not None
    assert begun + 5 <= copy.deadline <= time.monotonic() + 5
    assert world.let_go()


async def test_copies_of_a_detector_are_compared_by_their_boxes(world: World) -> None:
    def nothing(_: object) -> Detections:
        return Detections(*(np.zeros((0, *rest), np.float32) for rest in ((4,), (), (5, 2))))

    world.add("finder", DETECTOR, Scripted(nothing), version=2, traffic=SHADOW)
    await world.detect(painted(200, 100))
    assert await settled(world, 1) == ShadowStatistics(compared=1, agreed=1)
    await world.detect(PHOTO)
    assert await settled(world, 2) == ShadowStatistics(compared=2, agreed=1)
    assert [request.shape for request in world.requests("finder", 2)] == [320, 320]
    assert world.let_go()


@pytest.mark.parametrize("error", [RuntimeError("broken"), None])
async def test_shadow_that_fails_is_counted_and_freed(
    world: World, error: Exception | None
) -> None:
    def answer(row: object) -> ArrayF32:
        if error:
            raise error
        return np.ones(5, np.float32)  # of another length: it cannot be compared

    world.add("vectors", EMBEDDER, Scripted(answer), version=2, traffic=SHADOW)
    assert (await world.embed(PHOTO)).faces
    assert await settled(world, 1) == ShadowStatistics(failed=1)
    assert world.let_go()


async def test_copies_that_wait_are_few(world: World) -> None:
    gate = threading.Event()
    slow = Scripted(mean_colour, gate=gate)
    world.add("vectors", EMBEDDER, slow, version=2, traffic=SHADOW, takes=1, device="gpu")
    slot = world.slots["vectors", 2]
    crop = EmbedderRow(np.zeros((112, 112, 3), np.uint8))
    running = slot.submit(Work(rows=[crop]))
    await asyncio.to_thread(slow.begun.wait, 10)
    waiting = [slot.submit(Work(rows=[crop])) for _ in range(MOST_WAITING - 1)]
    await world.embed(PHOTO)
    assert (slot.pending, counted(world)) == (MOST_WAITING, ShadowStatistics())
    await world.embed(PHOTO)
    assert (slot.pending, counted(world)) == (MOST_WAITING, ShadowStatistics(dropped=1))
    gate.set()
    for work in (running, *waiting):
        await asyncio.wrap_future(work)
    assert await settled(world, 2) == ShadowStatistics(compared=1, agreed=1, dropped=1)


async def test_rows_that_the_shadow_does_not_take_are_dropped(world: World) -> None:
    world.add("vectors", EMBEDDER, Scripted(mean_colour), version=2, traffic=SHADOW, takes=1)
    photo = painted(400, 200, (10, 10, 80), (200, 10, 80))
    assert len((await world.embed(photo, ALL)).faces) == 2
    assert counted(world) == ShadowStatistics(dropped=2)
    assert world.let_go()


async def test_nothing_is_copied_while_calls_wait(world: World) -> None:
    world.add("vectors", EMBEDDER, Scripted(mean_colour), version=2, traffic=SHADOW)
    world.embedder.gate = threading.Event()
    first = asyncio.create_task(world.embed(PHOTO))
    await asyncio.to_thread(world.embedder.begun.wait, 10)
    crop = AlignedFace(RawPixels(112, 112, bytes([9]) * 112 * 112 * 3))
    second = asyncio.create_task(world.embed(crop))
    await until(lambda: world.slots["vectors", 1].pending == 1)
    with world.catalogue.lease("vectors") as (model, shadow):
        assert shadow
        mirror(model, shadow, [1, 2], [1, 2], shape=None, nbytes=1)
    assert counted(world) == ShadowStatistics(dropped=2)
    assert world.requests("vectors", 2) == []
    world.embedder.gate.set()
    await asyncio.gather(first, second)
