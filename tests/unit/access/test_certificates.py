"""Certificates and keys: what is taken, and what is said of what is not."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives import serialization as pem

from mien_server.access.certificates import Certificate, TlsError, TlsFiles

NOW = datetime.now(UTC)
AUTHORITY = trustme.CA()
SIGNED = AUTHORITY.issue_cert("faces.example", "127.0.0.1", not_after=NOW + timedelta(days=40))


@pytest.fixture
def files(tmp_path: Path) -> TlsFiles:
    found = TlsFiles(tmp_path / "server.pem", tmp_path / "server.key", tmp_path / "ca.pem")
    write(found, SIGNED)
    AUTHORITY.cert_pem.write_to_path(str(found.client_ca))
    return found


def write(files: TlsFiles, signed: trustme.LeafCert) -> None:
    signed.cert_chain_pems[0].write_to_path(str(files.cert))
    signed.private_key_pem.write_to_path(str(files.key))
    files.key.chmod(0o600)


def test_certificate_key_and_authority_are_read(files: TlsFiles) -> None:
    tls = files.read()
    assert tls.names == ("faces.example", "127.0.0.1")
    assert tls.chain == files.cert.read_bytes()
    assert tls.client_ca == AUTHORITY.cert_pem.bytes()
    assert 39.9 < Certificate(tls).days_left() <= 40
    assert TlsFiles(files.cert, files.key, None).read().client_ca is None


def test_days_left_follow_what_is_read_next(files: TlsFiles) -> None:
    certificate = Certificate(files.read())
    write(files, AUTHORITY.issue_cert("faces.example", not_after=NOW + timedelta(days=90)))
    certificate.replace(files.read())
    assert 89.9 < certificate.days_left() <= 90


def test_chain_may_follow_the_certificate(files: TlsFiles) -> None:
    files.cert.write_bytes(files.cert.read_bytes() + AUTHORITY.cert_pem.bytes())
    assert files.read().names == ("faces.example", "127.0.0.1")


@pytest.mark.parametrize("name", ["cert", "key", "client_ca"])
def test_missing_file_names_flag_and_path(files: TlsFiles, name: str) -> None:
    path: Path = getattr(files, name)
    path.unlink()
    flag = f"--tls-{name.replace('_', '-')} (MIEN_TLS_{name.upper()})"
    with pytest.raises(TlsError) as caught:
        files.read()
    assert str(caught.value) == f"{flag}: cannot read {path}: No such file or directory."


@pytest.mark.parametrize("content", [b"", b"\xff\x00", b"-----BEGIN CERTIFICATE-----\nx\n"])
@pytest.mark.parametrize(
    ("name", "said"),
    [("cert", "no certificate"), ("client_ca", "no certificate"), ("key", "no private key")],
)
def test_file_of_something_else_is_told(
    files: TlsFiles, name: str, said: str, content: bytes
) -> None:
    path: Path = getattr(files, name)
    path.write_bytes(content)
    with pytest.raises(TlsError, match=f"{path} holds {said} in PEM"):
        files.read()


def test_authority_that_has_ended_is_left_out_beside_one_that_holds(files: TlsFiles) -> None:
    assert files.client_ca
    past = AUTHORITY.issue_cert("old", not_after=NOW - timedelta(days=1)).cert_chain_pems[0].bytes()
    files.client_ca.write_bytes(past + files.client_ca.read_bytes())
    assert Certificate(files.read()).days_left() > 39
    files.client_ca.write_bytes(past)
    with pytest.raises(TlsError, match=r"--tls-client-ca .*ended at"):
        files.read()


def another_key(files: TlsFiles) -> None:
    other = AUTHORITY.issue_cert("faces.example")
    other.private_key_pem.write_to_path(str(files.key))


def authority_first(files: TlsFiles) -> None:
    files.cert.write_bytes(AUTHORITY.cert_pem.bytes() + files.cert.read_bytes())


def with_a_password(files: TlsFiles) -> None:
    key = pem.load_pem_private_key(files.key.read_bytes(), None)
    secret = pem.BestAvailableEncryption(b"secret")
    encoded = key.private_bytes(pem.Encoding.PEM, pem.PrivateFormat.PKCS8, secret)
    files.key.write_bytes(encoded)


def ended(files: TlsFiles) -> None:
    write(files, AUTHORITY.issue_cert("x", not_after=NOW - timedelta(hours=1)))


def not_begun(files: TlsFiles) -> None:
    write(files, AUTHORITY.issue_cert("x", not_before=NOW + timedelta(hours=1)))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (another_key, "is not the key of the first certificate"),
        (authority_first, "is not the key of the first certificate"),
        (with_a_password, "has a password.* openssl pkey"),
        (ended, "ended at .* Renew it"),
        (not_begun, "begins only at .* clock"),
    ],
)
def test_pair_that_cannot_serve_says_why(
    files: TlsFiles, spoil: Callable[[TlsFiles], None], said: str
) -> None:
    spoil(files)
    with pytest.raises(TlsError, match=said):
        files.read()


def test_what_will_go_wrong_soon_is_a_warning(
    files: TlsFiles, caplog: pytest.LogCaptureFixture
) -> None:
    files.read()
    assert not caplog.records
    write(files, AUTHORITY.issue_cert("x", not_after=NOW + timedelta(days=3)))
    files.key.chmod(0o644)
    files.read()
    told = " ".join(record.getMessage() for record in caplog.records)
    assert "ends soon" in told
    assert f"chmod 600 {files.key}" in told
