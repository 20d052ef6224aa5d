"""Connections and requests that do not come to their point are bounded in number and time."""

import asyncio
import struct
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack
from typing import Any

import grpc
import pytest

from mien.v1 import face_pb2
from mien_server.observability.connections import connections
from mien_server.rpc.intake import Intake
from mien_server.rpc.ports import Connections, connections_for
from tests.http2 import DATA, RST_STREAM, begin_call, connect, frame, greet, is_closed
from tests.unit.rpc.test_face_service import EMPTY, PHOTO, Running, details_of, returning, serving

DETECT = "/mien.v1.FaceService/Detect"


async def arriving(running: Running, count: int) -> None:
    """Waits until so many requests are on their way."""
    async with asyncio.timeout(10):
        while running.intake.arriving != count:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.002)


async def fails(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


async def never() -> AsyncIterator[bytes]:
    await asyncio.sleep(60)
    yield b""


async def test_request_that_does_not_arrive_in_time_ends_the_call() -> None:
    async with serving(returning(EMPTY), arrival_seconds=0.1) as running:
        detect: Any = running.channel.stream_unary(DETECT)
        error = await fails(detect(never()))
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert details_of(error)["ErrorInfo"].reason == "DEADLINE_EXCEEDED"
        assert "did not arrive within 0.1" in str(error.details())
        await arriving(running, 0)
        assert running.intake.budget.count == 0
        await running.faces.Detect(PHOTO)


async def test_half_sent_message_is_counted_and_dropped_when_its_time_is_up() -> None:
    async with serving(returning(EMPTY), arrival_seconds=0.3) as running:
        with await asyncio.to_thread(connect, running.server.address) as connection:
            greet(connection)
            begin_call(connection, DETECT)
            connection.sendall(
                frame(DATA, 0, 1, b"\0" + struct.pack(">I", 1 << 19) + bytes(10_000))
            )
            await arriving(running, 1)
            assert running.intake.budget.nbytes == 0
            await running.faces.Detect(PHOTO)
            await arriving(running, 0)


async def test_caller_that_leaves_in_the_midst_of_its_request_is_forgotten() -> None:
    async with serving(returning(EMPTY)) as running:
        with await asyncio.to_thread(connect, running.server.address) as connection:
            greet(connection)
            begin_call(connection, DETECT)
            await arriving(running, 1)
        await arriving(running, 0)


async def test_flood_of_calls_that_are_reset_at_once_leaves_nothing_behind() -> None:
    async with serving(returning(EMPTY)) as running:
        with await asyncio.to_thread(connect, running.server.address) as connection:
            greet(connection)
            for stream in range(1, 1001, 2):
                begin_call(connection, DETECT, stream)
                connection.sendall(frame(RST_STREAM, 0, stream, struct.pack(">I", 8)))
            await asyncio.sleep(0.1)
        async with asyncio.timeout(30):
            while True:  # for a moment gRPC may cancel calls of others, too
                try:
                    await running.faces.Detect(PHOTO)
                    break
                except grpc.aio.AioRpcError:
                    await asyncio.sleep(0.05)
        await arriving(running, 0)
        assert running.intake.budget.count == 0


async def test_call_without_a_message_is_an_invalid_request() -> None:
    async def nothing() -> AsyncIterator[bytes]:
        for each in list[bytes]():
            yield each

    async with serving(returning(EMPTY)) as running:
        detect: Any = running.channel.stream_unary(DETECT)
        error = await fails(detect(nothing()))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "no request message" in str(error.details())


async def test_more_requests_on_their_way_than_allowed_are_refused_until_one_has_come() -> None:
    intake = Intake(max_calls=9, max_bytes=1 << 20, max_arriving=2)
    async with serving(returning(EMPTY), admitting=intake) as running:
        detect: Any = running.channel.stream_unary(DETECT)
        go = asyncio.Event()

        async def slowly() -> AsyncIterator[bytes]:
            await go.wait()
            yield face_pb2.DetectRequest(image=PHOTO.image).SerializeToString()

        slow = [asyncio.create_task(_done(detect(slowly()))) for _ in range(2)]
        await arriving(running, 2)
        error = await fails(running.faces.Detect(PHOTO))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert details_of(error).keys() == {"ErrorInfo", "RetryInfo"}
        go.set()
        await asyncio.gather(*slow)
        await running.faces.Detect(PHOTO)


async def _done(call: Any) -> None:
    await call


async def test_connections_beyond_the_limit_are_closed_and_a_free_place_is_taken() -> None:
    async with serving(returning(EMPTY), connections=Connections(most=2)) as running:
        assert running.server.max_connections == 2
        assert connections(running.server.address) == 0
        await running.faces.Detect(PHOTO)  # the channel's connection is the first
        assert connections(running.server.address) == 1
        with ExitStack() as stack:
            second = stack.enter_context(await asyncio.to_thread(connect, running.server.address))
            greet(second)
            assert await asyncio.to_thread(second.recv, 9)
            assert connections(running.server.address) == 2
            third = stack.enter_context(
                await asyncio.to_thread(connect, running.server.address, 10)
            )
            greet(third)
            assert await asyncio.to_thread(is_closed, third)
            await running.faces.Detect(PHOTO)
        async with asyncio.timeout(10):
            while True:
                with await asyncio.to_thread(connect, running.server.address, 0.3) as fresh:
                    greet(fresh)
                    if not await asyncio.to_thread(is_closed, fresh):
                        break


async def test_connection_without_calls_is_closed_and_its_client_connects_again() -> None:
    async with serving(returning(EMPTY), connections=Connections(max_idle=0.2)) as running:
        await running.faces.Detect(PHOTO)
        with await asyncio.to_thread(connect, running.server.address) as silent:
            greet(silent)
            began = time.monotonic()
            assert await asyncio.to_thread(is_closed, silent)
            assert time.monotonic() - began < 8
        await running.faces.Detect(PHOTO)


async def test_client_that_does_not_answer_pings_is_closed_and_one_that_does_is_not() -> None:
    limits = Connections(keepalive=1, keepalive_timeout=0.5)
    async with serving(returning(EMPTY), connections=limits) as running:
        await running.faces.Detect(PHOTO)
        states = list[grpc.ChannelConnectivity]()
        watching = asyncio.create_task(_watch(running.channel, states))
        with await asyncio.to_thread(connect, running.server.address) as silent:
            greet(silent)
            began = time.monotonic()
            assert await asyncio.to_thread(is_closed, silent)
            assert time.monotonic() - began < 8
        await asyncio.sleep(1)
        watching.cancel()
        assert states == [grpc.ChannelConnectivity.READY]


async def _watch(channel: grpc.aio.Channel, states: list[grpc.ChannelConnectivity]) -> None:
    while True:
        states.append(channel.get_state())
        await channel.wait_for_state_change(states[-1])


async def test_connection_that_says_nothing_is_closed() -> None:
    async with serving(returning(EMPTY), connections=Connections(handshake=0.2)) as running:
        with await asyncio.to_thread(connect, running.server.address) as silent:
            assert await asyncio.to_thread(is_closed, silent)
        await running.faces.Detect(PHOTO)


@pytest.mark.parametrize(
    ("descriptors", "connections"),
    [(1024, 896), (20, 10), (1, 1), (1 << 30, 10_000), (256, 128)],
)
def test_connections_leave_descriptors_for_the_rest(descriptors: int, connections: int) -> None:
    assert connections_for(descriptors) == connections
