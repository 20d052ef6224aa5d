"""Labelled photos through a small detector: average precision by subset, and how it is reported."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from mien_server.evaluation.detection import Detection, SubsetResult, detect_faces
from mien_server.evaluation.loaded import EvaluationError, LoadedModels
from mien_server.evaluation.reports import detection_document, detection_text
from mien_server.evaluation.wider import LabelledPhoto, WiderFace
from tests.integration.test_onnx_scrfd import FACES

BOXES = np.array([(x1, y1, x2 - x1, y2 - y1) for x1, y1, x2, y2 in (face.box for face in FACES)])
NONE, ALL = np.array([False, False]), np.array([True, True])


def photo(
    folder: Path, name: str, grey: int, boxes: np.ndarray = BOXES, **subsets: np.ndarray
) -> LabelledPhoto:
    cv2.imwrite(str(folder / name), np.full((64, 64, 3), grey, np.uint8))
    wanted = {"easy": ALL, "medium": ALL, "hard": ALL} | subsets
    counting = {key: value[: len(boxes)] for key, value in wanted.items()}
    return LabelledPhoto(name, folder / name, boxes.astype(np.float64), counting)  # type: ignore[arg-type]


@pytest.fixture
def data(tmp_path: Path) -> WiderFace:
    """Both faces of the first photo are found, none of the second, and one too many in the third."""
    photos = (
        photo(tmp_path, "light.png", 255, easy=np.array([True, False]), hard=NONE),
        photo(tmp_path, "dark.png", 0, easy=NONE, hard=NONE),
        photo(tmp_path, "dim.png", 220, BOXES[:1], hard=NONE),
        photo(tmp_path, "unlabelled.png", 255, BOXES[:0]),
    )
    return WiderFace("labels.txt", photos, official=False)


def test_average_precision_by_subset(loaded: LoadedModels, data: WiderFace) -> None:
    found = detect_faces(loaded, data)
    assert found.photos == 4
    assert found.failures == []
    # Easy: one face in the first photo, where the box on the other does not count, and one in the third,
    # before the false box there. Medium: two in the first, none in the second, one of the third.
    easy, medium, hard = (found.subsets[name] for name in ("easy", "medium", "hard"))
    assert (easy.faces, medium.faces, hard.faces) == (2, 5, 0)
    assert easy.average_precision == pytest.approx(1, abs=1e-6)
    assert medium.average_precision == pytest.approx(3 / 5, abs=1e-6)
    assert hard.average_precision is None


def test_a_photo_that_fails_counts_as_missed(loaded: LoadedModels, data: WiderFace) -> None:
    data.photos[0].path.write_bytes(b"no picture")
    found = detect_faces(loaded, data)
    assert [each.picture for each in found.failures] == ["light.png"]
    assert found.subsets["easy"].average_precision == pytest.approx(1 / 2, abs=1e-6)
    text = detection_text(loaded, data, found)
    assert text.splitlines()[-2:] == [
        "1 picture failed",
        f"  light.png: {found.failures[0].reason}",
    ]


def test_every_photo_failing_is_an_error(loaded: LoadedModels, data: WiderFace) -> None:
    for each in data.photos:
        each.path.unlink()
    with pytest.raises(EvaluationError, match=r"every photo failed; light\.png: .*No such file"):
        detect_faces(loaded, data)


def test_nothing_found_at_all_is_no_error(loaded: LoadedModels, data: WiderFace) -> None:
    dark = WiderFace("labels.txt", data.photos[1:2], official=True)
    assert detect_faces(loaded, dark).subsets["medium"] == SubsetResult(0, 2)


@pytest.mark.parametrize("official", [True, False])
def test_reports(loaded: LoadedModels, data: WiderFace, official: bool) -> None:
    subsets = {"easy": SubsetResult(0.5, 1200), "medium": SubsetResult(None, 0)}
    found = Detection(subsets, 1234, [])  # type: ignore[arg-type]
    data = WiderFace("labels.txt", data.photos, official=official)
    document = detection_document(loaded, data, found)
    assert document["detector"]["name"] == "bright"
    assert document["source"] == "labels.txt"
    assert (document["photos"], document["official_subsets"]) == (1234, official)
    assert document["average_precision"] == {"easy": 0.5, "medium": None}
    assert document["faces"] == {"easy": 1200, "medium": 0}
    title, blank, head, easy, medium, *rest = detection_text(loaded, data, found).splitlines()
    assert title == "bright version 1, 1,234 photos of labels.txt"
    assert (blank, head.split()) == ("", ["AP", "faces"])
    assert easy.split() == ["easy", "0.5000", "1,200"]
    assert medium.split() == ["medium", "-", "0"]
    assert bool(rest) is not official
