"""The metrics of a real server: from its start to its end, and what keeps them from being served."""

import os
import re
import signal
import socket
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

import mien
from tests.exposition import Exposition
from tools.local_server import PROGRAM, LocalServer, ServerFailed

PAGE = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"
FACES = "mien.v1.FaceService"
Launch = Callable[..., AbstractContextManager[LocalServer]]
Sample = Callable[[str], Path]


def scrape(url: str) -> Exposition:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=10) as response:
        return Exposition(response.read().decode())


def start(*flags: str | Path) -> subprocess.CompletedProcess[str]:
    """Runs a server that cannot start."""
    return subprocess.run(
        [PROGRAM, "serve", *flags],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={key: value for key, value in os.environ.items() if key[:5] != "MIEN_"},
    )


def test_metrics_count_what_callers_did(launch_server: Launch, sample: Sample) -> None:
    with launch_server() as server, mien.Client(server.address) as client:
        for _ in range(2):
            client.embed(sample("person_a_1"))
        client.detect(sample("person_a_2"))
        with pytest.raises(mien.InvalidRequest):
            client.detect(b"\xff\xd8\xff no photo")
        told = scrape(server.metrics_url)
    of = {"grpc_service": FACES, "grpc_type": "unary"}
    assert told.of("grpc_server_handled_total", **of) == {
        ("OK", "Embed"): 2,
        ("OK", "Detect"): 1,
        ("INVALID_ARGUMENT", "Detect"): 1,
    }
    assert told.of("mien_errors_total", grpc_service=FACES) == {("Detect", "INVALID_IMAGE"): 1}
    succeeded = {"outcome": "succeeded", "version": "1"}
    assert told.one("mien_slot_requests_total", model="sface", **succeeded) == 2
    assert told.one("nv_inference_request_success", model="sface", version="1") == 2
    assert told.one("nv_inference_count", model="retinaface", version="1") >= 3
    assert told.one("mien_ready") == 1
    assert told.one("mien_calls_in_progress") == told.one("mien_decode_pending") == 0
    assert told.one("mien_call_bytes_in_progress") == 0
    assert told.one("process_resident_memory_bytes") > 1e8


def test_call_for_a_model_that_will_not_come_is_not_tried_again(
    launch_server: Launch, sample: Sample
) -> None:
    with launch_server() as server, mien.Client(server.address) as client:
        with pytest.raises(mien.ModelNotReady, match="has no weights"):
            client.detect(sample("person_a_1"), detector="mtcnn")
        told = scrape(server.metrics_url)
    assert told.of("grpc_server_started_total", grpc_method="Detect", grpc_type="unary") == {
        (FACES,): 1
    }


def test_metrics_page_lists_every_family_with_its_type(server: LocalServer) -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \|", PAGE.read_text("utf-8"), re.MULTILINE)
    told = scrape(server.metrics_url)
    assert dict(rows) == told.families()


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


def test_scrapes_beside_calls_and_a_reload(launch_server: Launch, sample: Sample) -> None:
    """Nothing that changes while it is read breaks a scrape, and counts only ever grow."""
    flags = ("--model-control-mode", "explicit", "--load-model", "*")
    with launch_server(*flags) as server, mien.Client(server.address) as client:
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
                    mien_models(server.address, "load", "retinaface")
                now = scrape(server.metrics_url).one(
                    "nv_inference_request_success", model="sface", version="1"
                )
                assert now >= seen
                seen = now
        finally:
            done.set()
            for caller in callers:
                caller.join()
    assert seen > 0
    assert "Traceback" not in server.log.read_text()


def mien_models(address: str, *arguments: str) -> None:
    subprocess.run(
        [PROGRAM.with_name("mien"), "models", *arguments, "--address", address],
        check=True,
        capture_output=True,
        timeout=60,
    )


def test_taken_port_ends_the_start_with_the_flags_to_use(model_repository_path: Path) -> None:
    repository = ("--grpc-port", "0", "--model-repository", model_repository_path)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        done = start(*repository, "--metrics-port", port)
    assert done.returncode == 1
    assert f"cannot serve metrics on 127.0.0.1 port {port}: Address already in use" in done.stderr
    for name in (
        "--metrics-port (MIEN_METRICS_PORT)",
        "--allow-metrics (MIEN_ALLOW_METRICS) false",
    ):
        assert name in done.stderr
    assert "Traceback" not in done.stderr


def test_address_that_is_not_this_machine_s_ends_the_start(model_repository_path: Path) -> None:
    flags = ("--metrics-address", "203.0.113.1", "--model-repository", model_repository_path)
    done = start("--grpc-port", "0", *flags)
    assert done.returncode == 1
    assert "--metrics-address (MIEN_METRICS_ADDRESS)" in done.stderr
    assert "Traceback" not in done.stderr


def test_metrics_can_listen_elsewhere(launch_server: Launch) -> None:
    with launch_server("--metrics-address", "127.0.0.2") as server:
        assert server.metrics_url.startswith("http://127.0.0.2:")
        assert scrape(server.metrics_url).one("mien_ready") == 1


def test_server_does_without_metrics(launch_server: Launch) -> None:
    flags = ("--allow-metrics", "false", "--metrics-port", "1")
    with launch_server(*flags) as server, pytest.raises(ServerFailed, match="no metrics"):
        _ = server.metrics_url
