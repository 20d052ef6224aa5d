"""What calls of the gRPC services come to, for Prometheus.

grpc_server_* and their labels are those that gRPC's Prometheus interceptors have agreed on
(go-grpc-middleware, providers/prometheus), so that dashboards made for them work.
"""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

UNARY = "unary"
STREAM = "bidi_stream"

_BOUNDS = (
    0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0, 60.0,
)  # fmt: skip
"""Upper bounds of the buckets of a call's duration, in seconds: dense where face calls lie."""

_FACES_BOUNDS = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


class CallMetrics:
    """Counts calls. Safe for threads.

    Args:
        registry: where its metrics are registered; once per registry.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        method = ("grpc_type", "grpc_service", "grpc_method")
        self._started = Counter(
            "grpc_server_started", "Calls that came in.", method, registry=registry
        )
        self._handled = Counter(
            "grpc_server_handled",
            "Calls that ended, by status code.",
            (*method, "grpc_code"),
            registry=registry,
        )
        self._seconds = Histogram(
            "grpc_server_handling_seconds",
            "How long calls took, however they ended.",
            method,
            buckets=_BOUNDS,
            registry=registry,
        )
        self._errors = Counter(
            "mien_errors",
            "Calls, and requests of streams, answered with an error, by its reason: docs/errors.md.",
            ("grpc_service", "grpc_method", "reason"),
            registry=registry,
        )

        self._faces = Histogram(
            "mien_answer_faces",
            "Faces in an answer of Detect, Embed or Analyze.",
            buckets=_FACES_BOUNDS,
            registry=registry,
        )

    def started(self, kind: str, path: str) -> None:
        """Counts a call that came in.

        Args:
            kind: UNARY or STREAM.
            path: of the method, /package.Service/Method; one that is served, not what a caller makes up.
        """
        self._started.labels(kind, *_split(path)).inc()

    def handled(
        self, kind: str, path: str, code: str, seconds: float, *, trace_id: str = ""
    ) -> None:
        """Counts a call that ended, with the name of its status code, and how long it took.

        Args:
            trace_id: of the call's trace, which becomes the example of its bucket; "": there is none.
        """
        self._handled.labels(kind, *_split(path), code).inc()
        example = {"trace_id": trace_id} if trace_id else None
        self._seconds.labels(kind, *_split(path)).observe(seconds, example)

    def failed(self, path: str, reason: str) -> None:
        """Counts a call, or a request of a stream, that is answered with an error."""
        self._errors.labels(*_split(path), reason).inc()

    def faces(self, count: int) -> None:
        """Counts an answer with so many faces."""
        self._faces.observe(count)


def watch(registry: CollectorRegistry, name: str, what: str, read: Callable[[], float]) -> None:
    """Registers a gauge that is read at each scrape, on the scraping thread."""
    Gauge(name, what, registry=registry).set_function(read)


def _split(path: str) -> tuple[str, str]:
    service, _, method = path.removeprefix("/").partition("/")
    return service, method
