"""Models that nobody calls give their memory back, and the next call has them again."""

import asyncio
import random
import time
from concurrent.futures import Future
from pathlib import Path

import pytest

from mien_server.errors import InvalidRequest, ModelAsleep, ModelNotFound, ModelNotReady
from mien_server.models.roles import DETECTOR, EMBEDDER
from mien_server.repository.entries import Sleeper
from mien_server.repository.versions import State
from mien_server.scheduling.errors import Draining
from tests.unit.repository.folders import (
    SECONDS,
    Open,
    Opened,
    add_version,
    embed,
    line,
    parameter,
    states,
)

IDLE = 0.05


def doze(repository: Opened) -> None:
    """Waits until the model sleeps, and its memory has been given back."""
    until = time.monotonic() + SECONDS
    while not repository.catalogue.sleep():
        assert time.monotonic() < until
        time.sleep(0.01)
    assert repository.catalogue.drained(SECONDS)


@pytest.fixture
def opened(root: Path, open_repository: Open) -> Opened:
    add_version(root, "sface", 1)
    parameter(root, "sface", "idle_unload_secs", IDLE)
    opened: Opened = open_repository(names=("sface",), mode="none")
    return opened


async def test_idle_model_is_freed_and_the_next_call_has_it_again(opened: Opened) -> None:
    before = opened.catalogue.resolve("sface")
    doze(opened)
    assert not hasattr(before.slot.instances[0].instance, "_runner"), "its network is gone"
    with pytest.raises(ModelAsleep), opened.catalogue.lease("sface"):
        pass
    async with opened.catalogue.hold("sface", role=EMBEDDER) as (model, _):
        assert model.fingerprint == before.fingerprint
        assert (await asyncio.to_thread(embed, model)).shape == (128,)
        assert opened.catalogue.sleep() == [], "somebody holds it"
    assert opened.catalogue.sleepers() == [Sleeper("sface", asleep=False, slept=1, woken=1)]


async def test_callers_at_once_wait_for_one_load(opened: Opened) -> None:
    doze(opened)

    async def call() -> int:
        async with opened.catalogue.hold("sface") as (model, _):
            return id(model.slot)

    assert len(set(await asyncio.gather(*(call() for _ in range(20))))) == 1
    assert opened.catalogue.sleepers()[0].woken == 1


async def test_asleep_it_is_ready_and_tells_what_it_is_without_being_woken(opened: Opened) -> None:
    awake = opened.catalogue.resolve("sface")
    doze(opened)
    told = line(opened, "sface", 1)
    assert (told.state, told.model) == (State.READY, None)
    assert (
        told.reason == "it is asleep, since nobody has called it for 0.05 s: the next call loads it"
    )
    assert opened.catalogue.config("sface", role=EMBEDDER) == awake.config
    assert opened.catalogue.config("sface", fingerprint=awake.fingerprint) == awake.config
    assert opened.catalogue.message("sface").name == "sface"
    assert opened.catalogue.unready(["sface"], strict=True) == {}
    assert "sface" in opened.catalogue.in_use(EMBEDDER)
    (figures,) = opened.catalogue.statistics()
    assert (figures.name, figures.version, figures.totals.succeeded) == ("sface", 1, 0)
    assert opened.catalogue.sleepers() == [Sleeper("sface", asleep=True, slept=1, woken=0)]


async def test_request_that_can_not_be_answered_wakes_nobody(opened: Opened) -> None:
    doze(opened)
    with pytest.raises(ModelNotFound, match="has no version 7"):
        async with opened.catalogue.hold("sface", 7):
            pass
    with pytest.raises(InvalidRequest, match="is an embedding model"):
        async with opened.catalogue.hold("sface", role=DETECTOR):
            pass
    assert opened.catalogue.sleepers()[0].asleep


async def test_load_that_fails_is_told_and_tried_again_by_the_next_call(
    root: Path, opened: Opened
) -> None:
    doze(opened)
    weights = root / "sface" / "1" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    with pytest.raises(ModelNotReady, match="could not be loaded: version 1: "):
        async with opened.catalogue.hold("sface"):
            pass
    assert states(opened)["sface", 1] is State.UNAVAILABLE
    assert "sface" in opened.catalogue.unready([], strict=True)
    with pytest.raises(ModelNotReady):
        opened.catalogue.config("sface")
    weights.write_bytes(whole)
    async with opened.catalogue.hold("sface") as (model, _):
        assert model.version == 1
    assert states(opened)["sface", 1] is State.READY


async def test_caller_that_gives_up_leaves_the_load_to_the_others(opened: Opened) -> None:
    doze(opened)

    async def call() -> int:
        async with opened.catalogue.hold("sface") as (model, _):
            return model.version

    impatient, patient = asyncio.create_task(call()), asyncio.create_task(call())
    await asyncio.sleep(0)
    impatient.cancel()
    with pytest.raises(asyncio.CancelledError):
        await impatient
    assert await patient == 1


async def test_unloaded_while_asleep_it_is_not_woken_any_more(
    root: Path, open_repository: Open
) -> None:
    add_version(root, "sface", 1)
    parameter(root, "sface", "idle_unload_secs", IDLE)
    repository = open_repository(names=("sface",))
    doze(repository)
    repository.loader.unload("sface").result(SECONDS)
    with pytest.raises(ModelNotReady, match="it has been unloaded"):
        async with repository.catalogue.hold("sface"):
            pass
    repository.loader.load("sface").result(SECONDS)
    assert repository.catalogue.resolve("sface").version == 1
    doze(repository)
    assert repository.loader.close(SECONDS)
    with pytest.raises(Draining):
        async with repository.catalogue.hold("sface"):
            pass


def test_model_without_the_parameter_never_sleeps(root: Path, open_repository: Open) -> None:
    add_version(root, "sface", 1)
    repository = open_repository(names=("sface",))
    assert repository.catalogue.sleep() == []
    assert repository.catalogue.sleepers() == []


async def test_model_that_is_being_loaded_does_not_fall_asleep_meanwhile(opened: Opened) -> None:
    await asyncio.sleep(2 * IDLE)
    with opened.catalogue.loading("sface"):
        assert opened.catalogue.sleep() == []
    assert opened.catalogue.sleep() == ["sface"]


@pytest.mark.parametrize("races", [8, pytest.param(200, marks=pytest.mark.long)])
async def test_no_call_is_lost_between_falling_asleep_and_waking(
    opened: Opened, races: int
) -> None:
    """Calls come just when the model falls asleep, many times over."""
    stop: Future[None] = Future()

    def sleeper() -> None:
        while not stop.done():
            opened.catalogue.sleep()
            time.sleep(0.0005)

    draw = random.Random(0)  # noqa: S311

    async def call(after: float) -> None:
        await asyncio.sleep(after)
        async with opened.catalogue.hold("sface") as (model, _):
            done = await asyncio.to_thread(embed, model)
            assert done.shape == (128,)

    sleeping = asyncio.create_task(asyncio.to_thread(sleeper))
    try:
        while opened.catalogue.sleepers()[0].woken < races:
            delays = [draw.uniform(0, IDLE / 2) for _ in range(draw.randint(1, 4))]
            await asyncio.gather(*map(call, delays))
            await asyncio.sleep(draw.uniform(0.9 * IDLE, 1.3 * IDLE))
    finally:
        stop.set_result(None)
        await sleeping
