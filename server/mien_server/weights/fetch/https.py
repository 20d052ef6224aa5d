"""Downloads one file whose sha256 is known: resumed where it broke off, bounded, checked."""

import http.client
import ipaddress
import re
import urllib.error
import urllib.request
from importlib.metadata import version as distribution_version
from pathlib import Path
from typing import IO, Any
from urllib.parse import SplitResult, urlsplit

from filelock import FileLock

from mien_server.repository.manifest import sha256_of
from mien_server.weights.errors import FetchError
from mien_server.weights.progress import Progress
from mien_server.weights.recognise.formats import MAX_BYTES

_CHUNK = 1 << 20
_TIMEOUT_S = 30


def check_url(url: str) -> SplitResult:
    """Takes an address apart that may be fetched from: https, or http of this machine itself.

    Raises:
        FetchError: it is no such address, or has credentials in it.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError as error:
        raise FetchError(f"{url!r} is no address: {error}") from error
    if not host or parts.scheme not in ("http", "https"):
        raise FetchError(f"{url!r} is no https address")
    if parts.scheme == "http" and not _is_loopback(host):
        raise FetchError(f"{shown(url)} is not encrypted: use https")
    if parts.username or parts.password:
        raise FetchError(f"{shown(url)} has credentials in it: they would end up in logs")
    return parts


def shown(url: str) -> str:
    """The address without credentials, query and fragment, which may hold secrets."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def download(
    url: str, sha256: str, cache: Path, progress: Progress, *, limit: int = MAX_BYTES
) -> Path:
    """The file in the cache: fetched, unless it is there already with the right hash.

    What a broken connection left is kept and continued by the next call.

    Args:
        url: `check_url` must accept it, and everything that it redirects to.
        sha256: the file's hash, 64 lower-case hexadecimal digits.
        cache: the folder to keep it in, which is made if it is missing.
        limit: the largest size in bytes to accept.

    Raises:
        FetchError: it could not be had, is too large, or is another file, of which nothing is kept.
        OSError: the cache cannot be written.
    """
    parts = check_url(url)
    name = re.sub(r"[^A-Za-z0-9._-]", "_", Path(parts.path).name).lstrip(".") or "download"
    folder = cache / sha256
    folder.mkdir(parents=True, exist_ok=True)
    target, partial = folder / name, folder / ".partial"
    with FileLock(folder / ".lock"):
        if target.is_file() and sha256_of(target) == sha256:
            progress.say(f"{name} is in the cache already")
            return target
        try:
            _transfer(url, partial, limit, progress, name)
        except urllib.error.HTTPError as error:
            raise FetchError(f"{shown(url)} answered {error.code} {error.reason}") from error
        except urllib.error.URLError as error:
            raise FetchError(f"{shown(url)} could not be reached: {error.reason}") from error
        except (OSError, http.client.HTTPException) as error:
            raise FetchError(
                f"{shown(url)} broke off ({error}): run it again, it continues where it stopped"
            ) from error
        found = sha256_of(partial)
        if found != sha256:
            partial.unlink()
            raise FetchError(
                f"{shown(url)} is not the expected file: sha256 {found}, expected {sha256}. Nothing of it"
                " was used"
            )
        partial.replace(target)
    return target


def _transfer(url: str, partial: Path, limit: int, progress: Progress, name: str) -> None:
    have = partial.stat().st_size if partial.exists() else 0
    headers = {"User-Agent": f"mien/{distribution_version('mien')}"}
    if have:
        headers["Range"] = f"bytes={have}-"
    request = urllib.request.Request(url, headers=headers)  # noqa: S310 - `check_url` has seen it
    opener = urllib.request.build_opener(_CheckedRedirects)
    try:
        response: http.client.HTTPResponse = opener.open(request, timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE or not have:
            raise
        return  # all of it is there already: the hash will tell
    with response:
        if not _continues(response, have):
            have = 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length and length.isdecimal() else None
        if total is not None and total > limit:
            raise FetchError(_too_large(url, limit))
        with partial.open("ab" if have else "wb") as file, progress.transfer(name) as bar:
            bar.total = total
            bar.update(have)
            while chunk := response.read(_CHUNK):
                have += len(chunk)
                if have > limit:
                    raise FetchError(_too_large(url, limit))
                file.write(chunk)
                bar.update(len(chunk))
    if total is not None and have < total:
        raise http.client.IncompleteRead(b"", total - have)


def _continues(response: http.client.HTTPResponse, have: int) -> bool:
    span = response.headers.get("Content-Range", "")
    partial = response.status == http.HTTPStatus.PARTIAL_CONTENT
    return bool(have and partial and span.startswith(f"bytes {have}-"))


def _too_large(url: str, limit: int) -> str:
    return f"{shown(url)} is larger than the {limit:,} bytes allowed"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class _CheckedRedirects(urllib.request.HTTPRedirectHandler):
    """Follows only to addresses that could have been asked for in the first place."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> Any:
        if check_url(newurl).scheme != "https" and req.type == "https":
            raise FetchError(f"{shown(req.full_url)} redirects to an address that is not encrypted")
        return super().redirect_request(req, fp, code, msg, headers, newurl)
