"""The real server as a process, with keys, TLS and a socket: how it is wired, and what SIGHUP does."""

import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import mien
from mien_server.access.keys import KeysFile, new_entry
from mien_server.access.roles import CallerRole
from tests.conftest import LaunchServer
from tests.integration.repository_rig import copy_repository, lighten

Start = Callable[..., tuple[int, str]]


def send_raw(address: str, authorization: bytes) -> bytes:
    """What a server answers to a call with bytes in its metadata that no gRPC client sends."""
    headers = {
        b":method": b"POST",
        b":scheme": b"http",
        b":path": b"/mien.v1.FaceService/Embed",
        b":authority": b"x",
        b"content-type": b"application/grpc",
        b"te": b"trailers",
        b"authorization": authorization,
    }
    block = b"".join(
        b"\x10" + bytes([len(name)]) + name + bytes([len(value)]) + value
        for name, value in headers.items()
    )
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b""))
        connection.sendall(frame(1, 4, 1, block) + frame(0, 1, 1, bytes(5)))
        answer = b""
        while b"grpc-status" not in answer and (piece := connection.recv(4096)):
            answer += piece
    return answer


def frame(kind: int, flags: int, stream: int, content: bytes) -> bytes:
    """A frame of HTTP/2."""
    size = len(content).to_bytes(3, "big")
    return size + bytes([kind, flags]) + stream.to_bytes(4, "big") + content


def test_server_process_knows_its_callers_and_reads_keys_again(
    launch_server: LaunchServer,
    model_repository_path: Path,
    tmp_path: Path,
    sample: Callable[[str], Path],
) -> None:
    keys = tmp_path / "keys.json"
    (infer, key), (_, later_key) = (
        new_entry(name, (CallerRole.INFER,), certificate=False) for name in ("infer", "later")
    )
    KeysFile(keys).add(infer)
    repository = lighten(copy_repository(model_repository_path, tmp_path / "models"))
    with launch_server("--keys-file", str(keys), repository=repository) as server:

        def embed(api_key: str | None) -> None:
            with mien.Client(server.address, api_key=api_key, timeout=60) as client:
                assert client.embed(sample("person_a_1")).faces

        embed(key)
        with pytest.raises(mien.Unauthenticated):
            embed(None)
        with pytest.raises(mien.Unauthenticated):
            embed(later_key)
        assert send_raw(server.address, f"Bearer {key}".encode() + b"\xff")
        KeysFile(keys).revoke(infer.id)
        server.process.send_signal(signal.SIGHUP)
        give_up = time.monotonic() + 20
        while "keys reloaded" not in server.log.read_text():
            assert time.monotonic() < give_up
            time.sleep(0.05)
        with pytest.raises(mien.Unauthenticated):
            embed(key)
        log = server.log.read_text()
    assert key[18:] not in log
    assert later_key[18:] not in log


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--grpc-address", "::"], "--insecure (MIEN_INSECURE)"),
        (["--keys-file", "none.json"], "mien-server keys create NAME"),
        (["--tls-cert", "none.pem", "--tls-key", "none.key"], "--tls-cert (MIEN_TLS_CERT)"),
        (["--grpc-socket", "/no/such/folder/x"], "--grpc-socket (MIEN_GRPC_SOCKET)"),
    ],
)
def test_start_that_would_not_be_safe_or_cannot_be_says_what_to_do(
    flags: list[str], said: str, model_repository_path: Path, refused_start: Start
) -> None:
    ports = ["--grpc-port", "0", "--metrics-port", "0"]
    status, told = refused_start("--model-repository", model_repository_path, *ports, *flags)
    assert (status, said in told, "Traceback" in told) == (1, True, False), told


def test_half_of_tls_ends_the_start_with_2(refused_start: Start) -> None:
    status, told = refused_start("--tls-cert", "cert.pem")
    assert (status, "--tls-key (MIEN_TLS_KEY)" in told) == (2, True)
