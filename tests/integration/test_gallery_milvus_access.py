"""A real Milvus that speaks TLS alone, to users with a password: with the right settings, and wrong ones."""

import importlib
import itertools
import logging
import os
import re
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trustme

import mien
from mien_server.commands.main import main
from mien_server.errors import GalleryUnavailable
from mien_server.gallery.milvus_access import MilvusAccess
from mien_server.gallery.milvus_link import Link
from tests.conftest import LaunchServer
from tests.milvus_rig import running_milvus
from tools.local_server import LocalServer
from tools.milvus import ROOT, Milvus, site

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]

Sample = Callable[[str], Path]
AUTHORITY, OTHER = trustme.CA(), trustme.CA()
USER, PASSWORD = "mien", "pass: wörd-of-mien"
_NAMES = itertools.count(1)
_AWAY_SECONDS = 120.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of the authorities, a certificate for mien, and tokens, by what they are."""
    made = tmp_path_factory.mktemp("access")
    AUTHORITY.cert_pem.write_to_path(str(made / "ca.pem"))
    OTHER.cert_pem.write_to_path(str(made / "other.pem"))
    shown = AUTHORITY.issue_cert("mien.example")
    shown.cert_chain_pems[0].write_to_path(str(made / "cert.pem"))
    shown.private_key_pem.write_to_path(str(made / "key.pem"))
    (made / "token").write_text(f"{USER}:{PASSWORD}\n")
    (made / "wrong").write_text(f"{USER}:wrong-password\n")
    return made


@pytest.fixture(scope="module")
def milvus(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Iterator[Milvus]:
    """With a user whose role has the privileges that docs/galleries.md lists, and one without a role."""
    with (
        running_milvus(tmp_path_factory.mktemp("milvus"), authority=AUTHORITY) as running,
        pytest.MonkeyPatch.context() as patch,
    ):
        path = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), str(site()))))
        patch.setenv("PYTHONPATH", path)
        with as_root(running, folder) as client:
            client.create_user(USER, PASSWORD)
            client.create_user("nobody", PASSWORD)
            client.create_role("galleries")
            for kind, privileges in documented_privileges().items():
                for privilege in privileges:
                    client.grant_privilege("galleries", kind, privilege, "*")
            client.grant_role(USER, "galleries")
        yield running


@contextmanager
def as_root(milvus: Milvus, folder: Path) -> Iterator[Any]:
    """A client of pymilvus' as the user that a Milvus begins with."""
    pymilvus: Any = importlib.import_module("pymilvus")
    address = milvus.url.replace("milvus+tls", "https")
    client = pymilvus.MilvusClient(
        address, token=ROOT, server_pem_path=str(folder / "ca.pem"), dedicated=True, timeout=30
    )
    try:
        yield client
    finally:
        client.close()


def documented_privileges() -> dict[str, list[str]]:
    """The privileges that docs/galleries.md lists, by what they are of."""
    page = (Path(__file__).parents[2] / "docs" / "galleries.md").read_text()
    rows = re.findall(r"^\| `(Global|Collection)` \| ([`\w, ]+) \|$", page, re.M)
    return {kind: re.findall(r"`(\w+)`", names) for kind, names in rows}


def access_flags(folder: Path, *, token: str = "token", ca: str = "ca.pem") -> list[str]:  # noqa: S107
    files = {"--gallery-token-file": token, "--gallery-tls-ca": ca}
    return [each for flag, name in files.items() if name for each in (flag, str(folder / name))]


def somebody(model: mien.ModelIdentity, seed: int) -> mien.Embedding:
    values = np.random.default_rng(seed).standard_normal(128)
    return mien.Embedding(values / np.linalg.norm(values), 9.0, model)


def eventually(ask: Callable[[], object]) -> None:
    until = time.monotonic() + _AWAY_SECONDS
    while True:
        try:
            ask()
        except (mien.MienError, AssertionError):
            if time.monotonic() > until:
                raise
            time.sleep(0.2)
        else:
            return


def refusal(gallery: mien.Gallery) -> str:
    with pytest.raises(mien.Unavailable) as caught:
        gallery.info()
    assert caught.value.reason == "GALLERY_UNAVAILABLE"
    return str(caught.value)


def failures(server: LocalServer) -> list[str]:
    return [line for line in server.log.read_text().splitlines() if "galleries' Milvus" in line]


def check_keeps_secrets(server: LocalServer, *told: str) -> None:
    for text in (server.log.read_text(), *told):
        for secret in (PASSWORD, "wrong-password", "PRIVATE"):
            assert secret not in text
        assert "Traceback" not in text


def test_user_with_the_documented_privileges_can_do_everything(
    milvus: Milvus, folder: Path, launch_server: LaunchServer, sample: Sample
) -> None:
    flags = ["--gallery-url", milvus.url, *access_flags(folder), "--log-level", "debug"]
    with (
        launch_server(*flags) as server,
        mien.Client(server.address, timeout=60) as client,
    ):
        gallery = client.gallery(f"all-{next(_NAMES)}")
        gallery.create(threshold=0.3)
        assert gallery.enrol(sample("person_a_1"), "a").outcome == "enrolled"
        model = client.embed(sample("person_a_1")).embedding.model
        result = gallery.enrol(somebody(model, 1), "p", request_key="key", quality_policy="accept")
        assert gallery.identify(sample("person_a_2")).best.person == "a"  # type: ignore[union-attr]
        gallery.move(result.face_id, "moved")
        assert [each.person for each in gallery.persons()] == ["a", "moved"]
        assert gallery.info().faces == 2
        with urllib.request.urlopen(server.metrics_url) as metrics:  # noqa: S310 - ours
            text = metrics.read().decode()
        assert f'mien_gallery_faces{{collection="{gallery.name}"}} 2.0' in text
        gallery.delete_faces(result.face_id)
        gallery.delete_person("a")
        assert gallery.identify(sample("person_a_2")).best is None
        time.sleep(33)  # Milvus is told to compact half a minute after a deletion
        gallery.delete()
        assert failures(server) == []
        check_keeps_secrets(server)


def access(folder: Path, token: str = ROOT, ca: str = "ca.pem") -> MilvusAccess:
    return MilvusAccess(token, folder / ca if ca else None)


@pytest.mark.parametrize(
    ("token", "ca", "change", "told", "logged"),
    [
        ("root:Secret-1", "ca.pem", ("", ""), "does not accept", "username and password.*-token-file"),
        ("nobody-here:Secret-1", "ca.pem", ("", ""), "does not accept", "--gallery-token-file.*must hold"),
        ("Secret-api-key", "ca.pem", ("", ""), "does not accept", "check api key.*--gallery-token-file"),
        ("", "ca.pem", ("", ""), "does not accept", "missing authorization.*into a file and name that"),
        (ROOT, "", ("", ""), "not trusted", "signed it with --gallery-tls-ca"),
        (ROOT, "other.pem", ("", ""), "not trusted", r"other\.pem \(--gallery-tls-ca"),
        (ROOT, "ca.pem", ("127.0.0.1", "127.0.0.2"), "not trusted", "name or the address that --gallery"),
        (ROOT, "ca.pem", ("+tls", ""), "be reached", r"milvus\+tls://"),
        (ROOT, "ca.pem", ("$", "/nowhere"), "no such database", "name another in --gallery-url"),
    ],
)  # fmt: skip
def test_refusal_says_once_what_to_mend(
    token: str,
    ca: str,
    change: Sequence[str],
    told: str,
    logged: str,
    milvus: Milvus,
    folder: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    url = re.sub(re.escape(change[0]) if change[0] != "$" else "$", change[1], milvus.url, count=1)
    with closing(Link(url, access(folder, token, ca))) as link, caplog.at_level(logging.DEBUG):
        for _ in range(3):
            with pytest.raises(GalleryUnavailable, match=told) as caught:
                link.probe(lambda client: client.list_collections(timeout=5))
    (line,) = [each.getMessage() for each in caplog.records if "Milvus" in each.getMessage()]
    assert re.search(logged, line), line
    for text in (caplog.text, str(caught.value)):
        assert "Secret" not in text
        assert ROOT not in text


def test_missing_privilege_is_told_with_its_name(
    milvus: Milvus, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with closing(Link(milvus.url, access(folder, f"nobody:{PASSWORD}"))) as link:
        link.probe(lambda client: client.list_collections(timeout=5))
        with pytest.raises(GalleryUnavailable, match="does not let this server do that") as caught:
            link.probe(lambda client: client.drop_collection("there", timeout=5))
        assert "nobody" not in str(caught.value)
        link.refuse()  # not: the rest goes on
    assert "PrivilegeDropCollection" in caplog.text
    assert "docs/galleries.md" in caplog.text


def test_password_changed_while_serving_is_told_once_and_recovers(
    milvus: Milvus, folder: Path, launch_server: LaunchServer, sample: Sample
) -> None:
    with (
        launch_server("--gallery-url", milvus.url, *access_flags(folder)) as server,
        mien.Client(server.address, timeout=60) as client,
        as_root(milvus, folder) as root,
    ):
        gallery = client.gallery(f"changed-{next(_NAMES)}")
        gallery.create()
        root.update_password(USER, PASSWORD, "another-password")
        try:
            eventually(lambda: refusal(gallery))
            time.sleep(3)
            told = refusal(gallery)
            assert "it does not accept this server" in told
            assert len(client.detect(sample("person_a_1")).faces) == 1
            (line,) = failures(server)
            assert "--gallery-token-file (MIEN_GALLERY_TOKEN_FILE) must hold" in line
        finally:
            root.update_password(USER, "another-password", PASSWORD)
        eventually(gallery.info)
        gallery.delete()
        assert "answers again" in failures(server)[1]
        check_keeps_secrets(server, told)


def test_copy_takes_the_settings_and_says_what_to_mend(
    milvus: Milvus,
    folder: Path,
    tmp_path: Path,
    launch_server: LaunchServer,
    sample: Sample,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = tmp_path / "source"
    with (
        launch_server("--gallery-dir", str(source)) as server,
        mien.Client(server.address, timeout=60) as client,
    ):
        client.gallery("copied").create()
        client.gallery("copied").enrol(sample("person_a_1"), "a")
    command = ["gallery", "copy", str(source), milvus.url]
    assert main([*command, *access_flags(folder, token="wrong")]) == 1  # noqa: S106
    told = capsys.readouterr().err
    assert "it does not accept this server" in told
    assert "--gallery-token-file (MIEN_GALLERY_TOKEN_FILE) must hold" in told
    assert "wrong-password" not in told
    assert main([*command, *access_flags(folder)]) == 0
    assert "1 faces of 1 persons, 1 copied" in capsys.readouterr().out


def test_milvus_that_asks_for_a_certificate(
    milvus: Milvus, tmp_path: Path, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    milvus.kill()  # two at once have no room; the next test starts it
    with running_milvus(tmp_path / "milvus", authority=AUTHORITY, mutual=True) as asking:
        pair = (folder / "cert.pem", folder / "key.pem")
        shown = MilvusAccess(ROOT, folder / "ca.pem", *pair)
        with closing(Link(asking.url, shown)) as link:
            assert link.probe(lambda client: client.list_collections(timeout=5)) == []
        assert not caplog.records
        with (
            closing(Link(asking.url, access(folder))) as link,
            pytest.raises(GalleryUnavailable, match="cannot be reached"),
        ):
            link.probe(lambda client: client.list_collections(timeout=5))
        assert "--gallery-tls-cert (MIEN_GALLERY_TLS_CERT) names one" in caplog.text


def test_refusal_of_a_milvus_that_comes_up_while_serving(
    milvus: Milvus, folder: Path, launch_server: LaunchServer, sample: Sample
) -> None:
    milvus.kill()
    flags = ["--gallery-url", milvus.url, *access_flags(folder, token="wrong")]  # noqa: S106
    with (
        launch_server(*flags) as server,
        mien.Client(server.address, timeout=60) as client,
    ):
        gallery = client.gallery("late")
        told = [refusal(gallery)]
        assert "it cannot be reached" in told[0]
        with pytest.raises(mien.Unavailable):
            client.galleries()
        milvus.start()

        def refused() -> None:
            told.append(refusal(gallery))
            assert "it does not accept this server" in told[-1]

        eventually(refused)
        assert len(client.detect(sample("person_a_1")).faces) == 1
        assert "must hold user:password" in failures(server)[-1]
        with urllib.request.urlopen(server.metrics_url) as metrics:  # noqa: S310 - ours
            assert b"mien_ready 1.0" in metrics.read()
        check_keeps_secrets(server, *told)
