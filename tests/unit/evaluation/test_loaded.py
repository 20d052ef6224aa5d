"""Work on many pictures at once: retried while queues are full, in order, and a bounded number of them."""

import asyncio
import sys
import threading
from pathlib import Path

import pytest

from mien_server.errors import InvalidRequest, Reason
from mien_server.evaluation.loaded import EvaluationError, load_models, run_all
from mien_server.models.interface import AnyRole
from mien_server.models.roles import EMBEDDER
from mien_server.pipeline.types import ModelRef
from mien_server.scheduling.errors import QueueFull, RowFailed
from mien_server.settings import Settings


async def double(number: int) -> int:
    await asyncio.sleep(0.001 * (number % 3))  # so that later ones may be done first
    return 2 * number


def test_results_come_in_the_order_of_the_items() -> None:
    assert run_all(range(100), double, label="doubling") == [2 * number for number in range(100)]


def test_nothing_to_do_gives_nothing() -> None:
    assert run_all([], double, label="doubling") == []


def test_a_full_queue_is_asked_again_however_often() -> None:
    refusals = sys.getrecursionlimit() + 10

    async def work(item: str) -> str:
        nonlocal refusals
        if refusals:
            refusals -= 1
            raise QueueFull("the queue is full", retry_after=0)
        return item

    assert run_all(["photo"], work, label="waiting") == ["photo"]


@pytest.mark.parametrize(
    "fault",
    [
        InvalidRequest(Reason.INVALID_IMAGE, "no picture"),
        OSError("gone"),
        RowFailed("no answer", incident="a1"),
    ],
)
def test_what_is_wrong_with_one_item_stands_in_its_place(fault: Exception) -> None:
    async def work(item: int) -> int:
        if item == 1:
            raise fault
        return item

    assert run_all(range(3), work, label="failing") == [0, fault, 2]


def test_what_is_wrong_with_all_of_it_ends_the_run() -> None:
    async def work(item: int) -> int:
        raise ZeroDivisionError

    with pytest.raises(ExceptionGroup) as raised:
        run_all([1], work, label="failing")
    assert raised.group_contains(ZeroDivisionError)


def test_only_some_are_in_the_pipeline_at_the_same_time() -> None:
    running = most = 0

    async def work(item: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        return item

    run_all(range(200), work, label="counting")
    assert most == 32


def test_models_are_loaded_for_the_block_only(small_models: Path) -> None:
    before = set(threading.enumerate())
    settings = Settings(model_repository=(small_models,), default_embedder="another")
    with load_models(settings, {EMBEDDER: ModelRef("colours", 1)}) as loaded:
        (model,) = loaded.models.values()
        assert (model.name, model.version) == ("colours", 1)
        assert set(threading.enumerate()) - before
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize(
    ("ref", "role", "problem"),
    [
        (ModelRef("nobody"), EMBEDDER, "nobody"),
        (ModelRef("colours", 7), EMBEDDER, "7"),
        (
            ModelRef("bright"),
            EMBEDDER,
            "'bright' is a detector, where an embedding model is needed",
        ),
    ],
)
def test_a_model_that_cannot_be_used_is_named(
    small_models: Path, ref: ModelRef, role: AnyRole, problem: str
) -> None:
    before = set(threading.enumerate())
    settings = Settings(model_repository=(small_models,))
    with pytest.raises(EvaluationError, match=problem), load_models(settings, {role: ref}):
        pass
    assert set(threading.enumerate()) <= before
