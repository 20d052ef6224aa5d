"""`manifest.json` of a version folder: what is in it, where it came from, and proof that it is whole.

A version counts only once every file has the size and the sha256 that its manifest states, so a
half-copied folder is never served.
"""

import hashlib
import json
import os
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, field_validator

from mien_server.errors import OperatorError
from mien_server.models.interface import ALIGNMENT, Normalisation
from mien_server.repository.folders import THRESHOLDS, is_regular, leads_out

if TYPE_CHECKING:
    from mien_server.repository.config.model import ModelConfig

FILENAME = "manifest.json"

_MAX_BYTES = 1 << 20
_MAX_FILE_BYTES = (
    8 << 30
)  # the largest network here has 0.3 GB; hashing a sparse terabyte takes hours
_CHUNK_BYTES = 1 << 20


class ManifestError(OperatorError):
    """A version folder that is not what its manifest says, or has none; the message says why."""


class FileEntry(BaseModel):
    """One file of a version folder.

    Attributes:
        sha256: of its content, 64 lower-case hexadecimal digits.
        size: in bytes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    size: Annotated[int, Field(ge=0)]


class Manifest(BaseModel):
    """What a version folder holds.

    Attributes:
        schema_version: of this format.
        files: by name; they lie directly in the folder.
        source: where the weights came from, for people.
        license: who may use them for what.
        created: when the folder was made, with its time zone.
        importer: the program and version that made it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    files: Annotated[dict[str, FileEntry], Field(min_length=1)]
    source: str
    license: str
    created: AwareDatetime
    importer: str

    @field_validator("files")
    @classmethod
    def _plain_names(cls, files: dict[str, FileEntry]) -> dict[str, FileEntry]:
        for name in files:
            plain = name.isprintable() and name == Path(name).name and "\\" not in name
            if not plain or name in ("", ".", "..", FILENAME):
                raise ValueError(f"{name!r} is no file name in the version folder")
        return files


def sha256_of(path: Path, stop_if_asked: Callable[[], None] = lambda: None) -> str:
    """The sha256 of a file, 64 lower-case hexadecimal digits.

    Args:
        path: the file.
        stop_if_asked: called every mebibyte; ends it with what it raises.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            stop_if_asked()
            digest.update(chunk)
    return digest.hexdigest()


def describe(
    folder: Path, *, source: str, license_: str, created: datetime, importer: str
) -> Manifest:
    """The manifest of the files that are in a folder: all but itself, measured thresholds and hidden ones."""
    files = {
        path.name: FileEntry(sha256=sha256_of(path), size=path.stat().st_size)
        for path in sorted(folder.iterdir())
        if path.name not in (FILENAME, THRESHOLDS) and not path.name.startswith(".")
    }
    return Manifest(
        files=files, source=source, license=license_, created=created, importer=importer
    )


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes the manifest to disk before it returns."""
    with (folder / FILENAME).open("w") as file:
        file.write(manifest.model_dump_json(indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_manifest(folder: Path) -> Manifest:
    """Reads a manifest without comparing it to the files.

    Raises:
        ManifestError: there is none, or it is not well formed.
    """
    path = folder / FILENAME
    try:
        if not is_regular(path):
            raise ManifestError(f"{path} is no file")
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        raise ManifestError(
            f"{path} is missing: the version is incomplete or still copied"
        ) from None
    except OSError as error:
        raise ManifestError(f"{path} cannot be read: {error.strerror}") from error
    if len(data) > _MAX_BYTES:
        raise ManifestError(f"{path} is larger than 1 MiB")
    try:
        return Manifest.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"]))
        raise ManifestError(f"{path}: {field + ': ' if field else ''}{first['msg']}") from error


def verify_version(
    folder: Path, root: Path, weights: str, stop_if_asked: Callable[[], None] = lambda: None
) -> Manifest:
    """Checks a version folder: every file is there, whole, and lies within the repository.

    Blocking: reads the files once, hundreds of megabytes for a large network.

    Args:
        folder: the version folder.
        root: the repository's folder, out of which no link may lead.
        weights: the name of the weights' file, which the manifest must list.
        stop_if_asked: called now and then; ends it with what it raises.

    Returns:
        the manifest.

    Raises:
        ManifestError: what does not hold.
    """
    _inside(folder, root)
    _inside(folder / FILENAME, root)
    manifest = read_manifest(folder)
    if weights not in manifest.files:
        raise ManifestError(f"{folder / FILENAME} does not list {weights}")
    for name, entry in manifest.files.items():
        path = folder / name
        _inside(path, root)
        if entry.size > _MAX_FILE_BYTES:
            raise ManifestError(
                f"{path} has {entry.size} bytes, more than the {_MAX_FILE_BYTES} that are read"
            )
        try:
            if not path.is_file():
                raise ManifestError(f"{path} is missing or no file, but its manifest lists it")
            if (size := path.stat().st_size) != entry.size:
                raise ManifestError(f"{path} has {size} bytes, its manifest says {entry.size}")
            if (found := sha256_of(path, stop_if_asked)) != entry.sha256:
                raise ManifestError(
                    f"{path} does not match its manifest: sha256 {found}, expected {entry.sha256}"
                )
        except OSError as error:
            raise ManifestError(f"{path} cannot be read: {error.strerror}") from error
    return manifest


def version_fingerprint(config: "ModelConfig", manifest: Manifest) -> str:
    """The fingerprint of a version, as it is configured now."""
    weights = manifest.files[config.default_model_filename].sha256
    options = config.role.describe(config.options)
    return fingerprint(weights, config.architecture, config.normalisation, options)


def fingerprint(
    weights_sha256: str, architecture: str, normalisation: Normalisation, options: str = ""
) -> str:
    """16 lower-case hexadecimal digits over all that decides what an answer means.

    Weights, network, normalisation, the way crops are made, and what the role says of the model's options
    (`Role.describe`). Embeddings compare only if it is equal.
    """
    facts = {
        "weights": weights_sha256,
        "architecture": architecture,
        "channel_order": normalisation.channel_order,
        "mean": list(normalisation.mean),
        "scale": normalisation.scale,
        "alignment": ALIGNMENT,
    } | ({"options": options} if options else {})
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _inside(path: Path, root: Path) -> None:
    try:
        outside = leads_out(path, root)
    except OSError as error:
        raise ManifestError(f"{path} cannot be followed: {error}") from error
    if outside:
        raise ManifestError(f"{path} leads out of the repository {root}: it must not be a link")
