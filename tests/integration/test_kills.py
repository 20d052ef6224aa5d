"""Servers and commands that are ended, starved or beset: what was there stays, and who works goes on."""

import resource
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest

import mien
from mien.v1 import face_pb2
from mien_server.limits import CONNECTION_BYTES
from mien_server.repository.manifest import verify_version
from tests.conftest import ROOT, LaunchServer
from tests.http2 import begin_call, connect, greet
from tests.integration.access_rig import CHECK, EMBED
from tests.integration.repository_rig import copy_repository, lighten
from tools.local_access import LocalAccess, bearer
from tools.local_server import PROGRAM, LocalServer, ServerFailed, local_server, open_channel

pytestmark = pytest.mark.long
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def access(tmp_path_factory: pytest.TempPathFactory) -> LocalAccess:
    return LocalAccess(tmp_path_factory.mktemp("access"))


@pytest.fixture(scope="module")
def guarded(
    launch_server: LaunchServer, access: LocalAccess, light_repository: Path
) -> Iterator[LocalServer]:
    """A server with TLS and keys that the tests here share."""
    flags = [*access.key_flags, *access.tls_flags]
    with launch_server(*flags, repository=light_repository, trusted=access.trusted) as server:
        yield server


@pytest.fixture(scope="module")
def light_repository(model_repository_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("light") / "models"
    return lighten(copy_repository(model_repository_path, folder))


@pytest.fixture(scope="module")
def request_bytes() -> bytes:
    """An Embed of a small photo with one face."""
    photo = (ROOT / "samples" / "person_a_1.jpg").read_bytes()
    return face_pb2.EmbedRequest(image=face_pb2.Image(encoded=photo)).SerializeToString()


@contextmanager
def working(
    server: LocalServer, access: LocalAccess, request: bytes, callers: int = 2
) -> Iterator[list[float]]:
    """Callers that embed for the length of a block, each over a connection of its own, and of whom no call
    may fail: the seconds of their calls so far."""
    seconds: list[float] = []
    failed: list[str] = []
    stop = threading.Event()

    def work() -> None:
        with open_channel(server.address, access.trusted) as channel:
            embed: Any = channel.unary_unary(EMBED)
            while not stop.is_set():
                began = time.monotonic()
                try:
                    embed(request, timeout=30, metadata=bearer(access.key))
                except grpc.RpcError as error:
                    failed.append(repr(error))
                    return
                seconds.append(time.monotonic() - began)

    threads = [threading.Thread(target=work) for _ in range(callers)]
    for thread in threads:
        thread.start()
    try:
        yield seconds
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert failed == []
    assert seconds


def test_sigterm_under_load_loses_no_accepted_call_with_tls_and_keys(
    launch_server: LaunchServer,
    access: LocalAccess,
    light_repository: Path,
    request_bytes: bytes,
) -> None:
    flags = [*access.key_flags, *access.tls_flags]
    ended: list[str] = []
    answered = threading.Semaphore(0)
    with launch_server(*flags, repository=light_repository, trusted=access.trusted) as server:

        def call_until_refused() -> None:
            with open_channel(server.address, access.trusted) as channel:
                embed: Any = channel.unary_unary(EMBED)
                try:
                    while embed(request_bytes, timeout=60, metadata=bearer(access.key)):
                        answered.release()
                except grpc.RpcError as error:
                    ended.append(str(error.code().name))

        threads = [threading.Thread(target=call_until_refused) for _ in range(8)]
        for thread in threads:
            thread.start()
        for _ in threads:
            answered.acquire()
        server.process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join()
        assert server.process.wait(30) == 0
    assert ended == ["UNAVAILABLE"] * 8
    assert "cancelled_calls" not in server.log.read_text()


def test_killed_server_leaves_a_whole_repository_and_serves_again(
    tmp_path: Path, access: LocalAccess, model_repository_path: Path, request_bytes: bytes
) -> None:
    repository = lighten(copy_repository(model_repository_path, tmp_path / "models"))
    before = {path: path.read_bytes() for path in repository.rglob("*") if path.is_file()}
    flags = [
        *("--model-repository", str(repository), "--model-control-mode", "explicit"),
        *("--load-model", "*", *access.key_flags, *access.tls_flags),
    ]

    def serve() -> Any:
        return local_server(tmp_path / "log", flags=flags, trusted=access.trusted)

    def embed(channel: grpc.Channel) -> bytes:
        method: Any = channel.unary_unary(EMBED)
        answer: bytes = method(request_bytes, timeout=30, metadata=bearer(access.key))
        return answer

    answers = []

    def serve_until_killed() -> None:
        with serve() as server, open_channel(server.address, access.trusted) as channel:
            answers.append(embed(channel))
            # It is in the midst of calls when it ends, and perhaps of loading a model.
            method: Any = channel.unary_unary(EMBED)
            sent = {"timeout": 30, "metadata": bearer(access.key)}
            going = [method.future(request_bytes, **sent) for _ in range(8)]
            load: Any = channel.unary_unary("/inference.GRPCInferenceService/RepositoryModelLoad")
            load.future(b"\x12\x05sface", **sent)
            server.process.send_signal(signal.SIGKILL)
            assert {each.exception().code().name for each in going} == {"UNAVAILABLE"}

    with pytest.raises(ServerFailed, match="status -9"):
        serve_until_killed()
    assert {path: path.read_bytes() for path in before} == before
    with serve() as server, open_channel(server.address, access.trusted) as channel:
        answers.append(embed(channel))
    assert answers[0] == answers[1]


def limited(nbytes: int) -> Callable[[], None]:
    """Has a process fail when it makes a file larger than this: what a full disk does, for itself alone."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a failed write, and no end by a signal
        resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, nbytes))

    return limit


@pytest.mark.parametrize("command", ["install", "import"])
def test_full_disk_while_weights_come_in_leaves_what_was_there(
    command: str, tmp_path: Path, model_repository_path: Path
) -> None:
    repository = tmp_path / "models"
    shutil.copytree(model_repository_path / "retinaface", repository / "retinaface")
    weights = model_repository_path / "retinaface" / "1" / WEIGHTS
    if command == "install":
        shutil.rmtree(repository / "retinaface" / "1")
        arguments = ["install", "retinaface"]
    else:
        arguments = ["import", "retinaface", str(weights)]

    def there() -> list[Path]:
        found = (path.relative_to(repository) for path in repository.rglob("*"))
        return sorted(path for path in found if path.name[:1] != ".")  # locks may stay

    before = there()

    def run(**options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [PROGRAM, "models", *arguments, "--model-repository", repository],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            **options,
        )

    done = run(preexec_fn=limited(400_000))
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "File too large" in done.stderr
    assert there() == before
    done = run()
    assert done.returncode == 0, done.stderr
    made = "1" if command == "install" else "2"
    verify_version(repository / "retinaface" / made, repository, WEIGHTS)


def test_certificate_that_has_ended_or_belongs_elsewhere_changes_nothing_until_one_fits(
    guarded: LocalServer, access: LocalAccess, request_bytes: bytes
) -> None:
    def shown() -> bytes | None:
        context = ssl.create_default_context(cadata=access.trusted.decode())
        context.set_alpn_protocols(["h2"])
        with (
            connect(guarded.address) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as connection,
        ):
            return connection.getpeercert(binary_form=True)

    def until(true: Callable[[], bool]) -> None:
        give_up = time.monotonic() + 20
        while not true():
            assert time.monotonic() < give_up
            time.sleep(0.1)

    first = shown()
    with working(guarded, access, request_bytes):
        access.renew(not_after=datetime.now(UTC) - timedelta(hours=1))
        until(lambda: "not reloaded" in guarded.log.read_text())
        assert shown() == first
        pem = access.renew()
        until(lambda: shown() == ssl.PEM_cert_to_DER_cert(pem.decode()))


def test_slow_clients_hold_nobody_up(
    guarded: LocalServer, access: LocalAccess, request_bytes: bytes
) -> None:
    """Handshakes that stop half way, and requests of which a byte comes now and then."""
    context = ssl.create_default_context(cadata=access.trusted.decode())
    context.set_alpn_protocols(["h2"])
    with ExitStack() as slow:
        for _ in range(50):
            silent = slow.enter_context(connect(guarded.address))
            silent.sendall(b"\x16\x03\x01")
        dribbling = []
        for _ in range(50):
            plain = slow.enter_context(connect(guarded.address))
            connection = slow.enter_context(context.wrap_socket(plain, server_hostname="localhost"))
            greet(connection)
            begin_call(connection, EMBED)
            dribbling.append(connection)
        with working(guarded, access, request_bytes) as seconds:
            for _ in range(10):
                for connection in dribbling:
                    connection.sendall(b"\0")
                time.sleep(0.2)
    assert sorted(seconds)[len(seconds) // 2] < 2


def test_2000_idle_connections_cost_little_and_a_client_works_beside_them(
    guarded: LocalServer, access: LocalAccess, request_bytes: bytes
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4000 if hard == resource.RLIM_INFINITY else min(hard, 4000)
    if wanted < 2500:
        pytest.skip("too few file descriptors")
    process = psutil.Process(guarded.process.pid)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    try:
        with working(guarded, access, request_bytes, callers=1):
            time.sleep(1)
        before = process.memory_info().rss
        context = ssl.create_default_context(cadata=access.trusted.decode())
        context.set_alpn_protocols(["h2"])
        with ExitStack() as idle:
            for _ in range(2000):
                plain = idle.enter_context(connect(guarded.address))
                greet(idle.enter_context(context.wrap_socket(plain, server_hostname="localhost")))
            assert process.num_fds() > 2000
            with working(guarded, access, request_bytes) as seconds:
                time.sleep(2)
            grown = process.memory_info().rss - before
        assert grown / 2000 < CONNECTION_BYTES
        assert sorted(seconds)[len(seconds) // 2] < 2
        give_up = time.monotonic() + 20
        while process.num_fds() > 200:
            assert time.monotonic() < give_up
            time.sleep(0.1)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_flood_of_handshakes_leaves_a_working_client_alone(
    guarded: LocalServer, access: LocalAccess, request_bytes: bytes
) -> None:
    stop = threading.Event()
    knocks = [0]

    def flood() -> None:
        host, _, port = guarded.address.rpartition(":")
        hello = b"\x16\x03\x01\x02\x00" + b"no hello at all " * 32
        while not stop.is_set():
            with socket.create_connection((host, int(port)), timeout=10) as connection:
                connection.sendall(hello)
            knocks[0] += 1

    flooding = threading.Thread(target=flood)
    with working(guarded, access, request_bytes):
        flooding.start()
        time.sleep(4)
        stop.set()
        flooding.join()
    assert knocks[0] > 200
    with open_channel(guarded.address, access.trusted) as channel:
        check: Any = channel.unary_unary(CHECK)
        assert check(b"", timeout=10)
    with mien.Client(
        guarded.address,
        api_key=access.key,
        credentials=access.credentials(),
    ) as client:
        assert client.embed(ROOT / "samples" / "person_a_1.jpg").faces
