"""What tests against the real server share: a stub, a good photo, and the check of a refusal."""

import io
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from PIL import Image
from prometheus_client import enable_created_metrics

from mien.v1 import face_pb2, face_pb2_grpc
from mien_server.commands.main import main
from mien_server.weights.install import install
from tests.conftest import ROOT, LaunchServer
from tools.local_server import LocalServer

Request = face_pb2.DetectRequest | face_pb2.EmbedRequest | face_pb2.VerifyRequest


@pytest.fixture(scope="session")
def mtcnn_repository_path(
    model_repository_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The shipped models with their weights, MTCNN among them."""
    root = tmp_path_factory.mktemp("with_mtcnn")
    for name in ("retinaface", "sface", "mtcnn"):
        shutil.copytree(model_repository_path / name, root / name)
    install(root, ["mtcnn"])
    return root


@pytest.fixture(scope="module")
def stub(server_address: str) -> Iterator[face_pb2_grpc.FaceServiceStub]:
    """A stub of the shared server, without a limit on what it sends."""
    options = [("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(server_address, options) as channel:
        yield face_pb2_grpc.FaceServiceStub(channel)


@pytest.fixture(scope="session")
def explicit_repository(
    model_repository_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The repository of `explicit`: sface computes in fp32. Who changes it leaves it as it was."""
    folder = tmp_path_factory.mktemp("explicit") / "models"
    shutil.copytree(model_repository_path, folder)
    config = folder / "sface" / "config.pbtxt"
    config.write_text(config.read_text().replace('string_value: "auto"', 'string_value: "fp32"'))
    return folder


@pytest.fixture(scope="session")
def explicit(launch_server: LaunchServer, explicit_repository: Path) -> Iterator[LocalServer]:
    """The server that tests share that load and unload models. They leave every model loaded."""
    flags = ("--model-control-mode", "explicit", "--load-model", "*")
    with launch_server(*flags, repository=explicit_repository) as running:
        yield running


@pytest.fixture(scope="session")
def damaged_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository beside the usual one: its only model has a version that its manifest belies."""
    shipped = ROOT / "model_repository" / "sface" / "config.pbtxt"
    root = tmp_path_factory.mktemp("damaged")
    version = root / "damaged" / "1"
    version.mkdir(parents=True)
    text = shipped.read_text().replace('name: "sface"', 'name: "damaged"')
    (root / "damaged" / "config.pbtxt").write_text(text)
    (version / "manifest.json").write_text("{}")
    return root


@pytest.fixture(scope="session")
def unusual(launch_server: LaunchServer, damaged_repository: Path) -> Iterator[LocalServer]:
    """A server with several settings off their defaults, none of which bears on another."""
    flags = ("--model-repository", str(damaged_repository), "--strict-readiness=false")
    with launch_server(*flags, "--log-format", "json", "--metrics-address", "127.0.0.2") as running:
        yield running


@pytest.fixture(scope="module")
def photo(sample: Callable[[str], Path]) -> bytes:
    """A JPEG with one face."""
    return sample("person_a_2").read_bytes()


@pytest.fixture
def refused(
    stub: face_pb2_grpc.FaceServiceStub, photo: bytes
) -> Callable[[Request, grpc.StatusCode, str, str], None]:
    """Checks that a request is refused with this code, reason and field, and the next one answered."""
    small = io.BytesIO()
    with Image.open(io.BytesIO(photo)) as picture:
        picture.thumbnail((320, 320))  # quickly answered
        picture.save(small, "JPEG", quality=95)
    good = face_pb2.DetectRequest(image=face_pb2.Image(encoded=small.getvalue()))

    def check(request: Request, code: grpc.StatusCode, reason: str, field: str) -> None:
        with pytest.raises(grpc.RpcError) as caught:
            _send(stub, request)
        status = rpc_status.from_call(cast(grpc.Call, caught.value))
        assert status is not None, caught.value
        info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
        for detail in status.details:
            detail.Unpack(info) or detail.Unpack(bad)
        told = (caught.value.code(), info.reason, [v.field for v in bad.field_violations])
        assert told == (code, reason, [field]), caught.value.details()
        assert info.domain == "mien"
        assert len(stub.Detect(good, timeout=60).faces) == 1

    return check


def _send(stub: face_pb2_grpc.FaceServiceStub, request: Request) -> Any:
    match request:
        case face_pb2.DetectRequest():
            return stub.Detect(request, timeout=60)
        case face_pb2.EmbedRequest():
            return stub.Embed(request, timeout=60)
        case _:
            return stub.Verify(request, timeout=60)


@pytest.fixture
def refused_start(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., tuple[int, str]]]:
    """Runs `mien-server serve` where it cannot start, in this process: its status, and what it said.

    What it sets for its whole process (logging, and how metrics are written) is taken back at the end.
    """
    for name in [name for name in os.environ if name.startswith("MIEN_")]:
        monkeypatch.delenv(name)
    handlers, level = logging.root.handlers[:], logging.root.level

    def start(*flags: str | Path) -> tuple[int, str]:
        status = main(["serve", *map(str, flags)])
        return status, capsys.readouterr().err

    yield start
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)
    logging.captureWarnings(False)
    enable_created_metrics()  # type: ignore[no-untyped-call]


@pytest.fixture(scope="module")
def galleries(
    launch_server: LaunchServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LocalServer]:
    """A server that keeps galleries."""
    with launch_server("--gallery-dir", str(tmp_path_factory.mktemp("galleries"))) as running:
        yield running
