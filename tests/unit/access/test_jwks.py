"""Key sets: of a file, and of an https address that is slow, large, wrong or gone."""

import asyncio
import http.server
import logging
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from mien_server.access import jwks as module
from mien_server.access.jwks import FetchedJwks, JwksError, fetch, parse_jwks, read_jwks
from tests.unit.access.token_rig import OTHER, jwk, jwks

WEAK = rsa.generate_private_key(65537, 1024)  # noqa: S505 - to be refused
P384 = ec.generate_private_key(ec.SECP384R1())


def test_keys_of_the_algorithm_are_taken_and_others_left_out() -> None:
    source = jwks(
        jwk("RS256", "rsa"),
        jwk("ES256", "ec"),
        jwk("EdDSA", "ed"),
        jwk("RS256", "weak", WEAK),
        jwk("ES256", "p384", P384),
        jwk("ES256", "encrypts", use="enc"),
        jwk("ES256", "other", alg="ES384"),
        {"kty": "oct", "k": "c2VjcmV0", "kid": "symmetric"},
        {"kty": "none"},
        {},
    )
    assert list(parse_jwks(source, "x", "RS256")) == ["rsa"]
    assert list(parse_jwks(source, "x", "ES256")) == ["ec"]
    assert list(parse_jwks(source, "x", "EdDSA")) == ["ed"]


@pytest.mark.parametrize(
    "source", [b"", b"{", b"[]", b"{}", b'{"keys": 1}', b'{"keys": [1]}', b"\xff", b"[" * 100_000]
)
def test_what_is_no_key_set_is_told(source: bytes) -> None:
    with pytest.raises(JwksError, match="x: no JSON Web Key Set"):
        parse_jwks(source, "x", "RS256")


def test_set_without_a_usable_key_names_the_setting() -> None:
    for source in (jwks(), jwks(jwk("ES256")), jwks(jwk("RS256", "weak", WEAK))):
        with pytest.raises(JwksError, match=r"check RS256 \(--jwt-algorithm"):
            parse_jwks(source, "x", "RS256")


def test_file_that_cannot_be_read_names_the_flag(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(JwksError, match=r"--jwt-jwks .*No such file"):
        read_jwks(tmp_path / "none", "RS256")
    path = tmp_path / "jwks"
    path.write_bytes(jwks(jwk("ES256")))
    assert read_jwks(path, "ES256")
    monkeypatch.setattr(module, "MAX_BYTES", 50)
    with pytest.raises(JwksError, match="more than 50 bytes"):
        read_jwks(path, "ES256")


class Issuer(http.server.ThreadingHTTPServer):
    """Answers by its script."""

    daemon_threads = True
    asked = 0
    answer: Callable[[Any], None]

    def handle_error(self, *_: Any) -> None: ...  # those who are left hanging

    @property
    def url(self) -> str:
        return f"https://localhost:{self.server_address[1]}/keys"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Issuer

    def do_GET(self) -> None:
        self.server.asked += 1
        self.server.answer(self)

    def log_message(self, *_: Any) -> None: ...


def says(content: bytes, status: int = 200, **headers: str) -> Callable[[Any], None]:
    def answer(handler: Any) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(content)

    return answer


def drips(handler: Any) -> None:
    handler.send_response(200)
    handler.end_headers()
    for _ in range(200):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.02)


@pytest.fixture
def issuer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Issuer]:
    authority = trustme.CA()
    ca = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(ca))
    monkeypatch.setenv("SSL_CERT_FILE", str(ca))
    monkeypatch.setenv("no_proxy", "*")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    server = Issuer(("127.0.0.1", 0), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.answer = says(jwks(jwk("ES256")))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def test_address_is_asked_within_bounds(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse_jwks(fetch(issuer.url), issuer.url, "ES256")
    monkeypatch.setattr(module, "FETCH_SECONDS", 2.0)
    monkeypatch.setattr(module, "MAX_BYTES", 1000)
    bad: dict[str, Callable[[Any], None]] = {
        "Internal Server Error": says(b"", 500),
        "Found": says(b"", 302, Location="file:///etc/passwd"),
        "no whole answer": drips,
    }
    for said, answer in bad.items():
        issuer.answer = answer
        with pytest.raises(JwksError, match=said):
            fetch(issuer.url)
    issuer.answer = says(b" " * 200_000)
    assert 1000 < len(fetch(issuer.url)) <= 1000 + 65536


def test_address_that_nobody_vouches_for_is_not_asked(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    trustme.CA().cert_pem.write_to_path(str(tmp_path / "other.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "other.pem"))
    with pytest.raises(JwksError, match=r"(?i)certificate.verify.failed"):
        fetch(issuer.url)
    assert issuer.asked == 0


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not true():  # noqa: ASYNC110 - threads change it
            await asyncio.sleep(0.005)


async def test_keys_are_fetched_again_when_it_is_time_and_kept_when_it_fails(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    keys = FetchedJwks(issuer.url, "ES256")
    assert keys.find("one") is None
    await keys.look()
    await until(lambda: "one" in keys.keys)
    before = keys.keys
    await keys.look()
    assert issuer.asked == 1  # not so soon
    await keys.look(forced=True)
    await until(lambda: issuer.asked == 2)
    await asyncio.sleep(0.05)
    assert keys.keys is before  # nothing that is remembered of tokens is lost

    # A token names another key: it is looked for soon, but not at once by every token.
    issuer.answer = says(jwks(jwk("ES256"), jwk("ES256", "two", OTHER)))
    assert keys.find("two") is None
    await keys.look()
    assert issuer.asked == 2
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.0)
    await keys.look()
    await until(lambda: keys.find("two") is not None)
    await keys.look()
    assert issuer.asked == 3

    # The issuer fails: the keys stay, and it is asked again; for a day.
    issuer.answer = says(b"", 503)
    for asked in (4, 5):
        await keys.look(forced=asked == 4)
        await until(lambda asked=asked: issuer.asked == asked)  # type: ignore[misc]
        await asyncio.sleep(0.05)
    assert keys.find("one")
    assert "those from before stay" in caplog.text
    monkeypatch.setattr(module, "MAX_AGE_SECONDS", 0.0)
    await keys.look()
    assert keys.find("one") is None
    assert "too old" in caplog.text


async def test_slow_issuer_holds_up_nobody(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FETCH_SECONDS", 2.0)
    issuer.answer = drips
    keys = FetchedJwks(issuer.url, "ES256")
    started = time.monotonic()
    for _ in range(5):
        await keys.look(forced=True)
    assert time.monotonic() - started < 1
    await until(lambda: issuer.asked == 1)
    assert keys.keys == {}
