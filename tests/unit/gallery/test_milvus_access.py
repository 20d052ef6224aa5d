"""The settings of a Milvus that asks who comes: what they may be, and what it says when they do not do."""

import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
import trustme

from mien_server.commands.main import main
from mien_server.errors import OperatorError
from mien_server.gallery.milvus_access import NO_ACCESS, MilvusAccess, read_access
from mien_server.gallery.milvus_failures import Failure, failure_of, is_away
from mien_server.settings import SettingsError, load_settings
from tools.local_server import open_channel

URL = "milvus+tls://milvus.example:19530"
AUTHORITY, OTHER = trustme.CA(), trustme.CA()


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """All of them, as they must be."""
    shown = AUTHORITY.issue_cert("mien.example")
    paths = {
        name: tmp_path / name
        for name in ("gallery_token_file", "gallery_tls_ca", "gallery_tls_cert", "gallery_tls_key")
    }
    paths["gallery_token_file"].write_text("mien:a-secret\n")
    AUTHORITY.cert_pem.write_to_path(str(paths["gallery_tls_ca"]))
    shown.cert_chain_pems[0].write_to_path(str(paths["gallery_tls_cert"]))
    shown.private_key_pem.write_to_path(str(paths["gallery_tls_key"]))
    return paths


def test_files_go_to_pymilvus_as_it_takes_them(files: dict[str, Path]) -> None:
    access = read_access(load_settings(files), "/some/folder", URL)
    assert access.token == "mien:a-secret"  # noqa: S105
    assert "a-secret" not in repr(access)
    assert {name: Path(path) for name, path in access.options().items()} == {
        "ca_pem_path": files["gallery_tls_ca"],
        "client_pem_path": files["gallery_tls_cert"],
        "client_key_path": files["gallery_tls_key"],
    }
    one_way = {name: files[name] for name in ("gallery_token_file", "gallery_tls_ca")}
    access = read_access(load_settings(one_way), URL)
    assert access.options() == {"server_pem_path": str(files["gallery_tls_ca"])}
    assert read_access(load_settings(), URL) == NO_ACCESS
    assert NO_ACCESS.options() == {}


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        (["gallery_tls_cert", "gallery_tls_ca"], "--gallery-tls-key"),
        (["gallery_tls_key", "gallery_tls_ca"], "--gallery-tls-cert"),
        (["gallery_tls_cert", "gallery_tls_key"], "--gallery-tls-ca"),
    ],
)
def test_certificate_takes_its_key_and_an_authority(
    given: list[str], missing: str, files: dict[str, Path]
) -> None:
    with pytest.raises(SettingsError, match=f"{given[0].replace('_', '-')}.*{missing}"):
        load_settings({name: files[name] for name in given})


@pytest.mark.parametrize("places", [[], [""], ["milvus://host"], ["/a/folder", "milvus://host"]])
def test_authority_takes_a_milvus_over_tls(places: list[str], files: dict[str, Path]) -> None:
    settings = load_settings({"gallery_tls_ca": files["gallery_tls_ca"]})
    with pytest.raises(OperatorError, match=r"--gallery-tls-ca.*milvus\+tls://host:port"):
        read_access(settings, *places)


@pytest.mark.parametrize(
    "name", ["gallery_token_file", "gallery_tls_ca", "gallery_tls_cert", "gallery_tls_key"]
)
def test_file_that_is_not_there_is_named(name: str, files: dict[str, Path]) -> None:
    files[name].unlink()
    flag = "--" + name.replace("_", "-")
    with pytest.raises(OperatorError, match=f"{flag}.*cannot read .*{name}: No such file"):
        read_access(load_settings(files), URL)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("gallery_token_file", b"", "must hold one line, .* it has 0"),
        (
            "gallery_token_file",
            b"mien:a-secret\nother:a-secret\n",
            "must hold one line, .* it has 2",
        ),
        ("gallery_token_file", b"mien:a-secret\xff", "no text in UTF-8"),
        ("gallery_tls_ca", b"a-secret", "holds no certificate in PEM"),
        ("gallery_tls_cert", b"a-secret", "not a certificate in PEM and its private key"),
        ("gallery_tls_key", b"a-secret", "not a certificate in PEM and its private key"),
        (
            "gallery_tls_key",
            OTHER.issue_cert("other.example").private_key_pem.bytes(),
            "not a certificate in PEM and its private key",
        ),
    ],
)
def test_file_of_something_else_is_told_and_not_quoted(
    name: str, content: bytes, told: str, files: dict[str, Path]
) -> None:
    files[name].write_bytes(content)
    with pytest.raises(OperatorError, match=told) as caught:
        read_access(load_settings(files), URL)
    assert "--" + name.replace("_", "-") in str(caught.value)
    assert "a-secret" not in str(caught.value)
    assert "0xff" not in str(caught.value)


def test_command_copy_takes_the_settings(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "from").mkdir()
    folders = [str(tmp_path / "from"), "milvus://127.0.0.1:1"]
    assert main(["gallery", "copy", *folders, "--gallery-tls-ca", str(files["gallery_tls_ca"])])
    assert "--gallery-tls-ca (MIEN_GALLERY_TLS_CA): it takes a Milvus" in capsys.readouterr().err


Answer = Callable[[grpc.ServicerContext], bytes]


class _Everything(grpc.GenericRpcHandler):
    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    def service(self, handler_call_details: object) -> "grpc.RpcMethodHandler[bytes, bytes]":
        del handler_call_details
        return grpc.unary_unary_rpc_method_handler(lambda _, context: self._answer(context))


@contextmanager
def answering(
    answer: Answer = lambda _: b"", credentials: grpc.ServerCredentials | None = None
) -> Iterator[str]:
    """A server that gives this answer to everything; its address."""
    server = grpc.server(ThreadPoolExecutor(1), handlers=[_Everything(answer)])
    try:
        if credentials is None:
            port = server.add_insecure_port("127.0.0.1:0")
        else:
            port = server.add_secure_port("127.0.0.1:0", credentials)
        server.start()
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None)


def shown_by(authority: trustme.CA, name: str, *, mutual: bool = False) -> grpc.ServerCredentials:
    signed = authority.issue_cert(name)
    pair = (signed.private_key_pem.bytes(), signed.cert_chain_pems[0].bytes())
    return grpc.ssl_server_credentials([pair], authority.cert_pem.bytes(), mutual)


def _call(channel: grpc.Channel) -> None:
    channel.unary_unary("/milvus/Connect", bytes, bytes)(b"", timeout=20)


def failure(address: str, access: MilvusAccess, trusted: bytes | None = None) -> Failure:
    """What comes of asking for something there."""
    with open_channel(address, trusted) as channel, pytest.raises(grpc.RpcError) as caught:
        _call(channel)
    error = Exception("what pymilvus makes of it")
    error.__cause__ = caught.value
    assert is_away(error)
    return failure_of(error, access, tls=trusted is not None)


TRUSTED = AUTHORITY.cert_pem.bytes()
BOTH = MilvusAccess("mien:a-secret", Path("ca.pem"))


@pytest.mark.parametrize(
    ("credentials", "access", "trusted", "told", "advice"),
    [
        (None, BOTH, TRUSTED, "reached", "speaks no TLS.*milvus://"),
        (shown_by(OTHER, "127.0.0.1"), BOTH, TRUSTED, "trusted", r"ca\.pem \(--gallery-tls-ca"),
        (shown_by(OTHER, "127.0.0.1"), NO_ACCESS, TRUSTED, "trusted", "signed it with --gallery-tls"),
        (shown_by(AUTHORITY, "other"), BOTH, TRUSTED, "trusted", "name or the address that --gallery-url"),
        (shown_by(AUTHORITY, "127.0.0.1"), BOTH, None, "reached", r"milvus\+tls://"),
        (shown_by(AUTHORITY, "127.0.0.1", mutual=True), BOTH, TRUSTED, "reached", "--gallery-tls-cert"),
    ],
)  # fmt: skip
def test_connection_that_fails_says_which_setting_to_mend(
    credentials: grpc.ServerCredentials | None,
    access: MilvusAccess,
    trusted: bytes | None,
    told: str,
    advice: str,
) -> None:
    with answering(credentials=credentials) as address:
        found = failure(address, access, trusted)
    assert found.away
    assert told in found.told
    assert address not in found.told
    assert re.search(advice, found.advice), found
    assert "a-secret" not in str(found)


def refusing(code: grpc.StatusCode, text: str) -> Answer:
    def answer(context: grpc.ServicerContext) -> bytes:
        context.abort(code, text)

    return answer


def test_refused_user_is_told_where_the_password_belongs() -> None:
    said = "auth check failure, please check username and password are correct"
    with answering(refusing(grpc.StatusCode.UNAUTHENTICATED, said)) as address:
        without, wrong = failure(address, NO_ACCESS), failure(address, BOTH)
    assert without.told == wrong.told == "it does not accept this server"
    assert "into a file and name that with --gallery-token-file (MIEN_GALLERY" in without.advice
    assert "--gallery-token-file (MIEN_GALLERY_TOKEN_FILE) must hold" in wrong.advice
    assert said in str(wrong)
    assert "a-secret" not in str(wrong)


def test_missing_privilege_is_no_outage_and_its_user_stays_unnamed() -> None:
    said = "PrivilegeDropCollection: permission deny to mien"
    with (
        answering(refusing(grpc.StatusCode.PERMISSION_DENIED, said)) as address,
        open_channel(address) as channel,
        pytest.raises(grpc.RpcError) as caught,
    ):
        _call(channel)
    found = failure_of(caught.value, BOTH, tls=True)
    assert not found.away
    assert not is_away(caught.value)
    assert "mien" not in found.told
    assert said in found.advice
    assert "docs/galleries.md" in found.advice
    # pymilvus raises exceptions from themselves.
    caught.value.__cause__ = caught.value
    assert failure_of(caught.value, BOTH, tls=True) == found
