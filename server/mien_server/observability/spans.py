"""Calls as OpenTelemetry's spans, made when a call ends from what is noted of it anyway.

A span of the call, the child of the caller's if it names one, and a child of that for each stage. They are
handed to the processor as they are: to begin and end them by OpenTelemetry's tracer costs seven times as
much (24 against 3.5 µs a span), and this is on the event loop.

Not safe for threads: everything here runs on the event loop.
"""

import logging
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import Decision, ParentBased, TraceIdRatioBased
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import (
    Link,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    format_trace_id,
    get_current_span,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from mien_server.observability.logging import RateLimit
from mien_server.pipeline.types import StageTime

CLOSE_SECONDS = 3.0
"""How long the end of the server waits for the collector to take what is left."""

_PARENT_KEYS = ("traceparent", "tracestate")
_BATCHES = 1024
# They warn of each attempt while the collector is away, and of each batch that is dropped.
_CHATTY = ("opentelemetry.exporter.otlp.proto.grpc.exporter", "opentelemetry.sdk._shared_internal")
_NANOSECONDS = 1_000_000_000

# As OpenTelemetry's conventions for gRPC servers say: the others are the caller's own fault.
_FAULTS = frozenset(
    ("UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS")
)

_Attributes = dict[str, str | int]


def collector(endpoint: str) -> SpanProcessor:
    """Sends spans over gRPC, in batches, from a thread of its own; it drops some rather than wait.

    OpenTelemetry's own variables (OTEL_EXPORTER_OTLP_HEADERS, OTEL_BSP_…) hold for the rest.

    Args:
        endpoint: http://host:port, or https://host:port for TLS.
    """
    for chatty in _CHATTY:
        logging.getLogger(chatty).addFilter(RateLimit(burst=1, seconds=60.0))
    return BatchSpanProcessor(OTLPSpanExporter(endpoint))


class Tracing:
    """Traces calls.

    Args:
        processor: gets the spans as they end.
        ratio: of the calls that come without a trace, how many are traced, in [0, 1]. Of those that come
            with one, the caller has decided.
    """

    def __init__(self, processor: SpanProcessor, *, ratio: float = 1.0) -> None:
        self._processor = processor
        self._sampler = ParentBased(TraceIdRatioBased(ratio))
        self._ids = RandomIdGenerator()
        self._callers = TraceContextTextMapPropagator()
        version = metadata.version("mien")
        self._scope = InstrumentationScope("mien", version)
        name = os.environ.get("OTEL_SERVICE_NAME", "mien")
        self._resource = Resource.create({"service.name": name, "service.version": version})
        self._batches: OrderedDict[int, SpanContext] = OrderedDict()

    def begin(
        self, method: str, request_id: str, metadata: Iterable[tuple[str, str | bytes]]
    ) -> "CallTrace | None":
        """The trace of a call that begins now, or None if it is not one to trace.

        Args:
            method: its path, /package.Service/Method.
            request_id: its name.
            metadata: what came with it; `traceparent` and `tracestate` (W3C) name its caller's span.
        """
        carrier = {
            key: value for key, value in metadata if key in _PARENT_KEYS and isinstance(value, str)
        }
        context = self._callers.extract(carrier, Context())
        parent = get_current_span(context).get_span_context()
        trace_id = parent.trace_id if parent.is_valid else self._ids.generate_trace_id()
        sampled = self._sampler.should_sample(context, trace_id, method)
        if sampled.decision is not Decision.RECORD_AND_SAMPLE:
            return None
        own = SpanContext(
            trace_id,
            self._ids.generate_span_id(),
            is_remote=False,
            trace_flags=TraceFlags(TraceFlags.SAMPLED),
            trace_state=sampled.trace_state,
        )
        return CallTrace(self, method, request_id, own, parent if parent.is_valid else None)

    def close(self) -> None:
        """Sends what is left, for CLOSE_SECONDS at most. Blocking."""
        # A collector that does not answer would hold it for longer.
        closing = threading.Thread(target=self._processor.shutdown, daemon=True)
        closing.start()
        closing.join(CLOSE_SECONDS)

    def ended(
        self,
        name: str,
        context: SpanContext,
        parent: SpanContext | None,
        times: tuple[int, int],
        attributes: Mapping[str, str | int],
        *,
        kind: SpanKind = SpanKind.INTERNAL,
        links: Sequence[Link] = (),
        failed: bool = False,
    ) -> None:
        """Hands on a span that is over.

        Args:
            times: its begin and its end, in nanoseconds since 1970.
            failed: whether the server is at fault.
        """
        self._processor.on_end(
            ReadableSpan(
                name,
                context,
                parent,
                self._resource,
                attributes,
                links=links,
                kind=kind,
                status=Status(StatusCode.ERROR if failed else StatusCode.UNSET),
                start_time=times[0],
                end_time=times[1],
                instrumentation_scope=self._scope,
            )
        )

    def child(self, parent: SpanContext) -> SpanContext:
        """The identity of a new span within another."""
        return SpanContext(
            parent.trace_id,
            self._ids.generate_span_id(),
            is_remote=False,
            trace_flags=parent.trace_flags,
            trace_state=parent.trace_state,
        )

    def links(self, batch: int, context: SpanContext) -> list[Link]:
        """To the span that was the first to end of those of this batch; none if it is that one."""
        first = self._batches.setdefault(batch, context)
        if first is not context:
            return [Link(first)]
        if len(self._batches) > _BATCHES:
            self._batches.popitem(last=False)
        return []


class CallTrace:
    """The trace of one call, from now on.

    Attributes:
        trace_id: as 32 hexadecimal digits.
    """

    def __init__(
        self,
        tracing: Tracing,
        method: str,
        request_id: str,
        context: SpanContext,
        parent: SpanContext | None,
    ) -> None:
        self.trace_id = format_trace_id(context.trace_id)
        self._tracing = tracing
        self._method = method.removeprefix("/")
        self._request_id = request_id
        self._context = context
        self._parent = parent
        # All of a call's times are those of one clock, whatever happens to the clock on the wall meanwhile.
        self._epoch = time.time_ns() - time.monotonic_ns()
        self._began = time.monotonic_ns()

    def add(self, stages: Iterable[StageTime]) -> None:
        """Makes spans of what is over of the call, of each stage that says when it began."""
        for stage in stages:
            if stage.began is None:
                continue
            context, links = self._tracing.child(self._context), []
            attributes: _Attributes = {}
            if stage.batch is not None:
                links = self._tracing.links(stage.batch, context)
                attributes["mien.batch.id"] = stage.batch
            if stage.batch_rows is not None:
                attributes["mien.batch.rows"] = stage.batch_rows
            if stage.model is not None:
                attributes["mien.model.name"] = stage.model.name
                attributes["mien.model.version"] = stage.model.version
                attributes["mien.model.fingerprint"] = stage.model.fingerprint
            start = self._epoch + round(stage.began * _NANOSECONDS)
            times = (start, start + round(stage.seconds * _NANOSECONDS))
            self._tracing.ended(stage.name, context, self._context, times, attributes, links=links)

    def end(self, code: str, reason: str) -> None:
        """Makes the span of the call itself.

        Args:
            code: the name of its status.
            reason: why it failed, as docs/errors.md has it, or "".
        """
        attributes: _Attributes = {
            "rpc.system.name": "grpc",
            "rpc.method": self._method,
            "rpc.response.status_code": code,
            "mien.request_id": self._request_id,
        }
        if reason:
            attributes["error.type"] = reason
        times = (self._epoch + self._began, self._epoch + time.monotonic_ns())
        self._tracing.ended(
            self._method,
            self._context,
            self._parent,
            times,
            attributes,
            kind=SpanKind.SERVER,
            failed=code in _FAULTS,
        )
