"""What a client proves itself with: keys, tokens and certificates, of both clients and of the command."""

import asyncio
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme

import mien
from mien.model_control import ModelControl

Run = Callable[..., tuple[int, str, str]]
KEY = "mien_abcdefghijkl_" + "s" * 52
REMOTE = "faces.example:8001"


@pytest.fixture(params=["Client", "AsyncClient"])
def detect(request: pytest.FixtureRequest, peer: Any) -> Callable[..., None]:
    """`detect(api_key=...)`: one call of the peer, by either client; both must pass."""

    def detect(times: int = 1, **options: Any) -> None:
        if request.param == "Client":
            with mien.Client(peer.address, **options) as client:
                for _ in range(times):
                    client.detect(b"photo")
            return

        async def calls() -> None:
            async with mien.AsyncClient(peer.address, **options) as client:
                for _ in range(times):
                    await client.detect(b"photo")

        asyncio.run(calls())

    return detect


def sent(peer: Any) -> list[str | None]:
    return [received.metadata.get("authorization") for received in peer.received]


@pytest.mark.parametrize("option", ["api_key", "token"])
def test_key_or_token_goes_with_every_call(
    detect: Callable[..., None], peer: Any, option: str
) -> None:
    detect(2, **{option: KEY})
    assert sent(peer) == [f"Bearer {KEY}"] * 2


def test_without_one_nothing_is_sent(detect: Callable[..., None], peer: Any) -> None:
    detect()
    assert sent(peer) == [None]


def test_token_that_is_renewed_is_asked_for_before_every_call(
    detect: Callable[..., None], peer: Any
) -> None:
    tokens = iter(["one", "two"])
    detect(2, token=lambda: next(tokens))
    assert sent(peer) == ["Bearer one", "Bearer two"]


def test_what_the_renewal_raises_reaches_the_caller(detect: Callable[..., None], peer: Any) -> None:
    def fail() -> str:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        detect(token=fail)
    with pytest.raises(TypeError, match="must be a str, not of the type bytes"):
        detect(token=lambda: b"token")
    assert peer.received == []


@pytest.mark.parametrize("client", [mien.Client, mien.AsyncClient])
@pytest.mark.parametrize(
    "bad", ["", " ", "two words", "line\nbreak", "schlüssel", "x" * 9 + "\x00"]
)
def test_what_can_be_no_key_is_refused_and_not_repeated(client: Any, bad: str) -> None:
    for option in ("api_key", "token"):
        with pytest.raises(ValueError, match="printable ASCII") as caught:
            client("localhost:1", **{option: bad})
        assert len(bad) < 3 or bad not in str(caught.value)
    with pytest.raises(TypeError, match="of the type bytes"):
        client("localhost:1", api_key=b"secret")
    with pytest.raises(ValueError, match="not both"):
        client("localhost:1", api_key="a", token="b")  # noqa: S106


def test_secret_is_in_no_repr() -> None:
    for client in (mien.Client("localhost:1", api_key=KEY), mien.AsyncClient(api_key=KEY)):
        assert "ssss" not in repr(client) + str(client)


@pytest.mark.parametrize("client", [mien.Client, mien.AsyncClient])
def test_key_leaves_the_machine_in_plain_text_only_if_that_is_said(client: Any) -> None:
    for address in (REMOTE, "10.0.0.1:8001", "[2001:db8::1]:8001", "faces", "localhost.example:1"):
        for option in ("api_key", "token"):
            with pytest.raises(ValueError, match=r"in plain text: encrypt .*insecure=True"):
                client(address, **{option: KEY})
        with pytest.raises(ValueError, match="plain text"):
            client(address, token=lambda: KEY)
        client(address, api_key=KEY, insecure=True)
        client(address, api_key=KEY, credentials=mien.tls_credentials())
        client(address)
    for address in ("localhost:8001", "127.0.0.9:1", "[::1]:1", "unix:/run/mien.sock"):
        client(address, api_key=KEY)
    with pytest.raises(ValueError, match="plain text"):
        ModelControl(REMOTE, timeout=1, api_key=KEY)


def secret_file(folder: Path, text: str = KEY, mode: int = 0o600) -> Path:
    path = folder / "key"
    path.write_text(text)
    path.chmod(mode)
    return path


@pytest.mark.parametrize(
    ("option", "variable"), [("api-key", "MIEN_API_KEY"), ("token", "MIEN_TOKEN")]
)
def test_command_takes_it_from_flag_file_or_variable(
    run: Run,
    peer: Any,
    photo: Path,
    tmp_path: Path,
    option: str,
    variable: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(variable, "of-the-variable")
    assert run("detect", photo)[0] == 0
    assert run("detect", photo, f"--{option}", "of-the-flag")[0] == 0
    file = secret_file(tmp_path, " of-the-file\n")
    assert run(f"--{option}-file", file, "detect", photo)[0] == 0
    monkeypatch.setenv(variable, "")
    assert run("detect", photo)[0] == 0
    expected = ["Bearer of-the-variable", "Bearer of-the-flag", "Bearer of-the-file", None]
    assert sent(peer) == expected


def test_command_sends_only_one(
    run: Run, peer: Any, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = secret_file(tmp_path)
    status, _, errors = run("detect", photo, "--api-key", "a", "--api-key-file", file)
    assert status == 2
    assert "there are --api-key and --api-key-file: only one can be sent" in errors
    monkeypatch.setenv("MIEN_TOKEN", "t")
    monkeypatch.setenv("MIEN_API_KEY", "k")
    assert "there are MIEN_API_KEY and MIEN_TOKEN" in run("detect", photo)[2]
    assert run("detect", photo, "--api-key", "a")[0] == 0
    assert sent(peer) == ["Bearer a"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o622, 0o700])
def test_file_that_others_may_read_is_refused(
    run: Run, peer: Any, photo: Path, tmp_path: Path, mode: int
) -> None:
    file = secret_file(tmp_path, mode=mode)
    for command in (["detect", photo], ["models", "ls"]):
        status, _, errors = run("--api-key-file", file, *command)
        assert status == 1
        assert f"chmod 600 {file} [FILE_ERROR, --api-key-file]" in errors
        assert KEY not in errors
    assert peer.received == []


@pytest.mark.parametrize("text", ["", "\n", "two words", "\xff\xfe"])
def test_file_without_a_key_is_refused(run: Run, photo: Path, tmp_path: Path, text: str) -> None:
    status, _, errors = run("detect", photo, "--token-file", secret_file(tmp_path, text))
    assert (status, "holds no key or token [FILE_ERROR, --token-file]" in errors) == (1, True)
    status, _, errors = run("detect", photo, "--token-file", tmp_path / "none")
    assert (status, "No such file" in errors) == (1, True)


def test_command_keeps_the_key_from_the_network(run: Run, photo: Path) -> None:
    command = ("detect", photo, "--address", REMOTE, "--api-key", KEY)
    status, _, errors = run(*command)
    assert status == 2
    assert "--insecure" in errors
    assert "ssss" not in errors
    status, _, errors = run(*command, "--insecure", "--timeout", "0.2", "--json")
    assert status == 1
    assert json.loads(errors)["code"] in ("UNAVAILABLE", "DEADLINE_EXCEEDED")


@pytest.fixture
def mutual_peer(authority: trustme.CA, peer: Any) -> Iterator[Any]:
    """A peer that wants a certificate of its clients."""
    signed = authority.issue_cert("127.0.0.1")
    pair = signed.private_key_pem.bytes(), signed.cert_chain_pems[0].bytes()
    ca = authority.cert_pem.bytes()
    mutual = type(peer)(
        credentials=grpc.ssl_server_credentials([pair], ca, require_client_auth=True)
    )
    mutual.start()
    yield mutual
    mutual.stop()


@pytest.fixture
def client_files(authority: trustme.CA, tmp_path: Path) -> tuple[Path, Path]:
    """A client's certificate and its key."""
    signed = authority.issue_cert("billing")
    cert, key = tmp_path / "client.pem", tmp_path / "client.key"
    signed.cert_chain_pems[0].write_to_path(str(cert))
    signed.private_key_pem.write_to_path(str(key))
    return cert, key


def test_client_certificate_is_shown(
    run: Run,
    mutual_peer: Any,
    certificate: Path,
    client_files: tuple[Path, Path],
    photo: Path,
) -> None:
    cert, key = client_files
    at = ("detect", photo, "--address", mutual_peer.address, "--tls-ca", certificate)
    assert run(*at, "--tls-cert", cert, "--tls-key", key)[0] == 0
    assert run(*at)[0] == 1
    assert len(mutual_peer.received) == 1
    credentials = mien.tls_credentials(certificate, cert=os.fspath(cert), key=key)
    with mien.Client(mutual_peer.address, credentials=credentials, api_key=KEY) as client:
        client.detect(b"photo")
    assert mutual_peer.received[-1].metadata["authorization"] == f"Bearer {KEY}"


def test_certificate_that_cannot_be_shown_is_told_before_any_call(
    run: Run,
    peer: Any,
    client_files: tuple[Path, Path],
    photo: Path,
    authority: trustme.CA,
    tmp_path: Path,
) -> None:
    cert, key = client_files
    other = tmp_path / "other.key"
    authority.issue_cert("other").private_key_pem.write_to_path(str(other))
    status, _, errors = run("detect", photo, "--tls-cert", cert, "--tls-key", other)
    assert status == 1
    assert f"{other} is not the key of the certificate in {cert}" in errors
    assert "[FILE_ERROR, --tls-key]" in errors
    status, _, errors = run("detect", photo, "--tls-cert", cert)
    assert (status, "needs its key" in errors) == (2, True)
    status, _, errors = run("detect", photo, "--tls-cert", key, "--tls-key", key)
    assert (status, f"{key} holds no certificate in PEM [FILE_ERROR, --tls-cert]" in errors) == (
        1,
        True,
    )
    status, _, errors = run("detect", photo, "--tls-cert", cert, "--tls-key", cert)
    assert (status, "holds no private key in PEM [FILE_ERROR, --tls-key]" in errors) == (1, True)
    assert peer.received == []
