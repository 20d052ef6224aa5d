"""Labelled pairs of pictures: LFW's pairs.txt, InsightFace's .bin, and CSV."""

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mien_server.errors import OperatorError
from mien_server.evaluation.pickles import PickleRefused, read_pickle

PairsFormat: TypeAlias = Literal["lfw", "bin", "csv"]

FOLDS = 10
"""How many parts cross-validation has, as in LFW's protocol."""

_SUFFIXES: dict[str, PairsFormat] = {".txt": "lfw", ".bin": "bin", ".csv": "csv"}
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
_LABELS = {
    **dict.fromkeys(("1", "true", "yes", "same"), True),
    **dict.fromkeys(("0", "false", "no", "different"), False),
}


class DatasetError(OperatorError):
    """A data set cannot be read; the message names the file, the place in it and the fix."""


class Picture(NamedTuple):
    """An encoded picture: what to call it, and how to get its bytes."""

    name: str
    read: Callable[[], bytes]


@dataclass(frozen=True, slots=True, eq=False)
class Pairs:
    """Pairs of pictures, each of one person or of two.

    Attributes:
        source: the file's name.
        pictures: every picture once.
        left, right: indices of each pair's pictures, [n].
        same: whether a pair shows one person, [n].
        folds: the part of the cross-validation that a pair belongs to, in [0, FOLDS), [n].
        aligned: whether the pictures are crops of 112x112 pixels already.
    """

    source: str
    pictures: Sequence[Picture]
    left: NDArray[np.intp]
    right: NDArray[np.intp]
    same: NDArray[np.bool_]
    folds: NDArray[np.intp]
    aligned: bool = False


def read_pairs(path: Path, folder: Path | None = None, kind: PairsFormat | None = None) -> Pairs:
    """Reads a list of pairs; pictures in files are only read when they are needed.

    Args:
        path: the list. Its suffix says what it is: .txt is LFW's, .bin InsightFace's, .csv is CSV.
        folder: where the pictures are, or None for the list's own folder. A .bin brings its pictures.
        kind: what the list is, whatever its suffix says.

    Raises:
        DatasetError: it cannot be read as such a list, or has no pairs.
    """
    kind = kind or _SUFFIXES.get(path.suffix.lower())
    if kind is None:
        raise DatasetError(
            f"{path}: the format cannot be told from the suffix; give --format lfw, bin or csv"
        )
    try:
        if kind == "bin":
            return _read_bin(path)
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DatasetError(
            f"{path} is not UTF-8 text; give --format bin if it is a .bin"
        ) from error
    read = _read_lfw if kind == "lfw" else _read_csv
    return read(path, text, folder or path.parent)


class _Collector:
    """Pairs of files, each file once."""

    def __init__(self) -> None:
        self._index: dict[Path, int] = {}
        self.left: list[int] = []
        self.right: list[int] = []
        self.same: list[bool] = []

    def add(self, left: Path, right: Path, same: bool) -> None:
        for side, path in ((self.left, left), (self.right, right)):
            side.append(self._index.setdefault(path, len(self._index)))
        self.same.append(same)

    def pairs(self, source: Path, folder: Path, folds: NDArray[np.intp] | None) -> Pairs:
        if not self.same:
            raise DatasetError(f"{source} has no pairs")
        same = np.array(self.same)
        return Pairs(
            source=source.name,
            pictures=[
                Picture(_relative(path, folder), partial(_read_file, path)) for path in self._index
            ],
            left=np.array(self.left, np.intp),
            right=np.array(self.right, np.intp),
            same=same,
            folds=_spread(same) if folds is None else folds,
        )


def _read_lfw(path: Path, text: str, folder: Path) -> Pairs:
    """LFW's list: `sets pairs` or `pairs`, then for each set so many matched and mismatched pairs."""
    lines = [line.split("\t") if "\t" in line else line.split() for line in text.splitlines()]
    lines = [[word.strip() for word in line] for line in lines]
    try:
        head = [int(word) for word in lines[0]]
        sets, size = head if len(head) == 2 else (1, *head)
    except (IndexError, ValueError, TypeError):
        raise DatasetError(
            f"{path}:1: must be the number of sets and of pairs in each, as in LFW's pairs.txt"
        ) from None
    rows = [(number, line) for number, line in enumerate(lines[1:], 2) if any(line)]
    if len(rows) != 2 * sets * size:
        raise DatasetError(
            f"{path} has {len(rows)} pairs; its first line promises {sets} sets of {size} matched and"
            f" {size} mismatched ones, {2 * sets * size}"
        )
    found = _Collector()
    for number, line in rows:
        match line:
            case [name, first, second]:
                numbered, same = ((name, first), (name, second)), True
            case [left, first, right, second]:
                numbered, same = ((left, first), (right, second)), False
            case _:
                raise DatasetError(f"{path}:{number}: must be `name n n` or `name n name n`")
        a, b = (_lfw_picture(path, number, folder, *each) for each in numbered)
        found.add(a, b, same)
    folds = np.arange(len(rows)) // (2 * size) if sets == FOLDS else None
    return found.pairs(path, folder, folds)


def _lfw_picture(path: Path, line: int, folder: Path, name: str, number: str) -> Path:
    if not number.isdecimal():
        raise DatasetError(f"{path}:{line}: {number!r} is no number of a picture")
    stem = folder / name / f"{name}_{int(number):04d}"
    for suffix in PICTURE_SUFFIXES:
        if (file := stem.with_name(stem.name + suffix)).is_file():
            return file
    raise DatasetError(
        f"{path}:{line}: there is no {stem}.jpg: give the pictures' folder by --images"
    )


def _read_csv(path: Path, text: str, folder: Path) -> Pairs:
    """Lines `path,path,label`; the first may be a header."""
    found = _Collector()
    for number, row in enumerate(csv.reader(text.splitlines()), 1):
        cells = [cell.strip() for cell in row]
        if not any(cells):
            continue
        if len(cells) != 3:
            raise DatasetError(
                f"{path}:{number}: has {len(cells)} columns; must be path,path,label"
            )
        label = _LABELS.get(cells[2].lower())
        if label is None:
            if number == 1:
                continue
            raise DatasetError(
                f"{path}:{number}: the label {cells[2]!r} must be 1, true, yes or same, or 0,"
                " false, no or different"
            )
        left, right = (folder / cell for cell in cells[:2])
        for file in (left, right):
            if not file.is_file():
                raise DatasetError(
                    f"{path}:{number}: there is no {file}: give the pictures' folder by --images"
                )
        found.add(left, right, label)
    return found.pairs(path, folder, None)


def _read_bin(path: Path) -> Pairs:
    """InsightFace's validation set: a pickle of (encoded crops, whether each two are the same)."""
    try:
        with path.open("rb") as file:
            content = read_pickle(file)
    except PickleRefused as error:
        raise DatasetError(f"{path} is refused: {error}") from error
    match content:
        case (list() | tuple() as crops, list() | tuple() | np.ndarray() as labels):
            pass
        case _:
            raise DatasetError(f"{path} does not hold two lists, of crops and of labels")
    if not len(labels) or len(crops) != 2 * len(labels):
        raise DatasetError(
            f"{path} has {len(crops)} crops for {len(labels)} pairs; must be twice as many"
        )
    same = np.array([_bin_label(path, label) for label in labels])
    order = np.arange(len(labels))
    return Pairs(
        source=path.name,
        pictures=[
            Picture(f"{path.name}[{i}]", partial(_same, _bin_crop(path, i, crop)))
            for i, crop in enumerate(crops)
        ],
        left=2 * order,
        right=2 * order + 1,
        same=same,
        folds=order * FOLDS // len(labels),  # InsightFace's own: in order, of equal length
        aligned=True,
    )


def _bin_crop(path: Path, index: int, crop: object) -> bytes:
    if isinstance(crop, np.ndarray) and crop.dtype == np.uint8 and crop.ndim == 1:
        return crop.tobytes()
    if isinstance(crop, bytes):
        return crop
    raise DatasetError(f"{path}: crop {index} must be the bytes of an encoded picture")


def _bin_label(path: Path, label: object) -> bool:
    if isinstance(label, bool | np.bool_ | int | np.integer) and int(label) in (0, 1):
        return bool(label)
    raise DatasetError(f"{path}: the label {label!r} must be true or false")


def _spread(same: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Deals pairs in no particular order out to the folds in turn, those of each kind for themselves."""
    folds = np.empty(len(same), np.intp)
    for kind in (True, False):
        (where,) = np.nonzero(same == kind)
        folds[where] = np.arange(len(where)) % FOLDS
    return folds


def _relative(path: Path, folder: Path) -> str:
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)


def _read_file(path: Path) -> bytes:
    return path.read_bytes()


def _same(data: bytes) -> bytes:
    return data
