"""What the pictures of evaluations have in common: colours, lettering, and lines without jags."""

from collections.abc import Sequence

from PIL import ImageDraw, ImageFont

Colour = tuple[int, int, int]
Point = tuple[float, float]

PAPER: Colour = (255, 255, 255)
INK: Colour = (24, 28, 36)
FAINT: Colour = (110, 118, 130)
GRID: Colour = (228, 231, 236)
LINE: Colour = (0, 114, 178)
SHADE: Colour = (226, 239, 248)
UNSURE: Colour = (244, 245, 247)

SCALE = 2
"""Everything is drawn twice as large and scaled down: Pillow's lines are jagged."""


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
