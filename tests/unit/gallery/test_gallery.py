"""Enrol and Identify over scripted models: what is wrong with one face, with the call, and with the model."""

import asyncio
import threading
import time
from typing import Any

import numpy as np
import pytest

from mien_server.errors import InvalidRequest, ModelNotFound, Reason, Unmet
from mien_server.gallery import grouping
from mien_server.gallery.crops import crop_of
from mien_server.gallery.enrolment import enrol
from mien_server.gallery.gallery import Gallery
from mien_server.gallery.types import Enrolment, EnrolOptions, NewFace, QualityPolicy
from mien_server.models.analyser import ANALYSER, Analysed, AnalyserOptions
from mien_server.models.crops import Crop
from mien_server.models.interface import CROP_SIDE
from mien_server.models.roles import EMBEDDER
from mien_server.pipeline.requirements import Demand, Requirements
from mien_server.pipeline.types import Call, ModelIdentity, ModelRef
from mien_server.scheduling.errors import SchedulingError
from tests.unit.pipeline.scripted import (
    LARGEST,
    PAINT,
    PAINT_VECTOR,
    Scripted,
    World,
    given,
    mean_colour,
    painted,
    unit,
)

ANN, BOB = unit(1, 0, 0, 0, 0, 0), unit(0, 1, 0, 0, 0, 0)
PHOTO = painted(400, 400, (100, 100, 150))


async def enrolled(
    gallery: Gallery,
    *faces: NewFace,
    policy: QualityPolicy = QualityPolicy.ACCEPT,
    call: Call | None = None,
    require: Requirements = Requirements(),  # noqa: B008 - frozen
) -> list[Enrolment]:
    options = EnrolOptions(ModelRef(), LARGEST, policy, require=require)
    _, results = await enrol(gallery, "staff", faces, options=options, call=call or Call())
    return results


async def identify(gallery: Gallery, subject: Any, threshold: float | None = None) -> list[str]:
    answer = await gallery.identify(
        ["staff"],
        subject,
        detector=ModelRef(),
        selection=LARGEST,
        top_k=5,
        threshold=threshold,
        labels={},
        call=Call(),
    )
    return [match.person for _, match in answer.faces[0].matches]


def face(subject: Any, person: str) -> NewFace:
    return NewFace(subject, person, {}, "")


async def test_photo_is_found_by_its_vector(gallery: Gallery) -> None:
    await gallery.create("staff", ModelRef(), None)
    photo, _ = await enrolled(gallery, face(PHOTO, "paint"), face(given(ANN), "ann"))
    assert photo.size == (400, 400)
    assert photo.quality is not None
    assert await identify(gallery, given(PAINT_VECTOR)) == ["paint"]
    assert await identify(gallery, PHOTO) == ["paint"]


async def test_collection_of_a_model_that_no_longer_serves_takes_no_photos(
    gallery: Gallery,
) -> None:
    await gallery.store.create("staff", ModelIdentity("vectors", 1, "older-print"), 6, 0.9)
    for refused in (enrolled(gallery, face(PHOTO, "ann")), identify(gallery, PHOTO)):
        with pytest.raises(Unmet, match=r"older-print.*vectors-print.*version_policy") as caught:
            await refused
        assert caught.value.reason is Reason.EMBEDDING_MISMATCH
    (result,) = await enrolled(gallery, face(given(ANN), "ann"))
    assert (result.reason, result.key) == (Reason.EMBEDDING_MISMATCH, 0)
    assert gallery.store.find("staff").index.snapshot.faces == 0


async def test_embeddings_are_searched_while_their_model_does_not_serve(gallery: Gallery) -> None:
    await gallery.store.create("staff", ModelIdentity("gone", 1, "vectors-print"), 6, 0.9)
    for policy in (QualityPolicy.REFUSE, QualityPolicy.ACCEPT):
        await enrolled(gallery, face(given(ANN), "ann"), policy=policy)
    assert await identify(gallery, given(ANN)) == ["ann"]
    with pytest.raises(ModelNotFound):
        await identify(gallery, PHOTO)


async def test_without_any_threshold_the_call_must_bring_one(
    world: World, gallery: Gallery
) -> None:
    world.add("plain", EMBEDDER, Scripted(mean_colour), match_threshold=None)
    await gallery.create("staff", ModelRef("plain"), None)
    plain = given(ANN, "plain")
    await enrolled(gallery, face(plain, "ann"), policy=QualityPolicy.REFUSE)
    with pytest.raises(InvalidRequest, match="give one") as caught:
        await identify(gallery, plain)
    assert caught.value.field == "threshold"
    assert await identify(gallery, plain, 0.5) == ["ann"]


async def test_face_that_the_model_fails_on_keeps_no_other_one_out(
    world: World, gallery: Gallery
) -> None:
    def fail(row: Any) -> Any:
        raise ArithmeticError("cannot compute")

    await gallery.create("staff", ModelRef(), None)
    world.embedder.answer = fail
    failed, fine = await enrolled(gallery, face(PHOTO, "paint"), face(given(ANN), "ann"))
    assert (failed.reason, failed.key) == (Reason.BACKEND_ERROR, 0)
    assert fine.key
    assert await identify(gallery, given(ANN)) == ["ann"]


async def test_call_that_cannot_be_computed_in_time_enrols_nothing(gallery: Gallery) -> None:
    await gallery.create("staff", ModelRef(), None)
    late = Call(deadline=time.monotonic() - 1)
    with pytest.raises(SchedulingError):
        await enrolled(gallery, face(given(ANN), "ann"), face(PHOTO, "paint"), call=late)
    assert gallery.store.find("staff").index.snapshot.faces == 0


async def test_same_face_under_two_names_is_refused_the_second_time(gallery: Gallery) -> None:
    await gallery.create("staff", ModelRef(), None)
    nearly = unit(1, 0.05, 0, 0, 0, 0)
    first, other, second, own = await enrolled(
        gallery,
        face(given(ANN), "ann"),
        face(given(BOB), "bob"),
        face(given(nearly), "someone"),
        face(given(nearly), "ann"),
        policy=QualityPolicy.REFUSE,
    )
    assert [bool(each.key) for each in (first, other, second, own)] == [True, True, False, True]
    assert [issue.person for issue in second.issues] == ["ann"]
    assert second.field == "faces[2]"
    (again,) = await enrolled(gallery, face(given(nearly), "x"), policy=QualityPolicy.REFUSE)
    assert (again.key, again.reason) == (0, Reason.LOW_QUALITY)
    (warned,) = await enrolled(gallery, face(given(nearly), "x"), policy=QualityPolicy.WARN)
    assert [issue.person for issue in warned.issues] == ["ann"]
    assert warned.key


async def test_fault_of_the_whole_call_is_no_fault_of_a_face(gallery: Gallery) -> None:
    await gallery.create("staff", ModelRef(), None)
    with pytest.raises(ModelNotFound) as caught:
        await enrol(
            gallery,
            "staff",
            [face(PHOTO, "ann"), face(given(BOB), "bob")],
            options=EnrolOptions(ModelRef("none"), LARGEST, QualityPolicy.ACCEPT),
            call=Call(),
        )
    assert caught.value.field == "detector"
    assert gallery.store.find("staff").index.snapshot.faces == 0


@pytest.fixture
def width(world: World) -> Requirements:
    """A demand of an analyser that says how much of a face's surroundings is paint, a quarter in `PHOTO`."""

    def share(row: Any) -> Analysed:
        paint = np.abs(row.image.astype(int) - PAINT).sum(axis=2) < 100
        return Analysed("score", np.array([paint.mean()], np.float32))

    options = AnalyserOptions("score", Crop(64, "box", margin=2.0))
    world.add("share", ANALYSER, Scripted(share), options=options)
    return Requirements(demands=(Demand(ModelRef("share"), at_most=0.3),))


async def test_what_is_required_is_fulfilled_or_nothing_is_enrolled(
    gallery: Gallery, width: Requirements
) -> None:
    await gallery.create("staff", ModelRef(), None)
    fine, _ = await enrolled(
        gallery, face(PHOTO, "ann"), face(painted(400, 400), "nobody"), require=width
    )
    assert fine.key
    assert fine.quality is not None
    assert await identify(gallery, PHOTO) == ["ann"]
    crowded = painted(900, 400, (100, 100, 150), (260, 100, 145), (100, 260, 139))
    with pytest.raises(Unmet, match=r"share says 0\.4\d+, 0\.3 or less passes") as caught:
        await enrolled(gallery, face(PHOTO, "bob"), face(crowded, "bob"), require=width)
    assert (caught.value.reason, caught.value.field) == (
        Reason.REQUIREMENT_UNMET,
        "faces[1].subject.image",
    )
    assert gallery.store.find("staff").index.snapshot.faces == 1


async def test_quality_may_be_required_whatever_the_policy_says(gallery: Gallery) -> None:
    await gallery.create("staff", ModelRef(), None)
    flat = face(PHOTO, "ann")  # paint alone has no contrast
    warned, beside = await enrolled(
        gallery, flat, face(given(BOB), "bob"), policy=QualityPolicy.WARN
    )
    assert warned.key
    assert beside.key
    with pytest.raises(Unmet, match=r"The face does not fulfil .* it is blurred") as caught:
        await enrolled(gallery, flat, policy=QualityPolicy.WARN, require=Requirements(quality=True))
    assert caught.value.reason is Reason.REQUIREMENT_UNMET
    assert gallery.store.find("staff").index.snapshot.faces == 2


async def test_of_an_embedding_nothing_can_be_required(
    gallery: Gallery, width: Requirements
) -> None:
    await gallery.create("staff", ModelRef(), None)
    with pytest.raises(InvalidRequest, match="send the photo") as caught:
        await enrolled(gallery, face(PHOTO, "ann"), face(given(ANN), "ann"), require=width)
    assert (caught.value.reason, caught.value.field) == (
        Reason.INVALID_OPTION,
        "faces[1].subject.embedding",
    )
    missing = Requirements(demands=(Demand(ModelRef("nobody"), at_least=0),))
    with pytest.raises(ModelNotFound) as unknown:
        await enrolled(gallery, face(PHOTO, "ann"), require=missing)
    assert unknown.value.field == "require.analysers[0].analyser"
    unbound = Requirements(demands=(Demand(ModelRef("share")),))
    with pytest.raises(InvalidRequest, match="give at_least or at_most"):
        await enrolled(gallery, face(PHOTO, "ann"), require=unbound)
    assert gallery.store.find("staff").index.snapshot.faces == 0


async def test_what_analysers_say_comes_with_the_answer(
    gallery: Gallery, width: Requirements
) -> None:
    await gallery.create("staff", ModelRef(), None)
    ann, bob = face(PHOTO, "ann"), face(given(BOB), "bob")

    async def asked(analyser: str) -> list[Enrolment]:
        options = EnrolOptions(
            ModelRef(), LARGEST, QualityPolicy.ACCEPT, analysers=[ModelRef(analyser)]
        )
        return (await enrol(gallery, "staff", [ann, bob], options=options, call=Call()))[1]

    photo, embedding = await asked("share")
    assert photo.face is not None
    assert [analysis.values[0] for analysis in photo.face.analyses] == [
        pytest.approx(0.25, abs=0.05)
    ]
    assert (bool(photo.key), bool(embedding.key), embedding.face) == (True, True, None)
    with pytest.raises(ModelNotFound) as caught:
        await asked("nobody")
    assert caught.value.field == "analysers[0]"


async def test_crops_are_kept_of_faces_of_which_something_was_required(
    gallery: Gallery, width: Requirements
) -> None:
    await gallery.create("staff", ModelRef(), None, keep_crops=True)
    plain, required = [
        (await enrolled(gallery, face(PHOTO, "ann"), require=require))[0].key
        for require in (Requirements(), width)
    ]
    first, second = [await crop_of(gallery, "staff", key) for key in (plain, required)]
    assert len(first) == CROP_SIDE * CROP_SIDE * 3
    assert first == second


async def test_groups_are_of_those_without_a_person_and_by_the_collections_threshold(
    gallery: Gallery,
) -> None:
    await gallery.create("staff", ModelRef(), 0.6)
    nearly = unit(1, 0.05, 0, 0, 0, 0)
    like_nobody = unit(0, 0, 0, 0, 0, 1)
    faces = [face(given(v), "") for v in (ANN, BOB, nearly, like_nobody)]
    results = await enrolled(gallery, face(given(ANN), "ann"), *faces, policy=QualityPolicy.REFUSE)
    assert all(each.key and not each.issues for each in results)  # the unknown are nobody's twins
    found = await gallery.group("staff", threshold=None, least=2, call=Call())
    assert [each.faces for each in found.groups] == [[results[1].key, results[3].key]]
    assert (found.looked_at, found.left_out) == (4, 0)
    assert (found.threshold, found.threshold_from) == (0.6, "collection")
    alone = await gallery.group("staff", threshold=1.0, least=1, call=Call())
    assert [len(each.faces) for each in alone.groups] == [1, 1, 1, 1]
    assert alone.threshold_from == "request"


async def test_who_waits_to_group_holds_no_vectors(
    gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    await gallery.create("staff", ModelRef(), None)
    await enrolled(gallery, face(given(ANN), ""), face(given(PAINT_VECTOR), ""))
    read, go, begun = gallery.store.unnamed, threading.Event(), threading.Event()
    reads = []

    async def unnamed(*arguments: Any) -> Any:
        reads.append(arguments)
        return await read(*arguments)

    def slowly(*arguments: Any, **options: Any) -> Any:
        begun.set()
        assert go.wait(30)
        return grouped(*arguments, **options)

    grouped = grouping.group
    monkeypatch.setattr(gallery.store, "unnamed", unnamed)
    monkeypatch.setattr(grouping, "group", slowly)

    def ask() -> "asyncio.Task[Any]":
        return asyncio.create_task(gallery.group("staff", threshold=None, least=1, call=Call()))

    calls = [ask() for _ in range(3)]
    await asyncio.to_thread(begun.wait, 30)
    await asyncio.sleep(0.05)
    assert len(reads) == 1
    calls[0].cancel()  # who leaves makes room for the next
    go.set()
    ended: list[Any] = await asyncio.gather(*calls, return_exceptions=True)
    first, *others = ended
    assert isinstance(first, asyncio.CancelledError)
    assert [len(each.groups) for each in others] == [2, 2]


async def test_grouping_ends_with_the_time_of_its_call(gallery: Gallery) -> None:
    await gallery.create("staff", ModelRef(), 0.6)
    await enrolled(gallery, face(given(ANN), ""), face(given(BOB), ""))
    late = Call(deadline=time.monotonic() - 1)
    with pytest.raises(SchedulingError, match="group 2 faces"):
        await gallery.group("staff", threshold=None, least=2, call=late)
    assert len((await gallery.group("staff", threshold=-1.0, least=1, call=Call())).groups) == 1
