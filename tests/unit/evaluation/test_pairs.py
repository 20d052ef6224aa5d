"""Lists of labelled pairs, in the three formats."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from mien_server.evaluation.pairs import FOLDS, DatasetError, read_pairs


def _touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())


def _lfw(folder: Path, text: str) -> Path:
    for name in ("Ann_Lee", "Bo_Ng"):
        _touch(folder, *(f"{name}/{name}_000{number}.jpg" for number in (1, 2)))
    path = folder / "pairs.txt"
    path.write_text(text)
    return path


def test_lfw_pairs_name_people_and_numbers(tmp_path: Path) -> None:
    path = _lfw(tmp_path, "1\t1\nAnn_Lee\t1\t2\nAnn_Lee\t1\tBo_Ng\t2\n")
    pairs = read_pairs(path)
    assert [p.name for p in pairs.pictures] == [
        "Ann_Lee/Ann_Lee_0001.jpg",
        "Ann_Lee/Ann_Lee_0002.jpg",
        "Bo_Ng/Bo_Ng_0002.jpg",
    ]
    assert (pairs.left.tolist(), pairs.right.tolist()) == ([0, 0], [1, 2])
    assert pairs.same.tolist() == [True, False]
    assert pairs.pictures[2].read() == b"Bo_Ng/Bo_Ng_0002.jpg"
    assert not pairs.aligned


def test_the_ten_sets_of_lfw_are_the_folds(tmp_path: Path) -> None:
    one = "Ann_Lee\t1\t2\nAnn_Lee\t1\tBo_Ng\t2\n"
    assert read_pairs(_lfw(tmp_path, "10\t1\n" + 10 * one)).folds.tolist() == [
        fold for fold in range(FOLDS) for _ in range(2)
    ]


def test_a_list_without_sets_has_its_kinds_dealt_out_over_the_folds(tmp_path: Path) -> None:
    text = "20\n" + 20 * "Ann_Lee\t1\t2\n" + 20 * "Ann_Lee\t1\tBo_Ng\t2\n"
    pairs = read_pairs(_lfw(tmp_path, text))
    for fold in range(FOLDS):
        inside = pairs.same[pairs.folds == fold]
        assert (inside.sum(), (~inside).sum()) == (2, 2)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", r":1: must be the number of sets"),
        ("ten\tone\n", r":1: must be the number of sets"),
        ("1\t2\nAnn_Lee\t1\t2\n", r"has 1 pairs; its first line promises 1 sets of 2"),
        ("1\t1\nAnn_Lee\t1\t2\nAnn_Lee\t1\n", r":3: must be `name n n`"),
        ("1\t1\nAnn_Lee\t1\t2\nAnn_Lee\t1\tBo_Ng\tx\n", r":3: 'x' is no number"),
        ("1\t1\nAnn_Lee\t1\t7\nAnn_Lee\t1\tBo_Ng\t2\n", r":2: there is no .*_0007.jpg"),
    ],
)
def test_an_lfw_list_that_is_wrong_names_the_line(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(DatasetError, match=problem):
        read_pairs(_lfw(tmp_path, text))


def test_csv_pairs_may_have_a_header_and_words_as_labels(tmp_path: Path) -> None:
    _touch(tmp_path / "faces", "a.jpg", "b, c.jpg")
    path = tmp_path / "list.csv"
    path.write_text(
        'left,right,label\na.jpg,"b, c.jpg",1\n\na.jpg,a.jpg,Same\n"b, c.jpg",a.jpg,0\n'
        "a.jpg,a.jpg,Yes\na.jpg,a.jpg,No\n"
    )
    pairs = read_pairs(path, tmp_path / "faces")
    assert [p.name for p in pairs.pictures] == ["a.jpg", "b, c.jpg"]
    assert pairs.left.tolist() == [0, 0, 1, 0, 0]
    assert pairs.right.tolist() == [1, 0, 0, 0, 0]
    assert pairs.same.tolist() == [True, True, False, True, False]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a.jpg,a.jpg\n", ":1: has 2 columns"),
        ("a.jpg,a.jpg,1\na.jpg,a.jpg,maybe\n", ":2: the label 'maybe'"),
        ("a.jpg,none.jpg,1\n", ":1: there is no .*none.jpg: give .* --images"),
        ("left,right,label\n", "has no pairs"),
    ],
)
def test_a_csv_list_that_is_wrong_names_the_line(tmp_path: Path, text: str, problem: str) -> None:
    _touch(tmp_path, "a.jpg")
    path = tmp_path / "list.csv"
    path.write_text(text)
    with pytest.raises(DatasetError, match=problem):
        read_pairs(path)


def test_a_bin_brings_aligned_crops_in_ten_runs(tmp_path: Path) -> None:
    path = tmp_path / "faces.bin"
    crops = [b"%d" % i for i in range(40)]
    crops[3:4] = [np.frombuffer(b"array", np.uint8)]  # type: ignore[list-item]
    path.write_bytes(pickle.dumps((crops, [i % 3 == 0 for i in range(20)])))
    pairs = read_pairs(path)
    assert pairs.aligned
    assert pairs.pictures[3].read() == b"array"
    assert (pairs.left[4], pairs.right[4]) == (8, 9)
    assert pairs.same.tolist() == [i % 3 == 0 for i in range(20)]
    assert pairs.folds.tolist() == [i // 2 for i in range(20)]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (pickle.dumps(b"jpeg"), "does not hold two lists"),
        (pickle.dumps(([b"a"], [True])), "1 crops for 1 pairs"),
        (pickle.dumps(([], [])), "0 crops for 0 pairs"),
        (pickle.dumps(([b"a", 5], [True])), "crop 1 must be the bytes"),
        (pickle.dumps(([b"a", b"b"], [7])), "the label 7"),
        (pickle.dumps(pytest.raises), "is refused: it names"),
    ],
)
def test_a_bin_that_is_wrong_is_refused(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "faces.bin"
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=problem):
        read_pairs(path)


def test_a_list_of_another_suffix_needs_its_format(tmp_path: Path) -> None:
    _touch(tmp_path, "a.jpg")
    path = tmp_path / "list.dat"
    path.write_text("a.jpg,a.jpg,1\n")
    with pytest.raises(DatasetError, match="give --format"):
        read_pairs(path)
    assert len(read_pairs(path, kind="csv").same) == 1


def test_what_cannot_be_read_says_so(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="No such file"):
        read_pairs(tmp_path / "none.csv")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DatasetError, match="is not UTF-8"):
        read_pairs(tmp_path / "binary.csv")
