"""The HTTP side of the metrics: the format, what else is asked for, and peers that misbehave."""

import http.client
import logging
import os
import re
import resource
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import IPv4Address, IPv6Address

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from mien_server.observability.call_metrics import UNARY, CallMetrics
from mien_server.observability.metrics_endpoint import (
    MetricsEndpoint,
    exposition,
)
from mien_server.threads import Threads
from tests.exposition import Exposition

LOOPBACK = IPv4Address("127.0.0.1")


@pytest.fixture
def registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    Counter("apples", "Some.", ("kind",), registry=registry).labels("nv_red_total").inc(3)
    Counter("nv_inference_count", "Rows.", ("model",), registry=registry).labels("m").inc(2)
    Counter("nv_plain", "No labels.", registry=registry).inc()
    Gauge("pears", "Some.", registry=registry).set(0.5)
    return registry


@pytest.fixture
def endpoint(registry: CollectorRegistry) -> Iterator[MetricsEndpoint]:
    endpoint = MetricsEndpoint(registry, LOOPBACK, 0, Threads())
    yield endpoint
    endpoint.close()


def get(url: str | urllib.request.Request) -> http.client.HTTPResponse:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    response: http.client.HTTPResponse = opener.open(url, timeout=10)
    return response


def port_of(endpoint: MetricsEndpoint) -> int:
    return int(endpoint.url.removesuffix("/metrics").rpartition(":")[2])


def test_triton_s_counters_keep_their_names_and_are_counters(registry: CollectorRegistry) -> None:
    lines = exposition(registry)[0].decode().splitlines()
    assert "# HELP nv_inference_count Rows." in lines
    assert "# TYPE nv_inference_count counter" in lines
    assert 'nv_inference_count{model="m"} 2.0' in lines
    assert "nv_plain 1.0" in lines
    assert "# TYPE apples_total counter" in lines
    assert 'apples_total{kind="nv_red_total"} 3.0' in lines


def test_openmetrics_has_the_same_names_and_traces_as_examples(
    registry: CollectorRegistry, endpoint: MetricsEndpoint
) -> None:
    calls = CallMetrics(registry)
    calls.handled(UNARY, "/mien.v1.FaceService/Embed", "OK", 0.04, trace_id="0af7651916cd43dd")
    calls.handled(UNARY, "/mien.v1.FaceService/Embed", "OK", 0.4)
    # As Prometheus asks.
    accept = (
        "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.1"
    )
    asked = urllib.request.Request(endpoint.url, headers={"Accept": accept})  # noqa: S310
    with get(asked) as response:
        assert response.headers["Content-Type"].startswith(
            "application/openmetrics-text; version=1.0.0"
        )
        text = response.read().decode()
    read = text_string_to_metric_families(text)  # type: ignore[no-untyped-call]
    families = {family.name: family for family in read}
    assert families["nv_inference_count"].type == "unknown"
    buckets = families["grpc_server_handling_seconds"].samples
    examples = {s.labels["le"]: s.exemplar.labels for s in buckets if s.exemplar}
    assert examples == {"0.05": {"trace_id": "0af7651916cd43dd"}}
    with get(endpoint.url) as response:
        plain = response.read().decode()
    assert "trace_id" not in plain

    def names(text: str) -> set[str]:
        lines = [line for line in text.splitlines() if not line.startswith("#")]
        return {re.split("[ {]", line)[0] for line in lines}

    assert names(plain) == names(text)


def test_get_answers_with_all_metrics(endpoint: MetricsEndpoint) -> None:
    for url in (endpoint.url, f"{endpoint.url}?name%5B%5D=pears"):
        with get(url) as response:
            assert response.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
            assert Exposition(response.read().decode()).one("pears") == 0.5


@pytest.mark.parametrize("path", ["", "/", "/metricsx", "/../metrics", "/metrics/"])
def test_other_path_is_told_where_the_metrics_are(endpoint: MetricsEndpoint, path: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        get(endpoint.url.removesuffix("/metrics") + path)
    with caught.value as error:
        assert error.code == 404
        assert b"There is only /metrics, /healthz and /readyz here" in error.read()


def test_readyz_says_what_keeps_the_server_from_being_ready_and_healthz_that_it_lives(
    registry: CollectorRegistry,
) -> None:
    unready = {"sface": "version 1: no such file", "thread mien-deadlines": "died"}
    endpoint = MetricsEndpoint(registry, LOOPBACK, 0, Threads(), lambda: unready)
    base = endpoint.url.removesuffix("/metrics")
    with pytest.raises(urllib.error.HTTPError) as caught:
        get(f"{base}/readyz")
    with caught.value as error:
        assert error.code == 503
        assert error.read().decode() == (
            "sface: version 1: no such file\nthread mien-deadlines: died\n"
        )
    with get(f"{base}/healthz") as response:
        assert response.read() == b"alive\n"
    unready.clear()
    with get(f"{base}/readyz?verbose") as response:
        assert response.read() == b"ready\n"
    endpoint.close()


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_other_methods_are_refused(endpoint: MetricsEndpoint, method: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port_of(endpoint), timeout=10)
    connection.request(method, "/metrics")
    assert connection.getresponse().status == 501
    connection.close()


def test_ipv6() -> None:
    endpoint = MetricsEndpoint(CollectorRegistry(), IPv6Address("::1"), 0, Threads())
    assert endpoint.url.startswith("http://[::1]:")
    with get(endpoint.url) as response:
        assert b"mien_metrics_connections 1.0" in response.read()
    endpoint.close()


def test_taken_port_is_an_error_and_a_closed_one_is_free(endpoint: MetricsEndpoint) -> None:
    port = port_of(endpoint)
    with pytest.raises(OSError, match="Address already in use"):
        MetricsEndpoint(CollectorRegistry(), LOOPBACK, port, Threads())
    with get(endpoint.url) as response:
        response.read()
    endpoint.close()
    MetricsEndpoint(CollectorRegistry(), LOOPBACK, port, Threads()).close()


def test_silent_connections_do_not_keep_scrapes_away(registry: CollectorRegistry) -> None:
    most = 3
    endpoint = MetricsEndpoint(registry, LOOPBACK, 0, Threads(), max_connections=most, idle=0.5)
    address = ("127.0.0.1", port_of(endpoint))
    with ExitStack() as stack:
        silent = [stack.enter_context(socket.create_connection(address)) for _ in range(20)]
        silent[0].sendall(b"GET /met")
        # At most so many have a thread; what comes on top is closed at once, these when their time is up.
        closed_at_once = 0
        for connection in silent[most:]:
            connection.settimeout(10)
            closed_at_once += connection.recv(1) == b""
        assert closed_at_once == len(silent) - most
        deadline = time.monotonic() + 10
        while True:
            try:
                with get(endpoint.url) as response:
                    assert b"pears" in response.read()
                break
            except (urllib.error.URLError, http.client.HTTPException, ConnectionError):
                assert time.monotonic() < deadline
    endpoint.close()


def test_scrape_that_finds_no_descriptor_free_waits_without_taking_a_core(
    endpoint: MetricsEndpoint, caplog: pytest.LogCaptureFixture
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    scrape = socket.socket()
    scrape.settimeout(30)
    lowest_free = os.dup(scrape.fileno())
    os.close(lowest_free)
    # The scrape has its descriptor, and the server gets none for its end.
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
    try:
        scrape.connect(("127.0.0.1", port_of(endpoint)))
        scrape.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        worked = time.process_time()
        time.sleep(1.2)
        worked = time.process_time() - worked
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    with scrape, scrape.makefile("rb") as answer:
        assert b"200 OK" in answer.readline()
    assert worked < 0.5
    (line,) = [each for each in caplog.records if "cannot be served now" in each.getMessage()]
    assert "Too many open files" in line.getMessage()


def test_failing_collector_is_logged_and_the_next_scrape_goes_on(
    registry: CollectorRegistry, endpoint: MetricsEndpoint, caplog: pytest.LogCaptureFixture
) -> None:
    broken = [True]

    def read() -> float:
        if broken:
            raise RuntimeError("no such value")
        return 7

    Gauge("fragile", "Breaks.", registry=registry).set_function(read)
    with pytest.raises(http.client.RemoteDisconnected):
        get(endpoint.url)
    broken.clear()
    with get(endpoint.url) as response:
        assert Exposition(response.read().decode()).one("fragile") == 7
    (record,) = [each for each in caplog.records if each.levelno >= logging.ERROR]
    assert "no such value" in str(record.exc_info and record.exc_info[1])


def test_peer_that_leaves_early_is_no_error(
    registry: CollectorRegistry, endpoint: MetricsEndpoint, caplog: pytest.LogCaptureFixture
) -> None:
    large = Gauge("large", "Fills the socket's buffers.", ("n",), registry=registry)
    for n in range(80):
        large.labels(f"{n}" * 100_000).set(1)
    with socket.create_connection(("127.0.0.1", port_of(endpoint))) as peer:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # closing resets
        peer.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        peer.recv(1)
    with get(endpoint.url) as response:
        assert b"large" in response.read()
    assert not [each for each in caplog.records if each.levelno > logging.DEBUG]
