"""Draws a receiver operating characteristic: TAR over FAR, the latter on a logarithmic scale."""

from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image, ImageDraw

from mien_server.evaluation.drawing import (
    FAINT,
    GRID,
    INK,
    LINE,
    SCALE,
    SHADE,
    Point,
    mark,
    scaled,
    shade_unsure,
    sheet,
    write,
)
from mien_server.evaluation.metrics import FARS, Operation, Roc

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
    left, _, right, bottom = _FRAME
    picture, draw = sheet(_SIZE, left, title, subtitle)
    curve = list(_steps(roc))
    draw.polygon(scaled([(curve[0][0], bottom), *curve, (right, bottom)]), fill=SHADE)
    shade_unsure(draw, _FRAME, _place(min(sure_from, 1.0), 0)[0])
    _draw_grid(draw)
    draw.line(scaled(curve), fill=LINE, width=3 * SCALE, joint="curve")
    for each in operations:
        if each.tar is not None:
            mark(draw, _place(each.far, each.tar), f"{each.tar:.3f}")
    return picture.resize(_SIZE, Image.Resampling.LANCZOS)


def _place(far: float, tar: float) -> Point:
    left, top, right, bottom = _FRAME
    decades = np.log10(max(far, 10.0**-_DECADES)) + _DECADES
    return (left + (right - left) * decades / _DECADES, bottom - (bottom - top) * tar)


def _steps(roc: Roc) -> Iterator[Point]:
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
        draw.line(scaled([(x, top), (x, bottom)]), fill=GRID, width=SCALE)
        write(draw, (x, bottom + 12), f"{10.0**decade:g}", 14, INK, "ma")
    for tenth in range(0, 11, 2):
        _, y = _place(1, tenth / 10)
        draw.line(scaled([(left, y), (right, y)]), fill=GRID, width=SCALE)
        write(draw, (left - 12, y), f"{tenth / 10:.1f}", 14, INK, "rm")
    middle = ((left + right) / 2, bottom + 40)
    write(draw, middle, "false accept rate (FAR)", 14, FAINT, "ma")
    write(draw, (left, top - 16), "true accept rate (TAR)", 14, FAINT, "ls")
