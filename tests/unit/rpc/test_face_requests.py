"""What the face service asks of the pipeline, and answers, for requests that set everything or nothing."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import IPv4Address
from typing import Any, cast

import grpc
import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from mien.v1 import face_pb2, face_pb2_grpc
from mien_server.observability.call_metrics import CallMetrics
from mien_server.pipeline.faces import FacePipeline
from mien_server.pipeline.requirements import Demand, Requirements
from mien_server.pipeline.types import (
    Analysis,
    Call,
    Comparison,
    EncodedImage,
    Face,
    FacePolicy,
    FaceSelection,
    ModelIdentity,
    ModelRef,
    PhotoFaces,
    Quality,
)
from mien_server.rpc.faces import FaceService
from mien_server.rpc.intake import Intake
from mien_server.rpc.server import RpcServer

FINDER, VECTORS = ModelIdentity("finder", 1, "f" * 16), ModelIdentity("vectors", 2, "e" * 16)
FACE = Face(np.array([2, 4, 6, 8], np.float32), 0.5, np.zeros((5, 2), np.float32))
IMAGE = face_pb2.Image(encoded=b"photo")
SELECTION = face_pb2.FaceSelection(
    policy=face_pb2.FACE_POLICY_CENTER_LARGEST, min_score=0.5, min_face_size=20
)
SELECTED = FaceSelection(FacePolicy.CENTER_LARGEST, min_score=0.5, min_face_size=20)
REFS: dict[str, Any] = {
    "detector": face_pb2.ModelRef(name="finder", version=3),
    "embedder": face_pb2.ModelRef(name="vectors", version=4),
}
ASKED = {"detector": ModelRef("finder", 3), "embedder": ModelRef("vectors", 4)}


def said(kind: Any, *values: Any, **words: Any) -> Analysis:
    return Analysis(ModelIdentity(kind, 1, "a" * 16), kind, np.array(values, np.float32), **words)


ANALYSES = (
    said("classification", 0.25, 0.625, 0.125, labels=("sad", "happy", "angry")),
    said("score", 0.75),
    said("number", 41.5, unit="years"),
    said("points", (1, 2), (-3, 4)),
)


ANALYSERS = [face_pb2.ModelRef(name="mood"), face_pb2.ModelRef(name="age", version=2)]
ASKED_ANALYSERS = [ModelRef("mood"), ModelRef("age", 2)]
KINDS = ["classification", "score", "number", "points"]
TOLD = replace(FACE, analyses=ANALYSES)


class NotingPipeline:
    """Remembers what it was asked, and always finds the same."""

    def __init__(self) -> None:
        self.images: tuple[object, ...] = ()
        self.asked: dict[str, object] = {}

    def _note(self, images: tuple[object, ...], call: Call, options: dict[str, object]) -> None:
        assert call.deadline is not None
        self.images, self.asked = images, options

    async def detect(self, image: object, *, call: Call, **options: object) -> PhotoFaces:
        self._note((image,), call, options)
        return PhotoFaces([TOLD if options["analysers"] else FACE], 200, 100, FINDER)

    async def embed(self, image: object, *, call: Call, **options: object) -> PhotoFaces:
        self._note((image,), call, options)
        return PhotoFaces([TOLD if options["analysers"] else FACE], 200, 100, FINDER, VECTORS)

    async def analyse(self, image: object, *, call: Call, **options: object) -> PhotoFaces:
        self._note((image,), call, options)
        face = replace(FACE, quality=Quality(0.2, 0.5, 0.1, yaw=-3.0), analyses=ANALYSES)
        return PhotoFaces([face], 200, 100, FINDER)

    async def verify(self, a: object, b: object, *, call: Call, **options: object) -> Comparison:
        self._note((a, b), call, options)
        face = TOLD if options["analysers"] else FACE
        return Comparison(0.25, 0.5, True, False, face, FACE, FINDER, VECTORS, (200, 100), (50, 80))


@asynccontextmanager
async def noting() -> AsyncIterator[tuple[NotingPipeline, Any, grpc.aio.Channel]]:
    """A pipeline that takes notes, a stub of the service in front of it, and the stub's channel."""
    pipeline, intake = NotingPipeline(), Intake(max_calls=9, max_bytes=1 << 20)
    server = RpcServer(
        address=IPv4Address("127.0.0.1"),
        port=0,
        max_message_bytes=1 << 20,
        intake=intake,
        metrics=CallMetrics(CollectorRegistry()),
    )
    service = FaceService(cast(FacePipeline, pipeline), default_deadline=30)
    await server.start(service, reflect=False)
    intake.open()
    async with grpc.aio.insecure_channel(server.address) as channel:
        yield pipeline, face_pb2_grpc.FaceServiceStub(channel), channel
    await server.close()


async def test_reflection_is_served_only_if_it_is_wanted() -> None:
    async with noting() as (_, _, channel):
        for version in ("v1", "v1alpha"):
            path = f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.stream_stream(path)(cast(Any, iter([b""]))).read()
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_detect_passes_on_what_is_asked_and_answers_what_is_found() -> None:
    async with noting() as (pipeline, stub, _):
        answer = await stub.Detect(
            face_pb2.DetectRequest(
                image=IMAGE, detector=REFS["detector"], selection=SELECTION, analysers=ANALYSERS
            )
        )
        assert pipeline.images == (EncodedImage(b"photo"),)
        assert pipeline.asked == {
            "detector": ASKED["detector"],
            "selection": SELECTED,
            "analysers": ASKED_ANALYSERS,
        }
        assert [each.WhichOneof("answer") for each in answer.faces[0].analyses] == KINDS
        assert (answer.image_width, answer.image_height) == (200, 100)
        assert answer.detector.name == "finder"
        assert np.allclose(
            [answer.faces[0].box_normalized.x2, answer.faces[0].box_normalized.y2], [0.03, 0.08]
        )
        plain = await stub.Detect(face_pb2.DetectRequest(image=IMAGE))
        assert len(plain.faces[0].analyses) == 0
        assert pipeline.asked == {
            "detector": ModelRef(),
            "selection": FaceSelection(FacePolicy.ALL),
            "analysers": [],
        }


async def test_embed_passes_on_what_is_asked_and_answers_what_is_found() -> None:
    async with noting() as (pipeline, stub, _):
        answer = await stub.Embed(
            face_pb2.EmbedRequest(image=IMAGE, selection=SELECTION, analysers=ANALYSERS, **REFS),
        )
        assert pipeline.images == (EncodedImage(b"photo"),)
        assert pipeline.asked == {**ASKED, "selection": SELECTED, "analysers": ASKED_ANALYSERS}
        assert [each.WhichOneof("answer") for each in answer.faces[0].analyses] == KINDS
        assert (answer.image_width, answer.image_height) == (200, 100)
        assert (answer.detector.name, answer.embedder.name) == ("finder", "vectors")
        await stub.Embed(face_pb2.EmbedRequest(image=IMAGE))
        assert pipeline.asked["selection"] == FaceSelection(FacePolicy.LARGEST)


async def test_verify_passes_on_what_is_asked_and_answers_what_is_found() -> None:
    a, b = (
        face_pb2.Subject(image=face_pb2.Image(encoded=b"a")),
        face_pb2.Subject(image=face_pb2.Image(encoded=b"b")),
    )
    async with noting() as (pipeline, stub, _):
        answer = await stub.Verify(
            face_pb2.VerifyRequest(
                a=a, b=b, selection=SELECTION, threshold=0.5, analysers=ANALYSERS, **REFS
            )
        )
        assert pipeline.images == (EncodedImage(b"a"), EncodedImage(b"b"))
        assert pipeline.asked == {
            **ASKED,
            "selection": SELECTED,
            "threshold": 0.5,
            "analysers": ASKED_ANALYSERS,
            "require": Requirements(),
        }
        assert [each.WhichOneof("answer") for each in answer.face_a.analyses] == KINDS
        assert len(answer.face_b.analyses) == 0
        assert (answer.similarity, answer.threshold, answer.matched) == (0.25, 0.5, False)
        assert (answer.detector.name, answer.embedder.name) == ("finder", "vectors")
        widths = [f.box_normalized.x2 for f in (answer.face_a, answer.face_b)]
        assert np.allclose(widths, [6 / 200, 6 / 50])
        await stub.Verify(face_pb2.VerifyRequest(a=a, b=b))
        assert pipeline.asked["selection"] == FaceSelection(FacePolicy.LARGEST)
        assert pipeline.asked["threshold"] is None


async def test_analyze_passes_on_what_is_asked_and_answers_what_is_found() -> None:
    async with noting() as (pipeline, stub, _):
        answer = await stub.Analyze(
            face_pb2.AnalyzeRequest(
                image=IMAGE, detector=REFS["detector"], selection=SELECTION, analysers=ANALYSERS
            )
        )
        assert pipeline.images == (EncodedImage(b"photo"),)
        assert pipeline.asked == {
            "detector": ASKED["detector"],
            "selection": SELECTED,
            "analysers": ASKED_ANALYSERS,
            "require": Requirements(),
            "embedder": None,
        }
        assert (answer.image_width, answer.detector.name) == (200, "finder")
        assert not answer.HasField("embedder")
        (found,) = answer.faces
        assert found.face.box_normalized.x2 == pytest.approx(0.03)
        assert found.quality.sharpness == pytest.approx(0.2)
        assert (found.quality.yaw, found.quality.HasField("size")) == (-3, False)
        assert found.quality.overall == 1
        assert [analysis.model.name for analysis in found.analyses] == KINDS
        assert len(found.face.analyses) == 0
        mood, live, age, places = found.analyses
        ranked = [(each.label, each.probability) for each in mood.classification.labels]
        assert ranked == [("happy", 0.625), ("sad", 0.25), ("angry", 0.125)]
        assert live.score == 0.75
        assert (age.number.value, age.number.unit) == (41.5, "years")
        assert [(point.x, point.y) for point in places.points.points] == [(1, 2), (-3, 4)]
        await stub.Analyze(face_pb2.AnalyzeRequest(image=IMAGE))
        assert pipeline.asked["selection"] == FaceSelection(FacePolicy.ALL)
        assert pipeline.asked["analysers"] == []
        await stub.Analyze(face_pb2.AnalyzeRequest(image=IMAGE, embedder=REFS["embedder"]))
        assert pipeline.asked["embedder"] == ASKED["embedder"]
        await stub.Analyze(face_pb2.AnalyzeRequest(image=IMAGE, embedder=face_pb2.ModelRef()))
        assert pipeline.asked["embedder"] == ModelRef()
        with pytest.raises(grpc.aio.AioRpcError, match=r"analysers\[1\].version is -1"):
            await stub.Analyze(
                face_pb2.AnalyzeRequest(
                    image=IMAGE, analysers=[*ANALYSERS[:1], face_pb2.ModelRef(version=-1)]
                )
            )


async def test_requirements_are_passed_on_by_both_that_take_them() -> None:
    require = face_pb2.Requirements(quality=True)
    require.analysers.add(analyser=face_pb2.ModelRef(name="live"), at_least=0.5)
    require.analysers.add(
        analyser=face_pb2.ModelRef(name="mood", version=2), label="sad", at_most=0
    )
    expected = Requirements(
        quality=True,
        demands=(
            Demand(ModelRef("live"), at_least=0.5),
            Demand(ModelRef("mood", 2), "sad", at_most=0.0),
        ),
    )
    side = face_pb2.Subject(image=IMAGE)
    async with noting() as (pipeline, stub, _):
        await stub.Verify(face_pb2.VerifyRequest(a=side, b=side, require=require))
        assert pipeline.asked["require"] == expected
        await stub.Analyze(face_pb2.AnalyzeRequest(image=IMAGE, require=require))
        assert pipeline.asked["require"] == expected
