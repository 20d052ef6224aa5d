"""What Triton's service says of the server and its models: metadata, index, statistics, health."""

import logging
from contextlib import suppress
from typing import Any, cast

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tritonclient.grpc import service_pb2

from mien_server.errors import Reason, Unmet
from mien_server.models.roles import EMBEDDER
from mien_server.repository.traffic import Traffic
from mien_server.rpc.server import INFERENCE_SERVICE
from mien_server.triton.service import InferenceService
from tests.unit.triton.triton_world import (
    CROP,
    ENSEMBLE,
    Running,
    Scripted,
    crops,
    mean_colour,
    photos,
    refusal,
    serving,
)


async def test_statistics_add_up(running: Running) -> None:
    for rows in (1, 3, 3):
        await running.client.infer("vectors", crops(*[(9, 9, 9)] * rows))
    await refusal(running.client.infer("vectors", crops((0, 0, 0))))
    await running.client.infer(ENSEMBLE.name, photos(b"a", b"b"))
    await refusal(running.client.infer(ENSEMBLE.name, photos(b"empty")))
    answer = await running.client.get_inference_statistics()
    by_name = {stats.name: stats for stats in answer.model_stats}
    assert by_name.keys() == {"vectors", "finder", ENSEMBLE.name}
    vectors = by_name["vectors"]
    stats = vectors.inference_stats
    assert (vectors.version, vectors.inference_count, vectors.execution_count) == ("1", 7, 4)
    assert (stats.success.count, stats.fail.count) == (3, 1)
    for part in (stats.queue, stats.compute_input, stats.compute_infer, stats.compute_output):
        assert part.count == 3
    parts = (stats.queue, stats.compute_input, stats.compute_infer, stats.compute_output)
    assert 0 < sum(part.ns for part in parts) <= stats.success.ns
    sizes = {each.batch_size: each.compute_infer.count for each in vectors.batch_stats}
    assert sizes == {1: 2, 3: 2}
    assert vectors.last_inference > 1_600_000_000_000
    ensemble = by_name[ENSEMBLE.name]
    assert (ensemble.inference_count, ensemble.execution_count) == (2, 1)
    assert ensemble.inference_stats.success.count == 1
    assert ensemble.inference_stats.fail.count == 1
    assert ensemble.inference_stats.queue.count == 1
    milliseconds = [
        part.ns / 1e6
        for part in (
            ensemble.inference_stats.queue,
            ensemble.inference_stats.compute_input,
            ensemble.inference_stats.compute_infer,
            ensemble.inference_stats.compute_output,
        )
    ]
    assert milliseconds == pytest.approx([30, 12, 50, 1])
    assert by_name["finder"].inference_count == by_name["finder"].last_inference == 0


async def test_statistics_of_one_model_or_version(running: Running) -> None:
    running.world.add("vectors", EMBEDDER, Scripted(mean_colour), version=2)
    of_model = await running.client.get_inference_statistics("vectors")
    assert [stats.version for stats in of_model.model_stats] == ["1", "2"]
    of_version = await running.client.get_inference_statistics("vectors", "2")
    assert [stats.version for stats in of_version.model_stats] == ["2"]
    code, _ = await refusal(running.client.get_inference_statistics("nobody"))
    assert code == "NOT_FOUND"


async def test_statistics_tell_how_traffic_was_split(running: Running) -> None:
    split = Traffic(shadow_version=2)
    running.world.add("split", EMBEDDER, Scripted(mean_colour), traffic=split)
    running.world.add("split", EMBEDDER, Scripted(mean_colour), version=2, traffic=split)
    answer = await running.client.get_inference_statistics("split")
    told = [
        {key: stats.success.count for key, stats in each.response_stats.items()}
        for each in answer.model_stats
    ]
    assert told[0] == {"routed": 9}
    assert told[1]["shadow_compared"] == 5
    assert told[1]["shadow_agreed"] == 4


async def test_metadata_and_config_describe_the_tensors(running: Running) -> None:
    server = await running.client.get_server_metadata()
    assert server.name == "mien"
    assert {"statistics", "classification"} <= set(server.extensions)
    vectors = await running.client.get_model_metadata("vectors")
    assert (list(vectors.versions), vectors.platform) == (["1"], "pytorch")
    assert (vectors.inputs[0].datatype, list(vectors.inputs[0].shape)) == ("UINT8", [-1, *CROP])
    ensemble = await running.client.get_model_metadata(ENSEMBLE.name)
    assert (ensemble.platform, ensemble.inputs[0].datatype) == ("ensemble", "BYTES")
    assert list(ensemble.inputs[0].shape) == [-1, 1]
    config = await running.client.get_model_config("vectors")
    assert config.config.name == "vectors"


async def test_index_lists_states_and_reasons(running: Running) -> None:
    index = await running.client.get_model_repository_index()
    lines = {(m.name, m.version): (m.state, m.reason) for m in index.models}
    assert lines["asleep", ""] == ("UNAVAILABLE", "it snores")
    assert lines["vectors", "1"] == ("READY", "")
    ready: Any = service_pb2.RepositoryIndexRequest(ready=True)
    response = await running.stub.RepositoryIndex(ready)
    assert "asleep" not in {m.name for m in response.models}


async def test_calls_that_only_look_have_no_line_in_the_log_and_a_stream_has_one(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    async with serving(access_log=True) as running:
        await running.client.is_server_ready()
        await running.client.get_inference_statistics()
        await running.client.get_model_repository_index()
        await running.client.infer("vectors", crops((9, 9, 9)))
        requests = [service_pb2.ModelInferRequest(model_name="nobody")] * 3
        assert len([each async for each in running.stub.ModelStreamInfer(iter(requests))]) == 3
    told = [vars(each) for each in caplog.records if each.getMessage() == "call answered"]
    assert [line["method"].rpartition("/")[2] for line in told] == [
        "ModelInfer",
        "ModelStreamInfer",
    ]
    assert told[0]["batch"] == 1


@pytest.mark.parametrize("method", ["RepositoryModelLoad", "RepositoryModelUnload"])
async def test_callers_beyond_this_machine_load_and_unload_nothing_unless_somebody_vouches_for_them(
    method: str, running: Running
) -> None:
    world = running.world

    class Remote:
        def peer(self) -> str:
            return "ipv4:192.0.2.7:50000"

    def service(**more: Any) -> Any:
        parts: list[Any] = [world, world, world, world.pool, None, None]
        return InferenceService(*parts, ready=lambda: True, default_deadline=30, **more)

    request = getattr(service_pb2, f"{method}Request")(model_name="vectors")
    with pytest.raises(Unmet) as caught:
        await getattr(service(), method)(request, Remote())
    assert caught.value.reason is Reason.MODEL_CONTROL_REFUSED
    assert world.loads == []
    with suppress(Unmet):  # what the scripted models say to a load
        await getattr(service(remote_control=True), method)(request, Remote())
    assert world.loads == [f"{method.removeprefix('RepositoryModel').lower()} vectors"]


async def test_load_and_unload_pass_on_the_real_cause(running: Running) -> None:
    code, told = await refusal(running.client.load_model("vectors"))
    assert code == "FAILED_PRECONDITION"
    assert told.endswith("it is broken")
    await running.client.unload_model("vectors")
    assert running.world.loads == ["load vectors", "unload vectors"]


async def test_overrides_and_repository_names_are_refused_by_name(running: Running) -> None:
    for call, name in (
        (running.client.load_model("vectors", config="{}"), "config"),
        (running.client.load_model("v", config="{}", files={"file:1/m": b""}), "config"),
        (running.client.unload_model("v", unload_dependents=True), "unload_dependents"),
    ):
        code, told = await refusal(call)
        assert code == "INVALID_ARGUMENT"
        assert f"{name!r}" in told
    named: Any = service_pb2.RepositoryModelLoadRequest(repository_name="r", model_name="m")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await running.stub.RepositoryModelLoad(named)
    assert "repository_name" in str(caught.value.details())
    assert running.world.loads == []


async def test_questions_are_answered_while_the_models_load_and_while_they_drain() -> None:
    async with serving(loading=True) as running:
        for _ in range(2):
            assert await running.client.is_server_live()
            assert not await running.client.is_server_ready()
            assert await running.client.is_model_ready("vectors")
            assert (await running.client.get_model_repository_index()).models
            assert (await running.client.get_inference_statistics()).model_stats
            code, _ = await refusal(running.client.infer("vectors", crops((1, 1, 1))))
            assert code == "UNAVAILABLE"
            await running.intake.drain(1)


async def test_health_knows_the_service_too(running: Running) -> None:
    assert await running.client.is_server_ready()
    stub: Any = health_pb2_grpc.HealthStub(cast(Any, running.channel))
    answer = await stub.Check(health_pb2.HealthCheckRequest(service=INFERENCE_SERVICE))
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


UNSERVED = {
    "SystemSharedMemoryStatus": "Shared memory",
    "SystemSharedMemoryRegister": "Shared memory",
    "SystemSharedMemoryUnregister": "Shared memory",
    "CudaSharedMemoryStatus": "Shared memory",
    "CudaSharedMemoryRegister": "Shared memory",
    "CudaSharedMemoryUnregister": "Shared memory",
    "TraceSetting": "Tracing",
    "LogSettings": "--log-level",
}


@pytest.mark.parametrize(("method", "why"), UNSERVED.items())
async def test_the_rest_is_unimplemented_and_says_why(
    running: Running, method: str, why: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await getattr(running.stub, method)(getattr(service_pb2, f"{method}Request")())
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert why in str(caught.value.details())


def test_every_method_of_the_protocol_is_served_or_refused_on_purpose() -> None:
    methods = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods
    own = vars(InferenceService)
    assert {method.name for method in methods} <= own.keys()
    assert UNSERVED.keys() < {method.name for method in methods}
