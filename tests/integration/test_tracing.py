"""The real server's spans at a collector that speaks OTLP, with the official messages."""

import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1 import trace_pb2

from mien.v1 import face_pb2, face_pb2_grpc
from tests.conftest import LaunchServer
from tests.integration.repository_rig import copy_repository, lighten

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SECRET = "mien_0123_not-to-be-seen"  # noqa: S105


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps what it is sent."""

    address: str

    def __init__(self) -> None:
        self.requests: list[Any] = []

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802 - the protocol's name
        self.requests.append(request)
        return trace_service_pb2.ExportTraceServiceResponse()

    def spans(self) -> dict[str, trace_pb2.Span]:
        return {
            span.name: span
            for request in self.requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        }


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    server = grpc.server(ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)  # type: ignore[no-untyped-call]
    collector.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield collector
    server.stop(None).wait()


def attributes(span: trace_pb2.Span) -> dict[str, Any]:
    return {
        each.key: getattr(each.value, each.value.WhichOneof("value") or "")
        for each in span.attributes
    }


def open_for_writing(process: int) -> set[Path]:
    """The files that a process may write to."""
    found = set()
    for file in Path(f"/proc/{process}/fdinfo").iterdir():
        with suppress(FileNotFoundError):  # it is closed meanwhile
            if re.search(r"^flags:\s+\d*[12]$", file.read_text(), re.MULTILINE):
                found.add((file.parent.with_name("fd") / file.name).readlink())
    return {path for path in found if path.is_file()}


@pytest.mark.long
def test_call_is_seen_at_the_collector_and_nothing_of_the_photo(
    collector: Collector,
    launch_server: LaunchServer,
    model_repository_path: Path,
    tmp_path: Path,
    sample: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (home := tmp_path / "home").mkdir()
    for name in ("HOME", "TMPDIR"):
        monkeypatch.setenv(name, str(home))
    repository = lighten(copy_repository(model_repository_path, tmp_path / "models"))
    photo = sample("person_a_1").read_bytes()
    started = time.time()
    endpoint = ("--otlp-endpoint", f"http://{collector.address}")
    with (
        launch_server(*endpoint, repository=repository) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        faces: Any = face_pb2_grpc.FaceServiceStub(channel)
        answer = faces.Embed(
            face_pb2.EmbedRequest(image=face_pb2.Image(encoded=photo)),
            metadata=(
                ("traceparent", f"00-{TRACE}-{SPAN}-01"),
                ("authorization", f"Bearer {SECRET}"),
                ("x-request-id", "order-66"),
            ),
            timeout=60,
        )
        scrape = urllib.request.Request(  # noqa: S310 - its own address
            server.metrics_url, headers={"Accept": "application/openmetrics-text"}
        )
        with urllib.request.urlopen(scrape, timeout=10) as metrics:  # noqa: S310
            assert f'# {{trace_id="{TRACE}"}}' in metrics.read().decode()
        # docs/privacy.md: nothing is written but the log.
        assert open_for_writing(server.process.pid) == {server.log}
        assert list(home.iterdir()) == []
        assert not [path for path in repository.rglob("*") if path.stat().st_mtime > started]
    # The server sends what is left as it stops.
    spans = collector.spans()
    call = spans.pop("mien.v1.FaceService/Embed")
    assert (call.trace_id.hex(), call.parent_span_id.hex()) == (TRACE, SPAN)
    assert attributes(call)["mien.request_id"] == "order-66"
    detect, embed = (
        [f"{role}.{step}" for step in ("queue", "preprocess", "compute", "postprocess")]
        for role in ("detect", "embed")
    )
    in_order = sorted(spans.values(), key=lambda span: span.start_time_unix_nano)
    assert [span.name for span in in_order] == [
        *("decode.queue", "decode", "letterbox"),
        *(*detect, "align", *embed),
    ]
    for span in in_order:
        assert (span.trace_id, span.parent_span_id) == (call.trace_id, call.span_id)
        assert call.start_time_unix_nano <= span.start_time_unix_nano
        assert span.start_time_unix_nano <= span.end_time_unix_nano <= call.end_time_unix_nano
    for name, model in (("detect.compute", answer.detector), ("embed.compute", answer.embedder)):
        told = attributes(spans[name])
        assert told.pop("mien.batch.id") > 0
        assert told == {
            "mien.batch.rows": 1,
            "mien.model.name": model.name,
            "mien.model.version": model.version,
            "mien.model.fingerprint": model.fingerprint,
        }

    log = server.log.read_text()
    assert f"trace_id={TRACE}" in log
    vector = np.array(answer.faces[0].embedding.values, np.float32)
    sent = b"".join(request.SerializeToString() for request in collector.requests)
    for where in (sent, log.encode()):
        for secret in (
            SECRET.encode(),
            photo[1000:1016],
            vector[:2].tobytes(),
            b"%.6f" % vector[0],
        ):
            assert secret not in where
    assert not re.search(r"Traceback|WARNING|ERROR", log), log


def test_without_the_setting_nothing_of_opentelemetry_is_imported() -> None:
    program = """
import sys
import mien_server.rpc.calls
from mien_server.observability.tracing import open_tracing
assert open_tracing(None, 1.0) is None
print([name for name in sys.modules if name.startswith("opentelemetry")])
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout == "[]\n"
