"""Analysers whose answers are the mean of several ones', over scripted models."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from mien_server.errors import InvalidRequest, ModelNotReady, Reason, Unmet
from mien_server.models.analyser import ANALYSER, Analysed, AnalyserOptions
from mien_server.models.crops import Crop
from mien_server.pipeline.requirements import Demand, Requirements
from mien_server.pipeline.types import AlignedFace, Call, ModelRef, RawPixels
from tests.unit.pipeline.scripted import PAINT, Scripted, World, painted

LABELS = ("sad", "happy")
PHOTO = painted(400, 300, (150, 100, 80))


def say(kind: Any, *values: float) -> Scripted:
    """An analyser that says the same of every face."""
    return Scripted(lambda _: Analysed(kind, np.array(values, np.float32)))


def add(
    world: World, name: str, model: Scripted, *with_: str, values: int = 1, **options: Any
) -> None:
    told = AnalyserOptions(average_with=with_, **options)
    world.add(name, ANALYSER, model, options=told, values=values)


@pytest.fixture
def asked(world: World) -> Iterator[World]:
    """A pair of scores that see other parts of a photo, and moods of which one asks two others."""
    add(world, "both", say("score", 0.9), "wide", kind="score", crop=Crop(32, "box"))
    add(world, "wide", say("score", 0.2), kind="score", crop=Crop(48, "box", margin=2.0))
    mood: dict[str, Any] = {"kind": "classification", "labels": LABELS, "values": 2}
    add(world, "mood", say("classification", 0.3, 0.7), "glad", "grim", **mood)
    add(world, "glad", say("classification", 0.0, 1.0), **mood)
    add(world, "grim", say("classification", 0.9, 0.1), "mood", **mood)
    yield world
    assert world.let_go(), "nobody holds any of them afterwards"


async def test_an_answer_is_the_mean_of_all_of_them(asked: World) -> None:
    two = painted(640, 300, (40, 40, 80), (300, 60, 100))
    found = await asked.analyse(two, "mood", "both", "wide")
    for face in found.faces:
        assert [each.model.name for each in face.analyses] == ["mood", "both", "wide"]
        mood, both, wide = (each.values for each in face.analyses)
        np.testing.assert_allclose(mood, [0.4, 0.6], rtol=1e-6)
        np.testing.assert_allclose(both, [0.55], rtol=1e-6)
        np.testing.assert_allclose(wide, [0.2], rtol=1e-6)
        assert all(each.values.dtype == np.float32 for each in face.analyses)
    assert len(asked.requests("glad")) == 1, "the faces of a photo go in one request"
    assert {row.image.shape[0] for work in asked.requests("wide") for row in work.rows} == {48}


async def test_the_others_are_asked_for_their_own_answers_alone(asked: World) -> None:
    (face,) = (await asked.analyse(PHOTO, "grim")).faces
    np.testing.assert_allclose(face.analyses[0].values, [0.6, 0.4], rtol=1e-6)
    assert asked.requests("glad") == []


async def test_other_calls_and_what_they_require_get_the_mean(asked: World) -> None:
    for call in (asked.detect, asked.embed):
        (face,) = (await call(PHOTO, analysers=["both"])).faces
        np.testing.assert_allclose(face.analyses[0].values, [0.55], rtol=1e-6)
    compared = await asked.verify(PHOTO, PHOTO, analysers=["both"])
    np.testing.assert_allclose(compared.face_b.analyses[0].values, [0.55], rtol=1e-6)
    fine = Requirements(demands=(Demand(ModelRef("both"), at_least=0.5),))
    await asked.verify(PHOTO, PHOTO, require=fine)
    strict = (
        Demand(ModelRef("mood"), "happy", at_most=0.5),
        Demand(ModelRef("both"), at_least=0.6),
    )
    with pytest.raises(Unmet) as caught:
        await asked.analyse(PHOTO, require=Requirements(demands=strict))
    assert "mood says happy 0.600, 0.5 or less passes" in caught.value.message
    assert "both says 0.550, 0.6 or more passes" in caught.value.message


async def test_points_are_averaged_in_the_photo(world: World) -> None:
    corners: dict[str, Any] = {"kind": "points", "values": 4}
    add(world, "near", say("points", -0.5, -0.5, 9.5, 9.5), "far", crop=Crop(10, "box"), **corners)
    wide = Crop(20, "box", margin=2.0)
    add(world, "far", say("points", -0.5, -0.5, 19.5, 19.5), crop=wide, **corners)
    (face,) = (await world.analyse(PHOTO, "near")).faces
    left, top, right, bottom = face.box
    quarter = max(right - left, bottom - top) / 4
    expected = [[left - quarter, top - quarter], [right + quarter, bottom + quarter]]
    np.testing.assert_allclose(face.analyses[0].values, expected, atol=1.5)


async def test_all_of_them_are_in_the_stages(asked: World) -> None:
    call = Call()
    await asked.analyse(PHOTO, "both", call=call)
    computed = [stage.model for stage in call.stages if stage.name == "analyse.compute"]
    assert sorted(model.name for model in computed if model) == ["both", "wide"]


@pytest.mark.parametrize(
    ("other", "values", "problem"),
    [
        (
            {"kind": "score"},
            1,
            r"which gives a score \[1\], and not a classification \[2\] \(sad, happy\)",
        ),
        ({"kind": "classification", "labels": ("happy", "sad")}, 2, r"\(happy, sad\), and not"),
        ({"kind": "classification", "labels": ("sad", "glad", "x")}, 3, r"\[3\] \(sad, glad, x\)"),
        (None, 0, "there is no model 'other'"),
    ],
)
async def test_those_that_tell_something_else_are_no_part_of_a_mean(
    world: World, other: dict[str, Any] | None, values: int, problem: str
) -> None:
    own: dict[str, Any] = {"kind": "classification", "labels": LABELS, "values": 2}
    add(world, "mood", say("classification", 0.3, 0.7), "other", **own)
    if other is not None:
        add(world, "other", say("score", 0.5), values=values, **other)
    with pytest.raises(ModelNotReady, match=problem) as caught:
        await world.analyse(PHOTO, "mood")
    assert (caught.value.reason, caught.value.field) == (Reason.MODEL_NOT_READY, "analysers[0]")
    assert caught.value.message.startswith(
        "model 'mood' averages its answers with those of 'other'"
    )
    assert caught.value.lasting
    assert world.let_go()


@pytest.mark.parametrize(
    ("own", "other"),
    [
        ({"kind": "number", "unit": "years"}, {"kind": "number", "unit": "degrees"}),
        ({"kind": "points", "values": 4}, {"kind": "points", "values": 6}),
    ],
)
async def test_units_and_numbers_of_points_must_be_the_same(
    world: World, own: dict[str, Any], other: dict[str, Any]
) -> None:
    add(world, "one", say(own["kind"], 1), "two", **own)
    add(world, "two", say(own["kind"], 1), **other)
    with pytest.raises(ModelNotReady, match="mend average_with in its config"):
        await world.analyse(PHOTO, "one")


async def test_a_model_of_another_role_is_no_part_of_a_mean(world: World) -> None:
    add(world, "live", say("score", 0.5), "vectors", kind="score")
    with pytest.raises(
        ModelNotReady, match="'vectors' is an embedding model, where an analyser is"
    ):
        await world.analyse(PHOTO, "live")


async def test_an_aligned_crop_is_for_those_of_which_none_sees_more(world: World) -> None:
    add(world, "face", say("score", 0.5), "wide", kind="score", by_default=True)
    add(world, "wide", say("score", 0.5), kind="score", crop=Crop(32, "box"))
    add(world, "plain", say("score", 0.5), kind="score", by_default=True)
    pixels = np.full((112, 112, 3), PAINT, np.uint8)
    crop = AlignedFace(RawPixels(112, 112, pixels.tobytes()))
    (face,) = (await world.analyse(crop)).faces
    assert [each.model.name for each in face.analyses] == ["plain"]
    with pytest.raises(InvalidRequest, match="face sees more of a photo than an aligned crop has"):
        await world.analyse(crop, "face")
