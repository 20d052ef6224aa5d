"""Spans of calls: whose children they are, what they tell, and which calls have none."""

import sys
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from mien.v1 import face_pb2
from mien_server.errors import OperatorError, Reason, Unmet
from mien_server.observability import spans
from mien_server.observability.spans import Tracing
from mien_server.observability.tracing import open_tracing
from mien_server.pipeline.types import Call, ModelIdentity, PhotoFaces, StageTime
from mien_server.scheduling.errors import RowFailed
from tests.unit.rpc.test_access_log import lines, log  # noqa: F401 - a fixture
from tests.unit.rpc.test_face_service import EMPTY, PHOTO, failure, raising, serving
from tests.unit.triton import triton_world

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
DETECT = "mien.v1.FaceService/Detect"
SFACE = ModelIdentity("sface", 2, "0123456789abcdef")


class Recorded:
    """What is traced, kept."""

    def __init__(self, ratio: float = 1.0) -> None:
        self._kept = InMemorySpanExporter()
        self.tracing = Tracing(SimpleSpanProcessor(self._kept), ratio=ratio)

    def spans(self) -> dict[str, ReadableSpan]:
        """By name, of which each has one."""
        found = {span.name: span for span in self.all()}
        assert len(found) == len(self.all())
        return found

    def all(self) -> list[ReadableSpan]:
        return list(self._kept.get_finished_spans())


async def staged(call: Call) -> PhotoFaces:
    call.add(call.arrived, StageTime("decode.queue", 0.001), StageTime("decode", 0.002))
    call.add(call.arrived + 0.01, StageTime("b.embed.compute", 0.5, 4, batch=7, model=SFACE))
    return EMPTY


def parent(sampled: bool = True) -> tuple[tuple[str, str], ...]:
    return (
        ("traceparent", f"00-{TRACE}-{SPAN}-0{int(sampled)}"),
        ("tracestate", "congo=t61rcWkgMzE"),
        ("authorization", "Bearer mien_secret"),
        ("x-request-id", "order-66"),
    )


def ids(span: ReadableSpan) -> tuple[str, str]:
    context = span.get_span_context()
    assert context is not None
    return f"{context.trace_id:032x}", f"{context.span_id:016x}"


async def test_call_is_a_child_of_its_caller_s_span_and_its_stages_are_its_children() -> None:
    recorded, before = Recorded(), time.time_ns()
    async with serving(staged, tracing=recorded.tracing) as running:
        await running.faces.Detect(PHOTO, metadata=parent())
    made = recorded.spans()
    call = made.pop(DETECT)
    assert call.parent is not None
    assert (call.parent.span_id, call.parent.is_remote) == (int(SPAN, 16), True)
    assert call.context.trace_state.get("congo") == "t61rcWkgMzE"
    assert (call.kind, call.status.status_code) == (SpanKind.SERVER, StatusCode.UNSET)
    assert dict(call.attributes or {}) == {
        "rpc.system.name": "grpc",
        "rpc.method": DETECT,
        "rpc.response.status_code": "OK",
        "mien.request_id": "order-66",
    }
    assert list(made) == ["decode.queue", "decode", "b.embed.compute"]
    for span in made.values():
        assert span.parent == call.context
        assert ids(span)[0] == TRACE
    assert len({ids(span)[1] for span in recorded.all()}) == 4
    queue, decode, compute = made.values()
    assert dict(decode.attributes or {}) == {}
    assert dict(compute.attributes or {}) == {
        "mien.batch.id": 7,
        "mien.batch.rows": 4,
        "mien.model.name": "sface",
        "mien.model.version": 2,
        "mien.model.fingerprint": SFACE.fingerprint,
    }
    times = [each or 0 for span in (queue, decode) for each in (span.start_time, span.end_time)]
    assert before <= (call.start_time or 0) <= times[0]
    assert times == sorted(times)
    assert times[3] - times[2] == pytest.approx(2e6, rel=0.01)
    assert (call.end_time or 0) <= time.time_ns()
    assert str(call.resource.attributes["service.name"]) == "mien"


async def test_call_without_a_caller_s_span_begins_a_trace_and_its_line_in_the_log_names_it(
    log: Any,  # noqa: F811
) -> None:
    recorded = Recorded()
    async with serving(staged, tracing=recorded.tracing, access_log=True) as running:
        for metadata in ((), (("traceparent", "nonsense"),)):
            await running.faces.Detect(PHOTO, metadata=metadata)
    calls = [span for span in recorded.all() if span.name == DETECT]
    assert [span.parent for span in calls] == [None, None]
    traces = [ids(span)[0] for span in calls]
    assert len(set(traces)) == 2
    assert [line["trace_id"] for line in lines(log)] == traces


@pytest.mark.parametrize(
    ("error", "code", "reason", "status"),
    [
        (
            Unmet(Reason.FACE_NOT_FOUND, "none"),
            "FAILED_PRECONDITION",
            "FACE_NOT_FOUND",
            StatusCode.UNSET,
        ),
        (RowFailed("it broke", incident="1"), "INTERNAL", "BACKEND_ERROR", StatusCode.ERROR),
    ],
)
async def test_failed_call_tells_why_and_what_it_had_done(
    error: Exception, code: str, reason: str, status: StatusCode
) -> None:
    recorded = Recorded()

    async def script(call: Call) -> PhotoFaces:
        await staged(call)
        raise error

    async with serving(script, tracing=recorded.tracing) as running:
        await failure(running)
    made = recorded.spans()
    call = made.pop(DETECT)
    assert call.status.status_code is status
    told = dict(call.attributes or {})
    assert (told["rpc.response.status_code"], told["error.type"]) == (code, reason)
    assert len(made) == 3


async def test_computations_of_one_batch_are_linked() -> None:
    recorded = Recorded()
    async with serving(staged, tracing=recorded.tracing) as running:
        for _ in range(3):
            await running.faces.Detect(PHOTO)
    first, *others = [span for span in recorded.all() if span.name == "b.embed.compute"]
    assert not first.links
    assert [[link.context for link in span.links] for span in others] == [[first.context]] * 2


async def test_caller_decides_what_is_traced_and_the_ratio_where_it_does_not(
    log: Any,  # noqa: F811
) -> None:
    none, every = Recorded(0.0), Recorded(1.0)
    for recorded in (none, every):
        async with serving(staged, tracing=recorded.tracing, access_log=True) as running:
            await running.faces.Detect(PHOTO, metadata=parent(sampled=False))
            await running.faces.Detect(PHOTO, metadata=parent(sampled=True))
            await running.faces.Detect(PHOTO)
    assert [ids(span)[0] for span in none.all() if span.name == DETECT] == [TRACE]
    assert len([span for span in every.all() if span.name == DETECT]) == 2
    named = ["trace_id" in line for line in lines(log)]
    assert named == [False, True, False, False, True, True]


async def test_nothing_that_a_call_carries_is_in_its_spans() -> None:
    recorded = Recorded()
    async with serving(staged, tracing=recorded.tracing) as running:
        photo = face_pb2.DetectRequest(image=face_pb2.Image(encoded=b"PHOTOBYTES" * 20))
        await running.faces.Detect(photo, metadata=parent())
        with pytest.raises(grpc.aio.AioRpcError):
            await running.raw(f"/{DETECT}", b"\xffPHOTOBYTES")
    told = "".join(span.to_json() or "" for span in recorded.all())
    assert "INVALID_REQUEST" in told
    for secret in ("PHOTOBYTES", "secret", "authorization"):
        assert secret not in told


async def test_refused_before_it_is_read_a_call_is_a_span_alone() -> None:
    recorded = Recorded()
    async with serving(raising(ValueError()), tracing=recorded.tracing, loaded=False) as running:
        await failure(running)
    (span,) = recorded.all()
    assert dict(span.attributes or {})["rpc.response.status_code"] == "UNAVAILABLE"


async def test_requests_of_a_stream_are_in_the_trace_of_the_stream() -> None:
    recorded = Recorded()
    async with triton_world.serving(tracing=recorded.tracing) as running:

        async def requests() -> AsyncIterator[dict[str, Any]]:
            for red in (1, 2):
                yield {"model_name": "vectors", "inputs": triton_world.crops((red, 0, 0))}

        assert len([answer async for answer in running.client.stream_infer(requests())]) == 2
        await running.client.is_server_ready()
    (call,) = [span for span in recorded.all() if span.kind is SpanKind.SERVER]
    computed = [span for span in recorded.all() if span.name == "embed.compute"]
    assert call.name == "inference.GRPCInferenceService/ModelStreamInfer"
    assert [span.parent for span in computed] == [call.context] * 2


def test_collector_that_does_not_answer_does_not_hold_the_end_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(spans, "CLOSE_SECONDS", 0.05)
    answered = threading.Event()

    class Deaf(SpanProcessor):
        def shutdown(self) -> None:
            answered.wait(60)

    began = time.monotonic()
    Tracing(Deaf()).close()
    assert time.monotonic() - began < 30
    answered.set()


def test_without_opentelemetry_the_start_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(sys.modules, "mien_server.observability.spans")
    monkeypatch.setitem(sys.modules, "opentelemetry.context", None)
    with pytest.raises(OperatorError, match=r"pip install 'mien\[tracing\]'"):
        open_tracing("http://127.0.0.1:4317", 1.0)
