"""Draws the demo's picture: the annotated portraits and, below, every pair with its similarity."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont, ImageOps

PORTRAIT = (184, 222)
CELL_HEIGHT = 88
THUMBNAIL = 78
GAP = 12
MARGIN = 24
CAPTION = 36

INK, MUTED, PAPER = "#1f2328", "#6e7781", "#ffffff"
MATCH, MATCH_INK = "#1a7f37", "#ffffff"
OTHER, OTHER_INK = "#f0f2f4", "#424a53"


@dataclass(frozen=True)
class Portrait:
    """One portrait: its name, the annotated picture, and the square around its face."""

    name: str
    picture: Image.Image
    face: Image.Image


@dataclass(frozen=True)
class Pair:
    """The comparison of two portraits: cosine similarity in [-1, 1], and the verdict."""

    similarity: float
    matched: bool


def contact_sheet(
    portraits: Sequence[Portrait], pairs: Mapping[tuple[int, int], Pair], legend: Sequence[str]
) -> Image.Image:
    """The picture, RGB: portraits in a row, and under it the pairs (row < column) as a triangle.

    The legend's lines fill the corner that the triangle leaves free.
    """
    columns = len(portraits)
    width = 2 * MARGIN + columns * PORTRAIT[0] + (columns - 1) * GAP
    top = MARGIN + PORTRAIT[1] + CAPTION
    height = top + (columns - 1) * (CELL_HEIGHT + GAP) - GAP + MARGIN
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    for column, portrait in enumerate(portraits):
        x = _left(column)
        _paste_rounded(sheet, ImageOps.fit(portrait.picture, PORTRAIT), (x, MARGIN), radius=10)
        middle = (x + PORTRAIT[0] / 2, MARGIN + PORTRAIT[1] + CAPTION / 2)
        draw.text(middle, portrait.name, INK, ImageFont.load_default(16), anchor="mm")
    for row in range(columns - 1):
        y = top + row * (CELL_HEIGHT + GAP)
        thumbnail = ImageOps.fit(portraits[row].face, (THUMBNAIL, THUMBNAIL))
        x = _left(row) + (PORTRAIT[0] - THUMBNAIL) // 2
        _paste_rounded(sheet, thumbnail, (x, y + (CELL_HEIGHT - THUMBNAIL) // 2), THUMBNAIL // 2)
        for column in range(row + 1, columns):
            _draw_pair(draw, (_left(column), y), pairs[row, column])
    _draw_legend(draw, legend, bottom=height - MARGIN)
    return sheet


def _left(column: int) -> int:
    return MARGIN + column * (PORTRAIT[0] + GAP)


def _draw_pair(draw: ImageDraw.ImageDraw, corner: tuple[int, int], pair: Pair) -> None:
    x, y = corner
    fill, ink = (MATCH, MATCH_INK) if pair.matched else (OTHER, OTHER_INK)
    draw.rounded_rectangle((x, y, x + PORTRAIT[0], y + CELL_HEIGHT), 10, fill)
    middle = x + PORTRAIT[0] / 2
    number = ImageFont.load_default(30)
    draw.text((middle, y + 37), f"{pair.similarity:.2f}", ink, number, anchor="mm")
    verdict = "same person" if pair.matched else "different"
    draw.text((middle, y + 65), verdict, ink, ImageFont.load_default(15), anchor="mm")


def _draw_legend(draw: ImageDraw.ImageDraw, lines: Sequence[str], *, bottom: int) -> None:
    for index, line in enumerate(reversed(lines)):
        title = index == len(lines) - 1
        font = ImageFont.load_default(28 if title else 17)
        y = bottom - 26 * index - (10 if title else 0)
        draw.text((MARGIN, y), line, INK if title else MUTED, font, anchor="ls")


def _paste_rounded(
    sheet: Image.Image, picture: Image.Image, corner: tuple[int, int], radius: int
) -> None:
    """Pastes with rounded corners; the mask is drawn four times larger to smooth its edge."""
    large = Image.new("L", (picture.width * 4, picture.height * 4))
    ImageDraw.Draw(large).rounded_rectangle((0, 0, *large.size), radius * 4, 255)
    sheet.paste(picture, corner, large.resize(picture.size, Image.Resampling.LANCZOS))
