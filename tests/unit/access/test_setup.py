"""What the settings of access may be together, and what a start without them says."""

from pathlib import Path

import pytest
import trustme

from mien_server.access.setup import open_access
from mien_server.errors import OperatorError
from mien_server.settings import SettingsError, env_of, load_settings
from tests.unit.access.token_rig import AUDIENCE, ISSUER, jwk, jwks


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("keys_file", "tls_cert", "tls_key", "tls_client_ca", "insecure"):
        monkeypatch.delenv(env_of(name), raising=False)


def test_nothing_is_closed_on_loopback_unless_it_is_said() -> None:
    access = open_access(load_settings())
    assert (access.gate.closed, access.certificate, access.files) == (False, None, ())


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "10.1.2.3", "2001:db8::1"])  # noqa: S104
def test_beyond_loopback_it_takes_tls_or_the_word_insecure(
    address: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(OperatorError) as caught:
        open_access(load_settings({"grpc_address": address}))
    for flag in ("--grpc-address (MIEN_GRPC_ADDRESS)", "--tls-cert", "--insecure (MIEN_INSECURE)"):
        assert flag in str(caught.value)
    assert not caplog.records
    open_access(load_settings({"grpc_address": address, "insecure": "true"}))
    (told,) = caplog.messages
    assert "cross the network in plain text" in told
    open_access(load_settings({"grpc_address": address, "grpc_socket": "mien.sock"}))
    signed = trustme.CA().issue_cert("faces.example")
    pair = {"tls_cert": tmp_path / "cert", "tls_key": tmp_path / "key"}
    signed.cert_chain_pems[0].write_to_path(str(pair["tls_cert"]))
    signed.private_key_pem.write_to_path(str(pair["tls_key"]))
    assert open_access(load_settings({"grpc_address": address} | pair)).certificate


def test_keys_alone_are_no_leave_to_send_them_in_plain_text(tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    keys.write_text("{}")
    keys.chmod(0o600)
    assert open_access(load_settings({"keys_file": keys})).gate.closed
    with pytest.raises(OperatorError, match="--insecure"):
        open_access(load_settings({"keys_file": keys, "grpc_address": "10.1.2.3"}))


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        (["tls_cert"], "--tls-key"),
        (["tls_key"], "--tls-cert"),
        (["tls_client_ca"], "--tls-cert"),
        (["tls_cert", "tls_key", "tls_client_ca"], "--keys-file"),
        (["jwt_jwks", "jwt_issuer"], "--jwt-audience"),
        (["jwt_jwks", "jwt_audience"], "--jwt-issuer"),
    ],
)
def test_half_of_tls_names_the_other_half(given: list[str], missing: str) -> None:
    with pytest.raises(SettingsError, match=missing):
        load_settings(dict.fromkeys(given, "file"))


@pytest.mark.parametrize("mode", ["8", "66", "0777", "rw-", "-60"])
def test_mode_of_a_socket_is_three_octal_digits(mode: str) -> None:
    with pytest.raises(SettingsError, match=r"--grpc-socket-mode"):
        load_settings({"grpc_socket_mode": mode})


def test_limits_of_callers_take_callers_that_are_known(tmp_path: Path) -> None:
    for limit in ({"caller_rate": "5"}, {"caller_max_calls": "5"}):
        with pytest.raises(SettingsError, match=r"--caller-rate .*--keys-file .*--jwt-jwks"):
            open_access(load_settings(limit))
    keys = tmp_path / "keys.json"
    keys.write_text("{}")
    keys.chmod(0o600)
    assert open_access(load_settings({"keys_file": keys, "caller_rate": "0.1"})).gate.limits
    assert open_access(load_settings({"keys_file": keys})).gate.limits is None


def test_files_that_cannot_be_used_end_the_start(tmp_path: Path) -> None:
    nowhere = tmp_path / "none"
    with pytest.raises(OperatorError, match="mien-server keys create"):
        open_access(load_settings({"keys_file": nowhere}))
    with pytest.raises(OperatorError, match="--tls-cert"):
        open_access(load_settings({"tls_cert": nowhere, "tls_key": nowhere}))


JWT = {"jwt_issuer": ISSUER, "jwt_audience": AUDIENCE, "jwt_algorithm": "ES256"}


def test_tokens_close_the_server_and_map_words_to_roles(tmp_path: Path) -> None:
    keys = tmp_path / "jwks"
    keys.write_bytes(jwks(jwk("ES256")))
    access = open_access(load_settings(JWT | {"jwt_jwks": str(keys), "jwt_role": ["a=b=infer"]}))
    assert access.gate.closed
    assert len(access.files) == 1
    for bad in ("infer", "=infer", "users=root", ""):
        with pytest.raises(SettingsError, match=r"--jwt-role .*WORD=ROLE; the roles are infer, "):
            open_access(load_settings(JWT | {"jwt_jwks": str(keys), "jwt_role": [bad]}))
    with pytest.raises(SettingsError, match=r"--jwt-algorithm"):
        load_settings(JWT | {"jwt_algorithm": "none"})


def test_keys_of_tokens_come_from_a_file_or_over_https(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"--jwt-jwks .*neither a file nor an https address"):
        load_settings(JWT | {"jwt_jwks": "http://issuer.example/keys"})
    with pytest.raises(OperatorError, match=r"--jwt-jwks .*No such file"):
        open_access(load_settings(JWT | {"jwt_jwks": str(tmp_path / "none")}))
    # An issuer that is away does not keep the server from starting.
    assert open_access(load_settings(JWT | {"jwt_jwks": "https://issuer.invalid/keys"})).gate.closed
