"""ModelStreamInfer: order, errors in the stream, admission of each request, and giving up."""

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Any, cast

import grpc
import numpy as np
import pytest
from grpc_status import rpc_status
from tritonclient.grpc import service_pb2

from mien_server.models.roles import EMBEDDER
from mien_server.triton.stream import METHOD
from tests.unit.triton.triton_world import CROP, Running, Scripted, crops, mean_colour


async def test_stream_answers_in_order_and_survives_errors(running: Running) -> None:
    async def requests() -> AsyncIterator[dict[str, Any]]:
        for i in range(1, 60):
            name = "nobody" if i == 30 else "vectors"
            yield {
                "model_name": name,
                "inputs": crops((i, i, i)),
                "request_id": str(i),
                "enable_empty_final_response": True,
            }

    answers = [answer async for answer in running.client.stream_infer(requests())]
    assert len(answers) == 59
    for i, (result, error) in enumerate(answers, 1):
        if i == 30:
            assert "no 'nobody'" in error.message()
            continue
        assert error is None
        response = result.get_response()
        assert response.id == str(i)
        assert response.parameters["triton_final_response"].bool_param
        np.testing.assert_array_equal(result.as_numpy("embedding"), [[i, i, i]])
    assert (running.intake.budget.count, running.intake.budget.nbytes) == (0, 0)


async def test_stream_error_carries_the_id_of_its_request(running: Running) -> None:
    bad = service_pb2.ModelInferRequest(model_name="nobody", id="lost")
    stream = running.stub.ModelStreamInfer(iter([bad]))
    answers = [answer async for answer in stream]
    assert [answer.infer_response.id for answer in answers] == ["lost"]
    assert "no 'nobody'" in answers[0].error_message


async def test_message_that_is_none_ends_the_stream_after_the_answers_before_it(
    running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    gate = threading.Event()
    held = Scripted(mean_colour, gate)
    running.world.add("slow", EMBEDDER, held)
    request = service_pb2.ModelInferRequest(model_name="slow", id="before")
    request.inputs.add(name="face", datatype="UINT8", shape=[1, *CROP])
    request.raw_input_contents.append(b"\1" * 112 * 112 * 3)
    stream: Any = running.channel.stream_stream(METHOD)(
        cast(Any, iter([request.SerializeToString(), b"\xff\xff\xff"]))
    )
    reading = asyncio.ensure_future(stream.read())
    await asyncio.to_thread(held.begun.wait, 30)
    gate.set()
    answer = service_pb2.ModelStreamInferResponse.FromString(await reading)
    assert answer.infer_response.id == "before"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stream.read()
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "no valid message of its type" in str(caught.value.details())
    status = rpc_status.from_call(cast(grpc.Call, caught.value))
    assert "INVALID_REQUEST" in str(status.details[0])
    assert not [record for record in caplog.records if record.exc_info]


async def test_requests_of_a_stream_are_admitted_one_by_one(running: Running) -> None:
    await running.intake.drain(1)
    bad = service_pb2.ModelInferRequest(model_name="vectors", id="late")
    stream = running.stub.ModelStreamInfer(iter([bad]))
    (answer,) = [answer async for answer in stream]
    assert "stopping" in answer.error_message


async def test_open_stream_counts_as_a_request_on_its_way_until_it_ends(running: Running) -> None:
    """Its next message may be half sent, and nobody can tell that from a pause."""
    stream: Any = running.stub.ModelStreamInfer()
    await stream.write(service_pb2.ModelInferRequest(model_name="nobody"))
    await stream.read()
    assert running.intake.arriving == 1
    await stream.done_writing()
    await running.until(lambda: running.intake.arriving == 0)
    given_up: Any = running.stub.ModelStreamInfer()
    await given_up.write(service_pb2.ModelInferRequest(model_name="nobody"))
    await running.until(lambda: running.intake.arriving == 1)
    given_up.cancel()
    await running.until(lambda: running.intake.arriving == 0)


async def test_stream_that_is_given_up_lets_go_of_everything(running: Running) -> None:
    gate = threading.Event()
    held = Scripted(mean_colour, gate)
    running.world.add("slow", EMBEDDER, held)
    request = service_pb2.ModelInferRequest(model_name="slow")
    tensor = request.inputs.add(name="face", datatype="UINT8", shape=[1, *CROP])
    request.raw_input_contents.append(b"\1" * 112 * 112 * 3)
    assert tensor.name == "face"
    stream = running.stub.ModelStreamInfer(iter([request] * 3))
    reading = asyncio.ensure_future(stream.read())
    await asyncio.to_thread(held.begun.wait, 30)
    stream.cancel()
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await reading
    await running.until(lambda: not (running.intake.budget.count or running.world.leases))
