"""Verify, over scripted models."""

import asyncio
import threading
from collections.abc import Callable

import numpy as np
import pytest

from mien_server.errors import InvalidRequest, MienError, ModelNotFound, Reason, Unmet
from mien_server.models.roles import EMBEDDER
from mien_server.pipeline.types import (
    AlignedFace,
    Call,
    EncodedImage,
    FacePolicy,
    FaceSelection,
    ModelIdentity,
    ModelRef,
    RawPixels,
)
from tests.unit.pipeline.scripted import (
    PAINT_VECTOR,
    Scripted,
    World,
    given,
    mean_colour,
    painted,
    unit,
)

Encode = Callable[..., bytes]


async def test_two_photos_are_compared(world: World) -> None:
    a, b = painted(300, 200, (10, 10, 100)), painted(500, 400, (300, 100, 200))
    compared = await world.verify(a, b)
    assert compared.similarity == pytest.approx(1, abs=0.01)
    assert compared.matched
    assert (compared.threshold, compared.threshold_from_request) == (0.95, False)
    assert (compared.size_a, compared.size_b) == ((300, 200), (500, 400))
    assert compared.face_b.box[0] == pytest.approx(300, abs=3)
    assert compared.detector == ModelIdentity("finder", 1, "finder-print")
    assert compared.embedder == ModelIdentity("vectors", 1, "vectors-print")


async def test_stages_of_both_sides_are_told_apart(world: World) -> None:
    call = Call()
    await world.verify(painted(200, 100, (10, 10, 80)), given(PAINT_VECTOR), call=call)
    await world.verify(given(PAINT_VECTOR), painted(200, 100, (10, 10, 80)), call=call)
    assert {stage.name.split(".")[0] for stage in call.stages} == {"a", "b"}


@pytest.mark.parametrize("threshold", [-1.0, 0.0, 0.5, 1.0])
async def test_the_request_s_threshold_counts(world: World, threshold: float) -> None:
    orthogonal = unit(0, 1, 0, 0, 0, 0)
    compared = await world.verify(given(PAINT_VECTOR), given(orthogonal), threshold=threshold)
    assert compared.similarity == pytest.approx(0, abs=1e-6)
    assert compared.matched == (compared.similarity >= threshold)
    assert (compared.threshold, compared.threshold_from_request) == (threshold, True)
    assert (compared.face_a.box, compared.size_a, compared.detector) == (None, None, None)


@pytest.mark.parametrize("threshold", [1.01, -2.0, np.nan, np.inf])
async def test_an_absurd_threshold_is_refused(world: World, threshold: float) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await world.verify(given(PAINT_VECTOR), given(PAINT_VECTOR), threshold=threshold)
    assert (caught.value.reason, caught.value.field) == (Reason.INVALID_OPTION, "threshold")


async def test_a_model_without_threshold_needs_one(world: World) -> None:
    world.add("bare", EMBEDDER, Scripted(mean_colour), match_threshold=None)
    sides = given(PAINT_VECTOR, "bare"), given(PAINT_VECTOR, "bare")
    with pytest.raises(InvalidRequest, match="bare has no match_threshold") as caught:
        await world.verify(*sides)
    assert caught.value.field == "threshold"
    assert (await world.verify(*sides, threshold=0.5)).matched


async def test_the_embedder_is_the_one_that_made_a_given_embedding(world: World) -> None:
    other = Scripted(mean_colour)
    world.add("other", EMBEDDER, other, match_threshold=0.2)
    compared = await world.verify(painted(200, 100, (10, 10, 80)), given(PAINT_VECTOR, "other"))
    assert compared.embedder.name == "other"
    assert compared.threshold == 0.2
    assert len(other.batches) == 1
    assert world.embedder.batches == []


async def test_embeddings_of_different_models_are_never_compared(world: World) -> None:
    world.add("other", EMBEDDER, Scripted(mean_colour))
    photo = painted(200, 100, (10, 10, 80))
    vectors = ModelRef("vectors")
    for a, b, field_ in (
        (given(PAINT_VECTOR), given(PAINT_VECTOR, "other"), "b.embedding.model"),
        (given(PAINT_VECTOR, "other"), photo, "a.embedding.model"),
        (given(PAINT_VECTOR, "other"), given(PAINT_VECTOR, "other"), "a.embedding.model"),
    ):
        with pytest.raises(Unmet) as caught:
            await world.verify(
                a, b, embedder=vectors if field_ != "b.embedding.model" else ModelRef()
            )
        assert caught.value.reason is Reason.EMBEDDING_MISMATCH
        assert caught.value.field == field_
    assert world.detector.batches == []


async def test_an_embedding_of_another_length_than_its_model_s_is_refused(world: World) -> None:
    short = unit(1, 2, 3)
    for a in (painted(200, 100, (10, 10, 80)), given(PAINT_VECTOR)):
        with pytest.raises(InvalidRequest, match="3 values where vectors gives 6") as caught:
            await world.verify(a, given(short))
        assert caught.value.reason is Reason.INVALID_EMBEDDING
        assert caught.value.field == "b.embedding.values"
    with pytest.raises(InvalidRequest, match="3 values where vectors gives 6"):
        await world.verify(given(short), given(short))
    assert world.detector.batches == []


async def test_a_model_that_is_gone_is_named_by_the_embedding(world: World) -> None:
    with pytest.raises(ModelNotFound) as caught:
        await world.verify(painted(50, 50), given(PAINT_VECTOR, "gone"))
    assert caught.value.field == "b.embedding.model"


async def test_options_are_checked_before_any_work(world: World) -> None:
    for options in (
        {"selection": FaceSelection(FacePolicy.ALL)},
        {"selection": FaceSelection(FacePolicy.LARGEST, min_score=7)},
        {"detector": ModelRef("nobody")},
        {"embedder": ModelRef("nobody")},
    ):
        with pytest.raises(MienError) as caught:
            await world.verify(EncodedImage(b"no image"), EncodedImage(b"no image"), **options)
        assert caught.value.field.split(".")[0] in {"selection", "detector", "embedder"}


@pytest.mark.parametrize("side", ["a", "b"])
async def test_errors_of_a_side_name_it(world: World, side: str) -> None:
    good = painted(200, 100, (10, 10, 80))
    for bad, reason, part in (
        (EncodedImage(b"no image"), Reason.INVALID_IMAGE, "encoded"),
        (painted(200, 100), Reason.FACE_NOT_FOUND, "pixels"),
        (RawPixels(1, 1, b""), Reason.INVALID_IMAGE, "pixels.data"),
        (AlignedFace(RawPixels(1, 1, b"123")), Reason.INVALID_IMAGE, "aligned_face.pixels"),
        (AlignedFace(EncodedImage(b"")), Reason.INVALID_IMAGE, "aligned_face.encoded"),
    ):
        with pytest.raises(MienError) as caught:
            await world.verify(*((bad, good) if side == "a" else (good, bad)))
        assert caught.value.reason is reason
        assert caught.value.field == f"{side}.image.{part}"


async def test_a_side_that_fails_takes_the_other_out_of_its_queue(world: World) -> None:
    world.detector.gate = threading.Event()
    busy = asyncio.create_task(world.detect(painted(50, 50)))
    await asyncio.to_thread(world.detector.begun.wait, 10)
    slot = world.slots["finder", 1]
    block = threading.Event()
    blocked = asyncio.create_task(world.pool.decode(block.wait, nbytes=1))
    good, bad = painted(200, 100, (10, 10, 80)), EncodedImage(b"no image")
    verifying = asyncio.create_task(world.verify(good, bad))
    block.set()
    with pytest.raises(InvalidRequest):
        await verifying
    assert len(world.requests("finder")) == 2
    assert slot.pending == 0
    await blocked
    world.detector.gate.set()
    await busy
    assert world.let_go()
