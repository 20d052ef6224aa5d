"""WIDER FACE's list of labels and the three ways to say which faces are easy, medium and hard."""

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mien_server.evaluation.pairs import DatasetError
from mien_server.evaluation.wider import SUBSETS, WiderFace, read_wider

savemat: Any = import_module("scipy.io").savemat  # without type stubs

LABELS = """0--Parade/a.jpg
3
10 10 20 60 0 0 0 0 0 0
50 10 20 35 0 0 0 0 0 0
90 10 8 12 2 0 0 0 2 0
0--Parade/none.jpg
0
0 0 0 0 0 0 0 0 0 0
1--Handshaking/b.jpg
2
10 10 90 90 0 0 0 1 0 0
5 5 3 5 0 0 0 0 0 0
"""


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for name in ("0--Parade/a.jpg", "0--Parade/none.jpg", "1--Handshaking/b.jpg"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path / "images"


def _read(folder: Path, text: str = LABELS, subsets: Path | None = None) -> WiderFace:
    path = folder / "labels.txt"
    path.write_text(text)
    return read_wider(path, folder / "images", subsets)


def test_boxes_are_read_also_around_a_photo_without_faces(images: Path) -> None:
    data = _read(images.parent)
    assert [photo.name for photo in data.photos] == [
        "0--Parade/a.jpg",
        "0--Parade/none.jpg",
        "1--Handshaking/b.jpg",
    ]
    assert [len(photo.boxes) for photo in data.photos] == [3, 0, 2]
    assert data.photos[0].boxes[1].tolist() == [50, 10, 20, 35]
    assert data.photos[2].path == images / "1--Handshaking/b.jpg"


def test_a_photo_without_faces_may_lack_its_line_of_zeros(images: Path) -> None:
    text = LABELS.replace("0 0 0 0 0 0 0 0 0 0\n1--", "1--")
    assert [len(photo.boxes) for photo in _read(images.parent, text).photos] == [3, 0, 2]


def test_by_height_counts_valid_faces_and_is_not_official(images: Path) -> None:
    data = _read(images.parent)
    assert not data.official
    first, _, last = data.photos
    assert {name: first.subsets[name].tolist() for name in SUBSETS} == {
        "easy": [True, False, False],
        "medium": [True, True, False],
        "hard": [True, True, True],
    }
    assert not any(last.subsets[name].any() for name in SUBSETS)


def test_a_json_file_names_the_faces_from_0(images: Path) -> None:
    path = images.parent / "subsets.json"
    path.write_text(
        json.dumps(
            {"easy": {}, "medium": {"0--Parade/a.jpg": [1]}, "hard": {"0--Parade/a.jpg": [0, 2]}}
        )
    )
    data = _read(images.parent, subsets=path)
    assert not data.official
    assert {name: data.photos[0].subsets[name].tolist() for name in SUBSETS} == {
        "easy": [False, False, False],
        "medium": [False, True, False],
        "hard": [True, False, True],
    }


def _cells(values: list[Any]) -> Any:
    cells = np.empty((len(values), 1), object)
    for i, value in enumerate(values):
        cells[i, 0] = value
    return cells


def test_the_official_lists_name_the_faces_from_1(images: Path) -> None:
    folder = images.parent / "ground_truth"
    folder.mkdir()
    for subset, numbers in (("easy", [1]), ("medium", [1, 2]), ("hard", [1, 2, 3])):
        savemat(
            folder / f"wider_{subset}_val.mat",
            {
                "event_list": _cells(["0--Parade", "1--Handshaking"]),
                "file_list": _cells([_cells(["a", "none"]), _cells(["b"])]),
                "gt_list": _cells(
                    [
                        _cells([np.array([[n] for n in numbers]), np.empty((0, 0))]),
                        _cells([np.array([[2]])]),
                    ]
                ),
            },
        )
    data = _read(images.parent, subsets=folder)
    assert data.official
    assert data.photos[0].subsets["medium"].tolist() == [True, True, False]
    assert data.photos[2].subsets["easy"].tolist() == [False, True]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "has no photos"),
        ("0--Parade/a.jpg\n", r":1: must be a photo's name"),
        ("0--Parade/a.jpg\n2\n10 10 20 60 0 0 0 0 0 0\n", r":1: must be"),
        ("0--Parade/a.jpg\n1\n10 10 20\n", r":1: must be"),
        ("0--Parade/missing.jpg\n0\n", "there is no .*missing.jpg: give"),
    ],
)
def test_labels_that_are_wrong_name_the_place(images: Path, text: str, problem: str) -> None:
    with pytest.raises(DatasetError, match=problem):
        _read(images.parent, text)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{", "must be a folder of .mat files, or JSON"),
        ('{"easy": {}}', "must be a folder of .mat files, or JSON"),
        ('{"easy": {"0--Parade/a.jpg": [3]}, "medium": {}, "hard": {}}', "easy: .* has 3 faces"),
    ],
)
def test_subsets_that_are_wrong_say_so(images: Path, content: str, problem: str) -> None:
    path = images.parent / "subsets.json"
    path.write_text(content)
    with pytest.raises(DatasetError, match=problem):
        _read(images.parent, subsets=path)
    (images.parent / "empty").mkdir()
    with pytest.raises(DatasetError, match=r"wider_easy_val\.mat is not one of"):
        _read(images.parent, subsets=images.parent / "empty")


def test_labels_that_cannot_be_read_are_named(images: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"none\.txt cannot be read: .*No such file"):
        read_wider(tmp_path / "none.txt", images)
    (tmp_path / "latin.txt").write_bytes(b"\xe4.jpg\n0\n")
    with pytest.raises(DatasetError, match=r"latin\.txt cannot be read: .*codec"):
        read_wider(tmp_path / "latin.txt", images)
