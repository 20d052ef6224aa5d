"""Draws faces into a photo. Needs Pillow: `pip install 'mien[pictures]'`."""

import io
import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

try:
    from PIL import Image, ImageDraw, ImageFont, ImageOps
except ImportError as error:
    raise ImportError("pictures need Pillow: pip install 'mien[pictures]'") from error

from mien.images import EncodedOrPicture
from mien.results import Box, Face, Landmarks, Point

_Colour = tuple[int, int, int]

INK: _Colour = (16, 18, 24)
PAPER: _Colour = (255, 255, 255)
BOX: _Colour = (64, 224, 160)
STRANGER: _Colour = (200, 204, 212)
# Okabe and Ito's palette, which stays distinct for the colour-blind.
LANDMARKS: dict[str, _Colour] = {
    "left_eye": (86, 180, 233),
    "right_eye": (230, 159, 0),
    "nose": (240, 228, 66),
    "left_mouth": (0, 114, 178),
    "right_mouth": (213, 94, 0),
}

_SMOOTH = 4
"""Small shapes are drawn this many times larger and scaled down: Pillow draws jagged circles."""


def annotate(
    photo: bytes,
    faces: Iterable[Face],
    notes: Iterable[Sequence[str]] = (),
    dots: Iterable[Point] = (),
) -> Image.Image:
    """The upright photo with each face's box, score and landmarks drawn into it, as RGB.

    Args:
        photo: the encoded file that the faces were found in.
        faces: as `detect`, `embed` or `verify` answer them; one without a box is left out.
        notes: lines to write below the box of each face; none: there are none.
        dots: further places to mark.

    Raises:
        OSError: Pillow cannot read the photo.
    """
    picture = upright_rgb(photo)
    faces = list(faces)
    lines = list(notes) or [()] * len(faces)
    located = [
        (face, face.box, text)
        for face, text in zip(faces, lines, strict=True)
        if face.box is not None
    ]
    for face, box, _ in located:
        _draw_box(picture, box)
        if face.landmarks is not None:
            _draw_landmarks(picture, face.landmarks, box)
    for dot in dots:
        _draw_dot(picture, dot.x, dot.y, max(1.0, 2.5 * _unit(picture)), BOX)
    for face, box, text in located:  # above every box
        _draw_tag(picture, [f"{face.score:.2f}"], box)
        if text:
            _draw_tag(picture, text, box, below=True)
    return picture


def name_faces(
    photo: bytes,
    faces: Iterable[tuple[Face, str]],
    crops: Sequence[NDArray[np.uint8] | None] = (),
) -> Image.Image:
    """The upright photo with each face's box and a name drawn into it, as RGB.

    Args:
        photo: the encoded file that the faces were found in.
        faces: each with what is written at its box; "" is written as nobody known, in another colour. One
            without a box is left out. Of letters that are not Latin, boxes stand for those that Pillow's own
            font lacks.
        crops: of each face a picture [height, width, 3] to draw beside it; None: none. Empty: of none.

    Raises:
        OSError: Pillow cannot read the photo.
    """
    picture = upright_rgb(photo)
    faces = list(faces)
    located = [
        (face.box, name, crop)
        for (face, name), crop in zip(faces, crops or [None] * len(faces), strict=True)
        if face.box is not None
    ]
    for box, name, _ in located:
        _draw_box(picture, box, BOX if name else STRANGER)
    for box, _, crop in located:
        if crop is not None:
            _draw_beside(picture, crop, box)
    for box, name, _ in located:  # above every box
        _draw_tag(picture, [name or "nobody known"], box, BOX if name else STRANGER)
    return picture


def upright_rgb(photo: EncodedOrPicture) -> Image.Image:
    """The photo, turned upright by its EXIF, as RGB.

    Raises:
        OSError: Pillow cannot read it.
    """
    match photo:
        case Image.Image():
            opened = photo
        case bytes() | bytearray() | memoryview():
            opened = Image.open(io.BytesIO(photo))
        case _:
            opened = Image.open(photo)
    picture = ImageOps.exif_transpose(opened)
    if picture.mode.startswith("I;16"):
        picture = picture.point(lambda value: value / 256).convert("L")
    return picture.convert("RGB")


def _unit(picture: Image.Image) -> float:
    """The picture's measure: a thousandth of the geometric mean of its sides, in pixels."""
    return math.sqrt(picture.width * picture.height) / 1000


def _stroke(picture: Image.Image, box: Box) -> int:
    """A line's width: 4 thousandths of the picture, thinner where the face is small."""
    return max(1, round(min(4 * _unit(picture), 0.03 * min(box.width, box.height))))


def _halo(stroke: int) -> int:
    """The width of the dark line on either side, which keeps the bright one visible on any ground."""
    return max(1, round(stroke / 3))


def _draw_box(picture: Image.Image, box: Box, colour: _Colour = BOX) -> None:
    draw = ImageDraw.Draw(picture)
    width = _stroke(picture, box)
    halo = _halo(width)
    x1, y1, x2, y2 = round(box.x1), round(box.y1), round(box.x2), round(box.y2)
    draw.rectangle(
        (x1 - halo, y1 - halo, x2 + halo, y2 + halo), outline=INK, width=width + 2 * halo
    )
    draw.rectangle((x1, y1, x2, y2), outline=colour, width=width)


def _draw_landmarks(picture: Image.Image, landmarks: Landmarks, box: Box) -> None:
    radius = max(1.5, min(9 * _unit(picture), 0.03 * min(box.width, box.height)))
    for name, colour in LANDMARKS.items():
        point = getattr(landmarks, name)
        _draw_dot(picture, point.x, point.y, radius, colour)


def _draw_dot(picture: Image.Image, x: float, y: float, radius: float, colour: _Colour) -> None:
    """A disc with a white rim and a dark one around it, placed to a fraction of a pixel."""
    left, top = math.floor(x - 2 * radius), math.floor(y - 2 * radius)
    side = math.ceil(4 * radius) + 1
    centre_x, centre_y = (x - left + 0.5) * _SMOOTH, (y - top + 0.5) * _SMOOTH
    for scale, fill in ((1.55, INK), (1.35, PAPER), (1.0, colour)):
        mask = Image.new("L", (side * _SMOOTH, side * _SMOOTH))
        ImageDraw.Draw(mask).circle((centre_x, centre_y), radius * scale * _SMOOTH, fill=255)
        small = mask.resize((side, side), Image.Resampling.BOX)
        picture.paste(fill, (left, top), small)


def _draw_beside(picture: Image.Image, crop: NDArray[np.uint8], box: Box) -> None:
    """A picture to the right of a box, or to the left where there is no room, level with its lower edge."""
    frame = _halo(_stroke(picture, box))
    side = max(8, round(0.6 * min(box.width, box.height)))
    gap = 2 * frame + _stroke(picture, box)
    x = round(box.x2) + gap
    if x + side + frame > picture.width and round(box.x1) >= gap + side + frame:
        x = round(box.x1) - gap - side
    # Where neither side has room, it covers a corner of the face.
    x = max(min(x, picture.width - side - frame), 0)
    y = max(min(round(box.y2) - side, picture.height - side - frame), 0)
    small = Image.fromarray(crop).resize((side, side), Image.Resampling.LANCZOS)
    picture.paste(BOX, (x - frame, y - frame, x + side + frame, y + side + frame))
    picture.paste(small, (x, y))


def _draw_tag(
    picture: Image.Image,
    lines: Sequence[str],
    box: Box,
    colour: _Colour = BOX,
    *,
    below: bool = False,
) -> None:
    """Lines of text on top of the box, or below it, their left edges in line."""
    size = max(10.0, min(26 * _unit(picture), 0.22 * box.width))
    font = ImageFont.load_default(size)
    halo = _halo(_stroke(picture, box))
    pad = max(2, round(size * 0.3))
    bounds = [font.getbbox(line) for line in lines]
    widest = max(right - left for left, _, right, _ in bounds)
    top, bottom = min(each[1] for each in bounds), max(each[3] for each in bounds)
    step = math.ceil(bottom - top) + pad
    width, height = math.ceil(widest) + 2 * pad, step * len(lines) + pad
    x = min(max(round(box.x1) - halo, 0), max(picture.width - width, 0))
    # Inside of the box where the photo ends beyond it.
    if below:
        edge = round(box.y2) + halo + 1
        y = edge if edge + height <= picture.height else min(edge, picture.height) - height
    else:
        edge = round(box.y1) - halo
        y = edge - height if edge >= height else max(edge, 0)
    draw = ImageDraw.Draw(picture)
    draw.rectangle((x, y, x + width - 1, y + height - 1), fill=colour, outline=INK, width=halo)
    for number, (line, (left, *_)) in enumerate(zip(lines, bounds, strict=True)):
        draw.text((x + pad - left, y + pad - top + number * step), line, fill=INK, font=font)
