"""A detector that places no landmarks: what it finds, who sees that, and who cannot."""

from typing import Any

import numpy as np
import pytest

from mien_server.errors import InvalidRequest, Reason, Unmet
from mien_server.models.crops import Crop
from mien_server.models.roles import DETECTOR, DetectorOptions
from mien_server.pipeline.requirements import Demand, Requirements
from mien_server.pipeline.types import AlignedFace, ModelRef, RawPixels
from tests.unit.pipeline.conftest import Encode
from tests.unit.pipeline.scripted import (
    PAINT_VECTOR,
    Scripted,
    World,
    boxes_alone,
    given,
    painted,
)
from tests.unit.pipeline.test_analyse_call import add, paint_share, say, striped_photo

BOXES = ModelRef("boxes")
PHOTO = painted(400, 300, (40, 30, 120), (250, 100, 90))


@pytest.fixture
def asked(world: World) -> World:
    """A world with such a detector, and two analysers by default: one of the box, one of the aligned face."""
    options = DetectorOptions((320, 640, 1024), score_threshold=0.05, landmarks=False)
    world.add("boxes", DETECTOR, Scripted(boxes_alone), options=options)
    around = Crop(64, "box", margin=2.0)
    add(world, "share", Scripted(paint_share), kind="score", crop=around, by_default=True)
    add(world, "age", say("number", 41), kind="number", by_default=True)
    return world


async def test_faces_are_those_of_any_detector_without_their_landmarks(asked: World) -> None:
    usual = await asked.detect(PHOTO)
    found = await asked.detect(PHOTO, detector=BOXES)
    assert len(found.faces) == 2
    for face, other in zip(found.faces, usual.faces, strict=True):
        assert face.landmarks is None
        assert face.score == other.score
        np.testing.assert_array_equal(face.box, other.box)


async def test_a_photo_of_nobody_is_no_error(asked: World) -> None:
    nobody = painted(400, 300)
    assert (await asked.detect(nobody, detector=BOXES)).faces == []
    assert (await asked.analyse(nobody, "share", detector=BOXES)).faces == []


async def test_small_faces_come_from_a_finer_canvas(asked: World) -> None:
    photo = painted(1000, 900, (40, 30, 500), (800, 700, 60))
    found = await asked.detect(photo, detector=BOXES)
    np.testing.assert_allclose(found.faces[1].box, [800, 700, 860, 760], atol=2)


async def test_analysers_of_the_box_see_them(asked: World) -> None:
    """By default those alone: the other wants the face aligned. What is known of its quality is told."""
    found = await asked.analyse(PHOTO, detector=BOXES)
    assert [[each.model.name for each in face.analyses] for face in found.faces] == [["share"]] * 2
    usual = await asked.analyse(PHOTO, "share")
    for face, other in zip(found.faces, usual.faces, strict=True):
        assert face.analyses[0].values == pytest.approx(other.analyses[0].values)
        assert face.landmarks is face.crop is None
        quality = face.quality
        assert (quality.yaw, quality.pitch, quality.roll, quality.cut_off) == (None,) * 4
        assert (quality.size, quality.score) == (other.quality.size, other.quality.score)
        assert quality.next_face == other.quality.next_face
        # Paint is all that its crop shows.
        assert quality.brightness == pytest.approx(other.quality.brightness, abs=0.02)
        assert quality.contrast < 0.01
    by_detect = await asked.detect(PHOTO, detector=BOXES, analysers=["share"])
    assert [face.analyses[0].values for face in by_detect.faces] == [
        face.analyses[0].values for face in found.faces
    ]


async def test_quality_may_be_all_that_is_asked_and_required(world: World) -> None:
    options = DetectorOptions((320,), score_threshold=0.05, landmarks=False)
    world.add("boxes", DETECTOR, Scripted(boxes_alone), options=options)
    found = await world.analyse(PHOTO, detector=BOXES)
    assert [face.analyses for face in found.faces] == [[], []]
    assert all(face.quality.sharpness is not None for face in found.faces)
    with pytest.raises(Unmet, match="it is blurred"):
        await world.analyse(PHOTO, detector=BOXES, require=Requirements(quality=True))


async def test_requirements_on_analysers_of_the_box_are_met(asked: World) -> None:
    require = Requirements(demands=(Demand(ModelRef("share"), at_least=0.1),))
    assert (await asked.analyse(PHOTO, "share", detector=BOXES, require=require)).faces


@pytest.mark.parametrize(
    ("call", "model"),
    [
        (lambda world: world.embed(PHOTO, detector=BOXES), "vectors"),
        (lambda world: world.embed(PHOTO, detector=BOXES, analysers=["share"]), "vectors"),
        (lambda world: world.verify(PHOTO, PHOTO, detector=BOXES), "vectors"),
        (lambda world: world.verify(given(PAINT_VECTOR), PHOTO, detector=BOXES), "vectors"),
        (lambda world: world.analyse(PHOTO, "share", "age", detector=BOXES), "age"),
        (
            lambda world: world.analyse(
                PHOTO, "share", detector=BOXES, embedder=ModelRef("vectors")
            ),
            "vectors",
        ),
        (
            lambda world: world.analyse(
                PHOTO,
                "share",
                detector=BOXES,
                require=Requirements(demands=(Demand(ModelRef("age"), at_least=18),)),
            ),
            "age",
        ),
        (lambda world: world.detect(PHOTO, detector=BOXES, analysers=["age"]), "age"),
    ],
)
async def test_where_faces_have_to_be_aligned_it_is_refused_before_anything_runs(
    asked: World, call: Any, model: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await call(asked)
    assert caught.value.reason is Reason.INVALID_OPTION
    assert caught.value.field == "detector"
    assert caught.value.message == (
        "detector 'boxes' places no landmarks, and without these no face can be aligned, as"
        f" {model} sees it: use finder."
    )
    assert not any(asked.requests(name) for name in ("boxes", "vectors", "share", "age"))


async def test_aligned_faces_and_embeddings_need_no_detector(asked: World) -> None:
    crop = AlignedFace(RawPixels(112, 112, bytes(range(96)) * 392))
    assert (await asked.embed(crop, detector=BOXES)).faces[0].embedding is not None
    assert (await asked.verify(crop, crop, detector=BOXES)).matched
    found = await asked.analyse(crop, detector=BOXES)
    assert [each.model.name for each in found.faces[0].analyses] == ["age"]


async def test_large_photo_is_decoded_in_full_for_a_fine_crop_of_the_box(
    asked: World, encode: Encode
) -> None:
    crop = Crop(1024, "box", margin=1.4)
    fine = add(asked, "fine", Scripted(paint_share), kind="score", crop=crop)
    await asked.analyse(striped_photo(encode), "fine", detector=BOXES)
    stripes = fine.batches[0][0].image[55:85, 300:700]
    assert stripes.std(axis=0).mean() > 50
