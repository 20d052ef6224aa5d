"""The drawn picture."""

import dataclasses
import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import mien
from mien.pictures import BOX, LANDMARKS, STRANGER, annotate, name_faces


def photo(
    size: tuple[int, int] = (400, 300),
    colour: tuple[int, int, int] = (128, 128, 128),
    orientation: int = 1,
    mode: str = "RGB",
) -> bytes:
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", size, colour).convert(mode).save(file, "PNG", exif=exif)
    return file.getvalue()


def face(x1: float, y1: float, x2: float, y2: float, score: float = 0.9) -> mien.Face:
    def at(x: float, y: float) -> mien.Point:
        return mien.Point(x1 + x * (x2 - x1), y1 + y * (y2 - y1))

    landmarks = mien.Landmarks(
        at(0.3, 0.4), at(0.7, 0.4), at(0.5, 0.6), at(0.35, 0.8), at(0.65, 0.8)
    )
    return mien.Face(mien.Box(x1, y1, x2, y2), None, score, landmarks)


FACE = face(100, 80, 220, 240)


@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), BOX])
def test_boxes_and_landmarks_are_drawn_in_their_colours_on_any_ground(
    colour: tuple[int, int, int],
) -> None:
    picture = annotate(photo(colour=colour), [FACE])
    assert picture.getpixel((100, 160)) == BOX
    assert picture.getpixel((160, 240)) == BOX
    assert FACE.landmarks is not None
    for name, expected in LANDMARKS.items():
        point = getattr(FACE.landmarks, name)
        assert picture.getpixel((round(point.x), round(point.y))) == expected
    # The line's neighbours are dark, so that it shows even on its own colour.
    row = np.asarray(picture)[160, 90:110].sum(axis=1)
    assert row.min() < 100


def test_a_face_without_landmarks_is_drawn_as_its_box() -> None:
    plain = dataclasses.replace(FACE, landmarks=None)
    assert FACE.landmarks is not None
    nose = (round(FACE.landmarks.nose.x), round(FACE.landmarks.nose.y))
    seen = [annotate(photo(), [each]).getpixel(nose) for each in (FACE, plain)]
    assert seen == [LANDMARKS["nose"], (128, 128, 128)]
    assert annotate(photo(), [plain]).getpixel((100, 160)) == BOX


def test_each_landmark_has_a_colour_of_its_own() -> None:
    assert len(set(LANDMARKS.values())) == len(LANDMARKS) == 5
    assert list(LANDMARKS) == list(mien.Landmarks.__slots__)


def test_a_turned_photo_is_drawn_upright() -> None:
    picture = annotate(photo(size=(300, 400), orientation=6), [FACE])
    assert picture.size == (400, 300)
    assert picture.getpixel((100, 160)) == BOX


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "LA", "I;16"])
def test_every_kind_of_photo_becomes_rgb(mode: str) -> None:
    source = photo(mode="L" if mode == "I;16" else mode)
    if mode == "I;16":
        file = io.BytesIO()
        Image.fromarray(np.full((300, 400), 0x8000, np.uint16)).save(file, "PNG")
        source = file.getvalue()
    picture = annotate(source, [FACE])
    assert picture.mode == "RGB"
    assert picture.getpixel((100, 160)) == BOX
    if mode not in ("1", "P"):  # which have no such grey
        assert picture.getpixel((390, 290)) == (128, 128, 128)


@pytest.mark.parametrize("scale", [1, 4, 8])
def test_lines_grow_with_the_photo(scale: int) -> None:
    picture = annotate(
        photo(size=(400 * scale, 300 * scale)),
        [face(100 * scale, 80 * scale, 220 * scale, 240 * scale)],
    )
    row = np.asarray(picture)[160 * scale, : 150 * scale]
    width = int((row == BOX).all(axis=1).sum())
    assert width == pytest.approx(0.0014 * 1000 * scale, abs=1)


@pytest.mark.parametrize(
    ("box", "seen"),
    [
        ((-30, -20, 60, 70), (60, 35)),
        ((350, 250, 440, 330), (350, 270)),
        ((0, 0, 400, 300), (0, 150)),
        ((10, 10, 11, 11), (10, 10)),
        ((500, 500, 600, 600), None),
        ((200, 0, 240, 50), (200, 25)),
    ],
)
def test_faces_at_and_beyond_the_border_are_drawn(
    box: tuple[float, float, float, float], seen: tuple[int, int] | None
) -> None:
    picture = annotate(photo(), [face(*box)])
    assert picture.size == (400, 300)
    if seen:
        assert picture.getpixel(seen) != (128, 128, 128)
    else:
        assert picture == annotate(photo(), []), "the face is outside of the picture"


def test_a_face_without_a_box_is_left_out() -> None:
    plain = annotate(photo(), [])
    assert annotate(photo(), [mien.Face(None, None, 0, None)]) == plain


def test_without_pillow_the_extra_is_named() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import sys; sys.modules['PIL'] = None; import mien.pictures"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.endswith("ImportError: pictures need Pillow: pip install 'mien[pictures]'\n")


def test_names_stand_at_the_boxes_and_strangers_in_another_colour() -> None:
    stranger = face(260, 80, 380, 240)
    picture = name_faces(photo(), [(FACE, "ann 0.62"), (stranger, "")])
    assert picture.getpixel((100, 160)) == BOX
    assert picture.getpixel((260, 160)) == STRANGER
    pixels = np.asarray(picture).astype(int)
    labels = pixels[55:78]  # above the boxes
    for colour, columns in ((BOX, slice(100, 180)), (STRANGER, slice(260, 390))):
        there = (labels[:, columns] == colour).all(axis=2)
        assert there.any()
        assert ((labels[:, columns].sum(axis=2) < 120) & ~there).any()  # dark letters on it
    wide = name_faces(photo(), [(FACE, "ann with a long name 0.62")])
    narrow = name_faces(photo(), [(FACE, "ann")])
    assert (np.asarray(wide) == BOX).all(axis=2).sum() > (np.asarray(narrow) == BOX).all(
        axis=2
    ).sum()


def test_a_name_that_is_not_latin_can_be_drawn() -> None:
    assert name_faces(photo(), [(FACE, "李娜 Łukasz 0.62")]).size == (400, 300)


@pytest.mark.parametrize(
    ("box", "where"),
    [
        ((100, 100, 200, 220), (211, 240, 165, 215)),  # to the right
        ((280, 100, 380, 220), (225, 265, 165, 215)),  # to the left, where the photo ends
        ((0, 0, 400, 300), (230, 390, 130, 295)),  # in a corner, where there is no room
    ],
)
def test_enrolled_face_is_drawn_beside_its_box(
    box: tuple[int, int, int, int], where: tuple[int, int, int, int]
) -> None:
    crop = np.full((112, 112, 3), (200, 10, 250), np.uint8)
    found = face(*box)
    picture = np.asarray(name_faces(photo(), [(found, "ann"), (FACE, "bob")], [crop, None]))
    assert picture.shape == (300, 400, 3)
    x1, x2, y1, y2 = where
    assert (picture[y1:y2, x1:x2] == (200, 10, 250)).all()
    side = round(0.6 * min(box[2] - box[0], box[3] - box[1]))
    drawn = (picture == (200, 10, 250)).all(axis=2).sum()
    assert 0.9 * side**2 < drawn <= side**2


def test_crops_are_one_for_each_face() -> None:
    with pytest.raises(ValueError, match="shorter"):
        name_faces(photo(), [(FACE, "ann"), (FACE, "bob")], [None])
