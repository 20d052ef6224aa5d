"""A collection that keeps crops gets another model while it serves, whatever interrupts that."""

import asyncio
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mien_server.backends.devices import CpuDevice
from mien_server.errors import InvalidRequest, NotInGallery, Reason, Unmet
from mien_server.gallery.crops import crop_of, reembed
from mien_server.gallery.database import FILENAME
from mien_server.gallery.enrolment import enrol
from mien_server.gallery.gallery import Gallery
from mien_server.gallery.milvus_store import MilvusStore
from mien_server.gallery.store import Store
from mien_server.gallery.types import Enrolment, EnrolOptions, NewFace, QualityPolicy
from mien_server.models.roles import EMBEDDER
from mien_server.pipeline.types import AlignedFace, ArrayF32, Call, ModelRef, RawPixels
from mien_server.scheduling.errors import SchedulingError
from tests.unit.gallery.test_store import traces
from tests.unit.pipeline.scripted import LARGEST, Scripted, World, given, mean_colour, painted, unit

PHOTO = painted(400, 400, (100, 100, 150))
NEWER = ModelRef("newer")


def crop(seed: int) -> AlignedFace:
    """Somebody's: two halves of a colour each."""
    colours = np.random.default_rng(seed).integers(0, 256, (2, 1, 1, 3), np.uint8)
    pixels = np.broadcast_to(colours, (2, 56, 112, 3))
    return AlignedFace(RawPixels(112, 112, pixels.tobytes()))


def newer(row: Any) -> ArrayF32:
    """Another model: what it makes of a crop has more numbers, and another order."""
    return np.concatenate([mean_colour(row)[::-1], [50, 50]]).astype(np.float32)


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    made.add("newer", EMBEDDER, Scripted(newer))
    config: Any = made.catalogue.resolve("newer", 0, role=EMBEDDER).config
    object.__setattr__(config.outputs[0], "dims", (8,))
    yield made
    made.close()


async def enrolled(gallery: Gallery, *faces: NewFace) -> list[Enrolment]:
    options = EnrolOptions(ModelRef(), LARGEST, QualityPolicy.ACCEPT)
    _, results = await enrol(gallery, "staff", faces, options=options, call=Call())
    return results


async def who(gallery: Gallery, subject: Any) -> list[str]:
    answer = await gallery.identify(
        ["staff"],
        subject,
        detector=ModelRef(),
        selection=LARGEST,
        top_k=1,
        threshold=0.9999,
        labels={},
        call=Call(),
    )
    return [match.person for _, match in answer.faces[0].matches]


def person(number: int, name: str | None = None) -> NewFace:
    return NewFace(crop(number), f"p{number}" if name is None else name, {}, f"k{number}")


async def filled(gallery: Gallery, count: int) -> list[Enrolment]:
    await gallery.create("staff", ModelRef(), 0.9, keep_crops=True)
    return [
        each
        for start in range(0, count, 8)
        for each in await enrolled(gallery, *map(person, range(start, min(count, start + 8))))
    ]


async def test_collection_gets_another_model_a_part_at_a_time(
    gallery: Gallery, tmp_path: Path
) -> None:
    await filled(gallery, 70)
    (photo,) = await enrolled(gallery, NewFace(PHOTO, "paint", {}, ""))
    (unknown,) = await enrolled(gallery, person(500, ""))
    before = gallery.store.find("staff").collection
    progress = await reembed(gallery, "staff", NEWER, most=40, call=Call())
    assert (progress.done, progress.left, progress.swapped) == (40, 32, False)
    # It serves as before, for new faces, too, and forgets those that are deleted.
    await enrolled(gallery, person(80))
    assert await who(gallery, crop(3)) == ["p3"]
    assert gallery.store.find("staff").collection == before
    await gallery.store.delete_person(gallery.store.find("staff"), "p5")
    progress = await reembed(gallery, "staff", NEWER, most=1000, call=Call())
    assert (progress.done, progress.left, progress.swapped) == (72, 0, True)

    live = gallery.store.find("staff")
    assert live.collection.embedder.name == "newer"
    assert (live.collection.dimensions, live.collection.threshold) == (8, 0.9)
    for number in (3, 69, 80):
        assert await who(gallery, crop(number)) == [f"p{number}"]
    assert await who(gallery, crop(5)) == []
    assert await who(gallery, PHOTO) == ["paint"]
    with pytest.raises(Unmet) as caught:
        await who(gallery, given(unit(1, 0, 0, 0, 0, 0)))
    assert caught.value.reason is Reason.EMBEDDING_MISMATCH
    keys, vectors, _ = await gallery.store.unnamed(live, 9)
    assert (keys.tolist(), vectors.shape) == ([unknown.key], (1, 8))
    # Everything else of a face is as it was.
    told = await gallery.store.reader.face(live, photo.key)
    assert told.quality is not None
    assert told.person == "paint"
    (again,) = await enrolled(gallery, person(3))
    assert again.existing
    again_done = await reembed(gallery, "staff", NEWER, most=1, call=Call())
    assert (again_done.done, again_done.swapped) == (72, True)
    # And in the file, for the next start.
    count = sqlite3.connect(tmp_path / FILENAME).execute("SELECT count(*) FROM reembedded")
    assert count.fetchone() == (0,)


async def test_all_of_it_is_there_after_a_restart_in_the_middle_and_at_the_end(
    world: World, tmp_path: Path
) -> None:
    def opened() -> Gallery:
        store = Store(tmp_path, max_bytes=1 << 30, scheduler=world.scheduler, device=CpuDevice(1))
        return Gallery(store, world.catalogue, world.pipeline, default_embedder="vectors")

    gallery = opened()
    await filled(gallery, 50)
    await reembed(gallery, "staff", NEWER, most=20, call=Call())
    gallery.store.close()
    gallery = opened()
    assert await who(gallery, crop(3)) == ["p3"]
    progress = await reembed(gallery, "staff", NEWER, most=10, call=Call())
    assert (progress.done, progress.left) == (30, 20)
    assert (await reembed(gallery, "staff", NEWER, most=20, call=Call())).swapped
    gallery.store.close()
    gallery = opened()
    assert gallery.store.find("staff").collection.keeps_crops
    for number in range(50):
        assert await who(gallery, crop(number)) == [f"p{number}"]
    # A file of a person who is deleted has neither vector, nor crop, nor name.
    needle = np.frombuffer(crop(7).crop.data, np.uint8)[:48].tobytes()
    assert traces(tmp_path, needle)
    await reembed(gallery, "staff", ModelRef("vectors"), most=10, call=Call())
    await gallery.store.delete_person(gallery.store.find("staff"), "p7")
    assert traces(tmp_path, needle, b"p7\x00") == []
    world.scheduler.close()
    gallery.store.close()


async def test_another_model_on_the_way_begins_anew(gallery: Gallery, world: World) -> None:
    await filled(gallery, 30)
    await reembed(gallery, "staff", NEWER, most=20, call=Call())
    world.add("third", EMBEDDER, Scripted(lambda row: mean_colour(row) + 1))
    progress = await reembed(gallery, "staff", ModelRef("third"), most=10, call=Call())
    assert (progress.done, progress.left) == (10, 20)
    assert (await reembed(gallery, "staff", ModelRef("third"), most=20, call=Call())).swapped
    assert await who(gallery, crop(3)) == ["p3"]


async def test_searches_and_changes_go_on_while_the_model_is_exchanged(gallery: Gallery) -> None:
    await filled(gallery, 60)
    ended = asyncio.Event()
    answers: list[list[str]] = []
    gone: list[int] = []
    reasons: set[Reason] = set()

    async def ask() -> None:
        while not ended.is_set():
            try:
                answers.append(await who(gallery, crop(7)))
            except SchedulingError:
                pass  # it is told to try again, which the SDK does
            except Unmet as error:
                reasons.add(error.reason)
            await asyncio.sleep(0.01)

    async def delete() -> None:
        for number in range(20, 60):
            await gallery.store.delete_person(gallery.store.find("staff"), f"p{number}")
            gone.append(number)

    asking = [asyncio.create_task(ask()) for _ in range(4)]
    deleting = asyncio.create_task(delete())
    swapped = False
    while not swapped:
        try:
            swapped = (await reembed(gallery, "staff", NEWER, most=8, call=Call())).swapped
        except SchedulingError:  # others were before it
            await asyncio.sleep(0.01)
    await deleting
    for _ in range(20):
        await asyncio.sleep(0.01)
    ended.set()
    await asyncio.gather(*asking)
    assert answers
    # Where the model changed between the embedding and the search.
    assert reasons <= {Reason.EMBEDDING_MISMATCH}
    assert all(answer == ["p7"] for answer in answers)
    live = gallery.store.find("staff")
    assert live.named == 20
    assert len(gone) == 40
    assert await who(gallery, crop(30)) == []


async def test_what_keeps_no_crops_is_refused(gallery: Gallery) -> None:
    await gallery.create("staff", ModelRef(), 0.9)
    with pytest.raises(Unmet) as caught:
        await reembed(gallery, "staff", NEWER, most=1, call=Call())
    assert caught.value.reason is Reason.NO_CROPS
    with pytest.raises(NotInGallery):
        await reembed(gallery, "nobody", NEWER, most=1, call=Call())
    await gallery.store.delete(gallery.store.find("staff"))
    await gallery.create("staff", ModelRef(), 0.9, keep_crops=True)
    (refused,) = await enrolled(gallery, NewFace(given(unit(1, 0, 0, 0, 0, 0)), "ann", {}, ""))
    assert (refused.key, refused.reason) == (0, Reason.NO_CROPS)
    assert refused.field == "faces[0].subject.embedding"
    await gallery.store.delete(gallery.store.find("staff"))


async def test_milvus_keeps_no_crops() -> None:
    with pytest.raises(InvalidRequest, match="keep no crops"):
        await MilvusStore.create(None, "staff", None, 4, None, keep_crops=True)  # type: ignore[arg-type]


async def test_crop_is_handed_out_as_it_was_enrolled_until_its_face_is_deleted(
    gallery: Gallery,
) -> None:
    first, second = await filled(gallery, 2)
    wanted = np.frombuffer(crop(0).crop.data, np.uint8).tobytes()
    assert await crop_of(gallery, "staff", first.key) == wanted
    assert (await reembed(gallery, "staff", NEWER, most=9, call=Call())).swapped
    assert await crop_of(gallery, "staff", first.key) == wanted

    await gallery.create("others", ModelRef(), None, keep_crops=True)
    await gallery.create("without", ModelRef(), None)
    await gallery.store.delete_faces(gallery.store.find("staff"), [first.key])
    for name, key in (("staff", first.key), ("others", second.key)):
        with pytest.raises(NotInGallery) as gone:
            await crop_of(gallery, name, key)
        assert gone.value.reason is Reason.ENROLLED_FACE_NOT_FOUND
    with pytest.raises(Unmet) as none_kept:
        await crop_of(gallery, "without", second.key)
    assert none_kept.value.reason is Reason.NO_CROPS


async def test_faces_that_meet_the_exchange_are_embedded_by_the_new_model(
    gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    await filled(gallery, 3)
    store: Any = gallery.store
    write, written_by = store.enrol, []

    async def exchanged_first(live: Any, rows: Any) -> Any:
        written_by.append(live.collection.embedder.name)
        if len(written_by) == 1:
            assert (await reembed(gallery, "staff", NEWER, most=9, call=Call())).swapped
        return await write(live, rows)

    monkeypatch.setattr(store, "enrol", exchanged_first)
    (late,) = await enrolled(gallery, person(8))
    assert written_by == ["vectors", "newer"]
    assert (late.person, late.existing, late.reason) == ("p8", False, None)
    assert await who(gallery, crop(8)) == ["p8"]
    assert gallery.store.find("staff").faces == 4
