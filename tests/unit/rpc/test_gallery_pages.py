"""Lists of persons and faces come in pages, each of which goes on where the one before ended."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest

from mien.v1 import gallery_pb2, gallery_pb2_grpc
from mien_server.backends.devices import CpuDevice
from mien_server.gallery.gallery import Gallery
from mien_server.gallery.store import Store
from mien_server.rpc.galleries import GalleryService
from tests.unit.gallery.enrolling import face, made
from tests.unit.pipeline.scripted import World


@pytest.fixture
def gallery(tmp_path: Path) -> Iterator[Gallery]:
    world = World()
    store = Store(tmp_path, max_bytes=1 << 30, scheduler=world.scheduler, device=CpuDevice(1))
    yield Gallery(store, world.catalogue, world.pipeline, default_embedder="vectors")
    world.close()
    store.close()


@asynccontextmanager
async def serving(gallery: Gallery) -> AsyncIterator["gallery_pb2_grpc.GalleryServiceAsyncStub"]:
    server = grpc.aio.server()
    service = GalleryService(gallery, default_deadline=10)
    gallery_pb2_grpc.add_GalleryServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub: gallery_pb2_grpc.GalleryServiceAsyncStub = gallery_pb2_grpc.GalleryServiceStub(
            channel
        )
        yield stub
    await server.stop(None)


@pytest.mark.parametrize(("size", "pages"), [(1, 5), (2, 3), (4, 2), (5, 1), (100, 1), (0, 1)])
async def test_pages_go_on_where_the_one_before_ended(
    gallery: Gallery, size: int, pages: int
) -> None:
    live = await made(gallery.store)
    await gallery.store.enrol(live, [face(f"p{n}", n) for n in range(5)])
    names: list[str] = []
    keys: list[str] = []
    async with serving(gallery) as stub:
        token, count = "", 0
        while count == 0 or token:
            persons = await stub.ListPersons(
                gallery_pb2.ListPersonsRequest(collection="staff", page_size=size, page_token=token)
            )
            names += [person.person_id for person in persons.persons]
            token, count = persons.next_page_token, count + 1
        assert (names, count) == ([f"p{n}" for n in range(5)], pages)
        token, count = "", 0
        while count == 0 or token:
            faces = await stub.ListFaces(
                gallery_pb2.ListFacesRequest(collection="staff", page_size=size, page_token=token)
            )
            keys += [each.face_id for each in faces.faces]
            token, count = faces.next_page_token, count + 1
        assert (len(set(keys)), keys, count) == (5, sorted(keys), pages)
