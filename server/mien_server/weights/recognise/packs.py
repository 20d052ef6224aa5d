"""Folders and zip archives of checkpoints, such as InsightFace's buffalo_l.zip."""

import contextlib
import shutil
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path, PurePosixPath

from mien_server.weights.errors import AGAIN, WeightsError
from mien_server.weights.recognise.formats import MAX_BYTES, is_pack

_MAX_FILES = 1000


@contextlib.contextmanager
def files_of(path: Path) -> Iterator[list[Path] | None]:
    """The files of a folder or archive, or None for a checkpoint by itself.

    An archive is extracted into a temporary folder that is gone after the block.

    Raises:
        WeightsError: the archive is damaged, too large, or has a member that would land elsewhere.
        OSError: it cannot be read.
    """
    if path.is_dir():
        files = list(islice((each for each in path.rglob("*") if each.is_file()), _MAX_FILES + 1))
        _check_count(path, files)
        yield sorted(files)
    elif is_pack(path):
        with tempfile.TemporaryDirectory(prefix="mien-import-") as folder:
            yield _extract(path, Path(folder))
    else:
        yield None


def _check_count(path: Path, files: Sequence[object]) -> None:
    if len(files) > _MAX_FILES:
        raise WeightsError(
            f"{path.name} holds more than the {_MAX_FILES} files allowed: name the checkpoint itself"
        )


def _extract(path: Path, folder: Path) -> list[Path]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = [info for info in archive.infolist() if not info.is_dir()]
            _check(path, members)
            return [_extract_one(archive, info, folder) for info in members]
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError) as error:
        raise WeightsError(f"{path.name} is damaged or was cut short ({error}): {AGAIN}") from error
    except (RuntimeError, NotImplementedError) as error:  # encrypted, or an unknown compression
        raise WeightsError(f"{path.name} cannot be unpacked here: {error}") from error


def _check(path: Path, members: list[zipfile.ZipInfo]) -> None:
    _check_count(path, members)
    for info in members:
        name = PurePosixPath(info.filename.replace("\\", "/"))
        if not name.parts or name.is_absolute() or ".." in name.parts or ":" in name.parts[0]:
            raise WeightsError(
                f"{path.name} has a member {info.filename!r} that would be written outside of its folder:"
                " it is no archive to trust, and nothing of it was unpacked"
            )
        if stat.S_ISLNK(info.external_attr >> 16):
            raise WeightsError(
                f"{path.name} has a link, {info.filename!r}, in it: pack the file itself"
            )
    size = sum(info.file_size for info in members)
    if size > MAX_BYTES:
        raise WeightsError(
            f"{path.name} unpacks to {size:,} bytes, more than the {MAX_BYTES:,} allowed: unpack it"
            " yourself and import the checkpoint that you want"
        )


def _extract_one(archive: zipfile.ZipFile, info: zipfile.ZipInfo, folder: Path) -> Path:
    target = folder.joinpath(*PurePosixPath(info.filename.replace("\\", "/")).parts)
    target.parent.mkdir(parents=True, exist_ok=True)
    # Reading ends at the size that the archive's directory states, which was checked.
    with archive.open(info) as source, target.open("wb") as file:
        shutil.copyfileobj(source, file, 1 << 20)
    return target
