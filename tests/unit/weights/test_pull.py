"""`models pull` from a real HTTP server on this machine."""

import hashlib
import io
import ssl
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
import trustme

from mien_server.models.families import find_family
from mien_server.repository.manifest import read_manifest
from mien_server.weights.errors import FetchError, WeightsError
from mien_server.weights.fetch.https import download
from mien_server.weights.progress import Progress
from mien_server.weights.pull import pull
from tests.unit.weights.conftest import CONFIGS

CONFIG = CONFIGS / "retinaface" / "config.pbtxt"


class Site(ThreadingHTTPServer):
    """Serves files by path, with ranges; notes what was asked.

    Attributes:
        files: by path.
        redirects: where other paths lead.
        cut: bytes after which a connection breaks, the first time that a file is asked for.
        ranges: whether ranges are honoured.
        announced: whether answers say how long they are.
        fails: the status that it answers instead, if any.
        asked: path and range of each request.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.redirects: dict[str, str] = {}
        self.cut: int | None = None
        self.ranges = True
        self.announced = True
        self.fails: int | None = None
        self.asked: list[tuple[str, str | None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Site

    def do_GET(self) -> None:
        path, span = self.path.partition("?")[0], self.headers.get("Range")
        self.server.asked.append((path, span))
        if self.server.fails:
            self.send_error(self.server.fails)
            return
        if path in self.server.redirects:
            self.send_response(302)
            self.send_header("Location", self.server.redirects[path])
            self.end_headers()
            return
        if path not in self.server.files:
            self.send_error(404)
            return
        data = self.server.files[path]
        start = int(span.removeprefix("bytes=").rstrip("-")) if span and self.server.ranges else 0
        if start >= len(data):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        if self.server.announced:
            self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        cut, self.server.cut = self.server.cut, None
        self.wfile.write(data[start : start + cut] if cut else data[start:])

    def log_message(self, format: str, *args: object) -> None:
        """The test looks at `asked` instead."""


@pytest.fixture
def site() -> Iterator[Site]:
    with Site() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def weights() -> bytes:
    """A checkpoint of RetinaFace with the small backbone."""
    torch.manual_seed(0)
    buffer = io.BytesIO()
    torch.save(find_family("retinaface_mobilenet0.25").network().state_dict(), buffer)
    return buffer.getvalue()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    (tmp_path / "repository" / "retinaface").mkdir(parents=True)
    (tmp_path / "repository" / "retinaface" / "config.pbtxt").write_bytes(CONFIG.read_bytes())
    return tmp_path / "repository"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def versions(repository: Path) -> set[str]:
    return {path.name for path in (repository / "retinaface").iterdir() if path.is_dir()}


def yes(_: str) -> bool:
    return True


def test_file_is_fetched_checked_and_imported(
    site: Site, weights: bytes, repository: Path, tmp_path: Path
) -> None:
    site.files["/models/final.pth"] = weights
    asked_person, said = [], io.StringIO()

    def accept(licence: str) -> bool:
        asked_person.append(licence)
        assert site.asked == [], "the licence comes before the download"
        return True

    (done,) = pull(
        f"{site.url}/models/final.pth?token=secret",
        repository,
        None,
        Progress(said),
        accept=accept,
        sha256=sha256(weights).upper(),
        license_="MIT",
        cache=tmp_path / "cache",
    )

    assert (done.model, done.version) == ("retinaface", 1)
    manifest = read_manifest(done.folder)
    assert manifest.license == "MIT"
    assert manifest.source.startswith(f"{site.url}/models/final.pth; final.pth sha256 ")
    assert asked_person == [f"{site.url}/models/final.pth: licence MIT"]
    assert "secret" not in manifest.source + said.getvalue(), "a token is nobody else's business"


def test_licence_that_is_not_accepted_stops_before_the_download(
    site: Site, weights: bytes, repository: Path, tmp_path: Path
) -> None:
    site.files["/a.pth"] = weights
    with pytest.raises(FetchError, match="not accepted: nothing was downloaded"):
        pull(
            f"{site.url}/a.pth",
            repository,
            "retinaface",
            accept=lambda _: False,
            sha256=sha256(weights),
            cache=tmp_path / "cache",
        )
    assert site.asked == []
    assert versions(repository) == set()


def test_broken_download_continues_where_it_stopped(
    site: Site, weights: bytes, repository: Path, tmp_path: Path
) -> None:
    site.files["/a.pth"], site.cut = weights, 700_000

    def again() -> object:
        return pull(
            f"{site.url}/a.pth",
            repository,
            "retinaface",
            Progress(io.StringIO()),
            accept=yes,
            sha256=sha256(weights),
            cache=tmp_path / "cache",
        )

    with pytest.raises(
        FetchError, match=r"broke off .*run it again, it continues where it stopped"
    ):
        again()
    assert versions(repository) == set()
    again()
    assert versions(repository) == {"1"}
    again()
    assert versions(repository) == {"1", "2"}
    assert site.asked == [("/a.pth", None), ("/a.pth", "bytes=700000-")], "then from the cache"


@pytest.mark.parametrize("case", ["no ranges", "all of it is there", "no length"])
def test_what_is_there_already_never_spoils_the_file(
    site: Site, weights: bytes, tmp_path: Path, case: str
) -> None:
    site.files["/a.pth"] = weights
    site.ranges, site.announced = case != "no ranges", case != "no length"
    folder = tmp_path / "cache" / sha256(weights)
    folder.mkdir(parents=True)
    have = len(weights) if case == "all of it is there" else 1000
    (folder / ".partial").write_bytes(weights[:have])
    path = download(
        f"{site.url}/a.pth", sha256(weights), tmp_path / "cache", Progress(io.StringIO())
    )
    assert path.read_bytes() == weights
    assert path.name == "a.pth"


@pytest.mark.parametrize("status", [404, 503])
def test_refused_continuation_keeps_what_is_there_for_the_next_one(
    site: Site, tmp_path: Path, status: int
) -> None:
    data = bytes(range(256)) * 10
    site.files["/a.pth"], site.fails = data, status
    partial = tmp_path / sha256(data) / ".partial"
    partial.parent.mkdir()
    partial.write_bytes(data[:1000])

    def again() -> Path:
        return download(f"{site.url}/a.pth", sha256(data), tmp_path, Progress(io.StringIO()))

    with pytest.raises(FetchError, match=f"a.pth answered {status} "):
        again()
    assert partial.read_bytes() == data[:1000]
    site.fails = None
    assert again().read_bytes() == data
    assert site.asked == [("/a.pth", "bytes=1000-")] * 2


def test_more_than_the_site_has_is_thrown_away(site: Site, tmp_path: Path) -> None:
    """To a range that begins behind the file's end it answers 416."""
    data = bytes(range(256))
    site.files["/a.pth"] = data
    partial = tmp_path / sha256(data) / ".partial"
    partial.parent.mkdir()
    partial.write_bytes(data + b"something else")

    def again() -> Path:
        return download(f"{site.url}/a.pth", sha256(data), tmp_path, Progress(io.StringIO()))

    with pytest.raises(FetchError, match="is not the expected file"):
        again()
    assert not partial.exists()
    assert again().read_bytes() == data
    assert site.asked == [("/a.pth", "bytes=270-"), ("/a.pth", None)]


def test_refused_range_that_nobody_asked_for_is_an_error_like_any_other(
    site: Site, tmp_path: Path
) -> None:
    site.fails = 416
    with pytest.raises(FetchError, match="answered 416 "):
        download(f"{site.url}/a.pth", "0" * 64, tmp_path, Progress(io.StringIO()))


def test_cache_that_cannot_be_written_is_named(
    site: Site, repository: Path, tmp_path: Path
) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(FetchError, match=f"{site.url}/a.pth cannot be kept: .*cache"):
        pull(
            f"{site.url}/a.pth",
            repository,
            "retinaface",
            accept=yes,
            sha256="0" * 64,
            cache=tmp_path / "cache",
        )


def test_another_file_is_refused_and_nothing_of_it_is_kept(
    site: Site, weights: bytes, repository: Path, tmp_path: Path
) -> None:
    site.files["/a.pth"] = b"something else"
    with pytest.raises(FetchError, match=f"is not the expected file: sha256 {'[0-9a-f]' * 64}"):
        pull(
            f"{site.url}/a.pth",
            repository,
            "retinaface",
            accept=yes,
            sha256=sha256(weights),
            cache=tmp_path / "cache",
        )
    assert versions(repository) == set()
    kept = {path.name for path in (tmp_path / "cache" / sha256(weights)).iterdir()}
    assert kept <= {".lock"}


def test_file_with_the_right_hash_is_still_checked_like_any_other(
    site: Site, repository: Path, tmp_path: Path
) -> None:
    site.files["/a.pth"] = page = b"<!doctype html>"
    with pytest.raises(WeightsError, match="is a web page"):
        pull(
            f"{site.url}/a.pth",
            repository,
            "retinaface",
            accept=yes,
            sha256=sha256(page),
            cache=tmp_path / "cache",
        )


@pytest.mark.parametrize("announced", [True, False])
def test_file_that_is_too_large_is_not_downloaded(
    site: Site, tmp_path: Path, announced: bool
) -> None:
    site.files["/a.pth"], site.announced = bytes(5 << 20), announced
    with pytest.raises(FetchError, match="larger than the 1,000,000 bytes allowed"):
        download(f"{site.url}/a.pth", "0" * 64, tmp_path, Progress(io.StringIO()), limit=1_000_000)
    assert sum(path.stat().st_size for path in tmp_path.rglob("*")) < 2_000_000


def test_redirects_are_followed_but_only_to_encrypted_addresses(
    site: Site, weights: bytes, tmp_path: Path
) -> None:
    site.files["/a.pth"] = weights
    site.redirects |= {
        "/moved": "/a.pth",
        "/away": "http://example.com/a.pth",
        "/file": "file:///etc/passwd",
        "/round": "/round",
    }

    def fetch(path: str) -> Path:
        return download(
            f"{site.url}{path}", sha256(weights), tmp_path / path, Progress(io.StringIO())
        )

    assert fetch("/moved").read_bytes() == weights
    with pytest.raises(FetchError, match=r"http://example\.com/a\.pth is not encrypted: use https"):
        fetch("/away")
    with pytest.raises(FetchError, match="is not allowed"):
        fetch("/file")
    with pytest.raises(FetchError, match="answered 302"):
        fetch("/round")


def test_encryption_is_not_given_up_by_a_redirect(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
    site.socket = context.wrap_socket(site.socket, server_side=True)
    encrypted = f"https://127.0.0.1:{site.server_port}"
    site.files["/a.pth"] = data = b"of a site that is known"
    site.redirects |= {"/moved": f"{encrypted}/a.pth", "/plain": f"{site.url}/a.pth"}

    def fetch(path: str) -> Path:
        return download(
            f"{encrypted}{path}", sha256(data), tmp_path / path[1:], Progress(io.StringIO())
        )

    assert fetch("/moved").read_bytes() == data
    with pytest.raises(FetchError, match=f"{encrypted}/plain redirects to .* not encrypted"):
        fetch("/plain")


def test_error_of_the_site_is_passed_on(site: Site, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match=f"{site.url}/gone.pth answered 404"):
        download(f"{site.url}/gone.pth", "0" * 64, tmp_path, Progress(io.StringIO()))


@pytest.mark.parametrize(
    ("source", "checksum", "message"),
    [
        ("http://example.com/a.pth", "0" * 64, "is not encrypted: use https"),
        ("https://example.com/a.pth?k=secret", None, r"example\.com/a\.pth needs --sha256"),
        ("https://me:secret@example.com/a.pth", "0" * 64, "has credentials in it"),
        ("https://secret@example.com/a.pth", "0" * 64, "has credentials in it"),
        ("https:///a.pth", "0" * 64, "is no https address"),
        ("https://[::1/a.pth", "0" * 64, "is no address"),
        ("file:///etc/passwd", "0" * 64, "is no source: hf:owner/name"),
        ("backbone.pth", None, "comes in with `mien-server models import`"),
        ("ftp://example.com/a.pth", "0" * 64, "is no source"),
        ("https://example.com/a.pth", "abc", "is no sha256: it has 64 hexadecimal digits"),
        ("hf:backbone", None, "must be hf:owner/name or hf:owner/name/file"),
        ("modelscope:../x/y", None, "must be modelscope:owner/name"),
    ],
)
def test_source_that_is_none_is_refused(
    source: str, checksum: str | None, message: str, repository: Path
) -> None:
    with pytest.raises(FetchError, match=message) as refused:
        pull(source, repository, "retinaface", accept=yes, sha256=checksum)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("source", "library"),
    [("hf:owner/name", "huggingface_hub"), ("modelscope:owner/name", "modelscope_hub")],
)
def test_missing_hub_library_is_named_with_its_extra(
    source: str, library: str, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(
        FetchError, match=rf"needs the library {library}: pip install 'mien\[hubs\]'"
    ):
        pull(source, repository, "retinaface", accept=yes)
