"""What the server does between calls: it gives freed memory back."""

import asyncio

import pytest

from mien_server import app
from mien_server.backends import memory
from mien_server.rpc.intake import Intake


async def test_memory_goes_back_once_in_each_pause_of_calls(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    released: list[int] = []
    monkeypatch.setattr(app, "IDLE_SECONDS", 0.01)
    monkeypatch.setattr(memory, "release", lambda: released.append(1))
    intake = Intake(max_calls=8, max_bytes=1000)
    intake.open()
    task = asyncio.create_task(app.give_back_memory(intake))

    async def after_a_while() -> int:
        await asyncio.sleep(0.1)
        return len(released)

    assert await after_a_while() == 0  # no call has come
    intake.enter(1)
    assert await after_a_while() == 0  # it is still there
    intake.leave(1)
    assert await after_a_while() == 1
    assert await after_a_while() == 1
    intake.enter(1)
    intake.leave(1)
    assert await after_a_while() == 2
    task.cancel()
