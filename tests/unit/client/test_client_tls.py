"""Connections over TLS, of both clients and of the command."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme

import mien
from tests.unit.client.conftest import Peer

Call = Callable[..., Any]
Run = Callable[..., tuple[int, str, str]]


def test_credentials_make_the_connection_tls(call: Call, tls_peer: Any, certificate: Path) -> None:
    trusted = grpc.ssl_channel_credentials(certificate.read_bytes())
    assert call("detect", b"photo", address=tls_peer.address, credentials=trusted).faces


def test_a_server_without_tls_is_not_called_over_it(call: Call, peer: Any) -> None:
    with pytest.raises(mien.Unavailable, match=r"does not speak TLS.*--tls-cert") as caught:
        call("detect", b"photo", credentials=grpc.ssl_channel_credentials())
    assert caught.value.reason == "TLS_FAILED"
    assert "Start one" not in caught.value.message
    assert peer.received == []


def test_a_server_with_tls_says_so_to_who_calls_in_plain_text(call: Call, tls_peer: Any) -> None:
    with pytest.raises(
        mien.Unavailable, match=r"speaks TLS.*tls_credentials\(\), or --tls"
    ) as caught:
        call("detect", b"photo", address=tls_peer.address)
    assert caught.value.reason == "TLS_FAILED"


def test_a_certificate_that_is_not_trusted_is_told_with_how_to_trust_it(
    call: Call, tls_peer: Any
) -> None:
    strangers = grpc.ssl_channel_credentials(trustme.CA().cert_pem.bytes())
    with pytest.raises(mien.Unavailable, match=r"issuer certificate\).*--tls-ca ca.pem") as caught:
        call("detect", b"photo", address=tls_peer.address, credentials=strangers)
    assert caught.value.reason == "TLS_FAILED"


@pytest.mark.parametrize(
    ("name", "asks", "said"),
    [("127.0.0.1", True, "wants a client certificate"), ("other.example", False, "another name")],
)
def test_a_certificate_of_another_name_and_one_that_is_missing_are_told(
    call: Call, authority: trustme.CA, certificate: Path, name: str, asks: bool, said: str
) -> None:
    signed, roots = authority.issue_cert(name), certificate.read_bytes()
    pair = signed.private_key_pem.bytes(), signed.cert_chain_pems[0].bytes()
    peer = Peer(credentials=grpc.ssl_server_credentials([pair], roots, asks))
    peer.start()
    try:
        with pytest.raises(mien.Unavailable, match=said):
            call(
                "detect",
                b"photo",
                address=peer.address,
                credentials=grpc.ssl_channel_credentials(roots),
            )
    finally:
        peer.stop()


@pytest.mark.parametrize("options", [[], ["--tls"]], ids=["to TLS", "to strangers"])
def test_grpc_writes_nothing_of_its_own(tls_peer: Any, photo: Path, options: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mien", "--address", tls_peer.address, *options, "detect", photo],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("mien: the ")
    assert done.stderr.count("\n") == 1


def test_what_keeps_grpc_quiet_stays_in_this_process() -> None:
    code = "import mien, os; print(os.environ.get('GRPC_VERBOSITY'))"
    for given, told in ((None, "None\n"), ("debug", "debug\n")):
        environment = {k: v for k, v in os.environ.items() if k != "GRPC_VERBOSITY"}
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=environment | ({"GRPC_VERBOSITY": given} if given else {}),
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert done.stdout == told


def test_tls_ca_trusts_the_certificates_of_a_file(
    run: Run, tls_peer: Any, certificate: Path, photo: Path
) -> None:
    status, output, _ = run(
        "--tls-ca", certificate, "detect", photo, "--address", tls_peer.address, "--json"
    )
    assert status == 0
    assert len(json.loads(output)) == 2


@pytest.mark.parametrize("options", [[], ["--tls"]], ids=["plain", "strangers"])
def test_a_server_that_is_not_trusted_is_sent_no_photo(
    run: Run, tls_peer: Any, photo: Path, options: list[str]
) -> None:
    status, _, errors = run("detect", photo, "--address", tls_peer.address, "--json", *options)
    assert status == 1
    assert json.loads(errors)["reason"] == "TLS_FAILED"
    assert tls_peer.received == []


def test_tls_trusts_the_well_known_authorities(
    tls_peer: Any, certificate: Path, photo: Path
) -> None:
    # gRPC reads this variable once for a process.
    done = subprocess.run(
        [sys.executable, "-m", "mien", "--tls", "--address", tls_peer.address, "detect", photo],
        env=os.environ | {"GRPC_DEFAULT_SSL_ROOTS_FILE_PATH": str(certificate)},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(tls_peer.received) == 1


def test_models_are_looked_at_over_tls(run: Run, tls_peer: Any, certificate: Path) -> None:
    command = ["models", "ls", "--address", tls_peer.address, "--json"]
    reasons = []
    for options in ([], ["--tls-ca", certificate]):
        status, _, errors = run(*command, *options)
        assert status == 1
        reasons.append(json.loads(errors)["reason"])
    # The peer has no models, which only who has reached it can know.
    assert reasons == ["TLS_FAILED", "WRONG_SERVER"]


@pytest.mark.parametrize("content", ["", "no certificate"])
def test_a_file_without_a_certificate_is_a_failure(
    run: Run, peer: Any, photo: Path, tmp_path: Path, content: str
) -> None:
    file = tmp_path / "ca.pem"
    file.write_text(content)
    for command in (["detect", photo], ["models", "ls"]):
        status, output, errors = run("--tls-ca", file, *command)
        assert (status, output) == (1, "")
        assert errors == f"mien: {file} holds no certificate in PEM [FILE_ERROR, --tls-ca]\n"
    assert peer.received == []


def test_a_file_of_certificates_that_is_not_there_is_a_failure(run: Run, photo: Path) -> None:
    status, _, errors = run("detect", photo, "--tls-ca", "none.pem")
    assert (status, errors) == (1, "mien: none.pem: No such file or directory [FILE_ERROR]\n")
