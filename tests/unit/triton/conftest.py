"""A running server of Triton's protocol over scripted models."""

from collections.abc import AsyncIterator

import pytest

from tests.unit.triton.triton_world import Running, serving


@pytest.fixture
async def running() -> AsyncIterator[Running]:
    """The server, with clients of it."""
    async with serving() as running:
        yield running
