"""The real server as a process: start, refusals to start, readiness, draining, exit."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from mien.v1 import face_pb2, face_pb2_grpc
from tests.commands import run_mien_server
from tools.local_server import LocalServer, ServerFailed

BIN = Path(sys.executable).parent
CLEAN_ENVIRONMENT = {key: value for key, value in os.environ.items() if key[:5] != "MIEN_"}
ANY_PORTS = ("--grpc-port", "0", "--metrics-port", "0")
Launch = Callable[..., AbstractContextManager[Any]]
Start = Callable[..., tuple[int, str]]
Sample = Callable[[str], Path]


def mien_server(*arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs one command of `mien-server` to its end."""
    return subprocess.run(
        [BIN / "mien-server", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=CLEAN_ENVIRONMENT | variables,
    )


@contextmanager
def listening(address: str) -> Iterator[int]:
    with socket.create_server((address, 0)) as listener:
        yield listener.getsockname()[1]


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"])  # noqa: S104
def test_taken_port_ends_the_start_with_the_flag_to_use(
    address: str, model_repository_path: Path, refused_start: Start
) -> None:
    with listening(address) as port:
        status, said = refused_start(
            "--grpc-port", str(port), "--model-repository", model_repository_path
        )
    assert status == 1
    assert f"127.0.0.1:{port}: Address already in use" in said
    assert "--grpc-port (MIEN_GRPC_PORT)" in said
    assert "Traceback" not in said


def test_repository_without_weights_ends_the_start_with_the_command_to_run(
    tmp_path: Path,
) -> None:
    shipped = Path(__file__).resolve().parents[2] / "model_repository"
    for name in ("retinaface", "sface"):
        (tmp_path / name).mkdir()
        text = (shipped / name / "config.pbtxt").read_text()
        (tmp_path / name / "config.pbtxt").write_text(text)
    done = mien_server("serve", "--model-repository", tmp_path, *ANY_PORTS)
    assert done.returncode == 1
    assert f"mien-server models install --model-repository {tmp_path}" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--default-detector", "nobody"], "there is no model 'nobody'"),
        (["--default-detector", "sface"], "is an embedding model"),
        (["--default-embedder", "arcface"], "model 'arcface' has no weights"),
        (["--default-embedder", "face_embedding"], "model 'face_embedding' is an ensemble"),
        (["--model-repository", __file__], f"{__file__} is not a folder"),
    ],
)
def test_setting_that_cannot_hold_ends_the_start(
    flags: list[str], said: str, model_repository_path: Path, refused_start: Start
) -> None:
    repository = ["--model-repository", str(model_repository_path), *ANY_PORTS]
    status, told = refused_start(*repository, *flags)
    assert status == 1
    assert said in told
    assert "Traceback" not in told


def test_setting_that_no_server_can_have_ends_the_process_with_2() -> None:
    done = mien_server("serve", "--grpc-port", "99999")
    assert done.returncode == 2
    assert "--grpc-port (MIEN_GRPC_PORT)" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("mode", ["none", "poll", "explicit"])
def test_missing_repository_ends_the_start_with_the_command_that_makes_it(
    mode: str, refused_start: Start
) -> None:
    flags = ["--model-control-mode", mode, *ANY_PORTS]
    status, said = refused_start("--model-repository", "/no/such/folder", *flags)
    assert status == 1
    assert "the model repository /no/such/folder does not exist" in said
    assert "mien-server models install --model-repository /no/such/folder" in said


def test_help_and_health_do_not_import_torch() -> None:
    code = (
        "import sys, mien_server.commands.main as cli\n"
        "try: cli.main(['serve', '--help'])\n"
        "except SystemExit: pass\n"
        "cli.main(['health', '--address', '127.0.0.1:1', '--timeout', '0.1'])\n"
        "assert not {'torch', 'cv2'} & sys.modules.keys()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_command_of_a_bare_sdk_says_what_to_install() -> None:
    code = (
        "import sys\n"
        "sys.modules['pydantic'] = None\n"
        "from mien_server.__main__ import main\n"
        "sys.exit(main())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith("mien-server: pydantic is not installed.")
    assert "pip install 'mien[server]'" in done.stderr


def test_health_command_tells_a_ready_server_from_none(
    server_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("MIEN_")]:
        monkeypatch.delenv(name)
    serving = (0, f"{server_address}: SERVING\n", "")
    assert run_mien_server("health", "--address", server_address) == serving
    with listening("127.0.0.1") as silent:
        status, _, said = run_mien_server(
            *("health", "--address", f"127.0.0.1:{silent}", "--timeout", "0.2")
        )
    assert status == 1
    assert "DEADLINE_EXCEEDED" in said or "UNAVAILABLE" in said
    monkeypatch.setenv("MIEN_GRPC_PORT", server_address.rpartition(":")[2])
    assert run_mien_server("health")[0] == 0


def test_json_log_is_one_object_a_line_and_names_what_serves(unusual: LocalServer) -> None:
    lines = [json.loads(line) for line in unusual.log.read_text().splitlines()]
    (ready,) = [line for line in lines if line["message"] == "ready"]
    assert ready["address"] == unusual.address
    assert re.search(r"retinaface.*sface", str(ready["models"]))
    (memory,) = [line for line in lines if line["message"] == "memory at worst"]
    assert memory["mib"] > memory["arriving"] > 0


def test_sigterm_finishes_the_accepted_calls_refuses_new_ones_and_exits_0(
    launch_server: Launch, sample: Sample
) -> None:
    image = face_pb2.Image(encoded=sample("impostor_2").read_bytes())
    request = face_pb2.EmbedRequest(image=image)
    callers = 8
    with launch_server() as server, ThreadPoolExecutor(callers) as pool:
        channel = grpc.insecure_channel(server.address)
        stub = face_pb2_grpc.FaceServiceStub(channel)
        answered = threading.Semaphore(0)

        def call_until_refused() -> tuple[int, grpc.RpcError]:
            count = 0
            while True:
                try:
                    assert stub.Embed(request, timeout=60).faces
                except grpc.RpcError as error:
                    return count, error
                count += 1
                answered.release()

        running: list[Future[tuple[int, grpc.RpcError]]] = [
            pool.submit(call_until_refused) for _ in range(callers)
        ]
        for _ in range(callers):
            answered.acquire()
        server.process.send_signal(signal.SIGTERM)
        outcomes = [future.result() for future in running]
        assert server.process.wait(30) == 0
        channel.close()
    assert sum(count for count, _ in outcomes) >= callers
    # Accepted calls were answered; every caller ended by a refusal, none by a broken or cut call.
    assert {error.code() for _, error in outcomes} == {grpc.StatusCode.UNAVAILABLE}
    assert "cancelled_calls" not in server.log.read_text()


def test_second_signal_ends_the_process_at_once(launch_server: Launch) -> None:
    with (
        pytest.raises(ServerFailed, match="left with status -15"),
        launch_server("--model-control-mode", "explicit", "--lame-duck-secs", "600") as server,
    ):
        terminate_twice(server)


def terminate_twice(server: Any) -> None:
    server.process.send_signal(signal.SIGTERM)
    while "lame duck" not in server.log.read_text():
        assert server.process.poll() is None
    server.process.send_signal(signal.SIGTERM)
    server.process.wait(10)


def test_damaged_version_keeps_the_server_from_being_ready(
    model_repository_path: Path, damaged_repository: Path
) -> None:
    command: list[str | Path] = [BIN / "mien-server", "serve", *ANY_PORTS]
    for path in (model_repository_path, damaged_repository):
        command += ["--model-repository", path]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=CLEAN_ENVIRONMENT
    ) as process:
        assert process.stderr is not None
        try:
            said = next(line for line in process.stderr if "not ready: " in line)
            assert "damaged: " in said
            address = said.partition("address=")[2].split()[0]
            done = mien_server("health", "--address", address)
            assert (done.returncode, done.stdout) == (1, f"{address}: NOT_SERVING\n")
        finally:
            process.terminate()
    assert process.returncode == 0


def test_damaged_version_does_not_matter_without_strict_readiness(unusual: LocalServer) -> None:
    assert "damaged" in unusual.log.read_text()
    assert run_mien_server("health", "--address", unusual.address)[0] == 0
