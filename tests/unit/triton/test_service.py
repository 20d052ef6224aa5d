"""ModelInfer with tritonclient behind a real grpc.aio server, over real slots of scripted models."""

import asyncio
import threading
from typing import Any, cast

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from tritonclient.grpc import InferRequestedOutput, service_pb2

from mien_server.models.roles import EMBEDDER
from mien_server.scheduling.batching import BatchingPolicy, QueuePolicy
from mien_server.triton.runs import INLINE_BYTES
from tests.unit.triton.triton_world import (
    CROP,
    ENSEMBLE,
    Running,
    Scripted,
    canvases,
    crops,
    mean_colour,
    photos,
    refusal,
)


async def test_rows_keep_their_order_and_channels(running: Running) -> None:
    colours = [(10, 20, 30), (40, 50, 60), (70, 80, 90)]
    result = await running.client.infer("vectors", crops(*colours), request_id="mine")
    np.testing.assert_array_equal(result.as_numpy("embedding"), np.array(colours, np.float32))
    response = result.get_response()
    assert (response.id, response.model_name, response.model_version) == ("mine", "vectors", "1")
    assert running.world.leases == 0


async def test_detections_are_padded_to_the_most_with_score_zero(running: Running) -> None:
    result = await running.client.infer("finder", canvases(64, 2, 0, 3))
    scores = result.as_numpy("scores")
    np.testing.assert_array_equal((scores > 0).sum(axis=1), [2, 0, 3])
    assert result.as_numpy("boxes").shape == (3, 3, 4)
    assert result.as_numpy("landmarks").shape == (3, 3, 5, 2)
    assert not result.as_numpy("boxes")[1].any()
    none = await running.client.infer("finder", canvases(128, 0))
    np.testing.assert_array_equal(none.as_numpy("scores"), [[0]])


async def test_only_the_outputs_asked_for_are_sent(running: Running) -> None:
    wanted = [InferRequestedOutput("scores")]
    result = await running.client.infer("finder", canvases(64, 1), outputs=wanted)
    assert [output.name for output in result.get_response().outputs] == ["scores"]


@pytest.mark.parametrize(
    ("side", "width", "message"),
    [(96, None, "96x96 pixels; must be one of 64x64, 128x128"), (64, 128, "64x128 pixels")],
)
async def test_canvas_that_is_no_bucket_is_refused(
    running: Running, side: int, width: int | None, message: str
) -> None:
    code, told = await refusal(running.client.infer("finder", canvases(side, 1, width=width)))
    assert code == "INVALID_ARGUMENT"
    assert message in told


async def test_more_rows_than_a_batch_are_refused_unless_the_model_splits_rows(
    running: Running,
) -> None:
    many = crops(*[(i, i, i) for i in range(1, 8)])
    code, told = await refusal(running.client.infer("vectors", many))
    assert code == "INVALID_ARGUMENT"
    assert "at most 4 rows" in told
    policy = BatchingPolicy(max_batch_size=4, split_rows=True)
    running.world.add("splitting", EMBEDDER, Scripted(mean_colour), policy=policy)
    result = await running.client.infer("splitting", many)
    np.testing.assert_array_equal(result.as_numpy("embedding")[:, 0], np.arange(1, 8))


async def test_typed_contents_answer_like_raw_ones(running: Running) -> None:
    request = service_pb2.ModelInferRequest(model_name="vectors")
    tensor = request.inputs.add(name="face", datatype="UINT8", shape=[1, *CROP])
    tensor.contents.uint_contents.extend([7] * 112 * 112 * 3)
    response = await running.stub.ModelInfer(request)
    assert np.frombuffer(response.raw_output_contents[0], np.float32).tolist() == [7, 7, 7]


async def test_unknown_and_unready_models_have_their_codes(running: Running) -> None:
    for name, version, code in (
        ("nobody", "", "NOT_FOUND"),
        ("vectors", "7", "NOT_FOUND"),
        ("asleep", "", "UNAVAILABLE"),
        ("vectors", "x", "INVALID_ARGUMENT"),
    ):
        found, _ = await refusal(running.client.infer(name, crops((1, 1, 1)), version))
        assert found == code
        found, _ = await refusal(running.client.get_model_metadata(name, version))
        assert found == code
        if code != "INVALID_ARGUMENT":
            assert not await running.client.is_model_ready(name, version)
    assert await running.client.is_model_ready("vectors")
    assert await running.client.is_model_ready("vectors", "1")
    assert await running.client.is_model_ready(ENSEMBLE.name)


async def test_the_row_that_fails_is_an_internal_error_with_an_incident(running: Running) -> None:
    code, told = await refusal(running.client.infer("vectors", crops((0, 0, 0))))
    assert code == "INTERNAL"
    assert "vectors" in told


async def test_priority_and_timeout_reach_the_queue(running: Running) -> None:
    gate = threading.Event()
    held = Scripted(mean_colour, gate)
    policy = BatchingPolicy(
        max_batch_size=1,
        priority_levels=2,
        default_priority_level=2,
        default_queue_policy=QueuePolicy(allow_timeout_override=True),
    )
    running.world.add("queue", EMBEDDER, held, policy=policy)
    first = asyncio.create_task(running.client.infer("queue", crops((1, 1, 1))))
    await asyncio.to_thread(held.begun.wait, 30)
    code, told = await refusal(running.client.infer("queue", crops((2, 2, 2)), timeout=1000))
    assert code == "DEADLINE_EXCEEDED"
    assert "timeout" in told
    order: list[str] = []

    async def noted(name: str, priority: int) -> None:
        await running.client.infer("queue", crops((3, 3, 3)), priority=priority)
        order.append(name)

    slot = running.world.ready["queue"][0].slot
    late = asyncio.create_task(noted("ordinary", 0))
    await running.until(lambda: slot.pending == 1)
    urgent = asyncio.create_task(noted("urgent", 1))
    await running.until(lambda: slot.pending == 2)
    gate.set()
    await asyncio.gather(first, late, urgent)
    assert order == ["urgent", "ordinary"]


async def test_deadline_of_the_client_is_kept(running: Running) -> None:
    gate = threading.Event()
    running.world.add("slow", EMBEDDER, Scripted(mean_colour, gate))
    code, _ = await refusal(running.client.infer("slow", crops((1, 1, 1)), client_timeout=0.05))
    assert code == "DEADLINE_EXCEEDED"
    gate.set()


async def test_ensemble_runs_each_photo_through_the_pipeline(running: Running) -> None:
    result = await running.client.infer(
        ENSEMBLE.name, photos(b"a", b"bcd"), priority=3, timeout=5000
    )
    np.testing.assert_array_equal(result.as_numpy("vector"), [[1, 0], [3, 0]])
    np.testing.assert_array_equal(result.as_numpy("box")[1], [0, 0, 3, 3])
    assert {(call.priority, call.queue_timeout) for call in running.world.calls} == {(3, 0.005)}


async def test_any_output_may_be_asked_for_as_classes(running: Running) -> None:
    wanted = [InferRequestedOutput("vector", class_count=1), InferRequestedOutput("box")]
    result = await running.client.infer(ENSEMBLE.name, photos(b"a", b"bcd"), outputs=wanted)
    assert result.as_numpy("vector").tolist() == [[b"1.000000:0"], [b"3.000000:0"]]
    assert result.as_numpy("box").dtype == np.float32
    scores = [InferRequestedOutput("scores", class_count=5)]
    found = await running.client.infer("finder", canvases(64, 2, 0, 3), outputs=scores)
    plain = (await running.client.infer("finder", canvases(64, 2, 0, 3))).as_numpy("scores")
    told = found.as_numpy("scores")
    assert told.shape == plain.shape
    assert told[2, 0] == f"{plain[2].max():f}:{plain[2].argmax()}".encode()


async def test_ensemble_error_names_the_row(running: Running) -> None:
    code, told = await refusal(running.client.infer(ENSEMBLE.name, photos(b"a", b"empty")))
    assert code == "FAILED_PRECONDITION"
    assert told == "input 'image', row 1: There is no face."


@pytest.mark.parametrize(
    ("photo", "field", "message"),
    [
        (b"empty", "inputs[0].row[1]", "input 'image', row 1: There is no face."),
        (b"nobody", "model_name", "there is no such detector"),
    ],
)
async def test_ensemble_error_has_the_field_of_the_protocol(
    running: Running, photo: bytes, field: str, message: str
) -> None:
    request = service_pb2.ModelInferRequest(model_name=ENSEMBLE.name)
    tensor = request.inputs.add(name="image", datatype="BYTES", shape=[2, 1])
    tensor.contents.bytes_contents.extend([b"a", photo])
    assert await violation(running.stub.ModelInfer(request)) == (field, message)


@pytest.mark.parametrize(
    ("name", "version", "field"),
    [("nobody", "", "model_name"), ("asleep", "", "model_name"), ("vectors", "x", "model_version")],
)
async def test_model_that_cannot_be_had_is_named_by_its_field(
    running: Running, name: str, version: str, field: str
) -> None:
    infer = service_pb2.ModelInferRequest(model_name=name, model_version=version)
    assert (await violation(running.stub.ModelInfer(infer)))[0] == field
    ask = service_pb2.ModelMetadataRequest(name=name, version=version)
    assert (await violation(running.stub.ModelMetadata(ask)))[0] == field.removeprefix("model_")


async def violation(call: Any) -> tuple[str, str]:
    """The field at fault and the message that a call fails with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    status = rpc_status.from_call(cast(grpc.Call, caught.value))
    bad = error_details_pb2.BadRequest()
    assert any(detail.Unpack(bad) for detail in status.details)
    (found,) = bad.field_violations
    return found.field, status.message


async def test_large_contents_are_interleaved_off_the_event_loop(running: Running) -> None:
    policy = BatchingPolicy(max_batch_size=4, split_rows=True)
    running.world.add("splitting", EMBEDDER, Scripted(mean_colour), policy=policy)
    rows = INLINE_BYTES // (3 * 112 * 112) + 1
    gate = threading.Event()
    busy = asyncio.create_task(running.world.pool.decode(gate.wait, nbytes=1))
    large = asyncio.create_task(running.client.infer("splitting", crops(*[(1, 2, 3)] * rows)))
    await running.until(lambda: running.world.pool.pending == 2)
    small = await running.client.infer("splitting", crops(*[(1, 2, 3)] * (rows - 1)))
    assert not large.done()
    gate.set()
    await busy
    for result, count in ((small, rows - 1), (await large, rows)):
        np.testing.assert_array_equal(result.as_numpy("embedding"), [[1, 2, 3]] * count)


async def test_ensemble_takes_at_most_its_batch(running: Running) -> None:
    code, told = await refusal(running.client.infer(ENSEMBLE.name, photos(*[b"a"] * 5)))
    assert code == "INVALID_ARGUMENT"
    assert "at most 4 rows" in told
