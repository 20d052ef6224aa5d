"""CallerLimits of callers and connections over the wire."""

import asyncio
import threading
import time
from typing import Any, cast

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from tritonclient.grpc import service_pb2

import mien
from mien_server.access.gate import Gate
from mien_server.access.keyring import Keyring
from mien_server.access.keys import new_entry
from mien_server.access.limits import CallerLimits
from mien_server.access.roles import CallerRole
from mien_server.models.roles import EMBEDDER
from mien_server.rpc.ports import Connections
from tests.integration.access_rig import (
    CHECK,
    EMBED,
    INFER,
    STREAM,
    UNLOAD,
    bearer,
    ended,
    fresh_log_limits,  # noqa: F401 - a fixture
    one_answer,
)
from tests.unit.triton.triton_world import CROP, Running, Scripted, mean_colour, serving

MADE = [
    new_entry(name, (CallerRole.INFER, CallerRole.ADMIN), certificate=False) for name in ("a", "b")
]
A, B = (bearer(key) for _, key in MADE)
FULL = ("RESOURCE_EXHAUSTED", "CALLER_LIMIT")


def gate(**limits: Any) -> Gate:
    given = {"rate": None, "burst": 1, "at_once": None} | limits
    return Gate(Keyring(entry for entry, _ in MADE), limits=CallerLimits(**given))


def held_request(running: Running, let_go: threading.Event) -> bytes:
    """A request that is not answered before it is let go."""
    running.world.add("slow", EMBEDDER, Scripted(mean_colour, let_go))
    request = service_pb2.ModelInferRequest(model_name="slow")
    request.inputs.add(name="face", datatype="UINT8", shape=[1, *CROP])
    request.raw_input_contents.append(b"\1" * 112 * 112 * 3)
    return cast(bytes, request.SerializeToString())


async def test_caller_over_its_rate_is_told_when_to_come_back_and_others_go_on() -> None:
    async with serving(gate=gate(rate=0.1, burst=2)) as running:
        channel = running.channel
        for _ in range(2):
            assert (await ended(channel, EMBED, A))[0] == "INVALID_ARGUMENT"
        assert await ended(channel, EMBED, A) == FULL
        assert await ended(channel, UNLOAD, A) == FULL
        assert (await ended(channel, EMBED, B))[0] == "INVALID_ARGUMENT"
        assert await ended(channel, CHECK) == ("OK", "")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await one_answer(channel, EMBED, A)
        status: Any = rpc_status.from_call(caught.value)  # type: ignore[arg-type]
        retry = error_details_pb2.RetryInfo()
        assert any(detail.Unpack(retry) for detail in status.details)
        assert 5 < retry.retry_delay.ToTimedelta().total_seconds() <= 10
        async with mien.AsyncClient(running.server.address, api_key=MADE[0][1]) as client:
            with pytest.raises(mien.Overloaded) as told:
                await client.embed(b"photo")
        assert told.value.reason == "CALLER_LIMIT"
        assert told.value.retry_after is not None
        assert 5 < told.value.retry_after <= 10


async def test_calls_at_once_are_counted_until_they_end_however_they_do() -> None:
    let_go = threading.Event()
    async with serving(gate=gate(at_once=2)) as running:
        request = held_request(running, let_go)
        infer: Any = running.channel.unary_unary(INFER)
        calls = [infer(request, metadata=A) for _ in range(2)]
        tasks = [asyncio.ensure_future(_result(call)) for call in calls]
        await running.until(lambda: running.intake.budget.count == 2)
        assert await ended(running.channel, EMBED, A) == FULL
        assert (await ended(running.channel, EMBED, B))[0] == "INVALID_ARGUMENT"
        calls[0].cancel()

        async def free() -> None:
            while await ended(running.channel, EMBED, A) == FULL:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.01)

        await asyncio.wait_for(free(), 10)
        let_go.set()
        await asyncio.wait_for(tasks[1], 10)
        for _ in range(5):  # what failed or was refused leaves nothing behind
            assert (await ended(running.channel, EMBED, A))[0] == "INVALID_ARGUMENT"
        stream: Any = running.channel.stream_stream(STREAM)(metadata=A)
        await stream.write(b"")
        await stream.read()
        other: Any = running.channel.stream_stream(STREAM)(metadata=A)
        await other.write(b"")
        await other.read()
        assert await ended(running.channel, STREAM, A) == FULL
        stream.cancel()
        await asyncio.wait_for(free(), 10)
        other.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _result(call: Any) -> Any:
    return await call


async def test_messages_of_a_stream_wait_for_their_turn() -> None:
    async with serving(gate=gate(rate=50, burst=1)) as running:
        stream: Any = running.channel.stream_stream(STREAM)(metadata=A)
        started = time.monotonic()
        for _ in range(8):
            await stream.write(b"")
            assert await stream.read()
        assert time.monotonic() - started > 0.12
        stream.cancel()


async def test_connections_end_by_age_and_no_call_is_lost(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    async with serving(connections=Connections(max_age=0.2, max_age_grace=5)) as running:
        end = time.monotonic() + 1
        while time.monotonic() < end:
            assert await ended(running.channel, UNLOAD) == ("OK", "")
            await asyncio.sleep(0.005)
    peers = {vars(record)["peer"] for record in caplog.records if "peer" in vars(record)}
    assert len(peers) > 1


async def test_call_in_progress_outlives_its_connections_age() -> None:
    let_go = threading.Event()
    async with serving(connections=Connections(max_age=0.1, max_age_grace=10)) as running:
        request = held_request(running, let_go)
        infer: Any = running.channel.unary_unary(INFER)
        task = asyncio.ensure_future(_result(infer(request)))
        await asyncio.sleep(0.5)
        let_go.set()
        assert await asyncio.wait_for(task, 10)


async def test_calls_beyond_those_of_a_connection_wait_at_the_client() -> None:
    let_go = threading.Event()

    async def patient(infer: Any, request: bytes) -> bytes:
        while True:
            try:
                return cast(bytes, await _result(infer(request)))
            except grpc.aio.AioRpcError as error:
                # One that comes as another has just ended may be refused as one too many, unseen.
                if "RST_STREAM" not in str(error.details()):
                    raise

    async with serving(connections=Connections(max_streams=2)) as running:
        request = held_request(running, let_go)
        assert await ended(running.channel, CHECK) == ("OK", "")  # now the client knows the limit
        infer: Any = running.channel.unary_unary(INFER)
        tasks = [asyncio.ensure_future(patient(infer, request)) for _ in range(5)]
        await running.until(lambda: running.intake.budget.count == 2)
        await asyncio.sleep(0.1)
        assert running.intake.budget.count == 2
        let_go.set()
        assert len(await asyncio.wait_for(asyncio.gather(*tasks), 10)) == 5
