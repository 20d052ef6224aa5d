"""Detect, and what all calls share, over scripted models."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from mien_server.errors import InvalidRequest, ModelNotFound, ModelNotReady, Reason
from mien_server.models.roles import DETECTOR
from mien_server.pipeline.align import TEMPLATE
from mien_server.pipeline.types import (
    AlignedFace,
    Call,
    EncodedImage,
    FacePolicy,
    FaceSelection,
    ModelIdentity,
    ModelRef,
)
from mien_server.scheduling.errors import Expired, QueueFull
from tests.unit.pipeline.scripted import (
    ALL,
    LARGEST,
    Scripted,
    World,
    find_paint,
    painted,
    until,
)

Encode = Callable[..., bytes]


@pytest.mark.parametrize("policy", [FacePolicy.ALL, FacePolicy.LARGEST, FacePolicy.REQUIRE_ONE])
@pytest.mark.parametrize(("width", "height"), [(300, 200), (900, 700), (2500, 1800)])
async def test_boxes_and_landmarks_are_in_pixels_of_the_photo(
    world: World, policy: FacePolicy, width: int, height: int
) -> None:
    x, y, side = width // 4, height // 3, height // 2
    answer = await world.detect(painted(width, height, (x, y, side)), FaceSelection(policy))
    (face,) = answer.faces
    pixel = max(1.0, width / 320)
    assert np.abs(face.box - [x, y, x + side, y + side]).max() <= 2 * pixel
    assert np.abs(face.landmarks - ([x, y] + TEMPLATE / 112 * side)).max() <= 2 * pixel
    assert (answer.width, answer.height) == (width, height)
    assert answer.detector == ModelIdentity("finder", 1, "finder-print")
    assert answer.embedder is None


async def test_a_reduced_jpeg_gives_pixels_of_the_full_photo(world: World, encode: Encode) -> None:
    raw = painted(4000, 3000, (1000, 600, 1200))
    image = Image.frombytes("RGB", (4000, 3000), raw.data)
    data = encode(image, "JPEG", quality=95)
    answer = await world.detect(EncodedImage(data), LARGEST)
    assert np.abs(answer.faces[0].box - [1000, 600, 2200, 1800]).max() <= 25
    assert (answer.width, answer.height) == (4000, 3000)


async def test_a_large_jpeg_is_decoded_at_reduced_scale(world: World, encode: Encode) -> None:
    data = encode(Image.new("RGB", (4000, 3000), "green"), "JPEG")
    await world.detect(EncodedImage(data), LARGEST)
    coarse, fine = world.requests("finder")
    # Half of it has the 1024 pixels that are needed on its long side, a quarter would not.
    assert coarse.nbytes == 320 * 320 * 3 + 2000 * 1500 * 3
    assert fine.nbytes == 1024 * 1024 * 3 + 2000 * 1500 * 3
    assert (await world.embed(EncodedImage(data), ALL)).faces == []


async def test_a_photo_without_faces_is_no_error(world: World) -> None:
    for policy in FacePolicy:
        assert (await world.detect(painted(400, 300), FaceSelection(policy))).faces == []


async def test_a_large_face_needs_only_the_coarse_canvas(world: World) -> None:
    await world.detect(painted(1600, 1200, (100, 100, 400)), LARGEST)
    assert world.sides() == [320]


async def test_a_small_largest_face_is_looked_for_on_the_fine_canvas(world: World) -> None:
    answer = await world.detect(painted(1600, 1200, (800, 600, 60)), LARGEST)
    assert world.sides() == [320, 1024]
    assert np.abs(answer.faces[0].box - [800, 600, 860, 660]).max() <= 3
    assert [request.passed for request in world.requests("finder")] == [0, 1]


async def test_a_small_face_in_the_centre_is_not_lost_to_a_large_one_at_the_border(
    world: World,
) -> None:
    photo = painted(1600, 1200, (0, 0, 240), (780, 580, 30))
    answer = await world.detect(photo, FaceSelection(FacePolicy.CENTER_LARGEST))
    assert world.sides() == [320, 1024]
    assert np.abs(answer.faces[0].box - [780, 580, 810, 610]).max() <= 3


@pytest.mark.parametrize("policy", [FacePolicy.ALL, FacePolicy.REQUIRE_ONE])
async def test_a_large_face_is_the_same_under_every_policy(
    world: World, policy: FacePolicy
) -> None:
    photo = painted(1601, 1201, (101, 103, 407))
    (one,) = (await world.detect(photo, LARGEST)).faces
    (other,) = (await world.detect(photo, FaceSelection(policy))).faces
    np.testing.assert_array_equal(other.box, one.box)
    np.testing.assert_array_equal(other.landmarks, one.landmarks)
    assert world.sides() == [320, 320, 1024]


async def test_all_faces_are_looked_for_on_both_canvases(world: World) -> None:
    photo = painted(900, 900, (100, 100, 300), (600, 600, 40), (700, 100, 60))
    assert len((await world.detect(photo)).faces) == 3
    assert world.sides() == [320, 1024]


async def test_a_face_beyond_the_anchors_is_taken_from_the_coarse_canvas(world: World) -> None:
    answer = await world.detect(painted(1000, 1000, (100, 100, 700), (900, 900, 30)))
    assert world.sides() == [320, 1024]
    boxes = [face.box.tolist() for face in answer.faces]
    assert np.abs(np.array(boxes) - [[100, 100, 800, 800], [900, 900, 930, 930]]).max() <= 4


async def test_a_small_photo_has_one_canvas(world: World) -> None:
    assert (await world.detect(painted(300, 300, (10, 10, 20)), LARGEST)).faces
    assert world.sides() == [320]


async def test_min_score_reaches_the_detector_and_equal_scores_stay(world: World) -> None:
    photo = painted(300, 300, (10, 10, 50), (150, 150, 30))
    assert len((await world.detect(photo, FaceSelection(FacePolicy.ALL, min_score=0.5))).faces) == 1
    assert not (await world.detect(photo, FaceSelection(FacePolicy.ALL, min_score=0.51))).faces


async def test_detect_refuses_an_aligned_crop(world: World) -> None:
    crop = AlignedFace(EncodedImage(b""))
    with pytest.raises(InvalidRequest) as caught:
        await world.detect(crop)
    assert (caught.value.reason, caught.value.field) == (
        Reason.INVALID_OPTION,
        "image.aligned_face",
    )


async def test_a_named_model_is_used_and_an_unknown_one_refused(world: World) -> None:
    world.add("other", DETECTOR, Scripted(find_paint), version=3)
    answer = await world.detect(painted(99, 99), detector=ModelRef("other", 3))
    assert answer.detector == ModelIdentity("other", 3, "other-print")
    with pytest.raises(ModelNotFound) as caught:
        await world.detect(painted(99, 99), detector=ModelRef("nobody"))
    assert caught.value.field == "detector"


async def test_a_model_that_is_not_ready_says_why_and_where_it_is_named(world: World) -> None:
    world.catalogue.list_models(["finder", "vectors", "asleep"])
    world.catalogue.fail("asleep", "it snores")
    asleep = ModelRef("asleep")
    for call, field in (
        (world.detect(painted(50, 50), detector=asleep), "detector"),
        (world.embed(painted(50, 50), detector=asleep), "detector"),
        (world.embed(painted(50, 50), embedder=asleep), "embedder"),
    ):
        with pytest.raises(ModelNotReady, match="it snores") as caught:
            await call
        assert (caught.value.field, caught.value.lasting) == (field, True)
    assert world.let_go()


async def test_requests_say_what_the_scheduler_needs(world: World) -> None:
    call = Call(deadline=time.monotonic() + 60, priority=2)
    await world.embed(painted(200, 100, (10, 10, 80)), call=call)
    (detection,) = world.requests("finder")
    (embedding,) = world.requests("vectors")
    assert detection.shape == 320
    assert detection.nbytes == 320 * 320 * 3 + 200 * 100 * 3
    assert embedding.nbytes == 112 * 112 * 3
    assert [detection.passed, embedding.passed] == [0, 1]
    for request in (detection, embedding):
        assert (request.priority, request.arrived) == (2, call.arrived)
        assert request.deadline is not None
        assert call.deadline is not None
        assert request.deadline <= call.deadline


async def test_stages_tell_where_the_time_went(world: World) -> None:
    call = Call()
    await world.embed(painted(200, 100, (10, 10, 80)), call=call)
    assert [stage.name for stage in call.stages] == [
        *("decode.queue", "decode", "letterbox"),
        *(f"detect.{part}" for part in ("queue", "preprocess", "compute", "postprocess")),
        "align",
        *(f"embed.{part}" for part in ("queue", "preprocess", "compute", "postprocess")),
    ]
    assert all(stage.seconds >= 0 for stage in call.stages)
    assert sum(stage.seconds for stage in call.stages) <= time.monotonic() - call.arrived
    began = [stage.began or 0.0 for stage in call.stages]
    assert [call.arrived, *began] == sorted([call.arrived, *began])
    for stage, start, following in zip(
        call.stages, began, [*began[1:], time.monotonic()], strict=True
    ):
        assert start + stage.seconds <= following + 1e-6
    computed = {stage.name: stage for stage in call.stages if stage.model}
    assert {name: (s.batch_rows, s.model) for name, s in computed.items()} == {
        "detect.compute": (1, ModelIdentity("finder", 1, "finder-print")),
        "embed.compute": (1, ModelIdentity("vectors", 1, "vectors-print")),
    }
    assert len({stage.batch for stage in computed.values()}) == 2


async def test_an_expired_call_costs_no_decoding(world: World) -> None:
    # Not an image: decoding it would say so.
    with pytest.raises(Expired):
        await world.detect(EncodedImage(b"no image"), call=Call(deadline=time.monotonic() - 1))
    crop = AlignedFace(EncodedImage(b"no image"))
    with pytest.raises(Expired):
        await world.embed(crop, call=Call(deadline=time.monotonic() - 1))


async def test_a_full_decode_queue_refuses(world: World) -> None:
    world.detector.gate = threading.Event()
    gate = threading.Event()
    busy = [asyncio.create_task(world.pool.decode(gate.wait, nbytes=1)) for _ in range(8)]
    await asyncio.sleep(0)
    with pytest.raises(QueueFull):
        await world.detect(painted(50, 50))
    gate.set()
    await asyncio.gather(*busy)


async def test_cancelling_a_call_takes_it_out_of_the_queue(world: World) -> None:
    world.detector.gate = threading.Event()
    first = asyncio.create_task(world.detect(painted(50, 50)))
    await asyncio.to_thread(world.detector.begun.wait, 10)
    second = asyncio.create_task(world.detect(painted(60, 60)))
    slot = world.slots["finder", 1]
    await until(lambda: slot.pending == 1)
    second.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await second
    assert slot.pending == 0
    world.detector.gate.set()
    assert (await first).faces == []
