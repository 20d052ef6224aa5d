"""A store in a folder of its own, over a real scheduler."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from mien_server.backends.devices import CpuDevice
from mien_server.gallery.store import Store
from mien_server.scheduling.scheduler import Scheduler

OpenStore = Callable[..., AbstractContextManager[Store]]


@pytest.fixture
def open_store(tmp_path: Path) -> OpenStore:
    """`with open_store() as store`: that of the test's folder, opened anew each time."""

    @contextmanager
    def opened(folder: Path = tmp_path / "galleries", max_bytes: int = 1 << 30) -> Iterator[Store]:
        device = CpuDevice(1)
        scheduler = Scheduler([device])
        try:
            store = Store(folder, max_bytes=max_bytes, scheduler=scheduler, device=device)
            try:
                yield store
            finally:
                scheduler.close()
                store.close()
        finally:
            scheduler.close()

    return opened


@pytest.fixture
def store(open_store: OpenStore) -> Iterator[Store]:
    with open_store() as opened:
        yield opened
