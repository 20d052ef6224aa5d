"""A folder of persons: one folder each, with their photos."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mien_server.evaluation.pairs import PICTURE_SUFFIXES, DatasetError, Picture


@dataclass(frozen=True, slots=True)
class Persons:
    """Photos by person.

    Attributes:
        source: the folder's name.
        names: the persons, sorted.
        pictures: of each person, sorted by name, at least one.
    """

    source: str
    names: Sequence[str]
    pictures: Sequence[Sequence[Picture]]


def read_persons(folder: Path) -> Persons:
    """Reads the names in a folder; photos are only read when they are needed.

    Raises:
        DatasetError: it cannot be read, or has fewer than two persons with photos.
    """
    try:
        found = {
            each.name: sorted(
                path for path in each.iterdir() if path.suffix.lower() in PICTURE_SUFFIXES
            )
            for each in sorted(folder.iterdir())
            if each.is_dir() and not each.name.startswith(".")
        }
    except OSError as error:
        raise DatasetError(f"{folder} cannot be read: {error.strerror}") from error
    found = {name: paths for name, paths in found.items() if paths}
    if len(found) < 2:
        raise DatasetError(
            f"{folder} has photos of {len(found)} persons: it must have a folder for each of at least two"
        )
    pictures = [
        [Picture(f"{name}/{path.name}", partial(path.read_bytes)) for path in paths]
        for name, paths in found.items()
    ]
    return Persons(folder.resolve().name, list(found), pictures)
