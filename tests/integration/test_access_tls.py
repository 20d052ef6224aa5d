"""TLS, client certificates and Unix sockets over the wire, while their files change."""

import asyncio
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives import serialization as pem
from cryptography.hazmat.primitives.asymmetric import ec

import mien
from mien_server.access.certificates import Certificate, TlsFiles
from mien_server.access.gate import Gate
from mien_server.access.keyring import Keyring
from mien_server.access.keys import new_entry
from mien_server.access.roles import CallerRole
from mien_server.access.watching import Watched
from mien_server.commands.main import main
from mien_server.rpc.ports import ListenError, UnixSocket
from tests.integration.access_rig import (
    CHECK,
    EMBED,
    REFUSALS,
    UNLOAD,
    Metadata,
    bearer,
    ended,
    fresh_log_limits,  # noqa: F401 - a fixture
)
from tests.unit.triton.triton_world import Running, serving

AUTHORITY, OTHER = trustme.CA(), trustme.CA()
KEY_ENTRY, KEY = new_entry("by key", (CallerRole.INFER,), certificate=False)
ENTRIES = [
    KEY_ENTRY,
    new_entry("billing.example", (CallerRole.INFER,), certificate=True)[0],
    new_entry("ops", (CallerRole.ADMIN,), certificate=True)[0],
]


def write(files: TlsFiles, signed: trustme.LeafCert) -> None:
    for path, blob in (
        (files.cert, signed.cert_chain_pems[0]),
        (files.key, signed.private_key_pem),
    ):
        new = path.with_suffix(".new")
        blob.write_to_path(str(new))
        new.chmod(0o600)
        new.replace(path)


@pytest.fixture
def files(tmp_path: Path) -> TlsFiles:
    found = TlsFiles(tmp_path / "server.pem", tmp_path / "server.key", None)
    write(found, AUTHORITY.issue_cert("localhost", "127.0.0.1"))
    return found


@pytest.fixture
def mutual(files: TlsFiles, tmp_path: Path) -> TlsFiles:
    ca = tmp_path / "ca.pem"
    AUTHORITY.cert_pem.write_to_path(str(ca))
    return TlsFiles(files.cert, files.key, ca)


@asynccontextmanager
async def encrypted(files: TlsFiles, **options: Any) -> AsyncIterator[tuple[Running, Watched[Any]]]:
    certificate = Certificate(files.read())
    watched = Watched("certificates", files.paths, files.read, certificate.replace)
    async with serving(certificate=certificate, **options) as running:
        yield running, watched


def trusting(
    authority: trustme.CA, shown: trustme.LeafCert | None = None
) -> grpc.ChannelCredentials:
    pair = (
        (shown.private_key_pem.bytes(), shown.cert_chain_pems[0].bytes()) if shown else (None, None)
    )
    return grpc.ssl_channel_credentials(authority.cert_pem.bytes(), *pair)


async def once(
    address: str, credentials: grpc.ChannelCredentials, method: str, metadata: Metadata = ()
) -> tuple[str, str]:
    """How a call over a connection of its own ends."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.secure_channel(address, credentials, options) as channel:
        return await ended(channel, method, metadata)


async def test_over_tls_calls_are_answered_and_in_plain_text_none(files: TlsFiles) -> None:
    async with encrypted(files) as (running, _):
        address = running.server.address
        assert await once(address, trusting(AUTHORITY), CHECK) == ("OK", "")
        assert (await ended(running.channel, CHECK))[0] == "UNAVAILABLE"
        assert await once(address, trusting(OTHER), CHECK) == ("UNAVAILABLE", "")
        # Nothing of that harms the next.
        assert await once(address, trusting(AUTHORITY), UNLOAD) == ("OK", "")


async def test_keys_go_over_tls_with_the_sdk(files: TlsFiles, tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    AUTHORITY.cert_pem.write_to_path(str(ca))
    async with encrypted(files, gate=Gate(Keyring(ENTRIES))) as (running, _):
        credentials = mien.tls_credentials(ca)
        options = {"detector": "finder", "embedder": "vectors:1"}
        async with mien.AsyncClient(
            running.server.address, credentials=credentials, api_key=KEY
        ) as client:
            assert (await client.embed(b"photo", **options)).faces  # type: ignore[arg-type]
        async with mien.AsyncClient(running.server.address, credentials=credentials) as client:
            with pytest.raises(mien.Unauthenticated):
                await client.embed(b"photo")


async def test_client_certificate_gives_the_roles_of_its_name(mutual: TlsFiles) -> None:
    billing = AUTHORITY.issue_cert("other.example", "billing.example")
    ops = AUTHORITY.issue_cert("host.example", common_name="ops")
    stranger = AUTHORITY.issue_cert("nobody.example")
    forged = OTHER.issue_cert("billing.example")
    ended_cert = AUTHORITY.issue_cert(
        "billing.example", not_after=datetime.now(UTC) - timedelta(hours=1)
    )
    async with encrypted(mutual, gate=Gate(Keyring(ENTRIES))) as (running, _):

        async def come(shown: trustme.LeafCert | None, method: str, sent: Metadata = ()) -> str:
            code, reason = await once(
                running.server.address, trusting(AUTHORITY, shown), method, sent
            )
            assert code not in REFUSALS or reason == code
            return code

        assert await come(billing, EMBED) == "INVALID_ARGUMENT"
        assert await come(billing, UNLOAD) == "PERMISSION_DENIED"
        assert await come(ops, UNLOAD) == "OK"
        assert await come(ops, EMBED) == "PERMISSION_DENIED"
        assert await come(stranger, EMBED) == "UNAUTHENTICATED"
        assert await come(stranger, CHECK) == "OK"
        for shown in (None, forged, ended_cert):
            assert await come(shown, CHECK) == "UNAVAILABLE"
        # A key says more than a certificate: it alone counts then.
        assert await come(ops, EMBED, bearer(KEY)) == "INVALID_ARGUMENT"
        assert await come(stranger, EMBED, bearer(KEY)) == "INVALID_ARGUMENT"
        assert await come(ops, UNLOAD, bearer(KEY)) == "PERMISSION_DENIED"
        assert await come(ops, UNLOAD, bearer("wrong")) == "UNAUTHENTICATED"


def with_uri(uri: str) -> grpc.ChannelCredentials:
    """A client with a certificate whose only name is a URI, as SPIFFE's are."""
    key = ec.generate_private_key(ec.SECP256R1())
    signer = pem.load_pem_private_key(AUTHORITY.private_key_pem.bytes(), None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    issuer = x509.load_pem_x509_certificate(AUTHORITY.cert_pem.bytes()).subject
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(
            issuer, x509.Name([]), key.public_key(), x509.random_serial_number()
        )
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)]), critical=True
        )
        .sign(signer, hashes.SHA256())
    )
    private = key.private_bytes(pem.Encoding.PEM, pem.PrivateFormat.PKCS8, pem.NoEncryption())
    shown = certificate.public_bytes(pem.Encoding.PEM)
    return grpc.ssl_channel_credentials(AUTHORITY.cert_pem.bytes(), private, shown)


async def test_uri_in_a_certificate_is_a_name_too(mutual: TlsFiles) -> None:
    uri = "spiffe://faces.example/ns/web/sa/billing"
    entry, _ = new_entry(uri, (CallerRole.INFER,), certificate=True)
    async with encrypted(mutual, gate=Gate(Keyring([entry]))) as (running, _):
        address = running.server.address
        assert (await once(address, with_uri(uri), EMBED))[0] == "INVALID_ARGUMENT"
        assert (await once(address, with_uri(f"{uri}2"), EMBED))[0] == "UNAUTHENTICATED"


async def test_certificate_is_changed_while_a_client_works(files: TlsFiles) -> None:
    async with encrypted(files) as (running, watched):
        address = running.server.address
        channel = grpc.aio.secure_channel(address, trusting(AUTHORITY))
        outcomes, stop = [await ended(channel, CHECK)], asyncio.Event()

        async def work() -> None:
            while not stop.is_set():
                outcomes.append(await ended(channel, CHECK))

        working = asyncio.create_task(work())
        write(files, OTHER.issue_cert("localhost", "127.0.0.1"))
        await watched.look()
        assert await once(address, trusting(OTHER), CHECK) == ("OK", "")
        assert await once(address, trusting(AUTHORITY), CHECK) == ("UNAVAILABLE", "")

        # What cannot serve changes nothing: a key that does not fit, one that is gone, an end that has come.
        AUTHORITY.issue_cert("localhost").private_key_pem.write_to_path(str(files.key))
        await watched.look(forced=True)
        assert await once(address, trusting(OTHER), CHECK) == ("OK", "")
        files.key.unlink()
        await watched.look(forced=True)
        past = datetime.now(UTC) - timedelta(days=1)
        write(files, AUTHORITY.issue_cert("localhost", not_after=past))
        await watched.look(forced=True)
        assert await once(address, trusting(OTHER), CHECK) == ("OK", "")

        write(files, AUTHORITY.issue_cert("localhost", "127.0.0.1"))
        await watched.look()
        assert await once(address, trusting(AUTHORITY), CHECK) == ("OK", "")
        stop.set()
        await working
        await channel.close()
    assert len(outcomes) > 5
    assert set(outcomes) == {("OK", "")}


async def test_authority_of_clients_is_changed_too(mutual: TlsFiles) -> None:
    async with encrypted(mutual, gate=Gate(Keyring(ENTRIES))) as (running, watched):
        address = running.server.address
        old, new = (
            trusting(AUTHORITY, authority.issue_cert("billing.example"))
            for authority in (AUTHORITY, OTHER)
        )
        assert await once(address, new, CHECK) == ("UNAVAILABLE", "")
        OTHER.cert_pem.write_to_path(str(mutual.client_ca))
        await watched.look()
        assert await once(address, new, CHECK) == ("OK", "")
        assert await once(address, old, CHECK) == ("UNAVAILABLE", "")


async def test_many_handshakes_that_fail_leave_a_working_client_alone(files: TlsFiles) -> None:
    async with encrypted(files) as (running, _):
        host, _, port = running.server.address.rpartition(":")

        async def knock() -> None:
            _, writer = await asyncio.open_connection(host, int(port))
            writer.write(b"\x16\x03\x01 no handshake" * 10)
            writer.close()

        async with grpc.aio.secure_channel(running.server.address, trusting(AUTHORITY)) as channel:
            knocks = asyncio.gather(*(knock() for _ in range(200)))
            assert {await ended(channel, CHECK) for _ in range(20)} == {("OK", "")}
            await knocks
            assert await once(running.server.address, trusting(AUTHORITY), CHECK) == ("OK", "")


@pytest.mark.parametrize("with_clients", [False, True], ids=["tls", "mutual"])
async def test_health_command_reaches_a_server_over_tls(
    files: TlsFiles,
    mutual: TlsFiles,
    with_clients: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    chosen = mutual if with_clients else files
    write(chosen, AUTHORITY.issue_cert("faces.example"))
    for name, path in zip(("CERT", "KEY", "CLIENT_CA"), chosen.paths, strict=False):
        monkeypatch.setenv(f"MIEN_TLS_{name}", str(path))
    keys = tmp_path / "keys.json"
    monkeypatch.setenv("MIEN_KEYS_FILE", str(keys))
    async with encrypted(chosen, gate=Gate(Keyring(ENTRIES))) as (running, _):
        command = ["health", "--address", running.server.address]
        assert await asyncio.to_thread(main, command) == 0
        for name in ("CERT", "KEY", "CLIENT_CA"):
            monkeypatch.delenv(f"MIEN_TLS_{name}", raising=False)
        assert await asyncio.to_thread(main, command) == 1
        assert "its own --tls-cert" in capsys.readouterr().err


@pytest.mark.parametrize("mode", [0o600, 0o660])
async def test_unix_socket_is_for_those_whom_its_mode_lets_in(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "mien.sock"
    async with serving(unix=UnixSocket(path, mode), gate=Gate(Keyring(ENTRIES))) as running:
        assert running.server.address == f"unix:{path}"
        assert stat.S_IMODE(path.stat().st_mode) == mode
        assert await ended(running.channel, CHECK) == ("OK", "")
        assert (await ended(running.channel, EMBED))[0] == "UNAUTHENTICATED"
        async with mien.AsyncClient(running.server.address, api_key=KEY) as client:
            answer = await client.embed(b"photo", detector="finder", embedder="vectors:1")
            assert answer.faces
    assert not path.exists()


async def test_unix_socket_is_not_taken_from_who_listens_there(tmp_path: Path) -> None:
    path = tmp_path / "mien.sock"
    async with serving(unix=UnixSocket(path, 0o600)) as running:
        with pytest.raises(ListenError, match=r"another server listens there.*--grpc-socket"):
            UnixSocket(path, 0o600).bind(lambda _: 1)
        assert await ended(running.channel, CHECK) == ("OK", "")


async def test_socket_that_a_killed_server_left_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "mien.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    async with serving(unix=UnixSocket(path, 0o600)) as running:
        assert await ended(running.channel, CHECK) == ("OK", "")


def test_path_that_can_be_no_socket_says_why(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for path, said in (
        (file, "something else is there"),
        (tmp_path / "no" / "folder", "is no folder"),
        (tmp_path / ("x" * 120), "more than 107 bytes"),
    ):
        with pytest.raises(ListenError, match=said):
            UnixSocket(path, 0o600).bind(lambda _: 1)
    assert file.exists()
