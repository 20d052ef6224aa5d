"""What lies on disk: model folders, version folders, and stamps that tell cheaply what has changed."""

import logging
import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TypeAlias

CONFIG = "config.pbtxt"
THRESHOLDS = "thresholds.json"
"""In a version folder, beside what its manifest lists: see `repository.thresholds`."""

_VERSION = re.compile(r"[1-9][0-9]{0,17}")

_log = logging.getLogger(__name__)

Stamp: TypeAlias = tuple[object, ...]
"""Equal as long as no file was added, removed, renamed or written to."""


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """One model's folder.

    Attributes:
        path: the folder.
        root: the repository that it is in.
        problem: why nothing of it may be used, and what to do; or "".
    """

    path: Path
    root: Path
    problem: str = ""


def find_models(roots: Sequence[Path]) -> dict[str, ModelFolder]:
    """The model folders of some repositories, by name. Only names that were listed are ever opened.

    Args:
        roots: the repositories. The same folder given twice, also by a link, is one.

    Raises:
        OSError: a repository cannot be listed.
    """
    models: dict[str, ModelFolder] = {}
    for root in {os.path.realpath(root): root for root in roots}.values():
        for path in sorted(root.iterdir()):
            name = path.name
            if name.startswith(".") or not path.is_dir():
                continue
            if not name.isprintable():
                _warn_of_name(path)
            elif name in models:
                both = f"{models[name].path} and {path}"
                problem = f"it is in two repositories, {both}: remove one"
                models[name] = ModelFolder(path, root, problem)
            else:
                models[name] = ModelFolder(path, root, _link_out(path, root))
    return models


@lru_cache
def _warn_of_name(path: Path) -> None:
    """Once: repositories are looked through at every poll and for every index."""
    _log.warning("%s: the folder %r is ignored: its name is not text", path.parent, path.name)


def version_numbers(folder: Path) -> list[int]:
    """The numbers of a model's version folders; others are warned of.

    Raises:
        OSError: the folder cannot be listed.
    """
    numbers = []
    for child in folder.iterdir():
        if child.name.startswith(".") or not child.is_dir():
            continue
        if _VERSION.fullmatch(child.name):
            numbers.append(int(child.name))
        else:
            _log.warning("%s is ignored: version folders are named 1, 2, 3, …", child)
    return numbers


def leads_out(path: Path, root: Path) -> bool:
    """Whether following links from `path` ends outside the repository.

    Raises:
        OSError: the links cannot be followed.
    """
    try:
        return not path.resolve().is_relative_to(root.resolve())
    except RuntimeError as error:  # Python 3.11 and 3.12 say so of a loop of links
        raise OSError(str(error)) from error


def is_regular(path: Path) -> bool:
    """Whether it is a file that reading cannot wait on: no pipe, no device.

    Raises:
        FileNotFoundError: there is nothing. OSError: it cannot be told.
    """
    return stat.S_ISREG(path.stat().st_mode)


def stamp_of_version(folder: Path) -> Stamp:
    """The stamp of a version folder's files."""
    try:
        with os.scandir(folder) as entries:
            return tuple(sorted(_facts(entry.path) for entry in entries))
    except OSError as error:
        return (error.errno,)


def stamp_of_model(folder: ModelFolder) -> Stamp:
    """The stamp of all that decides what of a model serves: its files and its version folders."""
    try:
        with os.scandir(folder.path) as entries:
            found = sorted((entry.name, entry.is_dir()) for entry in entries)
    except OSError as error:
        return (folder, error.errno)
    stamps = [
        (name, stamp_of_version(folder.path / name))
        for name, is_folder in found
        if is_folder and _VERSION.fullmatch(name)
    ]
    # Its config.pbtxt, and what that may name: files of labels.
    files = [name for name, is_folder in found if not is_folder and not name.startswith(".")]
    facts = (_facts(str(folder.path / name)) for name in sorted({CONFIG, *files}))
    return (folder, *facts, *stamps)


def _facts(path: str) -> tuple[str, int, int, int, int]:
    try:
        found = os.stat(path)  # noqa: PTH116 - a stamp takes one for every file, at every poll
    except OSError as error:
        return (path, error.errno or 0, 0, 0, 0)
    return (path, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def _link_out(path: Path, root: Path) -> str:
    for each in (path, path / CONFIG):
        try:
            if leads_out(each, root):
                return f"{each} leads out of the repository {root}: it must not be a link"
        except OSError as error:
            return f"{each} cannot be followed: {error}"
    return ""
