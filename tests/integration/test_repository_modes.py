"""The modes of model control, with the real server as a process."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status
from tritonclient.grpc import service_pb2, service_pb2_grpc

from mien.v1 import face_pb2, face_pb2_grpc
from tests.conftest import ROOT
from tests.integration.repository_rig import copy_repository, with_warm_ups, write_variant
from tools.local_server import PROGRAM, LocalServer, ServerFailed, local_server

SECONDS = 60
ENVIRONMENT = {key: value for key, value in os.environ.items() if not key.startswith("MIEN_")}


@pytest.fixture
def root(tmp_path: Path, model_repository_path: Path) -> Path:
    """The two shipped models with their real weights, to be written to."""
    return copy_repository(model_repository_path, tmp_path / "repository")


class Client:
    """Calls to one server, with the health that it shows."""

    def __init__(self, server: LocalServer, channel: grpc.Channel) -> None:
        self.server = server
        self._faces = face_pb2_grpc.FaceServiceStub(channel)
        self._models: Any = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        self._health: Any = health_pb2_grpc.HealthStub(channel)

    def version_of_embed(self, photo: bytes) -> int:
        """The version of the embedding model that answers."""
        request = face_pb2.EmbedRequest(image=face_pb2.Image(encoded=photo))
        return self._faces.Embed(request, timeout=SECONDS).embedder.version

    def load(self, name: str) -> None:
        self._models.RepositoryModelLoad(
            service_pb2.RepositoryModelLoadRequest(model_name=name), timeout=SECONDS
        )

    def unload(self, name: str) -> None:
        self._models.RepositoryModelUnload(
            service_pb2.RepositoryModelUnloadRequest(model_name=name), timeout=SECONDS
        )

    def index(self) -> dict[tuple[str, str], tuple[str, str]]:
        """State and reason by model and version."""
        found = self._models.RepositoryIndex(service_pb2.RepositoryIndexRequest(), timeout=SECONDS)
        return {(m.name, m.version): (m.state, m.reason) for m in found.models}

    def serving(self) -> bool:
        answer = self._health.Check(health_pb2.HealthCheckRequest(), timeout=SECONDS)
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


@contextmanager
def serving(root: Path, *flags: str) -> Iterator[Client]:
    log = root.parent / "server.log"
    with (
        local_server(
            log, flags=["--model-repository", str(root), *flags], environment=ENVIRONMENT
        ) as server,
        connected(server) as client,
    ):
        yield client


@contextmanager
def connected(server: LocalServer) -> Iterator[Client]:
    with grpc.insecure_channel(server.address) as channel:
        yield Client(server, channel)


def eventually(holds: Callable[[], bool]) -> None:
    """Waits until something holds that a poll or the next look at readiness brings about."""
    give_up = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < give_up
        time.sleep(0.05)


@pytest.mark.long
def test_explicit_server_starts_empty_and_loads_on_request(root: Path, photo: bytes) -> None:
    with serving(root, "--model-control-mode", "explicit") as client:
        assert client.index() == {
            ("retinaface", ""): ("UNKNOWN", "nobody has asked for it to be loaded"),
            ("sface", ""): ("UNKNOWN", "nobody has asked for it to be loaded"),
        }
        with pytest.raises(grpc.RpcError) as caught:
            client.version_of_embed(photo)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        client.load("sface")
        client.load("retinaface")
        assert client.version_of_embed(photo) == 1
        write_variant(root / "sface" / "1", root / "sface" / "2", 1.01)
        client.load("sface")
        assert client.version_of_embed(photo) == 2
        client.unload("sface")
        with pytest.raises(grpc.RpcError) as caught:
            client.version_of_embed(photo)
        assert "model 'sface' is not ready: version 2: it " in str(caught.value.details())
        assert client.serving(), "an unloaded model is none that ought to serve"


def test_caller_is_told_what_is_wrong_but_not_where_the_repository_lies(root: Path) -> None:
    (root / "sface" / "1" / "manifest.json").write_text("no manifest")
    link = root.parent / "current"
    link.symlink_to(root)
    with serving(link, "--model-control-mode", "explicit") as client:
        with pytest.raises(grpc.RpcError) as caught:
            client.load("sface")
        told = [str(caught.value.details()), str(caught.value.trailing_metadata())]
        told += [reason for _, reason in client.index().values()]
        assert "version 1: sface/1/manifest.json" in told[0]
        assert "sface/1/manifest.json" in told[2] + told[3]
        assert str(root.parent) not in "".join(told)
        # The operator's log has the whole path.
        assert f"{root}/sface/1/manifest.json" in client.server.log.read_text()


def test_explicit_server_loads_the_models_named(root: Path, photo: bytes) -> None:
    with_warm_ups(root)
    flags = ["--load-model", "retinaface", "--load-model", "sface"]
    with serving(root, "--model-control-mode", "explicit", *flags) as client:
        assert client.version_of_embed(photo) == 1
        assert client.server.log.read_text().count("warm-up '") == 5


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--model-control-mode", "explicit", "--load-model", "sface"], "does not match"),
        (["--model-control-mode", "explicit", "--load-model", "*"], "does not match"),
        (["--load-model", "sface"], "--load-model (MIEN_LOAD_MODEL)"),
        (["--model-control-mode", "always"], "--model-control-mode (MIEN_MODEL_CONTROL_MODE)"),
        (["--model-control-mode", "poll", "--repository-poll-secs", "0"], "--repository-poll-secs"),
    ],
)
def test_what_cannot_hold_ends_the_start(
    root: Path, flags: list[str], said: str, refused_start: Callable[..., tuple[int, str]]
) -> None:
    with (root / "sface" / "1" / "model.safetensors").open("r+b") as file:
        file.seek(-1000, os.SEEK_END)
        file.write(b"\x7f")
    ports = ("--grpc-port", "0", "--metrics-port", "0")
    status, told = refused_start("--model-repository", root, *ports, *flags)
    assert status != 0
    assert said in told
    assert "Traceback" not in told


@pytest.mark.long
def test_all_models_are_those_that_have_weights(root: Path, photo: bytes) -> None:
    (root / "mtcnn").mkdir()
    shutil.copy(ROOT / "model_repository" / "mtcnn" / "config.pbtxt", root / "mtcnn")
    with serving(root, "--model-control-mode", "explicit", "--load-model", "*") as client:
        assert client.version_of_embed(photo) == 1


def test_model_to_load_that_there_is_not_ends_the_process(root: Path) -> None:
    flags = ("--model-control-mode", "explicit", "--load-model", "nobody")
    with pytest.raises(ServerFailed, match="no start, status 1") as caught, serving(root, *flags):
        pass
    assert "there is no model" in str(caught.value)
    assert "Traceback" not in str(caught.value)


def test_models_are_not_controlled_in_the_default_mode(server: LocalServer, photo: bytes) -> None:
    with connected(server) as client:
        for refused in (client.load, client.unload):
            with pytest.raises(grpc.RpcError) as caught:
                refused("sface")
            assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
            assert "--model-control-mode is none" in str(caught.value.details())
        assert client.version_of_embed(photo) == 1


@pytest.mark.long
def test_polling_server_follows_the_folders(root: Path, photo: bytes) -> None:
    with serving(root, "--model-control-mode", "poll", "--repository-poll-secs", "0.1") as client:
        assert client.version_of_embed(photo) == 1
        folder = write_variant(root / "sface" / "1", root / "sface" / "3", 1.01)
        eventually(lambda: client.version_of_embed(photo) == 3)
        weights = (folder / "model.safetensors").read_bytes()
        shutil.copytree(folder, root / "sface" / "4")
        os.truncate(root / "sface" / "4" / "model.safetensors", 1000)
        eventually(lambda: "its manifest says" in client.index().get(("sface", "4"), ("", ""))[1])
        assert client.version_of_embed(photo) == 3
        (root / "sface" / "4" / "model.safetensors").write_bytes(weights)
        eventually(lambda: client.version_of_embed(photo) == 4)
        (root / "sface").rename(root.parent / "sface")
        eventually(lambda: not client.serving())
        (root.parent / "sface").rename(root / "sface")
        eventually(client.serving)
        assert client.version_of_embed(photo) == 4


def warm_up_for_long(root: Path) -> None:
    """Has the embedding model warm up a hundred times, for many seconds."""
    with (root / "sface" / "config.pbtxt").open("a") as file:
        file.write(
            'model_warmup { name: "for ever" batch_size: 8 count: 100 inputs { key: "face" value'
            " { data_type: TYPE_UINT8 dims: [ 3, 112, 112 ] zero_data: true } } }"
        )


@pytest.mark.long
def test_sigterm_ends_a_load_and_tells_its_caller(root: Path) -> None:
    with serving(root, "--model-control-mode", "explicit") as client, ThreadPoolExecutor(1) as pool:
        warm_up_for_long(root)
        load = pool.submit(client.load, "sface")
        eventually(lambda: "for ever" in client.server.log.read_text())
        client.server.process.send_signal(signal.SIGTERM)
        with pytest.raises(grpc.RpcError) as caught:
            load.result(SECONDS)
        assert client.server.process.wait(SECONDS) == 0
    assert reason_of(caught.value) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
    log = client.server.log.read_text()
    assert log.count("for ever") < 100
    assert "left behind" not in log


def reason_of(error: grpc.RpcError) -> tuple[grpc.StatusCode, str]:
    """The code of an error, and the reason in its details."""
    status = rpc_status.from_call(cast(grpc.Call, error))
    info = error_details_pb2.ErrorInfo()
    assert any(detail.Unpack(info) for detail in status.details)
    return error.code(), info.reason


@pytest.mark.long
def test_sigterm_while_models_load_exits_0(root: Path) -> None:
    warm_up_for_long(root)
    command = [
        str(PROGRAM),
        "serve",
        "--grpc-port",
        "0",
        "--metrics-port",
        "0",
        "--model-repository",
        str(root),
    ]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=ENVIRONMENT
    ) as process:
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            said.append(line)
            if "for ever" in line:
                process.send_signal(signal.SIGTERM)
                break
        said += process.stdout.readlines()
        assert process.wait(SECONDS) == 0, said
    assert not any("Traceback" in line for line in said)
    assert sum("for ever" in line for line in said) < 100
