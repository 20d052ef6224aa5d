"""Fetches weights from a hub or an https address, and imports them."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mien_server.repository.manifest import sha256_of
from mien_server.weights.errors import FetchError
from mien_server.weights.fetch.https import check_url, download, shown
from mien_server.weights.fetch.hubs import hugging_face, modelscope
from mien_server.weights.fetch.packages import default_cache
from mien_server.weights.importer import Imported, import_weights
from mien_server.weights.progress import Progress
from mien_server.weights.recognise.recognised import GivenInput

_HUBS = {"hf": hugging_face, "modelscope": modelscope}
_HUB_FILE = re.compile(r"(\w[\w.-]*/\w[\w.-]*)(?:/(.+))?", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class _Offer:
    """A file that could be fetched, once its licence is accepted.

    Attributes:
        origin: where it comes from, as people and the manifest are told.
        license: what is stated there.
    """

    origin: str
    license: str
    fetch: Callable[[], Path]


def pull(
    source: str,
    repository: Path,
    model: str | None,
    progress: Progress | None = None,
    *,
    accept: Callable[[str], bool],
    sha256: str | None = None,
    version: int | None = None,
    license_: str | None = None,
    given: GivenInput | None = None,
    part: str | None = None,
    cache: Path | None = None,
) -> list[Imported]:
    """Fetches a checkpoint and imports it, once a person has accepted its licence.

    Args:
        source: `hf:owner/name[/file]`, `modelscope:owner/name[/file]` or an https address.
        model: its folder in the repository, or None, as for `importer.import_weights`.
        accept: is told the licence before anything is downloaded, and says whether to go on.
        sha256: what the file's hash must be, 64 hexadecimal digits. An address needs it.
        version: the version's number, one more than the highest if None.
        license_: replaces what the hub states, where the person knows more.
        given, part: what the network's input is, and what it shall tell, as for `importer.import_weights`.
        cache: where files of https addresses are kept, a folder beside that of the wheels if None.

    Raises:
        FetchError: the source cannot be one, the licence was not accepted, or the file could not be had or is
            another.
        ImportRefused, WeightsError, ConfigError: from `import_weights`.
    """
    progress = progress or Progress()
    sha256 = sha256.lower() if sha256 else None
    if sha256 and not _SHA256.fullmatch(sha256):
        raise FetchError(f"{sha256!r} is no sha256: it has 64 hexadecimal digits")
    offer = _look_up(source, sha256, cache or default_cache().with_name("downloads"), progress)
    licence = license_ or offer.license
    if not accept(f"{offer.origin}: licence {licence}"):
        raise FetchError("the licence was not accepted: nothing was downloaded")
    try:
        path = offer.fetch()
        if sha256 and (found := sha256_of(path)) != sha256:
            raise FetchError(
                f"{offer.origin} is not the expected file: sha256 {found}, expected {sha256}"
            )
    except OSError as error:
        raise FetchError(f"{offer.origin} cannot be kept: {error}") from error
    return import_weights(
        repository,
        model,
        path,
        progress,
        version=version,
        license_=licence,
        source=offer.origin,
        given=given,
        part=part,
    )


def _look_up(source: str, sha256: str | None, cache: Path, progress: Progress) -> _Offer:
    scheme, _, rest = source.partition(":")
    if scheme in _HUBS:
        named = _HUB_FILE.fullmatch(rest)
        if not named:
            raise FetchError(f"{source!r} must be {scheme}:owner/name or {scheme}:owner/name/file")
        file = _HUBS[scheme](named[1], named[2] or "")
        return _Offer(file.origin, file.license, file.fetch)
    if scheme not in ("http", "https"):
        raise FetchError(
            f"{source!r} is no source: hf:owner/name, modelscope:owner/name or an https address. A file"
            " of this machine comes in with `mien-server models import`"
        )
    check_url(source)
    if sha256 is None:
        raise FetchError(
            f"{shown(source)} needs --sha256, so that nobody can put another file in its place: take it"
            " from the publisher's page"
        )
    return _Offer(
        shown(source),
        "not stated at an address: read its publisher's page",
        lambda: download(source, sha256, cache, progress),
    )
