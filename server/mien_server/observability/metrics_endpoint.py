"""GET /metrics over HTTP, for Prometheus, on a port of its own as Triton's, with /healthz and /readyz."""

import errno
import logging
import math
import re
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from ipaddress import IPv4Address, IPv6Address
from typing import Any
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics

from mien_server.observability.call_metrics import watch
from mien_server.threads import Threads

logger = logging.getLogger(__name__)

PATH = "/metrics"
_POLL_SECONDS = 0.1
_PAUSE_SECONDS, _COMPLAIN_SECONDS = 0.5, 60.0
_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}

OPENMETRICS = "application/openmetrics-text"

# OpenMetrics, whose rules prometheus_client applies to Prometheus' own format too, wants counters to end
# in _total. Triton's do not, and dashboards know them as they are.
_TRITONS_TOTAL = re.compile(rb"^((?:# (?:HELP|TYPE) )?nv_\w+)_total(?=[ {])", re.MULTILINE)
_TRITONS_COUNTER = re.compile(rb"^(# TYPE nv_\w+) counter$", re.MULTILINE)


def exposition(registry: CollectorRegistry, accept: str = "") -> tuple[bytes, str]:
    """All metrics, and the type of the content.

    Args:
        accept: what the reader takes, as the header says. In OpenMetrics, which has traces of calls as
            examples, Triton's counters are of no known type; every name is the same in both formats.
    """
    if OPENMETRICS not in accept:
        return _TRITONS_TOTAL.sub(rb"\1", generate_latest(registry)), CONTENT_TYPE_PLAIN_0_0_4
    text = openmetrics.generate_latest(registry)  # type: ignore[no-untyped-call]
    text = _TRITONS_TOTAL.sub(rb"\1", text)
    return _TRITONS_COUNTER.sub(rb"\1 unknown", text), openmetrics.CONTENT_TYPE_LATEST


class MetricsEndpoint:
    """Serves a registry's metrics from threads of its own, as soon as it is made.

    Args:
        registry: what to serve.
        address: the IP address to listen on.
        port: the TCP port; 0 takes any free one.
        threads: keeps the thread alive that listens.
        unready: what keeps the server from being ready; empty if it is.
        max_connections: at the same time; each has a thread, and more are closed unanswered.
        idle: seconds after which a connection is closed that sends or takes nothing.

    Attributes:
        url: of the metrics.

    Raises:
        OSError: it cannot listen there.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        address: IPv4Address | IPv6Address,
        port: int,
        threads: Threads,
        unready: Callable[[], Mapping[str, str]] = dict,
        *,
        max_connections: int = 8,
        idle: float = 10.0,
    ) -> None:
        kind = _Server6 if address.version == 6 else _Server
        handler = partial(_Handler, registry, unready, idle)
        self._server = kind(max_connections, (str(address), port), handler)
        watch(
            registry,
            "mien_metrics_connections",
            "Connections of the metrics port; each has a thread.",
            lambda: self._server.connections,
        )
        host = f"[{address}]" if address.version == 6 else str(address)
        self.url = f"http://{host}:{self._server.server_address[1]}{PATH}"
        self._thread = threads.start(
            "mien-metrics", partial(self._server.serve_forever, _POLL_SECONDS)
        )

    def close(self) -> None:
        """Stops to listen."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Server(socketserver.ThreadingTCPServer):
    # Not http.server's own class, which asks the name service who it is, and may wait for it.
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 32

    def __init__(self, max_connections: int, *arguments: Any) -> None:
        self.connections = 0
        self._max_connections = max_connections
        self._lock = threading.Lock()
        self._complained = -math.inf
        super().__init__(*arguments)

    def get_request(self) -> tuple[Any, Any]:
        """Takes the next connection.

        Raises:
            OSError: there is none, or no file descriptor for it; it then waits on, and so does the thread,
                which would else be told of it without end.
        """
        try:
            return super().get_request()
        except OSError as error:
            if error.errno in _EXHAUSTED:
                now = time.monotonic()
                if now - self._complained >= _COMPLAIN_SECONDS:
                    self._complained = now
                    logger.error(  # noqa: TRY400 - it says no more with a traceback
                        "metrics cannot be served now: %s", error.strerror
                    )
                time.sleep(_PAUSE_SECONDS)
            raise

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Takes a connection unless there are too many."""
        del request, client_address
        with self._lock:
            free = self.connections < self._max_connections
            self.connections += free
        return free

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answers one connection, on a thread of its own."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._lock:
                self.connections -= 1

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Logs what socketserver would print."""
        del request
        gone = isinstance(sys.exception(), ConnectionError)
        level = logging.DEBUG if gone else logging.ERROR
        logger.log(level, "metrics not sent", exc_info=not gone, extra={"to": client_address[0]})


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Handler(BaseHTTPRequestHandler):
    def __init__(
        self,
        registry: CollectorRegistry,
        unready: Callable[[], Mapping[str, str]],
        idle: float,
        *connection: Any,
    ) -> None:
        self._registry = registry
        self._unready = unready
        self._idle = idle
        super().__init__(*connection)

    def setup(self) -> None:
        """Limits the connection's silence."""
        self.request.settimeout(self._idle)
        super().setup()

    def do_GET(self) -> None:
        """Answers with the metrics, with how the server is, or with what there is."""
        status, kind = HTTPStatus.OK, "text/plain; charset=utf-8"
        match urlsplit(self.path).path:
            case "/metrics":
                body, kind = exposition(self._registry, self.headers.get("Accept", ""))
            case "/healthz":
                body = b"alive\n"
            case "/readyz":
                reasons = self._unready()
                status = HTTPStatus.SERVICE_UNAVAILABLE if reasons else HTTPStatus.OK
                lines = [f"{name}: {reason}" for name, reason in reasons.items()] or ["ready"]
                body = ("\n".join(lines) + "\n").encode()
            case _:
                there = "There is only /metrics, /healthz and /readyz here"
                self.send_error(HTTPStatus.NOT_FOUND, explain=there)
                return
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Every scrape is a debug line, not one on standard error."""
        logger.debug(format, *args, extra={"to": self.client_address[0]})
