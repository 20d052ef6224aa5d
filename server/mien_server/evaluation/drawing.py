"""What the pictures of evaluations have in common: colours, lettering, and lines without jags."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]
Point = tuple[float, float]
Frame = tuple[float, float, float, float]
"""Left, top, right and bottom of what has the curve in it."""

PAPER: Colour = (255, 255, 255)
INK: Colour = (24, 28, 36)
FAINT: Colour = (110, 118, 130)
GRID: Colour = (228, 231, 236)
LINE: Colour = (0, 114, 178)
SHADE: Colour = (226, 239, 248)
UNSURE: Colour = (244, 245, 247)

SCALE = 2
"""Everything is drawn twice as large and scaled down: Pillow's lines are jagged."""


def sheet(
    size: tuple[int, int], left: float, title: str, subtitle: str
) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """Paper for a picture of this size, `SCALE` times as large, with a title and small print below it."""
    picture = Image.new("RGB", (size[0] * SCALE, size[1] * SCALE), PAPER)
    draw = ImageDraw.Draw(picture)
    write(draw, (left, 24), title, 22, INK, "la")
    write(draw, (left, 58), subtitle, 14, FAINT, "la")
    return picture, draw


def shade_unsure(draw: ImageDraw.ImageDraw, frame: Frame, until: float) -> None:
    """Greys what is left of a place, of which the data cannot speak."""
    left, top, _, bottom = frame
    if until > left:
        draw.rectangle(scaled([(left, top), (until, bottom)]), fill=UNSURE)
        if until - left > 130:
            write(draw, (left + 12, bottom - 14), "insufficient data", 13, FAINT, "ls")


def mark(draw: ImageDraw.ImageDraw, at: Point, text: str) -> None:
    """A dot on a curve, and what it says beside it."""
    x, y = at
    for radius, colour in ((7, PAPER), (5, LINE)):
        box = [(x - radius, y - radius), (x + radius, y + radius)]
        draw.ellipse(scaled(box), fill=colour)
    write(draw, (x + 10, y + 12), text, 14, INK, "la", halo=2)


def write(
    draw: ImageDraw.ImageDraw,
    at: Point,
    text: str,
    size: int,
    colour: Colour,
    anchor: str,
    *,
    halo: int = 0,
) -> None:
    """Writes a line of text; `halo` pixels of paper around it keep lines off."""
    draw.text(
        scaled([at])[0],
        text,
        fill=colour,
        font=ImageFont.load_default(size * SCALE),
        anchor=anchor,
        stroke_width=halo * SCALE,
        stroke_fill=PAPER,
    )


def scaled(points: Sequence[Point]) -> list[Point]:
    """Where points of the picture lie on what is drawn."""
    return [(x * SCALE, y * SCALE) for x, y in points]
