"""A store in a folder of its own, over a real scheduler."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from mien_server.backends.devices import CpuDevice
from mien_server.gallery.gallery import Gallery
from mien_server.gallery.store import Store
from mien_server.scheduling.scheduler import Scheduler
from tests.unit.pipeline.scripted import World

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


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    made.close()


@pytest.fixture
def gallery(world: World, tmp_path: Path) -> Iterator[Gallery]:
    """Galleries in the test's folder, over the world's models."""
    store = Store(tmp_path, max_bytes=1 << 30, scheduler=world.scheduler, device=CpuDevice(1))
    yield Gallery(store, world.catalogue, world.pipeline, default_embedder="vectors")
    world.scheduler.close()
    store.close()
