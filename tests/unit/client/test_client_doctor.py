"""`mien doctor`: what it finds on servers that are well and on those that are not."""

import importlib.metadata
import json
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from google.rpc import error_details_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from mien.v1 import face_pb2 as pb
from tests.unit.client.conftest import Peer

Run = Callable[..., tuple[int, str, str]]
HERE = importlib.metadata.version("mien")
TIMING = ("server-timing", "decode;dur=3.1, total;dur=10.0")


class Looks(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """What a server says of itself."""

    version = HERE
    states: tuple[tuple[str, str, str], ...] = (("sface", "READY", ""),)
    refusal: grpc.StatusCode | None = None

    def RepositoryIndex(self, request: Any, context: Any) -> Any:  # noqa: N802
        if self.refusal is not None:
            context.abort(self.refusal, "not you")
        index = service_pb2.RepositoryIndexResponse()
        for name, state, reason in self.states:
            index.models.add(name=name, version="1", state=state, reason=reason)
        return index

    def ServerMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        if self.refusal is not None:
            context.abort(self.refusal, "not you")
        return service_pb2.ServerMetadataResponse(name="mien", version=self.version)


def well(clock: float = 0.0) -> Callable[[Any, Any], Any]:
    def act(request: Any, context: Any) -> Any:
        context.set_trailing_metadata((TIMING, ("mien-clock", f"{time.time() + clock:.3f}")))
        return pb.DetectResponse()

    return act


@pytest.fixture
def looks() -> Looks:
    return Looks()


@pytest.fixture
def state() -> health.HealthServicer:
    servicer = health.HealthServicer()
    servicer.set("", health_pb2.HealthCheckResponse.SERVING)
    return servicer


@pytest.fixture
def peer(looks: Looks, state: health.HealthServicer) -> Iterator[Peer]:
    scripted = Peer(
        services=[
            lambda server: health_pb2_grpc.add_HealthServicer_to_server(state, server),
            lambda server: service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(
                looks, server
            ),
        ],
    )
    scripted.script.append(well())
    scripted.start()
    yield scripted
    scripted.stop()


def findings(run: Run, *arguments: object) -> tuple[int, dict[str, dict[str, str]]]:
    status, output, errors = run("doctor", "--json", *arguments)
    assert errors == ""
    return status, {finding["check"]: finding for finding in json.loads(output)["findings"]}


def test_a_healthy_server_has_only_good_findings(run: Run, peer: Any) -> None:
    status, found = findings(run)
    assert status == 0
    assert {finding["state"] for finding in found.values()} == {"ok"}
    assert ", ".join(found) == (
        "client, address, tls, health, round trip, server, models, detect, clock"
    )
    assert f"{peer.address} (MIEN_ADDRESS)" in found["address"]["message"]
    assert f"mien {HERE}" in found["server"]["message"]
    assert found["models"]["message"] == "ready: sface 1"
    assert "10.0 of it in the server" in found["detect"]["message"]
    [received] = peer.received
    assert (received.request.image.pixels.width, received.request.image.pixels.height) == (320, 320)


def test_it_prints_a_line_each_and_the_stages(run: Run, peer: Any) -> None:
    status, output, _ = run("doctor")
    assert status == 0
    assert f"\nok      address     {peer.address} (MIEN_ADDRESS): 127.0.0.1 connected in " in output
    assert output.endswith("\n\nstage      ms  batch\ndecode   3.10\ntotal   10.00\n")


def test_a_server_that_is_not_ready_has_failed_and_its_models_say_why(
    run: Run, state: health.HealthServicer, looks: Looks
) -> None:
    state.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    looks.states = (("sface", "LOADING", ""), ("arcface", "UNAVAILABLE", "no weights"))
    status, output, _ = run("doctor")
    assert status == 1
    assert "\nfailed  health      NOT_SERVING" in output
    assert "\nfailed  models      none is ready\n" in output
    assert "\nwarning models      sface 1 is LOADING\n" in output
    assert "\nwarning models      arcface 1 is UNAVAILABLE: no weights\n" in output


def test_another_version_and_another_clock_are_warnings(run: Run, peer: Any, looks: Looks) -> None:
    looks.version = "0.0.1"
    peer.script[0] = well(clock=-90)
    status, found = findings(run)
    assert status == 0
    assert found["server"]["state"] == found["clock"]["state"] == "warning"
    assert f"mien 0.0.1, and {HERE} here" in found["server"]["message"]
    assert "-90." in found["clock"]["message"] or "-89." in found["clock"]["message"]
    assert "NTP" in found["clock"]["advice"]


def test_a_missing_role_is_skipped_over(run: Run, looks: Looks) -> None:
    looks.refusal = grpc.StatusCode.PERMISSION_DENIED
    status, found = findings(run)
    assert status == 0
    assert found["server"]["state"] == found["models"]["state"] == "skipped"
    assert found["detect"]["state"] == "ok"


def test_missing_credentials_are_told_once(run: Run, looks: Looks) -> None:
    looks.refusal = grpc.StatusCode.UNAUTHENTICATED
    status, found = findings(run)
    assert status == 1
    assert list(found)[-1] == "credentials"
    assert found["credentials"]["state"] == "failed"
    assert "--api-key-file" in found["credentials"]["advice"]
    assert "models" not in found


def test_a_call_that_fails_is_a_finding(run: Run, peer: Any) -> None:
    peer.script.clear()
    info = error_details_pb2.ErrorInfo(reason="MODEL_NOT_READY", domain="mien")
    peer.refuses(grpc.StatusCode.UNAVAILABLE, "loading", info, times=9)
    status, found = findings(run)
    assert status == 1
    assert found["detect"] == {
        "check": "detect",
        "state": "failed",
        "message": "loading [MODEL_NOT_READY, Detect]",
        "advice": "",
    }
    assert "clock" not in found


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("127.0.0.1:1", "Connection refused"),
        ("no.such.host.invalid:1", "the name is not known"),
        ("unix:/no/such/mien.sock", "no socket is there"),
    ],
)
def test_an_address_where_nobody_is_ends_it(run: Run, address: str, said: str) -> None:
    status, found = findings(run, "--address", address)
    assert status == 1
    assert found["address"]["state"] == "failed"
    assert f"{address} (--address)" in found["address"]["message"]
    assert said in found["address"]["message"]
    assert found["address"]["advice"]
    assert "health" not in found


def test_tls_to_a_server_in_plain_text_is_the_finding(run: Run) -> None:
    status, found = findings(run, "--tls")
    assert status == 1
    assert found["tls"]["state"] == "failed"
    assert "does not speak TLS" in found["tls"]["message"]
    assert list(found) == ["client", "address", "tls"]


def test_a_certificate_that_ends_soon_is_a_warning(
    run: Run, certificate: Path, authority: trustme.CA, state: health.HealthServicer
) -> None:
    for days, verdict in ((40, "ok"), (3, "warning")):
        ends = datetime.now(UTC) + timedelta(days=days, hours=1)
        signed = authority.issue_cert("127.0.0.1", not_after=ends)
        pair = signed.private_key_pem.bytes(), signed.cert_chain_pems[0].bytes()
        peer = Peer(
            credentials=grpc.ssl_server_credentials([pair]),
            services=[lambda server: health_pb2_grpc.add_HealthServicer_to_server(state, server)],
        )
        peer.start()
        try:
            _, found = findings(run, "--address", peer.address, "--tls-ca", certificate)
        finally:
            peer.stop()
        assert found["tls"]["state"] == verdict
        assert f"ends in {days} days" in found["tls"]["message"]


def test_a_proxy_between_is_told(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    _, found = findings(run, "--address", "no.such.host.invalid:1")
    assert found["proxy"]["state"] == "warning"
    assert found["proxy"]["advice"].endswith("export no_proxy=no.such.host.invalid")
    assert "proxy" not in findings(run, "--address", "127.0.0.1:1")[1]
