"""The folders of WIDER FACE: photos, their labelled faces, and the subsets easy, medium and hard."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mien_server.evaluation.pairs import DatasetError

Subset: TypeAlias = Literal["easy", "medium", "hard"]
SUBSETS: tuple[Subset, ...] = ("easy", "medium", "hard")

HEIGHTS: Mapping[Subset, float] = {"easy": 50.0, "medium": 30.0, "hard": 10.0}
"""Without the official lists, a subset has the faces of at least so many pixels in height.

The official definition is another, by how well a proposal method found them (Yang et al., CVPR 2016,
section 3.2).
"""

_FIELDS = 10
_INVALID = 7


@dataclass(frozen=True, slots=True, eq=False)
class LabelledPhoto:
    """One photo.

    Attributes:
        name: `event/file.jpg`, as the list has it.
        path: where the file is.
        boxes: [n, 4] float64, x y width height in pixels.
        subsets: which of the faces count for each subset, [n]. The others are neither hit nor miss.
    """

    name: str
    path: Path
    boxes: NDArray[np.float64]
    subsets: Mapping[Subset, NDArray[np.bool_]]


@dataclass(frozen=True, slots=True, eq=False)
class WiderFace:
    """Labelled photos.

    Attributes:
        source: the list's name.
        photos: in the order of the list.
        official: whether the subsets are those that the data set's authors publish.
    """

    source: str
    photos: tuple[LabelledPhoto, ...]
    official: bool


def read_wider(labels: Path, images: Path, subsets: Path | None = None) -> WiderFace:
    """Reads WIDER FACE, or a data set in its format.

    Args:
        labels: the file `wider_face_val_bbx_gt.txt` of wider_face_split.
        images: the folder of the photos, `WIDER_val/images`.
        subsets: which faces are easy, medium and hard: the folder with `wider_easy_val.mat` and so on of the
            official evaluation tools, or a JSON file {"easy": {"event/file.jpg": [0, 2, ...]}, ...} with the
            numbers of the faces, from 0. None means by their heights, see `HEIGHTS`.

    Raises:
        DatasetError: something cannot be read, or a photo is not there.
    """
    entries = _read_labels(labels)
    if subsets is None:
        chosen = {name: _by_height(boxes, invalid) for name, (boxes, invalid) in entries.items()}
    else:
        lists = _read_mats(subsets) if subsets.is_dir() else _read_json(subsets)
        chosen = {
            name: _by_lists(name, len(boxes), lists, subsets)
            for name, (boxes, _) in entries.items()
        }
    photos = []
    for name, (boxes, _) in entries.items():
        path = images / name
        if not path.is_file():
            raise DatasetError(f"there is no {path}: give the folder of the photos by --images")
        photos.append(LabelledPhoto(name, path, boxes, chosen[name]))
    return WiderFace(labels.name, tuple(photos), official=subsets is not None and subsets.is_dir())


def _read_labels(path: Path) -> dict[str, tuple[NDArray[np.float64], NDArray[np.bool_]]]:
    """The boxes of each photo, and which are marked as invalid.

    A file's name, the number of faces, and for each a line of ten numbers; without faces one of zeros.
    """
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path} cannot be read: {error}") from error
    entries: dict[str, tuple[NDArray[np.float64], NDArray[np.bool_]]] = {}
    at = 0
    while at < len(lines):
        if not lines[at].strip():
            at += 1
            continue
        name = lines[at].strip()
        try:
            count = int(lines[at + 1])
            faces = np.array([_numbers(lines[at + 2 + i]) for i in range(count)], np.float64)
        except (IndexError, ValueError) as error:
            raise DatasetError(
                f"{path}:{at + 1}: must be a photo's name, then the number of its faces, then ten numbers for"
                f" each of them ({error})"
            ) from error
        faces = faces.reshape(-1, _FIELDS)
        entries[name] = faces[:, :4], faces[:, _INVALID] == 1
        at += 2 + count
        if not count and at < len(lines) and lines[at].split() == ["0"] * _FIELDS:
            at += 1
    if not entries:
        raise DatasetError(f"{path} has no photos")
    return entries


def _numbers(line: str) -> list[float]:
    numbers = [float(word) for word in line.split()]
    if len(numbers) != _FIELDS:
        raise ValueError(f"{line!r} has {len(numbers)}")
    return numbers


def _by_height(
    boxes: NDArray[np.float64], invalid: NDArray[np.bool_]
) -> dict[Subset, NDArray[np.bool_]]:
    return {name: (boxes[:, 3] >= height) & ~invalid for name, height in HEIGHTS.items()}


_Lists: TypeAlias = Mapping[Subset, Mapping[str, NDArray[np.intp]]]


def _by_lists(
    name: str, faces: int, lists: _Lists, source: Path
) -> dict[Subset, NDArray[np.bool_]]:
    chosen = {}
    for subset in SUBSETS:
        numbers = lists[subset].get(name, np.empty(0, np.intp))
        if len(numbers) and not 0 <= numbers.min() <= numbers.max() < faces:
            raise DatasetError(
                f"{source}: {subset}: {name} has {faces} faces, not one of these numbers"
            )
        chosen[subset] = np.isin(np.arange(faces), numbers)
    return chosen


def _read_json(path: Path) -> _Lists:
    try:
        content = json.loads(path.read_bytes())
        return {
            subset: {name: np.array(numbers, np.intp) for name, numbers in content[subset].items()}
            for subset in SUBSETS
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DatasetError(
            f'{path} must be a folder of .mat files, or JSON {{"easy": {{"event/file.jpg": [0, 2]}},'
            f' "medium": …, "hard": …}} ({error!r})'
        ) from error


def _read_mats(folder: Path) -> _Lists:
    """Reads the official lists, which are in MATLAB's own format and number faces from 1."""
    try:
        loadmat: Any = import_module("scipy.io").loadmat
    except ImportError as error:
        raise DatasetError(
            f"the .mat files in {folder} need SciPy: pip install scipy, or give a JSON file (--help)"
        ) from error
    return {subset: _read_mat(folder / f"wider_{subset}_val.mat", loadmat) for subset in SUBSETS}


def _read_mat(path: Path, loadmat: Any) -> dict[str, NDArray[np.intp]]:
    try:
        content = loadmat(path)
        lists = {}
        for event, files, numbers in zip(
            *(content[key][:, 0] for key in ("event_list", "file_list", "gt_list")), strict=True
        ):
            for file, chosen in zip(files[:, 0], numbers[:, 0], strict=True):
                lists[f"{event[0]}/{file[0]}.jpg"] = chosen.reshape(-1).astype(np.intp) - 1
    except (OSError, ValueError, KeyError, IndexError, TypeError, NotImplementedError) as error:
        raise DatasetError(f"{path} is not one of WIDER FACE's lists ({error!r})") from error
    return lists
