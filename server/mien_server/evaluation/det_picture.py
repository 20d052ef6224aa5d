"""Draws a detection error trade-off: FNIR over FPIR, both on logarithmic scales."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from mien_server.evaluation.drawing import (
    FAINT,
    GRID,
    INK,
    LINE,
    SCALE,
    Point,
    mark,
    scaled,
    shade_unsure,
    sheet,
    write,
)
from mien_server.evaluation.open_set import FPIRS, Det, GalleryPoint

_SIZE = (880, 620)
_FRAME = (96.0, 128.0, 840.0, 540.0)
_DECADES = len(FPIRS)


def det_picture(
    det: Det, points: Sequence[GalleryPoint], *, sure_from: float, title: str, subtitle: str
) -> Image.Image:
    """The curve, with a mark at every FPIR that the data can speak of.

    Args:
        det: what to draw. Rates below the lowest FPIR of `open_set.FPIRS` are drawn on the edge.
        points: where the marks are.
        sure_from: the lowest FPIR that the data can speak of. The picture is grey to the left of it.
        title: one short line.
        subtitle: another line, in small print.

    Returns:
        A picture of 880x620 pixels, RGB.
    """
    left, top, right, bottom = _FRAME
    picture, draw = sheet(_SIZE, left, title, subtitle)
    shade_unsure(draw, _FRAME, _place(min(sure_from, 1.0), 1)[0])
    for decade in range(-_DECADES, 1):
        x, y = _place(10.0**decade, 10.0**decade)
        draw.line(scaled([(x, top), (x, bottom)]), fill=GRID, width=SCALE)
        draw.line(scaled([(left, y), (right, y)]), fill=GRID, width=SCALE)
        write(draw, (x, bottom + 12), f"{10.0**decade:g}", 14, INK, "ma")
        write(draw, (left - 12, y), f"{10.0**decade:g}", 14, INK, "rm")
    middle = ((left + right) / 2, bottom + 40)
    write(draw, middle, "strangers taken for somebody (FPIR)", 14, FAINT, "ma")
    write(draw, (left, top - 16), "enrolled persons missed (FNIR)", 14, FAINT, "ls")
    # As stairs: between two thresholds neither rate changes.
    fpir = np.repeat(det.fpir, 2)[1:]
    fnir = np.repeat(det.fnir, 2)[:-1]
    curve = [_place(x, y) for x, y in zip(fpir.tolist(), fnir.tolist(), strict=True)]
    draw.line(scaled(curve), fill=LINE, width=3 * SCALE, joint="curve")
    for each in points:
        if each.fnir is not None:
            mark(draw, _place(each.fpir, each.fnir), f"{each.fnir:.3g}")
    return picture.resize(_SIZE, Image.Resampling.LANCZOS)


def _place(fpir: float, fnir: float) -> Point:
    left, top, right, bottom = _FRAME
    x, y = (np.log10(max(rate, 10.0**-_DECADES)) + _DECADES for rate in (fpir, fnir))
    return (left + (right - left) * x / _DECADES, bottom - (bottom - top) * y / _DECADES)
