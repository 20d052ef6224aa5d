"""The drawn picture."""

import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import mien
from mien.pictures import BOX, LANDMARKS, annotate


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


@pytest.mark.parametrize("scale", [1, 4, 16])
def test_lines_grow_with_the_photo(scale: int) -> None:
    picture = annotate(
        photo(size=(400 * scale, 300 * scale)),
        [face(100 * scale, 80 * scale, 220 * scale, 240 * scale)],
    )
    row = np.asarray(picture)[160 * scale, : 150 * scale]
    width = int((row == BOX).all(axis=1).sum())
    assert width == pytest.approx(0.0014 * 1000 * scale, abs=1)


@pytest.mark.parametrize(
    "box",
    [
        (-30, -20, 60, 70),
        (350, 250, 440, 330),
        (0, 0, 400, 300),
        (10, 10, 11, 11),
        (500, 500, 600, 600),
        (200, 0, 240, 50),
    ],
)
def test_faces_at_and_beyond_the_border_are_drawn(box: tuple[float, float, float, float]) -> None:
    assert annotate(photo(), [face(*box)]).size == (400, 300)


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
