"""The engine has the limits that the settings give it, each by a setting of its own."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from mien_server.engine import Engine, build_engine
from mien_server.errors import OperatorError
from mien_server.scheduling.batching import BatchingPolicy
from mien_server.scheduling.errors import QueueFull
from mien_server.scheduling.interface import PlacedInstance, Work
from mien_server.settings import Settings

MIB = 1024 * 1024


class Held:
    """A model that answers once it is let go."""

    def __init__(self) -> None:
        self.go = Event()

    def collate(self, rows: Any) -> Any:
        assert self.go.wait(30)
        return rows

    def compute(self, batch: Any) -> Any:
        return batch

    def split(self, outputs: Any, rows: Any) -> Any:
        return outputs


@contextmanager
def engine(folder: Path, **settings: Any) -> Iterator[Engine]:
    built = build_engine(
        Settings(model_repository=(folder,), max_image_bytes=MIB, max_message_bytes=MIB, **settings)
    )
    try:
        yield built
    finally:
        assert built.close()


@pytest.mark.parametrize(
    ("limits", "told"),
    [
        ({"max_queued_requests": 1}, "1 requests"),
        ({"max_queued_bytes": MIB}, f"{MIB} bytes"),
        ({"max_pending_requests": 1}, "1 requests"),
        ({"max_pending_bytes": MIB}, f"{MIB} bytes"),
    ],
)
def test_queues_hold_what_their_setting_says(
    tmp_path: Path, limits: dict[str, int], told: str
) -> None:
    with engine(tmp_path, **limits) as built:
        model = Held()
        placed = [PlacedInstance(model, "cpu")]
        slot = built.scheduler.open_slot("model", 1, BatchingPolicy(), placed)
        first = slot.submit(Work(rows=["first"], nbytes=MIB))
        with pytest.raises(QueueFull, match=f"the server is full .{told}"):
            slot.submit(Work(rows=["second"], nbytes=1))
        model.go.set()
        assert first.result(30).results == ["first"]


@pytest.mark.parametrize(
    ("limits", "told"),
    [
        ({"max_decode_requests": 1}, "1 calls"),
        ({"max_decode_bytes": MIB}, "1,048,576 bytes"),
        ({"max_pending_requests": 1}, "1 calls"),
        ({"max_pending_bytes": MIB}, "1,048,576 bytes"),
    ],
)
async def test_decoding_holds_what_its_setting_says(
    tmp_path: Path, limits: dict[str, int], told: str
) -> None:
    with engine(tmp_path, **limits) as built:
        go = Event()
        first = asyncio.create_task(built.pool.decode(lambda: go.wait(30), nbytes=MIB))
        await asyncio.sleep(0)
        with pytest.raises(QueueFull, match=f"pictures to decode is full .{told}"):
            await built.pool.decode(lambda: True, nbytes=1)
        go.set()
        assert (await first)[0]


def test_limit_of_its_own_beats_the_common_one(tmp_path: Path) -> None:
    limits = {"max_pending_requests": 1, "max_queued_requests": 2}
    with engine(tmp_path, **limits) as built:
        model = Held()
        placed = [PlacedInstance(model, "cpu")]
        slot = built.scheduler.open_slot("model", 1, BatchingPolicy(), placed)
        both = [slot.submit(Work(rows=[row])) for row in ("first", "second")]
        model.go.set()
        assert [each.result(30).results for each in both] == [["first"], ["second"]]


def test_repository_that_is_no_folder_leaves_no_thread_behind(tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match="is not a folder"):
        build_engine(Settings(model_repository=(tmp_path / "none",)))
