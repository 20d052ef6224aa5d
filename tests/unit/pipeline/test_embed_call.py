"""Embed, over scripted models."""

import asyncio
import contextlib
import gc
import threading
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from mien_server.errors import InvalidRequest, Reason, Unmet
from mien_server.models.crops import ALIGNED, Crop
from mien_server.models.detections import Detections
from mien_server.models.roles import EMBEDDER, DetectorRow, EmbedderOptions, EmbedderRow
from mien_server.pipeline.decode import Photo
from mien_server.pipeline.types import (
    AlignedFace,
    ArrayF32,
    EncodedImage,
    ImageU8,
    ModelRef,
    RawPixels,
)
from mien_server.scheduling.errors import RowFailed
from tests.unit.pipeline.scripted import (
    ALL,
    GROUND,
    PAINT,
    PAINT_VECTOR,
    Scripted,
    World,
    find_paint,
    mean_colour,
    painted,
)

Encode = Callable[..., bytes]


async def test_every_face_gets_its_own_embedding_however_many_there_are(world: World) -> None:
    spots = [(40 + 100 * (i % 6), 40 + 100 * (i // 6), 30 + 3 * i) for i in range(11)]
    photo = painted(640, 300, *spots)
    answer = await world.embed(photo, ALL)
    assert len(answer.faces) == 11
    assert [face.score for face in answer.faces] == sorted(
        (face.score for face in answer.faces), reverse=True
    )
    assert sorted(len(request.rows) for request in world.requests("vectors")) == [3, 4, 4]
    pixels = np.frombuffer(photo.data, np.uint8).reshape(300, 640, 3)
    for face in answer.faces:
        x1, y1, x2, y2 = face.box.round().astype(int)
        assert (pixels[y1:y2, x1:x2] == PAINT).all()
        assert face.embedding.values @ PAINT_VECTOR == pytest.approx(1, abs=0.01)
        assert face.embedding.norm > 100
        assert face.embedding.model == answer.embedder


async def test_no_face_is_an_error_that_names_the_photo(world: World) -> None:
    with pytest.raises(Unmet) as caught:
        await world.embed(painted(300, 200))
    assert (caught.value.reason, caught.value.field) == (Reason.FACE_NOT_FOUND, "image.pixels")
    assert (await world.embed(painted(300, 200), ALL)).faces == []


async def test_an_aligned_crop_is_embedded_without_detection(world: World, encode: Encode) -> None:
    image = Image.new("RGB", (112, 112), PAINT)
    for crop in (
        EncodedImage(encode(image, "PNG")),
        RawPixels(112, 112, image.tobytes()),
    ):
        answer = await world.embed(AlignedFace(crop))
        (face,) = answer.faces
        assert (face.box, face.landmarks, face.score) == (None, None, 0)
        assert face.embedding.values == pytest.approx(PAINT_VECTOR)
        assert (answer.width, answer.height, answer.detector) == (112, 112, None)
    assert world.detector.batches == []
    assert world.requests("vectors")[0].passed == 0


@pytest.mark.parametrize("size", [(112, 111), (224, 224), (1, 1)])
async def test_a_crop_of_another_size_is_refused(world: World, size: tuple[int, int]) -> None:
    crop = RawPixels(size[1], size[0], bytes(size[0] * size[1] * 3))
    with pytest.raises(InvalidRequest, match=f"{size[0]}x{size[1]}") as caught:
        await world.embed(AlignedFace(crop))
    assert caught.value.reason is Reason.INVALID_IMAGE
    assert caught.value.field == "image.aligned_face.pixels"


async def test_an_embedder_sees_the_part_of_the_face_that_its_config_says(
    world: World, encode: Encode
) -> None:
    """At its own size, cut out of the photo: not enlarged from the crop that others get."""
    crops = {"vectors": ALIGNED, "large": Crop(224), "part": Crop(56, window=(56, 0, 56))}
    models = {"vectors": world.embedder}
    for name in ("large", "part"):
        models[name] = Scripted(lambda row: row.image.mean(axis=(0, 1)))
        world.add(name, EMBEDDER, models[name], options=EmbedderOptions(crop=crops[name]))
    pixels = np.full((600, 600, 3), GROUND, np.uint8)
    pixels[100:400, 150:450] = PAINT
    pixels[100:400:4, 150:450] = (255, 40, 255)
    photo = RawPixels(600, 600, pixels.tobytes())
    for name in crops:
        await world.embed(photo, embedder=ModelRef(name))
    seen = {name: model.batches[0][0].image for name, model in models.items()}
    assert {name: len(image) for name, image in seen.items()} == {
        "vectors": 112, "large": 224, "part": 56
    }  # fmt: skip
    # Stripes of one pixel in four, of which 112 pixels show less than 224 do.
    blurred = seen["vectors"][20:90, 40:70, 1].std()
    assert seen["large"][40:180, 80:140, 1].std() > 1.5 * blurred
    np.testing.assert_allclose(seen["part"], seen["vectors"][:56, 56:], atol=1)
    # Analyze embeds what Embed does, also beside analysers that see something else.
    found = await world.analyse(photo, embedder=ModelRef("large"))
    np.testing.assert_array_equal(models["large"].batches[1][0].image, seen["large"])
    assert found.faces[0].quality.sharpness > 0

    aligned = AlignedFace(RawPixels(112, 112, seen["vectors"].tobytes()))
    for call in (world.embed, world.analyse):
        await call(aligned, embedder=ModelRef("part"))
        image = models["part"].batches[-1][0].image
        np.testing.assert_allclose(image, seen["part"], atol=1)


async def test_a_face_without_usable_landmarks_is_passed_over(world: World) -> None:
    def with_a_bad_face(row: DetectorRow) -> Detections:
        found = find_paint(row)
        found.landmarks[0] = np.nan
        return found

    world.detector.answer = with_a_bad_face
    photo = painted(300, 300, (10, 10, 120), (200, 200, 60))
    answer = await world.embed(photo)
    assert np.abs(answer.faces[0].box - [200, 200, 260, 260]).max() <= 1
    with pytest.raises(Unmet) as caught:
        await world.embed(painted(300, 300, (10, 10, 120)))
    assert caught.value.reason is Reason.FACE_NOT_FOUND


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
async def test_a_useless_vector_is_the_model_s_failure(world: World, value: float) -> None:
    world.embedder.answer = lambda _: np.full(6, value, np.float32)
    with pytest.raises(RowFailed) as caught:
        await world.embed(painted(200, 100, (10, 10, 80)))
    assert caught.value.incident


async def test_a_small_face_of_a_reduced_jpeg_is_cropped_from_the_full_photo(
    world: World, encode: Encode
) -> None:
    seen: list[ImageU8] = []

    def keep(row: EmbedderRow) -> ArrayF32:
        seen.append(row.image)
        return mean_colour(row)

    world.embedder.answer = keep
    pixels = np.full((3000, 4000, 3), GROUND, np.uint8)
    pixels[600:720, 800:920] = PAINT
    pixels[602:718:4, 802:918] = (255, 40, 255)
    data = encode(Image.fromarray(pixels), "JPEG", quality=100, subsampling=0)
    await world.embed(EncodedImage(data))
    (crop,) = seen
    # Stripes of one pixel in four survive at full size; at half size they would be averaged away.
    assert crop[20:90, 40:70, 1].std() > 12


async def test_the_photo_is_freed_while_its_crop_waits(world: World) -> None:
    world.embedder.gate = threading.Event()
    waiting = asyncio.create_task(world.embed(painted(300, 200, (10, 10, 100))))
    await asyncio.to_thread(world.embedder.begun.wait, 10)
    gc.collect()
    assert not [thing for thing in gc.get_objects() if type(thing) is Photo]
    world.embedder.gate.set()
    assert len((await waiting).faces) == 1


async def test_models_are_held_while_a_call_needs_them(world: World) -> None:
    with contextlib.suppress(Unmet):
        await world.embed(painted(300, 200))
    world.embedder.gate = threading.Event()
    waiting = asyncio.create_task(world.embed(painted(300, 200, (10, 10, 100))))
    await asyncio.to_thread(world.embedder.begun.wait, 10)
    assert not world.let_go(0.02)
    world.embedder.gate.set()
    await waiting
    assert world.let_go()
