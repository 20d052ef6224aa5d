"""Writes a version folder of a model repository: whole or not at all."""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from importlib.metadata import version as distribution_version
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from safetensors.numpy import save

from mien_server.repository.folders import THRESHOLDS
from mien_server.repository.manifest import Manifest, describe, write_manifest
from mien_server.weights.progress import Progress

LOCK = ".install.lock"
"""The file in a model's folder that is locked while a version is written."""


@contextlib.contextmanager
def made(model: Path) -> Iterator[None]:
    """Makes a model's folder, and its repository, if need be; takes it back if nothing comes of it."""
    if model.is_dir():
        yield
        return
    new = [model, *(folder for folder in model.parents if not folder.exists())]
    model.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        (model / LOCK).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # another import has put something there
            for folder in new:
                folder.rmdir()
        raise


@contextlib.contextmanager
def turn(model: Path, progress: Progress) -> Iterator[None]:
    """Holds a model's folder for this process; the lock ends with the process, however that ends."""
    lock = FileLock(model / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        progress.say(f"waiting for another installation into {model}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def write_version(
    folder: Path, fill: Callable[[Path], None], *, source: str, license_: str, command: str
) -> Manifest:
    """Makes a version folder, or replaces the one that is there, in one rename.

    Whatever moment the process ends at, the folder is whole or absent. Measured thresholds stay. Call it
    within `turn`.

    Args:
        folder: the version folder.
        fill: writes its files into the empty folder that it is given.
        source: where the weights came from, for people.
        license_: who may use them for what.
        command: the command of mien-server that makes it, such as `models install`.

    Returns:
        The manifest of what was written.

    Raises:
        OSError: the repository cannot be written.
    """
    with _staged(folder) as staging:
        if (folder / THRESHOLDS).is_file():  # they count for the same weights, and for no others
            shutil.copy2(folder / THRESHOLDS, staging)
        fill(staging)
        for path in staging.iterdir():
            _sync(path)
        manifest = describe(
            staging,
            source=source,
            license_=license_,
            created=datetime.now(UTC),
            importer=f"mien-server {distribution_version('mien')} {command}",
        )
        write_manifest(staging, manifest)
    return manifest


def write_tensors(path: Path, tensors: Mapping[str, NDArray[Any]]) -> None:
    """Writes a safetensors file that others than its owner may read, unlike safetensors' `save_file`."""
    # `save` would write those that lie otherwise in memory as they lie there.
    contiguous = {key: np.asarray(tensor, order="C") for key, tensor in tensors.items()}
    path.write_bytes(save(contiguous, metadata={"format": "pt"}))


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
