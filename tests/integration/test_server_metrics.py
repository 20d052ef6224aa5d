"""The metrics of a real server: from its start to its end, and what keeps them from being served."""

import re
import signal
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

import mien
from mien import cli
from tests.exposition import Exposition
from tools.local_server import LocalServer, ServerFailed

PAGE = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"
FACES = "mien.v1.FaceService"
Launch = Callable[..., AbstractContextManager[LocalServer]]
Start = Callable[..., tuple[int, str]]
Sample = Callable[[str], Path]


def scrape(url: str) -> Exposition:
    return Exposition(fetch(url))


def fetch(url: str) -> str:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=10) as response:
        return str(response.read().decode())


def settled(server: LocalServer) -> Exposition:
    """What a scrape tells once every call that has begun is counted to its end, which is after its answer."""
    give_up = time.monotonic() + 60
    while True:
        told = scrape(server.metrics_url)
        begun, ended = (
            sum(told.of(f"grpc_server_{name}_total", grpc_service=FACES).values())
            for name in ("started", "handled")
        )
        if begun == ended and told.one("mien_calls_in_progress") == 0:
            return told
        assert time.monotonic() < give_up
        time.sleep(0.01)


def grown(before: Exposition, after: Exposition, name: str, **labels: str) -> dict[Any, float]:
    """By how much the samples of this name have grown, by their other labels; without those that have not."""
    old = before.of(name, **labels)
    new = {key: value - old.get(key, 0) for key, value in after.of(name, **labels).items()}
    return {key: more for key, more in new.items() if more}


def test_metrics_count_what_callers_did(server: LocalServer, sample: Sample) -> None:
    before = settled(server)
    with mien.Client(server.address) as client:
        for _ in range(2):
            client.embed(sample("person_a_1"))
        client.detect(sample("person_a_2"))
        with pytest.raises(mien.InvalidRequest):
            client.detect(b"\xff\xd8\xff no photo")
    told = settled(server)
    of = {"grpc_service": FACES, "grpc_type": "unary"}
    assert grown(before, told, "grpc_server_handled_total", **of) == {
        ("OK", "Embed"): 2,
        ("OK", "Detect"): 1,
        ("INVALID_ARGUMENT", "Detect"): 1,
    }
    assert grown(before, told, "mien_errors_total", grpc_service=FACES) == {
        ("Detect", "INVALID_IMAGE"): 1
    }
    sface = {"model": "sface", "version": "1"}
    succeeded = {"outcome": "succeeded", **sface}
    assert grown(before, told, "mien_slot_requests_total", **succeeded) == {(): 2}
    assert grown(before, told, "nv_inference_request_success", **sface) == {(): 2}
    found = grown(before, told, "nv_inference_count", model="retinaface", version="1")
    assert found[()] >= 3
    assert grown(before, told, "mien_answer_faces_count") == {(): 3}
    assert grown(before, told, "mien_answer_faces_sum") == {(): 3}
    assert told.one("mien_ready") == 1
    assert told.one("mien_connections") >= 0
    assert told.one("mien_metrics_connections") == 1
    assert told.one("mien_decode_pending") == 0
    assert told.one("mien_call_bytes_in_progress") == 0
    assert told.one("process_resident_memory_bytes") > 1e8


def test_call_for_a_model_that_will_not_come_is_not_tried_again(
    server: LocalServer, sample: Sample
) -> None:
    before = settled(server)
    with (
        mien.Client(server.address) as client,
        pytest.raises(mien.ModelNotReady, match="has no weights"),
    ):
        client.detect(sample("person_a_1"), detector="mtcnn")
    told = settled(server)
    detects = {"grpc_method": "Detect", "grpc_type": "unary"}
    assert grown(before, told, "grpc_server_started_total", **detects) == {(FACES,): 1}


def test_metrics_page_lists_every_family_with_its_type(server: LocalServer) -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \|", PAGE.read_text("utf-8"), re.MULTILINE)
    told = scrape(server.metrics_url)
    assert dict(rows) == told.families()


@pytest.mark.long
def test_metrics_tell_of_the_drain(launch_server: Launch, sample: Sample) -> None:
    with launch_server("--lame-duck-secs", "2") as server, mien.Client(server.address) as client:
        assert scrape(server.metrics_url).one("mien_ready") == 1
        server.process.send_signal(signal.SIGTERM)
        while scrape(server.metrics_url).one("mien_ready"):
            assert server.process.poll() is None
        client.embed(sample("person_b_1"))
        told = scrape(server.metrics_url)
        assert told.one("nv_inference_request_success", model="sface", version="1") == 1
        assert server.process.wait(30) == 0
        with pytest.raises(urllib.error.URLError):
            scrape(server.metrics_url)


@pytest.mark.long
def test_scrapes_beside_calls_and_a_reload(explicit: LocalServer, sample: Sample) -> None:
    """Nothing that changes while it is read breaks a scrape, and counts only ever grow."""
    address = ["--address", explicit.address]
    with mien.Client(explicit.address) as client:
        done = threading.Event()

        def call() -> None:
            while not done.is_set():
                client.embed(sample("person_a_1"))

        callers = [threading.Thread(target=call) for _ in range(2)]
        for caller in callers:
            caller.start()
        try:
            seen = 0.0
            for turn in range(60):
                if turn % 20 == 10:
                    assert cli.main(["models", "load", "retinaface", *address]) == 0
                now = scrape(explicit.metrics_url).one(
                    "nv_inference_request_success", model="sface", version="1"
                )
                assert now >= seen
                seen = now
        finally:
            done.set()
            for caller in callers:
                caller.join()
    assert seen > 0
    assert "Traceback" not in explicit.log.read_text()


def test_readyz_follows_the_health_service_of_a_real_server(server: LocalServer) -> None:
    base = server.metrics_url.removesuffix("/metrics")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"{base}/readyz", timeout=10) as response:
        assert response.read() == b"ready\n"


def test_taken_port_ends_the_start_with_the_flags_to_use(
    model_repository_path: Path, refused_start: Start
) -> None:
    repository = ("--grpc-port", "0", "--model-repository", model_repository_path)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        status, said = refused_start(*repository, "--metrics-port", port)
    assert status == 1
    assert f"cannot serve metrics on 127.0.0.1 port {port}: Address already in use" in said
    for name in (
        "--metrics-port (MIEN_METRICS_PORT)",
        "--allow-metrics (MIEN_ALLOW_METRICS) false",
    ):
        assert name in said
    assert "Traceback" not in said


def test_address_that_is_not_this_machine_s_ends_the_start(
    model_repository_path: Path, refused_start: Start
) -> None:
    flags = ("--metrics-address", "203.0.113.1", "--model-repository", model_repository_path)
    status, said = refused_start("--grpc-port", "0", *flags)
    assert status == 1
    assert "--metrics-address (MIEN_METRICS_ADDRESS)" in said
    assert "Traceback" not in said


def test_metrics_can_listen_elsewhere(unusual: LocalServer) -> None:
    assert unusual.metrics_url.startswith("http://127.0.0.2:")
    assert scrape(unusual.metrics_url).one("mien_ready") == 1


def test_server_does_without_metrics(launch_server: Launch) -> None:
    flags = ("--model-control-mode", "explicit", "--allow-metrics", "false", "--metrics-port", "1")
    with launch_server(*flags) as server, pytest.raises(ServerFailed, match="no metrics"):
        _ = server.metrics_url
