"""Draws a receiver operating characteristic: TAR over FAR, the latter on a logarithmic scale."""

from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mien_server.evaluation.metrics import FARS, Operation, Roc

_Colour = tuple[int, int, int]
_Point = tuple[float, float]

_PAPER: _Colour = (255, 255, 255)
_INK: _Colour = (24, 28, 36)
_FAINT: _Colour = (110, 118, 130)
_GRID: _Colour = (228, 231, 236)
_LINE: _Colour = (0, 114, 178)
_SHADE: _Colour = (226, 239, 248)
_UNSURE: _Colour = (244, 245, 247)

_SCALE = 2
"""Everything is drawn twice as large and scaled down: Pillow's lines are jagged."""
_SIZE = (880, 620)
_FRAME = (76.0, 128.0, 840.0, 540.0)
_DECADES = len(FARS)


def roc_picture(
    roc: Roc, operations: Sequence[Operation], *, sure_from: float, title: str, subtitle: str
) -> Image.Image:
    """The curve, with a mark at every false accept rate that the data can speak of.

    Args:
        roc: what to draw. Below the lowest FAR of `metrics.FARS` it is cut off.
        operations: where the marks are.
        sure_from: the lowest FAR that the data can speak of. The picture is grey to the left of it.
        title: one short line.
        subtitle: another line, in small print.

    Returns:
        A picture of 880x620 pixels, RGB.
    """
    picture = Image.new("RGB", (_SIZE[0] * _SCALE, _SIZE[1] * _SCALE), _PAPER)
    draw = ImageDraw.Draw(picture)
    left, top, right, bottom = _FRAME
    _text(draw, (left, 24), title, 22, _INK, "la")
    _text(draw, (left, 58), subtitle, 14, _FAINT, "la")
    curve = list(_steps(roc))
    draw.polygon(_scaled([(curve[0][0], bottom), *curve, (right, bottom)]), fill=_SHADE)
    unsure, _ = _place(min(sure_from, 1.0), 0)
    if unsure > left:
        draw.rectangle(_scaled([(left, top), (unsure, bottom)]), fill=_UNSURE)
        if unsure - left > 130:
            _text(draw, (left + 12, bottom - 14), "insufficient data", 13, _FAINT, "ls")
    _draw_grid(draw)
    draw.line(_scaled(curve), fill=_LINE, width=3 * _SCALE, joint="curve")
    for each in operations:
        if each.tar is not None:
            _draw_mark(draw, each.far, each.tar)
    return picture.resize(_SIZE, Image.Resampling.LANCZOS)


def _place(far: float, tar: float) -> _Point:
    left, top, right, bottom = _FRAME
    decades = np.log10(max(far, 10.0**-_DECADES)) + _DECADES
    return (left + (right - left) * decades / _DECADES, bottom - (bottom - top) * tar)


def _steps(roc: Roc) -> Iterator[_Point]:
    """The curve as the stairs that it is: between two thresholds neither rate changes."""
    before = 0.0
    for far, tar in zip(roc.far.tolist(), roc.tar.tolist(), strict=True):
        yield _place(far, before)
        yield _place(far, tar)
        before = tar


def _draw_grid(draw: ImageDraw.ImageDraw) -> None:
    left, top, right, bottom = _FRAME
    for decade in range(-_DECADES, 1):
        x, _ = _place(10.0**decade, 0)
        draw.line(_scaled([(x, top), (x, bottom)]), fill=_GRID, width=_SCALE)
        _text(draw, (x, bottom + 12), f"{10.0**decade:g}", 14, _INK, "ma")
    for tenth in range(0, 11, 2):
        _, y = _place(1, tenth / 10)
        draw.line(_scaled([(left, y), (right, y)]), fill=_GRID, width=_SCALE)
        _text(draw, (left - 12, y), f"{tenth / 10:.1f}", 14, _INK, "rm")
    middle = ((left + right) / 2, bottom + 40)
    _text(draw, middle, "false accept rate (FAR)", 14, _FAINT, "ma")
    _text(draw, (left, top - 16), "true accept rate (TAR)", 14, _FAINT, "ls")


def _draw_mark(draw: ImageDraw.ImageDraw, far: float, tar: float) -> None:
    x, y = _place(far, tar)
    for radius, colour in ((7, _PAPER), (5, _LINE)):
        box = [(x - radius, y - radius), (x + radius, y + radius)]
        draw.ellipse(_scaled(box), fill=colour)
    _text(draw, (x + 10, y + 12), f"{tar:.3f}", 14, _INK, "la", halo=2)


def _text(
    draw: ImageDraw.ImageDraw,
    at: _Point,
    text: str,
    size: int,
    colour: _Colour,
    anchor: str,
    *,
    halo: int = 0,
) -> None:
    draw.text(
        _scaled([at])[0],
        text,
        fill=colour,
        font=ImageFont.load_default(size * _SCALE),
        anchor=anchor,
        stroke_width=halo * _SCALE,
        stroke_fill=_PAPER,
    )


def _scaled(points: Sequence[_Point]) -> list[_Point]:
    return [(x * _SCALE, y * _SCALE) for x, y in points]
