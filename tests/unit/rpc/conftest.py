"""The limit on lines of refused calls begins anew with each test."""

import pytest

from mien_server.rpc import record


@pytest.fixture(autouse=True)
def _no_refusals_yet() -> None:
    record._limit._periods.clear()
    record._limit._dropped = 0
