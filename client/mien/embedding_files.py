"""Files of many embeddings: npz, csv and parquet, with the same columns."""

import csv
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mien.errors import InvalidRequest
from mien.results import ModelIdentity, shortest

_GROUP = 4096
"""Rows that parquet keeps together."""


@dataclass(frozen=True, slots=True)
class Row:
    """One face.

    Attributes:
        photo: the path of its photo, in the folder.
        face: its place among the photo's faces, from 0 on.
        score: the detector's confidence, in [0, 1]; 0 for an aligned crop.
        box: x1, y1, x2, y2 in pixels; NaN for an aligned crop.
        norm: of the embedding, before it was scaled to 1.
        values: [d] float32 of unit length.
    """

    photo: str
    face: int
    score: float
    box: tuple[float, float, float, float]
    norm: float
    values: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Rows:
    """The faces to write, all of one model.

    Attributes:
        model: which made them.
        count: how many there are.
        dimensions: of each embedding.
        each: begins to read them anew.
    """

    model: ModelIdentity
    count: int
    dimensions: int
    each: Callable[[], Iterator[Row]]


def checked_target(path: Path) -> None:
    """Sees to it that embeddings can be written to a new file of this name.

    Raises:
        InvalidRequest: its suffix says no kind, there is such a file, or there is no such folder.
        ImportError: its kind needs a package that is missing.
    """
    if path.suffix.lower() not in _WRITERS:
        raise _no(f"{path} ends in none of {', '.join(_WRITERS)}")
    if path.exists():
        raise _no(f"{path} is there already: remove it, or name another file")
    if not path.parent.is_dir():
        raise _no(f"{path.parent} is no folder")
    if path.suffix.lower() == ".parquet":
        _pyarrow()


def write(path: Path, rows: Rows) -> None:
    """Writes a file of the kind that its suffix says: all of it, or nothing under this name.

    Raises:
        OSError: it cannot be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        _WRITERS[path.suffix.lower()](partial, rows)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _npz(path: Path, rows: Rows) -> None:
    vectors = np.empty((rows.count, rows.dimensions), np.float32)
    faces, scores, norms = (np.empty(rows.count, kind) for kind in (np.int32, *[np.float32] * 2))
    boxes = np.empty((rows.count, 4), np.float32)
    photos = []
    for i, row in enumerate(rows.each()):
        photos.append(row.photo)
        faces[i], scores[i], norms[i] = row.face, row.score, row.norm
        boxes[i], vectors[i] = row.box, row.values
    with path.open("wb") as file:
        np.savez(
            file,
            photo=np.array(photos, np.str_),
            face=faces,
            score=scores,
            box=boxes,
            norm=norms,
            embedding=vectors,
            model=np.array(rows.model.name),
            version=np.array(rows.model.version),
            fingerprint=np.array(rows.model.fingerprint),
        )


def _csv(path: Path, rows: Rows) -> None:
    model = rows.model
    header = ["photo", "face", "score", "x1", "y1", "x2", "y2", "norm"]
    header += ["model", "version", "fingerprint", *(f"e{i}" for i in range(rows.dimensions))]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        for row in rows.each():
            box = ["" if np.isnan(value) else shortest(value) for value in row.box]
            writer.writerow(
                [row.photo, row.face, shortest(row.score), *box, shortest(row.norm)]
                + [model.name, model.version, model.fingerprint]
                + [shortest(value) for value in row.values]
            )


def _parquet(path: Path, rows: Rows) -> None:
    pyarrow, parquet = _pyarrow()
    numbers = {name: pyarrow.float32() for name in ("score", "x1", "y1", "x2", "y2", "norm")}
    columns = {"photo": pyarrow.string(), "face": pyarrow.int32(), **numbers}
    columns["embedding"] = pyarrow.list_(pyarrow.float32(), rows.dimensions)
    model = {key: str(value) for key, value in rows.model.as_dict().items()}
    model["model"] = model.pop("name")
    schema = pyarrow.schema(list(columns.items()), metadata=model)
    with parquet.ParquetWriter(path, schema) as writer:
        left = rows.each()
        while some := list(islice(left, _GROUP)):
            boxes = np.array([row.box for row in some], np.float32)
            vectors = np.concatenate([row.values for row in some])
            arrays: list[Iterable[Any]] = [
                [row.photo for row in some],
                [row.face for row in some],
                [row.score for row in some],
                *([None if np.isnan(v) else v for v in boxes[:, i].tolist()] for i in range(4)),
                [row.norm for row in some],
            ]
            kinds = list(columns.values())
            table = [pyarrow.array(a, kind) for a, kind in zip(arrays, kinds[:-1], strict=True)]
            table.append(pyarrow.FixedSizeListArray.from_arrays(vectors, rows.dimensions))
            writer.write_table(pyarrow.Table.from_arrays(table, schema=schema))


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError("parquet needs pyarrow: pip install 'mien[parquet]'") from error
    return pyarrow, parquet


_WRITERS: dict[str, Callable[[Path, Rows], None]] = {
    ".npz": _npz,
    ".csv": _csv,
    ".parquet": _parquet,
}


def _no(why: str) -> InvalidRequest:
    return InvalidRequest(why, reason="FILE_ERROR", field="--out")
