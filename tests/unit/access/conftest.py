"""What the tests of access share."""

import pytest

from mien_server.access import keys


@pytest.fixture
def quick_scrypt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys are hashed in microseconds. Only this process can tell whether a key is one of these."""
    monkeypatch.setattr(keys, "_N", 16)
