"""The metrics of calls and models: they agree with what callers saw and with ModelStatistics."""

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Any, cast

import grpc
import pytest
from tritonclient.grpc import service_pb2

from mien_server.models.roles import EMBEDDER
from mien_server.observability.metrics_endpoint import exposition
from mien_server.observability.model_metrics import ModelMetrics
from mien_server.repository.catalogue import Catalogue
from mien_server.repository.traffic import Traffic
from mien_server.scheduling.batching import BatchingPolicy
from mien_server.triton.stream import METHOD
from tests.exposition import Exposition
from tests.unit.triton.triton_world import (
    ENSEMBLE,
    Running,
    Scripted,
    crops,
    mean_colour,
    photos,
    refusal,
)

TRITON = "inference.GRPCInferenceService"


@pytest.fixture
def scraped(running: Running) -> Running:
    running.registry.register(ModelMetrics(cast(Catalogue, running.world)))
    return running


def scrape(running: Running) -> Exposition:
    return Exposition(exposition(running.registry)[0].decode())


async def test_triton_s_metrics_are_triton_s_statistics(scraped: Running) -> None:
    for rows in (1, 3, 3):
        await scraped.client.infer("vectors", crops(*[(9, 9, 9)] * rows))
    await refusal(scraped.client.infer("vectors", crops((0, 0, 0))))
    await scraped.client.infer(ENSEMBLE.name, photos(b"a", b"b"))
    await refusal(scraped.client.infer(ENSEMBLE.name, photos(b"empty")))
    told = scrape(scraped)
    answer = await scraped.client.get_inference_statistics()
    assert {stats.name for stats in answer.model_stats} == {"vectors", "finder", ENSEMBLE.name}
    for stats in answer.model_stats:
        of, labels = stats.inference_stats, {"model": stats.name, "version": stats.version}
        counts = {
            "request_success": of.success.count,
            "request_failure": of.fail.count,
            "count": stats.inference_count,
            "exec_count": stats.execution_count,
            "request_duration_us": of.success.ns / 1e3,
            "queue_duration_us": of.queue.ns / 1e3,
            "compute_input_duration_us": of.compute_input.ns / 1e3,
            "compute_infer_duration_us": of.compute_infer.ns / 1e3,
            "compute_output_duration_us": of.compute_output.ns / 1e3,
        }
        for name, value in counts.items():
            assert told.one(f"nv_inference_{name}", **labels) == pytest.approx(value, abs=1), name
            assert told.types[f"nv_inference_{name}"] == "counter"
    assert told.one("nv_inference_request_success", model="vectors", version="1") == 3
    assert told.one("nv_inference_request_failure", model=ENSEMBLE.name, version="1") == 1


async def test_slot_metrics_tell_outcomes_batches_and_their_sizes(scraped: Running) -> None:
    for rows in (1, 3, 3):
        await scraped.client.infer("vectors", crops(*[(9, 9, 9)] * rows))
    await refusal(scraped.client.infer("vectors", crops((0, 0, 0))))
    told = scrape(scraped)
    of = {"model": "vectors", "version": "1"}
    assert told.of("mien_slot_requests_total", **of) == {
        ("succeeded",): 3,
        ("failed",): 1,
        ("expired",): 0,
        ("cancelled",): 0,
        ("rejected",): 0,
    }
    sizes = told.of("mien_batch_rows_bucket", **of)
    assert {bound: sizes[bound,] for bound in ("1.0", "2.0", "4.0", "+Inf")} == {
        "1.0": 2,
        "2.0": 2,
        "4.0": 4,
        "+Inf": 4,
    }
    assert told.one("mien_batch_rows_sum", **of) == 8
    assert sum(told.of("mien_batches_total", **of).values()) == 4
    for histogram in ("mien_slot_request_seconds", "mien_slot_queue_seconds"):
        count = told.one(f"{histogram}_count", **of)
        assert count == told.one(f"{histogram}_bucket", **of, le="+Inf") >= 3
        assert 0 < told.one(f"{histogram}_sum", **of) < 30
    compute = told.of("mien_batch_seconds_bucket", **of, step="compute")
    in_order = [compute[bound,] for bound in sorted((b for (b,) in compute), key=float)]
    assert in_order == sorted(in_order)
    assert in_order[-1] == told.one("mien_batch_seconds_count", **of, step="compute") == 4


async def test_requests_that_wait_or_are_refused_are_told(scraped: Running) -> None:
    gate = threading.Event()
    policy = BatchingPolicy(max_batch_size=1, max_queue_size=2)
    slow = Scripted(mean_colour, gate)
    scraped.world.add("slow", EMBEDDER, slow, policy=policy)
    waiting = [asyncio.create_task(scraped.client.infer("slow", crops((1, 1, 1))))]
    await scraped.until(slow.begun.is_set)
    waiting += [asyncio.create_task(scraped.client.infer("slow", crops((1, 1, 1)))) for _ in "ab"]
    of = {"model": "slow", "version": "1"}
    await scraped.until(lambda: _pending(scraped) == 2)
    code, _ = await refusal(scraped.client.infer("slow", crops((1, 1, 1))))
    told = scrape(scraped)
    gate.set()
    await asyncio.gather(*waiting)
    assert code == "RESOURCE_EXHAUSTED"
    assert told.one("nv_inference_pending_request_count", **of) == 2
    assert told.one("mien_slot_requests_total", **of, outcome="rejected") == 1
    reasons = told.of("mien_errors_total", grpc_service=TRITON, grpc_method="ModelInfer")
    assert reasons == {("QUEUE_FULL",): 1}
    assert scrape(scraped).one("nv_inference_pending_request_count", **of) == 0


def _pending(running: Running) -> float:
    return scrape(running).one("nv_inference_pending_request_count", model="slow", version="1")


async def test_states_name_what_does_not_serve(scraped: Running) -> None:
    told = scrape(scraped)
    assert told.one("mien_model_state", model="vectors", version="1", state="READY") == 1
    assert told.one("mien_model_state", model="asleep", version="", state="UNAVAILABLE") == 1
    assert told.one("mien_model_reload_failed", model="vectors", version="1") == 0
    assert told.of("mien_model_reload_failed", model="asleep") == {}
    assert told.one("mien_model_asleep", model="vectors") == 1
    assert told.one("mien_model_sleeps_total", model="vectors") == 3
    assert told.one("mien_model_wakes_total", model="vectors") == 2
    assert told.of("nv_inference_count", model="asleep") == {}


async def test_split_traffic_is_told_of_models_that_split_it(scraped: Running) -> None:
    split = Traffic(shadow_version=2)
    scraped.world.add("split", EMBEDDER, Scripted(mean_colour), traffic=split)
    scraped.world.add("split", EMBEDDER, Scripted(mean_colour), version=2, traffic=split)
    told = scrape(scraped)
    assert told.of("mien_routed_calls_total") == {("split", "1"): 9, ("split", "2"): 0}
    assert told.of("mien_shadow_rows_total", model="split", version="2") == {
        ("agreed",): 4,
        ("disagreed",): 1,
        ("failed",): 3,
        ("dropped",): 2,
    }


async def test_calls_are_counted_by_how_they_ended(scraped: Running) -> None:
    await scraped.client.infer("vectors", crops((1, 1, 1)))
    await refusal(scraped.client.infer("nobody", crops((1, 1, 1))))
    with pytest.raises(grpc.aio.AioRpcError):
        await scraped.stub.TraceSetting(service_pb2.TraceSettingRequest())
    with pytest.raises(grpc.aio.AioRpcError):
        await scraped.channel.unary_unary(f"/{TRITON}/Nonsense")(cast(Any, b""))
    told = scrape(scraped)
    of = {"grpc_service": TRITON, "grpc_type": "unary"}
    assert told.of("grpc_server_handled_total", **of) == {
        ("OK", "ModelInfer"): 1,
        ("NOT_FOUND", "ModelInfer"): 1,
        ("UNIMPLEMENTED", "TraceSetting"): 1,
    }
    assert told.of("grpc_server_started_total", **of) == {("ModelInfer",): 2, ("TraceSetting",): 1}
    assert told.one("grpc_server_handling_seconds_count", **of, grpc_method="ModelInfer") == 2
    assert told.of("mien_errors_total", grpc_service=TRITON) == {
        ("ModelInfer", "MODEL_NOT_FOUND"): 1,
        ("TraceSetting", "UNIMPLEMENTED"): 1,
    }


async def test_call_that_its_caller_gives_up_or_that_runs_late_is_counted(scraped: Running) -> None:
    gate = threading.Event()
    slow = Scripted(mean_colour, gate)
    scraped.world.add("slow", EMBEDDER, slow)
    given_up = asyncio.create_task(scraped.client.infer("slow", crops((1, 1, 1))))
    await scraped.until(slow.begun.is_set)
    given_up.cancel()
    code, _ = await refusal(scraped.client.infer("slow", crops((1, 1, 1)), client_timeout=0.2))
    assert code == "DEADLINE_EXCEEDED"

    def ended() -> dict[tuple[str, ...], float]:
        return scrape(scraped).of("grpc_server_handled_total", grpc_method="ModelInfer")

    await scraped.until(lambda: sum(ended().values()) == 2)
    gate.set()
    # gRPC may see that the late call's time is up before the server does, and cancels it then.
    assert {key[0] for key in ended()} <= {"CANCELLED", "DEADLINE_EXCEEDED"}
    assert ended()["CANCELLED", TRITON, "unary"] >= 1


async def test_stream_is_one_call_and_its_errors_are_counted_each(scraped: Running) -> None:
    async def requests() -> AsyncIterator[dict[str, Any]]:
        for name in ("vectors", "nobody", "vectors", "nobody"):
            yield {"model_name": name, "inputs": crops((1, 1, 1))}

    answers = [answer async for answer in scraped.client.stream_infer(requests())]
    assert len(answers) == 4
    await scraped.until(
        lambda: scrape(scraped).of("grpc_server_handled_total", grpc_type="bidi_stream") != {}
    )
    told = scrape(scraped)
    of = {"grpc_service": TRITON, "grpc_method": "ModelStreamInfer"}
    assert told.of("grpc_server_handled_total", **of) == {("OK", "bidi_stream"): 1}
    assert told.of("mien_errors_total", **of) == {("MODEL_NOT_FOUND",): 2}


async def test_stream_that_ends_with_an_error_is_counted_by_its_status(scraped: Running) -> None:
    stream: Any = scraped.channel.stream_stream(METHOD)(cast(Any, iter([b"\xff\xff\xff"])))
    with pytest.raises(grpc.aio.AioRpcError):
        await stream.read()
    await scraped.until(
        lambda: scrape(scraped).of("grpc_server_handled_total", grpc_type="bidi_stream") != {}
    )
    told = scrape(scraped)
    of = {"grpc_service": TRITON, "grpc_method": "ModelStreamInfer"}
    assert told.of("grpc_server_handled_total", **of) == {("INVALID_ARGUMENT", "bidi_stream"): 1}
    assert told.of("mien_errors_total", **of) == {("INVALID_REQUEST",): 1}
