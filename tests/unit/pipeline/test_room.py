"""Bytes of pictures count before they are allocated and until they are freed; more are refused."""

import asyncio
import gc
import io
import threading
import time
from collections.abc import Iterator

import pytest
from PIL import Image

from mien_server.errors import InvalidRequest
from mien_server.pipeline.decode import decode
from mien_server.pipeline.pool import PicturePool
from mien_server.pipeline.room import PictureRoom
from mien_server.pipeline.types import EncodedImage, Limits
from mien_server.scheduling.errors import QueueFull
from tests.unit.pipeline.scripted import World

SIDE = 1000
PIXELS = 3 * SIDE * SIDE


def picture(kind: str, side: int = SIDE) -> EncodedImage:
    file = io.BytesIO()
    Image.new("RGB", (side, side)).save(file, kind)
    return EncodedImage(file.getvalue())


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF"])
def test_pixels_that_do_not_fit_beside_those_of_others_are_refused_until_these_are_freed(
    kind: str,
) -> None:
    room = PictureRoom(max_count=8, max_bytes=PIXELS * 3 // 2)

    def load() -> object:
        with room.hold() as hold:
            return decode(picture(kind), Limits(), hold=hold)

    first = load()
    assert room.nbytes == PIXELS
    with pytest.raises(QueueFull, match=f"{PIXELS * 3 // 2:,}") as caught:
        load()
    assert caught.value.retry_after > 0
    assert room.nbytes == PIXELS
    del first
    assert room.nbytes == 0
    assert load() is not None


def test_refused_picture_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    room = PictureRoom(max_count=8, max_bytes=PIXELS)
    with room.hold() as hold:
        first = decode(picture("PNG"), Limits(), hold=hold)

    def load(image: Image.Image) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    with pytest.raises(QueueFull), room.hold() as hold:
        decode(picture("PNG"), Limits(), hold=hold)
    assert first.width == SIDE


def test_one_picture_is_let_in_whatever_its_size_and_work_of_a_call_under_way_always() -> None:
    room = PictureRoom(max_count=8, max_bytes=10)
    with room.hold() as hold:
        first = decode(picture("PNG"), Limits(), hold=hold)
    with room.hold(refusable=False) as hold:
        second = decode(picture("PNG"), Limits(), hold=hold)
    assert room.nbytes == 2 * PIXELS
    del first, second
    assert room.nbytes == 0


def test_picture_that_turns_out_damaged_gives_its_room_back() -> None:
    room = PictureRoom(max_count=8, max_bytes=PIXELS)
    damaged = EncodedImage(picture("PNG").data[:-100])
    for _ in range(3):
        with pytest.raises(InvalidRequest), room.hold() as hold:
            decode(damaged, Limits(), hold=hold)
        assert room.nbytes == 0


def test_reduced_jpeg_takes_the_room_of_its_reduced_pixels() -> None:
    room = PictureRoom(max_count=8)
    with room.hold() as hold:
        photo = decode(picture("JPEG", 2001), Limits(), enough=500, hold=hold)
    assert photo.reduction == 4
    assert room.nbytes == photo.pixels.nbytes == 3 * 501 * 501


def test_array_that_outlives_its_photo_keeps_its_room() -> None:
    room = PictureRoom(max_count=8)
    with room.hold() as hold:
        photo = decode(picture("PNG"), Limits(), hold=hold)
    corner = photo.pixels[:10, :10]
    del photo
    assert room.nbytes == PIXELS
    del corner
    assert room.nbytes == 0


def test_decoders_wait_until_what_they_need_beside_the_result_fits() -> None:
    room = PictureRoom(max_count=8, max_bytes=100)
    began: list[str] = []
    go = threading.Event()

    def decode_one(name: str, scratch: int) -> None:
        with room.hold(refusable=False) as hold:
            hold.take(1, scratch=scratch)
            began.append(name)
            assert go.wait(30)

    def start(name: str, scratch: int) -> threading.Thread:
        thread = threading.Thread(target=decode_one, args=(name, scratch))
        thread.start()
        time.sleep(0.02)
        return thread

    threads = [start("large", 150), start("next", 60), start("behind it", 1)]
    assert began == ["large"]
    go.set()
    for thread in threads:
        thread.join(30)
    assert began == ["large", "next", "behind it"]


@pytest.fixture
def world() -> Iterator[World]:
    world = World(PicturePool(threads=1, max_bytes=PIXELS * 3 // 2))
    yield world
    world.close()


async def test_photo_that_waits_for_the_detector_keeps_others_out_and_leaves_with_its_call(
    world: World,
) -> None:
    world.detector.gate = threading.Event()
    first = asyncio.create_task(world.detect(picture("PNG")))
    await asyncio.to_thread(world.detector.begun.wait, 30)
    assert world.pool.room.nbytes == PIXELS
    with pytest.raises(QueueFull):
        await world.embed(picture("PNG"))
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    world.detector.gate.set()
    del first
    until = time.monotonic() + 30
    while world.pool.room.nbytes and time.monotonic() < until:
        await asyncio.sleep(0.005)
        gc.collect()
    assert world.pool.room.nbytes == 0
    assert (await world.detect(picture("PNG"))).faces == []
