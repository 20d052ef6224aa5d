"""FaceService behind a real grpc.aio server; a script stands in for the pipeline."""

import asyncio
import gc
import logging
import re
import socket
import time
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from ipaddress import IPv4Address, IPv6Address
from typing import Any, cast

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from grpc_status import rpc_status
from prometheus_client import CollectorRegistry

from mien.v1 import face_pb2, face_pb2_grpc
from mien_server.errors import InvalidRequest, ModelNotFound, ModelNotReady, Reason, Unmet
from mien_server.observability.call_metrics import CallMetrics
from mien_server.pipeline.faces import FacePipeline
from mien_server.pipeline.running import together
from mien_server.pipeline.types import Call, PhotoFaces, StageTime
from mien_server.rpc.calls import LONGEST_SECONDS
from mien_server.rpc.faces import FaceService
from mien_server.rpc.intake import Intake
from mien_server.rpc.ports import ListenError
from mien_server.rpc.server import SERVICE, RpcServer
from mien_server.scheduling.errors import Draining, Expired, QueueFull, RowFailed, Unavailable

Code = grpc.StatusCode
LOOPBACK = IPv4Address("127.0.0.1")
PHOTO = face_pb2.DetectRequest(image=face_pb2.Image(encoded=b"photo"))
EMPTY = PhotoFaces([], width=2, height=1)
Script = Callable[[Call], Awaitable[PhotoFaces]]


class ScriptedPipeline:
    """Answers every Detect with what its script returns or raises."""

    def __init__(self, script: Script) -> None:
        self.script = script

    async def detect(self, image: object, *, call: Call, **options: object) -> PhotoFaces:
        return await self.script(call)


class Running:
    """A server on a free port of loopback, and a channel to it."""

    def __init__(self, server: RpcServer, intake: Intake, channel: grpc.aio.Channel) -> None:
        self.server = server
        self.intake = intake
        self.channel = channel
        self.faces: face_pb2_grpc.FaceServiceAsyncStub = face_pb2_grpc.FaceServiceStub(channel)

    async def raw(self, path: str, request: bytes) -> Any:
        method: Any = self.channel.unary_unary(path)
        return await method(request)

    async def health(self, service: str = "") -> str:
        stub: Any = health_pb2_grpc.HealthStub(self.channel)
        answer = await stub.Check(health_pb2.HealthCheckRequest(service=service))
        return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)


def a_server(
    address: IPv4Address | IPv6Address,
    port: int = 0,
    intake: Intake | None = None,
    registry: CollectorRegistry | None = None,
    **more: Any,
) -> RpcServer:
    return RpcServer(
        address=address,
        port=port,
        max_message_bytes=1 << 20,
        intake=intake or Intake(max_calls=1, max_bytes=1),
        metrics=CallMetrics(registry or CollectorRegistry()),
        **more,
    )


@asynccontextmanager
async def serving(
    script: Script,
    *,
    deadline: float = 60,
    calls: int = 100,
    nbytes: int = 1 << 24,
    loaded: bool = True,
    address: IPv4Address | IPv6Address = LOOPBACK,
    registry: CollectorRegistry | None = None,
    admitting: Intake | None = None,
    **more: Any,
) -> AsyncIterator[Running]:
    intake = admitting or Intake(max_calls=calls, max_bytes=nbytes)
    server = a_server(address, intake=intake, registry=registry, **more)
    pipeline = cast(FacePipeline, ScriptedPipeline(script))
    await server.start(FaceService(pipeline, default_deadline=deadline), reflect=True)
    if loaded:
        intake.open()
        await server.set_ready(True)
    async with grpc.aio.insecure_channel(server.address) as channel:
        yield Running(server, intake, channel)
        await server.close()


def returning(answer: PhotoFaces) -> Script:
    async def script(call: Call) -> PhotoFaces:
        return answer

    return script


def raising(error: Exception) -> Script:
    async def script(call: Call) -> PhotoFaces:
        raise error

    return script


class Held:
    """A script that waits until it is let go, and knows how it went."""

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.let_go = asyncio.Event()
        self.cancelled = asyncio.Event()

    async def __call__(self, call: Call) -> PhotoFaces:
        self.entered.set()
        try:
            await self.let_go.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return EMPTY


def details_of(error: grpc.aio.AioRpcError) -> dict[str, Any]:
    """The details of a status by the name of their type; the status must repeat code and message."""
    status = rpc_status.from_call(cast(grpc.Call, error))
    assert status is not None
    assert (status.code, status.message) == (error.code().value[0], error.details())
    found: dict[str, Any] = {}
    for packed in status.details:
        for kind in ("ErrorInfo", "BadRequest", "RetryInfo"):
            message = getattr(error_details_pb2, kind)()
            if packed.Unpack(message):
                found[kind] = message
    return found


async def failure(running: Running, request: face_pb2.DetectRequest = PHOTO, **options: Any) -> Any:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await running.faces.Detect(request, **options)
    return caught.value


ERRORS = [
    (
        InvalidRequest(Reason.UNSUPPORTED_FORMAT, "no GIF", field="image.encoded"),
        (Code.INVALID_ARGUMENT, "UNSUPPORTED_FORMAT", {"BadRequest"}),
    ),
    (
        InvalidRequest(Reason.IMAGE_TOO_LARGE, "too large"),
        (Code.INVALID_ARGUMENT, "IMAGE_TOO_LARGE", set()),
    ),
    (
        Unmet(Reason.MULTIPLE_FACES, "two faces"),
        (Code.FAILED_PRECONDITION, "MULTIPLE_FACES", set()),
    ),
    (
        ModelNotFound("no such model", field="detector"),
        (Code.NOT_FOUND, "MODEL_NOT_FOUND", {"BadRequest"}),
    ),
    (ModelNotReady("no weights"), (Code.UNAVAILABLE, "MODEL_NOT_READY", set())),
    (Unavailable("unhealthy"), (Code.UNAVAILABLE, "MODEL_NOT_READY", set())),
    (Draining("stopping"), (Code.UNAVAILABLE, "DRAINING", set())),
    (
        QueueFull("full", retry_after=1.5),
        (Code.RESOURCE_EXHAUSTED, "QUEUE_FULL", {"RetryInfo"}),
    ),
    (Expired("too late"), (Code.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", set())),
    (RowFailed("it broke", incident="abc123"), (Code.INTERNAL, "BACKEND_ERROR", set())),
    (KeyError("secret"), (Code.INTERNAL, "INTERNAL", set())),
    # It is no deadline of the call: something below has a limit of its own.
    (TimeoutError("stray"), (Code.INTERNAL, "INTERNAL", set())),
]


@pytest.mark.parametrize(
    ("error", "expected"), ERRORS, ids=[type(error).__name__ for error, _ in ERRORS]
)
async def test_error_reaches_the_caller_as_its_row_of_the_table(
    error: Exception, expected: tuple[Code, str, set[str]]
) -> None:
    code, reason, kinds = expected
    async with serving(raising(error)) as running:
        raised = await failure(running)
        details = details_of(raised)
        assert raised.code() is code
        assert (details["ErrorInfo"].reason, details["ErrorInfo"].domain) == (reason, "mien")
        assert details.keys() == {"ErrorInfo"} | kinds
        if "BadRequest" in kinds:
            (violation,) = details["BadRequest"].field_violations
            assert violation.field == getattr(error, "field", None)
        if isinstance(error, QueueFull):
            assert details["RetryInfo"].retry_delay.ToTimedelta().total_seconds() == 1.5
        if isinstance(error, RowFailed):
            assert details["ErrorInfo"].metadata["incident"] == error.incident
        assert ("incident" in details["ErrorInfo"].metadata) == (code is Code.INTERNAL)


async def test_unexpected_error_is_logged_with_the_incident_that_the_caller_got(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serving(raising(ZeroDivisionError("secret"))) as running:
        raised = await failure(running)
    incident = details_of(raised)["ErrorInfo"].metadata["incident"]
    assert incident in raised.details()
    assert "secret" not in raised.details()
    (record,) = [r for r in caplog.records if getattr(r, "incident", None) == incident]
    assert record.exc_info is not None
    assert record.exc_info[0] is ZeroDivisionError


@pytest.mark.parametrize(
    ("error", "level", "line"),
    [
        (RowFailed("it broke", incident="abc"), "ERROR", "call failed in the backend"),
        (Unmet(Reason.FACE_NOT_FOUND, "no face"), "DEBUG", "call refused: no face"),
    ],
)
async def test_error_is_logged_as_loudly_as_it_concerns_the_operator(
    error: Exception, level: str, line: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "mien_server")
    async with serving(raising(error)) as running:
        await failure(running)
    told = [record for record in caplog.records if hasattr(record, "reason")]
    assert [(record.levelname, record.getMessage()) for record in told] == [(level, line)]
    assert not told[0].exc_info


class Watched:
    """Stands for a photo: a weak reference can tell whether it is still there."""


def decode(photo: Watched) -> None:
    raise ValueError(photo)


async def refused_alone(photo: Watched) -> PhotoFaces:
    try:
        decode(photo)
    except ValueError as error:
        raise Unmet(Reason.FACE_NOT_FOUND, "no face") from error
    return EMPTY


async def refused_beside_another(photo: Watched) -> PhotoFaces:
    (found,) = await together(refused_alone(photo))
    return found


@pytest.mark.parametrize("refused", [refused_alone, refused_beside_another])
async def test_nothing_of_a_refused_request_outlives_the_call(
    refused: Callable[[Watched], Awaitable[PhotoFaces]],
) -> None:
    photos: list[weakref.ref[Watched]] = []

    async def script(call: Call) -> PhotoFaces:
        photo = Watched()
        photos.append(weakref.ref(photo))
        return await refused(photo)

    async with serving(script) as running:
        gc.disable()  # what only garbage collection would free may stay for minutes
        try:
            for _ in range(3):
                await failure(running)
            assert [photo() for photo in photos] == [None] * 3
        finally:
            gc.enable()


async def test_request_that_is_no_message_is_an_invalid_argument() -> None:
    async with serving(returning(EMPTY)) as running:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await running.raw(f"/{SERVICE}/Detect", b"\xff\xff\xff")
        assert caught.value.code() is Code.INVALID_ARGUMENT
        assert details_of(caught.value)["ErrorInfo"].reason == "INVALID_REQUEST"


async def test_unknown_method_and_service_are_unimplemented() -> None:
    async with serving(returning(EMPTY)) as running:
        for path in (f"/{SERVICE}/Guess", "/no.Such/Method"):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await running.raw(path, b"")
            assert caught.value.code() is Code.UNIMPLEMENTED


async def test_message_above_the_limit_is_refused_and_the_next_call_answers() -> None:
    async with serving(returning(EMPTY)) as running:
        large = face_pb2.DetectRequest(image=face_pb2.Image(encoded=bytes(2 << 20)))
        assert (await failure(running, large)).code() is Code.RESOURCE_EXHAUSTED
        assert (await running.faces.Detect(PHOTO)).image_width == 2


async def test_deadline_of_the_caller_reaches_the_pipeline() -> None:
    seen: list[float] = []

    async def script(call: Call) -> PhotoFaces:
        assert call.deadline is not None
        seen.append(call.deadline - call.arrived)
        return EMPTY

    async with serving(script, deadline=7) as running:
        await running.faces.Detect(PHOTO, timeout=50)
        await running.faces.Detect(PHOTO)
        await running.faces.Detect(PHOTO, timeout=10_000_000)
    assert 40 < seen[0] < 51
    assert seen[1] == pytest.approx(7)
    assert seen[2] == pytest.approx(LONGEST_SECONDS)


async def test_call_without_a_deadline_ends_at_the_servers() -> None:
    held = Held()
    async with serving(held, deadline=0.05) as running:
        raised = await failure(running)
        assert raised.code() is Code.DEADLINE_EXCEEDED
        assert details_of(raised)["ErrorInfo"].reason == "DEADLINE_EXCEEDED"
        assert held.cancelled.is_set()


async def test_caller_that_goes_away_cancels_the_work() -> None:
    held = Held()
    async with serving(held) as running:
        call = running.faces.Detect(PHOTO)
        await held.entered.wait()
        call.cancel()
        await asyncio.wait_for(held.cancelled.wait(), 5)


async def test_call_above_the_limit_is_refused_with_a_retry_delay() -> None:
    held = Held()
    async with serving(held, calls=1) as running:
        first = running.faces.Detect(PHOTO)
        await held.entered.wait()
        raised = await failure(running)
        assert raised.code() is Code.RESOURCE_EXHAUSTED
        details = details_of(raised)
        assert details.keys() == {"ErrorInfo", "RetryInfo"}
        assert details["ErrorInfo"].reason == "QUEUE_FULL"
        assert details["RetryInfo"].retry_delay.ToTimedelta().total_seconds() == 1
        held.let_go.set()
        await first
        assert (await running.faces.Detect(PHOTO)).image_width == 2
        assert (running.intake.budget.count, running.intake.budget.nbytes) == (0, 0)


async def test_bytes_above_the_limit_are_refused() -> None:
    async with serving(returning(EMPTY), nbytes=100) as running:
        large = face_pb2.DetectRequest(image=face_pb2.Image(encoded=bytes(200)))
        assert (await failure(running, large)).code() is Code.RESOURCE_EXHAUSTED
        assert (await running.faces.Detect(PHOTO)).image_width == 2


async def test_timing_is_sent_to_those_who_ask() -> None:
    async def script(call: Call) -> PhotoFaces:
        call.stages += [StageTime("decode", 0.002), StageTime("detect.compute", 0.0095, 4)]
        return EMPTY

    async with serving(script) as running:
        asked = running.faces.Detect(PHOTO, metadata=(("mien-timing", "1"),))
        await asked
        value = dict(await asked.trailing_metadata())["server-timing"]
        pattern = r"decode;dur=2\.000, detect\.compute;dur=9\.500;batch=4, total;dur=\d+\.\d{3}"
        assert re.fullmatch(pattern, str(value))
        clock = dict(await asked.trailing_metadata())["mien-clock"]
        assert float(clock) == pytest.approx(time.time(), abs=10)
        silent = running.faces.Detect(PHOTO)
        await silent
        assert not {"server-timing", "mien-clock"} & dict(await silent.trailing_metadata()).keys()


@pytest.mark.parametrize("metadata", [(("mien-timing", "0"),), (("other", "1"),)])
async def test_timing_is_sent_to_nobody_else(metadata: tuple[tuple[str, str], ...]) -> None:
    async with serving(returning(EMPTY)) as running:
        call = running.faces.Detect(PHOTO, metadata=metadata)
        await call
        assert "server-timing" not in dict(await call.trailing_metadata())


async def test_a_call_is_counted_when_it_comes_and_when_it_is_given_up(
    caplog: pytest.LogCaptureFixture,
) -> None:
    held, registry = Held(), CollectorRegistry()
    method = {"grpc_service": SERVICE, "grpc_method": "Detect", "grpc_type": "unary"}

    def count(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(name, method | labels)

    async with serving(held, registry=registry) as running:
        call = running.faces.Detect(PHOTO)
        await held.entered.wait()
        assert count("grpc_server_started_total") == 1
        with caplog.at_level(logging.DEBUG, "mien_server.rpc.record"):
            call.cancel()
            await held.cancelled.wait()
            while count("grpc_server_handled_total", grpc_code="CANCELLED") != 1:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert "call cancelled by its caller" in caplog.messages


async def test_call_before_the_models_are_loaded_may_be_tried_again() -> None:
    async with serving(returning(EMPTY), loaded=False) as running:
        raised = await failure(running)
        assert raised.code() is Code.UNAVAILABLE
        assert details_of(raised)["ErrorInfo"].reason == "MODEL_NOT_READY"
        assert await running.health() == "NOT_SERVING"


async def test_health_follows_readiness() -> None:
    async with serving(returning(EMPTY)) as running:
        assert (await running.health(), await running.health(SERVICE)) == ("SERVING",) * 2
        await running.server.set_ready(False)
        assert (await running.health(), await running.health(SERVICE)) == ("NOT_SERVING",) * 2


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
async def test_reflection_lists_and_describes_the_services(version: str) -> None:
    async with serving(returning(EMPTY)) as running:
        reflect: Any = running.channel.stream_stream(
            f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
            reflection_pb2.ServerReflectionRequest.SerializeToString,
            reflection_pb2.ServerReflectionResponse.FromString,
        )
        listing = reflection_pb2.ServerReflectionRequest(list_services="")
        (answer,) = [answer async for answer in reflect(iter([listing]))]
        names = [service.name for service in answer.list_services_response.service]
        assert {SERVICE, "grpc.health.v1.Health"} <= set(names)
        # Whatever is listed can be described.
        questions = [
            reflection_pb2.ServerReflectionRequest(file_containing_symbol=name) for name in names
        ]
        answers = [answer async for answer in reflect(iter(questions))]
        assert len(answers) == len(names)
        assert all(answer.file_descriptor_response.file_descriptor_proto for answer in answers)


@pytest.mark.skipif(not socket.has_ipv6, reason="this machine has no IPv6")
async def test_ipv6_is_listened_on() -> None:
    async with serving(returning(EMPTY), address=IPv6Address("::1")) as running:
        assert running.server.address.startswith("[::1]:")
        assert (await running.faces.Detect(PHOTO)).image_width == 2
        port = int(running.server.address.rpartition(":")[2])
        with pytest.raises(ListenError, match=rf"\[::1\]:{port}: Address already in use"):
            a_server(IPv6Address("::1"), port)


async def test_draining_finishes_what_runs_and_refuses_what_comes() -> None:
    held = Held()
    async with serving(held) as running:
        accepted = running.faces.Detect(PHOTO)
        await held.entered.wait()
        stopping = asyncio.create_task(running.server.stop(lame_duck=0, grace=30))
        while await running.health() == "SERVING":  # until the drain has begun
            pass
        raised = await failure(running)
        assert raised.code() is Code.UNAVAILABLE
        assert details_of(raised)["ErrorInfo"].reason == "DRAINING"
        held.let_go.set()
        assert (await accepted).image_width == 2
        assert await stopping


async def test_draining_waits_for_the_last_of_several_calls() -> None:
    calls = [Held(), Held()]
    scripts = iter(calls)

    async def script(call: Call) -> PhotoFaces:
        return await next(scripts)(call)

    async with serving(script) as running:
        accepted = []
        for held in calls:
            accepted.append(asyncio.ensure_future(running.faces.Detect(PHOTO)))
            await held.entered.wait()
        draining = asyncio.create_task(running.intake.drain(30))
        calls[0].let_go.set()
        await accepted[0]
        await asyncio.sleep(0.05)
        assert not draining.done()
        calls[1].let_go.set()
        assert await draining
        assert (await accepted[1]).image_width == 2


async def test_nothing_to_finish_is_drained_at_once() -> None:
    async with serving(returning(EMPTY)) as running:
        await running.faces.Detect(PHOTO)
        assert await running.server.stop(lame_duck=0, grace=0.2)


async def test_drain_cancels_what_outlives_its_grace(caplog: pytest.LogCaptureFixture) -> None:
    held = Held()
    async with serving(held) as running:
        accepted = running.faces.Detect(PHOTO)
        await held.entered.wait()
        assert not await running.server.stop(lame_duck=0, grace=0.01)
        assert held.cancelled.is_set()
        with pytest.raises(grpc.aio.AioRpcError):
            await accepted
    (record,) = [record for record in caplog.records if record.getMessage() == "exit timeout"]
    assert vars(record)["cancelled_calls"] == 1


async def test_lame_duck_still_answers_while_health_says_not_serving() -> None:
    async with serving(returning(EMPTY)) as running:
        stopping = asyncio.create_task(running.server.stop(lame_duck=60, grace=0))
        while await running.health() == "SERVING":
            pass
        assert (await running.faces.Detect(PHOTO)).image_width == 2
        stopping.cancel()


@pytest.mark.parametrize("listener", ["127.0.0.1", "0.0.0.0"])  # noqa: S104
async def test_taken_port_is_an_error_that_names_the_flag(listener: str) -> None:
    taken = await asyncio.start_server(lambda *_: None, listener, 0)
    port = taken.sockets[0].getsockname()[1]
    async with taken:
        with pytest.raises(ListenError, match=f"{port}: Address already in use.*--grpc-port"):
            a_server(LOOPBACK, port)


async def test_flood_of_refusals_is_logged_a_few_times_only(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    async with serving(raising(QueueFull("full", retry_after=1))) as running:
        for _ in range(50):
            await failure(running)
    refused = [
        record for record in caplog.records if record.getMessage().startswith("call refused")
    ]
    assert 1 <= len(refused) <= 10
