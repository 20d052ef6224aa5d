"""A gallery as a file, to be kept or to be enrolled elsewhere: docs/galleries.md describes the format.

JSON Lines in UTF-8: a head, a line for each face, and a foot that counts and sums up what stands before it.
Both directions hold one line at a time.
"""

import base64
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mien.enrol_results import NewFace
from mien.errors import InvalidRequest
from mien.gallery import Gallery
from mien.gallery_results import GalleryInfo
from mien.results import Embedding, ModelIdentity

FORMAT = "mien-gallery"
VERSION = 1


@dataclass(frozen=True, slots=True)
class Contents:
    """What a file has beside its faces.

    Attributes:
        gallery: the name of the gallery that it was written from.
        created: when that was made, in ISO 8601. With the name, it says which gallery it was.
        embedder: the model of all embeddings.
        dimensions: numbers in each.
        threshold: the gallery's; None: the model's own.
        faces: how many there are.
        persons: how many different ones they are of.
    """

    gallery: str
    created: str
    embedder: ModelIdentity
    dimensions: int
    threshold: float | None
    faces: int = 0
    persons: int = 0

    def request_key(self, face_id: str) -> str:
        """What a face is enrolled with: the same from every file of that gallery, so it is never twice."""
        origin = json.dumps([FORMAT, self.gallery, self.created, face_id])
        return hashlib.blake2b(origin.encode(), digest_size=20).hexdigest()


def export_gallery(
    gallery: Gallery, info: GalleryInfo, path: Path, step: Callable[[], None]
) -> Contents:
    """Writes a gallery to a new file: all of it, or nothing under this name.

    Args:
        gallery: of a server.
        info: what that gallery is.
        path: of the file.
        step: is called after each face.

    Raises:
        OSError: the file cannot be written. MienError: as `Gallery.export_faces` says.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        # It holds what faces can be recognised by: for its owner alone.
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            written = _write(file, gallery, info, step)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return written


def _write(
    file: BinaryIO, gallery: Gallery, info: GalleryInfo, step: Callable[[], None]
) -> Contents:
    digest = hashlib.sha256()
    persons: set[bytes] = set()
    faces = 0

    def line(entry: dict[str, Any]) -> None:
        text = json.dumps(entry, ensure_ascii=False).encode() + b"\n"
        digest.update(text)
        file.write(text)

    told = info.as_dict()
    head = {key: told[key] for key in ("created", "embedder", "dimensions", "threshold")}
    line({"format": FORMAT, "version": VERSION, "gallery": info.name, **head})
    for each in gallery.export_faces():
        vector = base64.b64encode(each.embedding.values.astype("<f4").tobytes()).decode()
        face = each.face
        known = {"face": face.face_id, "person": face.person or None, "labels": dict(face.labels)}
        line({**known, "norm": each.embedding.norm, "vector": vector})
        if face.person:
            persons.add(_short(face.person))
        faces += 1
        step()
    line({"faces": faces, "persons": len(persons), "sha256": digest.hexdigest()})
    return Contents(
        info.name,
        head["created"],
        info.embedder,
        info.dimensions,
        info.threshold,
        faces,
        len(persons),
    )


def _short(person: str) -> bytes:
    """A person's name, in as little memory as keeps a million apart."""
    return hashlib.blake2b(person.encode(), digest_size=16).digest()


def checked(path: Path) -> Contents:
    """Reads a file from its beginning to its end, and says what is in it.

    Raises:
        InvalidRequest: it is none, of a later version, cut off, or damaged.
        OSError: it cannot be read.
    """
    digest = hashlib.sha256()
    persons: set[bytes] = set()
    with path.open("rb") as file:
        text = file.readline()
        contents = _head(path, text)
        faces = 0
        while True:
            digest.update(text)
            text = file.readline()
            entry = _entry(path, text, faces + 2)
            if "sha256" in entry:
                break
            if person := _face(path, entry, contents, faces + 2).person:
                persons.add(_short(person))
            faces += 1
        if (entry.get("faces"), entry.get("persons")) != (faces, len(persons)):
            raise _bad(path, f"it has {faces} faces of {len(persons)} persons, and says otherwise")
        if entry["sha256"] != digest.hexdigest():
            raise _bad(path, "its checksum is not that of its lines")
        if file.read(1):
            raise _bad(path, "it goes on after its end")
    model = contents.embedder
    return Contents(
        contents.gallery,
        contents.created,
        model,
        contents.dimensions,
        contents.threshold,
        faces,
        len(persons),
    )


def faces_of(path: Path, contents: Contents) -> Iterator[NewFace]:
    """The faces of a checked file, to be enrolled."""
    with path.open("rb") as file:
        file.readline()
        for number in range(contents.faces):
            yield _face(path, _entry(path, file.readline(), number + 2), contents, number + 2)


def _head(path: Path, text: bytes) -> Contents:
    try:
        head = json.loads(text)
    except (ValueError, RecursionError):
        head = None
    if not isinstance(head, dict) or head.get("format") != FORMAT:
        raise _bad(path, "it is none that `mien gallery export` has written")
    if head.get("version") != VERSION:
        raise _bad(
            path,
            f"it has the version {head.get('version')!r}, and this mien reads {VERSION}: update it",
        )
    try:
        model = ModelIdentity(**head["embedder"])
        _check_texts(head["gallery"], head["created"], model.name, model.fingerprint)
        dimensions, threshold = head["dimensions"], head["threshold"]
        _check_numbers(int, model.version, dimensions)
        if threshold is not None:
            _check_numbers(float, threshold)
    except (KeyError, TypeError, ValueError) as error:
        raise _bad(path, f"its first line lacks something: {error}") from error
    return Contents(head["gallery"], head["created"], model, dimensions, threshold)


def _check_numbers(kind: type[int | float], *numbers: object) -> None:
    """Refuses what is no number of a kind, or none that is finite.

    Raises:
        TypeError: it is none. ValueError: it is infinite or NaN.
    """
    for number in numbers:
        if not isinstance(number, int | kind):
            raise TypeError(f"{number!r} is no {'whole ' if kind is int else ''}number")
        if not math.isfinite(number):
            raise ValueError(f"{number} is no finite number")


def _check_texts(*texts: object) -> None:
    """Refuses what is no text.

    Raises:
        TypeError: it is something else. ValueError: it has half a character, as JSON can say.
    """
    for text in texts:
        if not isinstance(text, str):
            raise TypeError(f"{text!r} is no text")
        text.encode()


def _entry(path: Path, text: bytes, number: int) -> dict[str, Any]:
    if not text.endswith(b"\n"):
        raise _bad(path, f"it is cut off at line {number}: export the gallery again")
    try:
        entry = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _bad(path, f"line {number} is no JSON: {error}") from error
    if not isinstance(entry, dict):
        raise _bad(path, f"line {number} is no object")
    return entry


def _face(path: Path, entry: dict[str, Any], contents: Contents, number: int) -> NewFace:
    try:
        values = np.frombuffer(base64.b64decode(entry["vector"], validate=True), "<f4")
        embedding = Embedding(values, entry["norm"], contents.embedder)
        _check_numbers(float, embedding.norm)
        face, person, labels = entry["face"], entry["person"], dict(entry["labels"])
        _check_texts(face, *labels, *labels.values(), *([] if person is None else [person]))
    except (KeyError, TypeError, ValueError) as error:
        raise _bad(path, f"line {number} is no face: {error}") from error
    if values.shape != (contents.dimensions,):
        raise _bad(path, f"line {number} has a vector of {len(values)} numbers")
    return NewFace(embedding, person, labels, contents.request_key(face))


def _bad(path: Path, why: str) -> InvalidRequest:
    return InvalidRequest(f"{path} cannot be imported: {why}", reason="FILE_ERROR")
