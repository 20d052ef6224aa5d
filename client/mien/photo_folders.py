"""Folders of photos, as people lay them out."""

from pathlib import Path

from mien import cli_options
from mien.errors import InvalidRequest


def photos_in(folder: Path) -> list[Path]:
    """The photos of a folder and of all folders in it, by their paths.

    Raises:
        InvalidRequest: it is no folder, or has no photos.
    """
    found = _found(folder, "**/*")
    if not found:
        kinds = ", ".join(cli_options.PICTURES)
        raise InvalidRequest(f"{folder} has no photos, which end in {kinds}", reason="FILE_ERROR")
    return found


def people_in(folder: Path) -> list[tuple[str, Path]]:
    """The photos of a folder's folders, each with the name of its person, by their paths.

    Raises:
        InvalidRequest: it is no folder, or has no folders with photos.
    """
    found = [(path.relative_to(folder).parts[0], path) for path in _found(folder, "*/**/*")]
    if not found:
        raise InvalidRequest(
            f"{folder} has no folders with photos: lay them out as {folder}/PERSON/PHOTO.jpg",
            reason="FILE_ERROR",
        )
    return found


def _found(folder: Path, pattern: str) -> list[Path]:
    if not folder.is_dir():
        raise InvalidRequest(f"{folder} is no folder", reason="FILE_ERROR")
    return [
        path
        for path in sorted(folder.glob(pattern))
        if path.suffix.lower() in cli_options.PICTURES and path.is_file()
    ]
