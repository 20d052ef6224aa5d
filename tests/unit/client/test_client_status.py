"""Whether a server is ready, and which models it has, by both clients."""

import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

import mien
from tests.unit.client.conftest import Peer

Call = Callable[..., Any]
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Models(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    def RepositoryIndex(self, request: Any, context: Any) -> Any:  # noqa: N802
        index = service_pb2.RepositoryIndexResponse()
        index.models.add(name="sface", version="2", state="READY")
        index.models.add(name="arcface", version="", state="UNAVAILABLE", reason="no weights")
        return index


@pytest.fixture
def state() -> health.HealthServicer:
    servicer = health.HealthServicer()
    servicer.set("", SERVING)
    return servicer


@pytest.fixture
def peer(state: health.HealthServicer) -> Iterator[Peer]:
    scripted = Peer(
        services=[
            lambda server: health_pb2_grpc.add_HealthServicer_to_server(state, server),
            lambda server: service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(
                Models(), server
            ),
        ]
    )
    scripted.start()
    yield scripted
    scripted.stop()


@pytest.fixture
def free_address() -> str:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{bound.getsockname()[1]}"


def test_ready_is_what_health_says(call: Call, state: health.HealthServicer) -> None:
    assert call("ready") is True
    state.set("", NOT_SERVING)
    assert call("ready") is False


def test_who_is_not_there_is_not_ready(call: Call, free_address: str) -> None:
    assert call("ready", address=free_address) is False


def test_a_server_in_plain_text_will_never_be_ready_over_tls(call: Call) -> None:
    for method in ("ready", "wait_ready"):
        with pytest.raises(mien.Unavailable) as caught:
            call(method, credentials=grpc.ssl_channel_credentials())
        assert caught.value.reason == "TLS_FAILED"


def test_waiting_ends_once_the_server_is_ready(call: Call, state: health.HealthServicer) -> None:
    state.set("", NOT_SERVING)
    timer = threading.Timer(0.3, state.set, ("", SERVING))
    timer.start()
    assert call("wait_ready", timeout=30) is None
    assert timer.finished.is_set()


def test_waiting_for_a_server_that_is_still_to_start(call: Call, free_address: str) -> None:
    servicer = health.HealthServicer()
    servicer.set("", SERVING)
    late = Peer(
        address=free_address,
        services=[lambda server: health_pb2_grpc.add_HealthServicer_to_server(servicer, server)],
    )
    timer = threading.Timer(0.3, late.start)
    timer.start()
    try:
        call("wait_ready", timeout=30, address=free_address)
    finally:
        timer.join()
        late.stop()


def test_waiting_in_vain_says_what_was_the_matter(
    call: Call, state: health.HealthServicer, free_address: str
) -> None:
    state.set("", NOT_SERVING)
    with pytest.raises(mien.Unavailable, match=r"not ready within 0\.2 s: it is loading") as caught:
        call("wait_ready", timeout=0.2)
    assert caught.value.reason == "SERVER_NOT_READY"
    with pytest.raises(mien.Unavailable, match=r"within 0\.2 s: no mien server can be reached"):
        call("wait_ready", timeout=0.2, address=free_address)


def test_models_are_those_of_the_index(call: Call) -> None:
    assert call("models") == (
        mien.ModelStatus("sface", 2, "READY", ""),
        mien.ModelStatus("arcface", None, "UNAVAILABLE", "no weights"),
    )


@pytest.mark.parametrize("method", ["ready", "wait_ready", "models"])
def test_another_grpc_server_is_told(call: Call, method: str) -> None:
    other = Peer()
    other.start()
    try:
        with pytest.raises(mien.WrongServer):
            call(method, address=other.address)
    finally:
        other.stop()
