"""What the server says of itself, to whoever asks or watches; and what half a question costs."""

import asyncio
import time
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from mien_server.errors import Reason
from mien_server.rpc.intake import Intake
from mien_server.rpc.server import SERVICE
from tests.unit.rpc.test_connections import arriving, fails, never
from tests.unit.rpc.test_face_service import EMPTY, Running, details_of, returning, serving

CHECK = "/grpc.health.v1.Health/Check"
SERVING, NOT_SERVING, UNKNOWN = (
    health_pb2.HealthCheckResponse.ServingStatus.Value(name)
    for name in ("SERVING", "NOT_SERVING", "SERVICE_UNKNOWN")
)


def watch(running: Running, service: str = "") -> Any:
    stub: Any = health_pb2_grpc.HealthStub(running.channel)
    return stub.Watch(health_pb2.HealthCheckRequest(service=service))


async def told(call: Any) -> int:
    async with asyncio.timeout(10):
        return int((await call.read()).status)


async def test_who_watches_is_told_what_changes_even_after_another_has_left() -> None:
    async with serving(returning(EMPTY)) as running:
        leaving, staying = watch(running), watch(running)
        assert [await told(each) for each in (leaving, staying)] == [SERVING, SERVING]
        leaving.cancel()
        await asyncio.sleep(0.1)
        await running.server.set_ready(False)
        assert await told(staying) == NOT_SERVING
        await running.server.set_ready(True)
        assert await told(staying) == SERVING


async def test_watcher_of_a_server_that_stops_is_told_and_later_words_do_not_count() -> None:
    async with serving(returning(EMPTY)) as running:
        watching = watch(running, SERVICE)
        assert await told(watching) == SERVING
        stopping = asyncio.create_task(running.server.stop(lame_duck=0.5, grace=5))
        assert await told(watching) == NOT_SERVING
        await running.server.set_ready(True)
        assert await running.health() == "NOT_SERVING"
        await stopping


async def test_service_that_is_not_there_is_not_found_and_can_be_watched() -> None:
    async with serving(returning(EMPTY)) as running:
        assert await told(watch(running, "no.Such")) == UNKNOWN
        stub: Any = health_pb2_grpc.HealthStub(running.channel)
        error = await fails(stub.Check(health_pb2.HealthCheckRequest(service="no.Such")))
        assert error.code() is grpc.StatusCode.NOT_FOUND


async def test_question_that_is_no_message_is_an_invalid_request() -> None:
    async with serving(returning(EMPTY)) as running:
        untyped: Any = running.channel
        error = await fails(untyped.unary_unary(CHECK)(b"\xff"))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert details_of(error)["ErrorInfo"].reason == Reason.INVALID_REQUEST


@pytest.mark.parametrize("method", ["Check", "Watch"])
async def test_half_questions_are_few_at_a_time_and_end_soon(method: str) -> None:
    """They are of whom nobody knows, and each may hold as much as the largest message."""
    few = Intake(max_calls=9, max_bytes=1 << 20, max_checking=3)
    async with serving(returning(EMPTY), admitting=few, check_seconds=0.2) as running:
        untyped: Any = running.channel
        began = time.monotonic()
        halves = [
            asyncio.create_task(fails(_first(untyped.stream_stream(CHECK[:-5] + method)(never()))))
            for _ in range(9)
        ]
        async with asyncio.timeout(10):
            while few.checking < 3:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.01)
        # Whoever asks in earnest waits for a turn, and is answered.
        assert await running.health() == "SERVING"
        ended = await asyncio.gather(*halves)
        assert few.checking == 0
        assert {error.code() for error in ended} == {grpc.StatusCode.DEADLINE_EXCEEDED}
        assert {details_of(error)["ErrorInfo"].reason for error in ended} == {"DEADLINE_EXCEEDED"}
        assert time.monotonic() - began > 0.5
        # The memory that they took goes back.
        assert running.intake.last_event > began


async def test_open_streams_count_as_requests_on_their_way() -> None:
    intake = Intake(max_calls=9, max_bytes=1 << 20, max_arriving=2)
    async with serving(returning(EMPTY), admitting=intake) as running:
        reflect: Any = running.channel.stream_stream(
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
        )
        streams = [reflect(never()) for _ in range(2)]
        await arriving(running, 2)
        error = await fails(_first(reflect(never())))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert details_of(error).keys() == {"ErrorInfo", "RetryInfo"}
        assert await running.health() == "SERVING"
        for stream in streams:
            stream.cancel()
        await arriving(running, 0)


async def _first(call: Any) -> Any:
    return await call.read()
