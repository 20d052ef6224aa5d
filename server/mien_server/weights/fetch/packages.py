"""Fetches pinned wheels with pip from the user's configured index, reads them, and runs nothing of them."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import NoReturn

from filelock import FileLock
from tqdm import tqdm

from mien_server.repository.manifest import sha256_of
from mien_server.weights.errors import FetchError, WeightsError
from mien_server.weights.progress import Progress

_RAW_PROGRESS_SINCE = (24, 1)
_SHOWN_LINES = 12

# A source archive would run its build back end; --no-deps because only the one file is wanted.
_PIP_OPTIONS = (
    "--no-input --disable-pip-version-check --no-deps --only-binary :all: --require-hashes"
)


@dataclass(frozen=True, slots=True)
class PinnedWheel:
    """One file of a package index.

    Attributes:
        name, version: the package's.
        filename: the wheel's.
        sha256: the file's hash, 64 lower-case hexadecimal digits.
    """

    name: str
    version: str
    filename: str
    sha256: str


def default_cache() -> Path:
    """Where wheels are kept: `$XDG_CACHE_HOME/mien/wheels`, or `~/.cache/mien/wheels`.

    Raises:
        FetchError: the user has no home folder and the variable is not set.
    """
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "mien" / "wheels"
    except RuntimeError as error:
        raise FetchError("this user has no home folder: set XDG_CACHE_HOME to a folder") from error


def fetch(package: PinnedWheel, cache: Path, progress: Progress | None = None) -> Path:
    """The wheel's file in the cache: fetched, unless it is there already with the right hash.

    pip downloads it, so index, mirrors, proxies and credentials are those of the user's pip. A cache that is
    not there is made.

    Raises:
        FetchError: pip failed, or what it got is another file.
        OSError: the cache cannot be written.
    """
    progress = progress or Progress()
    target = cache / package.filename

    def download(folder: Path) -> None:
        progress.say(f"fetching {package.name} {package.version}")
        _download(package, folder, target, progress)

    return cached(target, package.sha256, download)


def cached(target: Path, sha256: str, download: Callable[[Path], None]) -> Path:
    """A file of a cache, downloaded unless it is there already with the right hash; one process at a time.

    Args:
        target: the file; its folder is made.
        sha256: that it must have to be taken as it is.
        download: puts the file, under its name and with that hash, into the empty folder that it is given.

    Raises:
        OSError: the cache cannot be written. Whatever `download` raises.
    """
    cache = target.parent
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / ".lock"):
        if target.is_file() and sha256_of(target) == sha256:
            return target
        partial = cache / f".{target.name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            download(partial)
            (partial / target.name).replace(target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return target


def _download(package: PinnedWheel, folder: Path, target: Path, progress: Progress) -> None:
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{package.name}=={package.version} --hash=sha256:{package.sha256}\n")
    # -P: a folder named pip in the working directory must not be run.
    command = [sys.executable, "-P", "-m", "pip", "download", *_PIP_OPTIONS.split()]
    command += ["--progress-bar", "raw" if _pip_version() >= _RAW_PROGRESS_SINCE else "off"]
    command += ["--dest", str(folder), "--requirement", str(requirements)]
    with progress.transfer(package.filename) as bar:
        status, output = _run(command, bar)
    if status or not (folder / package.filename).is_file():
        raise FetchError(_explain(package, target, output))


def _pip_version() -> tuple[int, ...]:
    try:
        version = metadata.version("pip")
    except metadata.PackageNotFoundError:
        raise FetchError(
            f"pip is not installed for {sys.executable}: run `{sys.executable} -m ensurepip`"
        ) from None
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


def _run(command: list[str], bar: "tqdm[NoReturn]") -> tuple[int, list[str]]:
    """Runs pip, and returns its exit status and what it said apart from its progress."""
    output = []
    with subprocess.Popen(  # noqa: S603 - a fixed command, the names in it are ours
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        assert process.stdout  # noqa: S101 - for the type checker: it is a pipe
        try:
            for line in process.stdout:
                if match := re.fullmatch(r"Progress (\d+) of (\d+)\s*", line):
                    bar.total = int(match[2]) or None
                    bar.update(int(match[1]) - bar.n)
                else:
                    output.append(line.rstrip())
        except BaseException:
            process.kill()
            raise
    return process.returncode, output


def _explain(package: PinnedWheel, target: Path, output: list[str]) -> str:
    what = f"{package.name} {package.version} ({package.filename})"
    if found := re.search(r"\bGot\s+([0-9a-f]{64})", "\n".join(output)):
        return (
            f"{what} from the package index is not the expected file:"
            f" sha256 {found[1]}, expected {package.sha256}. Nothing of it was used. Ask whoever runs"
            " the index why its file differs from the published one"
        )
    said = [line for line in output if line.startswith("ERROR")] or output
    shown = "\n".join(f"  {line}" for line in said[-_SHOWN_LINES:])
    return (
        f"pip could not fetch {what}:\n{shown}\n"
        "pip asks this machine's configured package index. If it needs another one, set PIP_INDEX_URL;"
        f" behind a proxy, PIP_PROXY; without network, put {package.filename} into {target.parent}"
    )


def read_member(wheel: Path, name: str) -> bytes:
    """A file in a wheel, which is read as the zip archive that it is.

    Raises:
        WeightsError: it is no wheel, or another one.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            return archive.read(name)
    except KeyError:
        raise WeightsError(f"{wheel.name} does not hold {name}: it is another package") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise WeightsError(f"{wheel.name} is no readable wheel, fetch it again: {error}") from error
