"""Analyze, over scripted models."""

import asyncio
import threading
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mien_server.errors import InvalidRequest, ModelNotFound, Reason, Unmet
from mien_server.models.analyser import ANALYSER, Analysed, AnalyserOptions, AnalyserRow
from mien_server.models.crops import Crop
from mien_server.pipeline.align import TEMPLATE
from mien_server.pipeline.requirements import Demand, Requirements
from mien_server.pipeline.types import AlignedFace, Call, EncodedImage, ModelRef, RawPixels
from tests.unit.pipeline.conftest import Encode
from tests.unit.pipeline.scripted import (
    ALL,
    GROUND,
    LARGEST,
    PAINT,
    PAINT_VECTOR,
    Scripted,
    World,
    given,
    painted,
    until,
)


def say(kind: Any, *values: float) -> Scripted:
    """An analyser that says the same of every face."""
    return Scripted(lambda _: Analysed(kind, np.array(values, np.float32)))


def striped_photo(encode: Encode) -> EncodedImage:
    """A JPEG of 4000x3000 of one face, above which there are stripes of a pixel.

    The decoder halves such a photo, which turns the stripes to grey.
    """
    pixels = np.full((3000, 4000, 3), GROUND, np.uint8)
    pixels[1000:1600, 1000:1600] = PAINT
    pixels[920:960, 900:1700] = 0
    pixels[920:960:2, 900:1700] = 255
    return EncodedImage(encode(Image.fromarray(pixels), "JPEG", quality=95))


def paint_share(row: AnalyserRow) -> Analysed:
    """How much of a crop is paint."""
    share = (np.abs(row.image.astype(int) - PAINT).sum(axis=2) < 100).mean()
    return Analysed("score", np.array([share], np.float32))


def add(world: World, name: str, model: Scripted, **options: Any) -> Scripted:
    world.add(name, ANALYSER, model, options=AnalyserOptions(**options))
    return model


@pytest.fixture
def asked(world: World) -> World:
    """A world with two analysers by default, and one besides."""
    labels = ("sad", "happy")
    add(
        world,
        "mood",
        say("classification", 0.3, 0.7),
        kind="classification",
        labels=labels,
        by_default=True,
    )
    add(world, "age", say("number", 41), kind="number", unit="years", by_default=True)
    add(world, "live", say("score", 0.25), kind="score")
    return world


async def test_each_face_gets_its_figures_and_an_answer_of_each_analyser(asked: World) -> None:
    found = await asked.analyse(painted(640, 300, (40, 40, 80), (300, 60, 100)), "live", "mood")
    assert [round(float(face.box[0])) for face in found.faces] == [300, 40]
    for face in found.faces:
        assert face.embedding is None
        assert face.quality.size == pytest.approx(face.box[2] - face.box[0], abs=0.1)
        assert [(a.kind, a.model.name, a.labels) for a in face.analyses] == [
            ("score", "live", ()),
            ("classification", "mood", ("sad", "happy")),
        ]
        np.testing.assert_allclose(face.analyses[0].values, [0.25])
        np.testing.assert_allclose(face.analyses[1].values, [0.3, 0.7], rtol=1e-6)
    assert found.detector.name == "finder"
    assert len(asked.requests("live")) == 1, "the faces of a photo go in one request"


async def test_who_names_none_gets_the_defaults_by_name(asked: World) -> None:
    (face,) = (await asked.analyse(painted(300, 200, (40, 40, 80)))).faces
    assert [analysis.model.name for analysis in face.analyses] == ["age", "mood"]
    assert face.analyses[0].unit == "years"


async def test_without_analysers_there_is_the_quality_alone(world: World) -> None:
    (face,) = (await world.analyse(painted(300, 200, (40, 40, 80)))).faces
    assert face.analyses == []
    assert face.quality.score == pytest.approx(face.score)


async def test_no_face_is_an_answer_for_all_and_an_error_for_one(asked: World) -> None:
    empty = painted(300, 200)
    assert (await asked.analyse(empty)).faces == []
    with pytest.raises(Unmet) as caught:
        await asked.analyse(empty, selection=LARGEST)
    assert (caught.value.reason, caught.value.field) == (Reason.FACE_NOT_FOUND, "image.pixels")


async def test_each_sees_the_crop_that_it_wants(world: World) -> None:
    # The face's box is 80 pixels: of a square twice as wide, a quarter is paint.
    tight, wide = Crop(32, "box"), Crop(64, "box", margin=2.0)
    models = {
        name: add(world, name, Scripted(paint_share), kind="score", crop=crop)
        for name, crop in {
            "tight": tight,
            "wide": wide,
            "aligned": Crop(),
            "small": Crop(48),
            "part": Crop(56, window=(56, 0, 56)),
        }.items()
    }
    photo = painted(400, 400, (160, 150, 80))
    (face,) = (await world.analyse(photo, *models)).faces
    shares = {a.model.name: float(a.values[0]) for a in face.analyses}
    assert shares["tight"] == pytest.approx(1, abs=0.07)
    assert shares["wide"] == pytest.approx(0.25, abs=0.03)
    assert shares["aligned"] == pytest.approx(1, abs=0.05)
    assert shares["small"] == pytest.approx(shares["aligned"], abs=0.02)
    crops = {name: model.batches[0][0].image for name, model in models.items()}
    assert {name: len(crop) for name, crop in crops.items()} == {
        "tight": 32, "wide": 64, "aligned": 112, "small": 48, "part": 56
    }  # fmt: skip
    # The window is the upper right quarter of the template, pixel by pixel.
    np.testing.assert_allclose(crops["part"], crops["aligned"][:56, 56:], atol=1)


async def test_points_come_back_into_the_photo(world: World) -> None:
    """Points at the template's places are the face's own landmarks, whatever the crop's size."""
    for name, crop, scale in (("full", Crop(), 1.0), ("half", Crop(56), 0.5)):
        places = (TEMPLATE + 0.5) * scale - 0.5
        add(world, name, say("points", *places.reshape(-1)), kind="points", crop=crop)
    add(world, "box", say("points", -0.5, -0.5, 19.5, 19.5), kind="points", crop=Crop(20, "box"))
    (face,) = (await world.analyse(painted(500, 400, (200, 150, 90)), "full", "half", "box")).faces
    for analysis in face.analyses[:2]:
        np.testing.assert_allclose(analysis.values, face.landmarks, atol=0.01)
    np.testing.assert_allclose(face.analyses[2].values.reshape(-1), face.box, atol=0.01)


async def test_crop_inside_of_a_photo_ends_where_that_does(world: World) -> None:
    corners = say("points", -0.5, -0.5, 19.5, 19.5)
    add(world, "all", corners, kind="points", crop=Crop(20, "inside", margin=10))
    add(world, "near", corners, kind="points", crop=Crop(20, "inside", margin=1.5))
    photo = painted(500, 400, (10, 150, 90))
    (face,) = (await world.analyse(photo, "all", "near")).faces
    left, top, right, bottom = face.box
    whole, near = (each.values.reshape(-1) for each in face.analyses)
    width = 399 * (right - left) / (bottom - top)
    np.testing.assert_allclose(whole, [0, 0, width, 399], atol=0.05)
    size = np.array([right - left, bottom - top]) * 1.5
    middle = (top + bottom) / 2
    expected = [0, middle - size[1] / 2, size[0], middle + size[1] / 2]
    np.testing.assert_allclose(near, expected, atol=0.05)


async def test_a_large_photo_is_decoded_in_full_for_a_fine_crop(
    world: World, encode: Encode
) -> None:
    crop = Crop(1024, "box", margin=1.4)
    fine = add(world, "fine", Scripted(paint_share), kind="score", crop=crop)
    await world.analyse(striped_photo(encode), "fine")
    stripes = fine.batches[0][0].image[55:85, 300:700]
    assert stripes.std(axis=0).mean() > 50


async def test_an_aligned_crop_is_seen_by_those_that_need_no_more(world: World) -> None:
    seen = add(world, "seen", Scripted(paint_share), kind="score", by_default=True)
    add(world, "small", Scripted(paint_share), kind="score", crop=Crop(28), by_default=True)
    add(world, "wide", Scripted(paint_share), kind="score", crop=Crop(64, "box"), by_default=True)
    pixels = np.random.default_rng(1).integers(0, 256, (112, 112, 3), dtype=np.uint8)
    crop = AlignedFace(RawPixels(112, 112, pixels.tobytes()))
    found = await world.analyse(crop)
    assert [a.model.name for a in found.faces[0].analyses] == ["seen", "small"]
    np.testing.assert_array_equal(seen.batches[0][0].image, pixels)
    assert found.faces[0].quality.size is None
    assert found.detector is None
    with pytest.raises(InvalidRequest) as caught:
        await world.analyse(crop, "small", "wide")
    assert (caught.value.reason, caught.value.field) == (Reason.INVALID_OPTION, "analysers[1]")
    assert "wide sees more of a photo than an aligned crop has" in caught.value.message


async def test_the_one_at_fault_is_named(asked: World) -> None:
    photo = painted(300, 200, (40, 40, 80))
    with pytest.raises(ModelNotFound) as missing:
        await asked.analyse(photo, "age", "nobody")
    assert missing.value.field == "analysers[1]"
    with pytest.raises(InvalidRequest) as wrong:
        await asked.analyse(photo, "vectors")
    assert "where an analyser is needed: age, live, mood" in wrong.value.message
    with pytest.raises(InvalidRequest) as many:
        await asked.analyse(photo, *["age"] * 17)
    assert many.value.field == "analysers"


async def test_the_analysers_of_a_face_run_at_the_same_time(world: World) -> None:
    """Each on a device of its own: both have begun before either has ended."""
    gate = threading.Event()
    models = []
    for name, device in (("one", "cpu"), ("two", "gpu")):
        model = say("score", 0.5)
        model.gate = gate
        world.add(name, ANALYSER, model, options=AnalyserOptions("score"), device=device)
        models.append(model)
    call = asyncio.create_task(world.analyse(painted(300, 200, (40, 40, 80)), "one", "two"))
    try:
        await until(lambda: all(model.begun.is_set() for model in models))
    finally:
        gate.set()
    assert len((await call).faces[0].analyses) == 2


async def test_faces_of_several_calls_share_a_batch(asked: World) -> None:
    model = say("score", 0.5)
    model.gate = threading.Event()
    asked.add("busy", ANALYSER, model, options=AnalyserOptions("score"), device="gpu")
    photo = painted(300, 200, (40, 40, 80))
    first = asyncio.create_task(asked.analyse(photo, "busy"))
    await until(model.begun.is_set)
    others = [asyncio.create_task(asked.analyse(photo, "busy")) for _ in range(3)]
    await until(lambda: len(asked.requests("busy")) == 4)
    model.gate.set()
    await asyncio.gather(first, *others)
    assert [len(batch) for batch in model.batches] == [1, 3]


async def test_its_stages_are_told(asked: World) -> None:
    call = Call()
    await asked.analyse(painted(300, 200, (40, 40, 80)), "age", "mood", call=call)
    computed = [stage.model for stage in call.stages if stage.name == "analyse.compute"]
    assert sorted(model.name for model in computed if model) == ["age", "mood"]


async def test_models_are_let_go_afterwards(asked: World) -> None:
    await asked.analyse(painted(300, 200, (40, 40, 80)))
    assert asked.let_go()


def require(name: str, label: str = "", *, quality: bool = False, **bounds: float) -> Requirements:
    return Requirements(quality, (Demand(ModelRef(name), label, **bounds),))


PHOTO = painted(300, 200, (40, 40, 80))


@pytest.mark.parametrize(
    "wanted",
    [
        require("live", at_least=0.25),
        require("live", at_least=0.2, at_most=0.3),
        require("age", at_most=41),
        require("mood", "happy", at_least=0.6),
        require("mood", "sad", at_most=0.4),
        Requirements(quality_at_least=0.0),
        Requirements(),
    ],
)
async def test_what_is_fulfilled_changes_no_answer(asked: World, wanted: Requirements) -> None:
    (face,) = (await asked.analyse(PHOTO, "age", require=wanted)).faces
    assert face.analyses[0].model.name == "age"
    others = {demand.analyser.name for demand in wanted.demands} - {"age"}
    assert {analysis.model.name for analysis in face.analyses[1:]} == others


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (require("live", at_least=0.8), "live says 0.250, 0.8 or more passes"),
        (require("age", at_most=30), "age says 41.000, 30 or less passes"),
        (require("mood", "sad", at_least=0.5), "mood says sad 0.300, 0.5 or more passes"),
        (Requirements(quality=True), "it is blurred"),
        (Requirements(quality_at_least=0.1), "its quality is 0.000, 0.1 or more passes"),
        (require("live", at_least=0.8, quality=True), "; live says 0.250"),
    ],
)
async def test_what_is_not_fulfilled_is_told_with_its_figures(
    asked: World, wanted: Requirements, said: str
) -> None:
    with pytest.raises(Unmet) as caught:
        await asked.analyse(PHOTO, require=wanted)
    assert (caught.value.reason, caught.value.field) == (Reason.REQUIREMENT_UNMET, "image")
    assert said in caught.value.message
    assert caught.value.message.startswith("The face does not fulfil what the request requires: ")


async def test_of_several_faces_the_first_that_fails_is_named(world: World) -> None:
    """The larger one comes first, and fills more of its crop's surroundings."""
    add(world, "share", Scripted(paint_share), kind="score", crop=Crop(64, "box", margin=2.0))
    two = painted(700, 300, (40, 40, 100), (350, 60, 60))
    beside = painted(700, 300, (40, 40, 100), (350, 60, 60), (420, 60, 60))
    assert len((await world.analyse(two, require=require("share", at_least=0.1))).faces) == 2
    with pytest.raises(Unmet, match=r"Face 2 of 3 does not fulfil"):
        await world.analyse(beside, require=require("share", at_most=0.28))


@pytest.mark.parametrize(
    ("wanted", "field", "said"),
    [
        (require("live"), "require.analysers[0]", "give at_least or at_most"),
        (require("live", at_least=float("nan")), "require.analysers[0]", "finite numbers"),
        (require("mood", at_least=0.5), "require.analysers[0]", "label must be one of sad, happy"),
        (
            require("live", "sad", at_least=0.5),
            "require.analysers[0]",
            "a score, which has no label",
        ),
        (require("vectors", at_least=0), "require.analysers[0].analyser", "an analyser is needed"),
        (Requirements(demands=require("live", at_least=0).demands * 17), "require.analysers", "17"),
        (Requirements(quality_at_least=1.5), "require.quality_at_least", r"outside \[0, 1\]"),
        (Requirements(quality_at_least=float("nan")), "require.quality_at_least", "nan is outside"),
    ],
)
async def test_what_cannot_be_required_is_refused(
    asked: World, wanted: Requirements, field: str, said: str
) -> None:
    with pytest.raises(InvalidRequest, match=said) as caught:
        await asked.analyse(PHOTO, require=wanted)
    assert (caught.value.reason, caught.value.field) == (Reason.INVALID_OPTION, field)


async def test_verify_compares_only_faces_that_fulfil_it(asked: World) -> None:
    fine, too_much = require("live", at_least=0.2), require("live", at_least=0.3)
    compared = await asked.verify(PHOTO, PHOTO, require=fine)
    plain = await asked.verify(PHOTO, PHOTO)
    assert compared.similarity == pytest.approx(plain.similarity)
    np.testing.assert_array_equal(compared.face_a.embedding.values, plain.face_a.embedding.values)
    with pytest.raises(Unmet) as caught:
        await asked.verify(PHOTO, PHOTO, require=too_much)
    assert caught.value.reason is Reason.REQUIREMENT_UNMET
    assert caught.value.field in ("a.image", "b.image")


async def test_verify_requires_nothing_of_embeddings_but_a_photo_beside(asked: World) -> None:
    known = (await asked.embed(PHOTO)).faces[0].embedding
    strict = require("live", at_least=0.3)
    with pytest.raises(Unmet) as caught:
        await asked.verify(known, PHOTO, require=strict)
    assert caught.value.field == "b.image"
    with pytest.raises(InvalidRequest) as refused:
        await asked.verify(known, known, require=strict)
    assert (refused.value.reason, refused.value.field) == (Reason.INVALID_OPTION, "require")


async def test_faces_are_embedded_too_if_that_is_asked(asked: World) -> None:
    two = painted(640, 300, (40, 40, 80), (300, 60, 100))
    found = await asked.analyse(two, "age", embedder=ModelRef())
    alone = await asked.embed(two, ALL)
    assert found.embedder == alone.embedder
    for face, embedded in zip(found.faces, alone.faces, strict=True):
        np.testing.assert_array_equal(face.embedding.values, embedded.embedding.values)
        assert face.analyses[0].values == [41]
    pixels = np.full((112, 112, 3), PAINT, np.uint8)
    crop = AlignedFace(RawPixels(112, 112, pixels.tobytes()))
    (face,) = (await asked.analyse(crop, "age", embedder=ModelRef("vectors"))).faces
    assert face.embedding.norm > 0
    with pytest.raises(InvalidRequest) as caught:
        await asked.analyse(two, "age", embedder=ModelRef("finder"))
    assert caught.value.field == "embedder"


def said(face: Any) -> list[tuple[str, Any]]:
    """What analysers say of a face: the names of the models and their first numbers."""
    return [(a.model.name, pytest.approx(a.values.flat[0])) for a in face.analyses]


async def test_detect_and_embed_ask_analysers_in_the_same_call(asked: World) -> None:
    two = painted(640, 300, (40, 40, 80), (300, 60, 100))
    told = [("live", 0.25), ("age", 41)]
    for call, plain in (
        (await asked.detect(two, analysers=["live", "age"]), await asked.detect(two)),
        (await asked.embed(two, ALL, analysers=["live", "age"]), await asked.embed(two, ALL)),
    ):
        assert [said(face) for face in call.faces] == [told, told]
        assert (call.detector, call.embedder) == (plain.detector, plain.embedder)
        for with_them, without in zip(call.faces, plain.faces, strict=True):
            np.testing.assert_array_equal(with_them.box, without.box)
            assert without.analyses == ()
            if without.embedding is not None:
                np.testing.assert_array_equal(with_them.embedding.values, without.embedding.values)
            else:
                assert with_them.embedding is None
    assert len(asked.requests("live")) == 2, "all faces of a call go in one request"
    assert asked.sides() == [320, 640] * 4, (
        "with analysers a photo is looked at as often as without"
    )


async def test_analysers_change_nothing_of_what_is_no_face(asked: World) -> None:
    empty = painted(300, 200)
    for selection in (ALL, LARGEST):
        assert (await asked.detect(empty, selection, analysers=["age"])).faces == []
    with pytest.raises(Unmet) as caught:
        await asked.embed(empty, analysers=["age"])
    assert (caught.value.reason, caught.value.field) == (Reason.FACE_NOT_FOUND, "image.pixels")
    with pytest.raises(ModelNotFound) as missing:
        await asked.detect(PHOTO, analysers=["age", "nobody"])
    assert missing.value.field == "analysers[1]"


async def test_the_embedder_runs_beside_the_analysers(world: World) -> None:
    """Each on a device of its own: both have begun before either has ended."""
    gate = threading.Event()
    model = say("score", 0.5)
    model.gate = world.embedder.gate = gate
    world.add("beside", ANALYSER, model, options=AnalyserOptions("score"), device="gpu")
    call = asyncio.create_task(world.embed(PHOTO, analysers=["beside"]))
    try:
        await until(lambda: model.begun.is_set() and world.embedder.begun.is_set())
    finally:
        gate.set()
    assert len((await call).faces[0].analyses) == 1


async def test_verify_tells_of_both_sides_what_is_asked_and_no_more(asked: World) -> None:
    fine = require("live", at_least=0.2)
    compared = await asked.verify(PHOTO, PHOTO, analysers=["age"], require=fine)
    assert said(compared.face_a) == said(compared.face_b) == [("age", 41)]
    assert (await asked.verify(PHOTO, PHOTO, require=fine)).face_a.analyses == []
    beside = await asked.verify(PHOTO, given(PAINT_VECTOR), analysers=["age"])
    assert (said(beside.face_a), beside.face_b.analyses) == ([("age", 41)], ())
    with pytest.raises(InvalidRequest, match="nothing is known of embeddings") as caught:
        await asked.verify(given(PAINT_VECTOR), given(PAINT_VECTOR), analysers=["age"])
    assert caught.value.field == "analysers"
