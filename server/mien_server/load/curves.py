"""Draws latency over throughput: a curve for each thing measured, a point for each load."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

COLOURS = ("#0969da", "#bf3989", "#1a7f37", "#9a6700", "#8250df", "#57606a", "#cf222e")
INK, GREY, PALE = "#24292f", "#57606a", "#d0d7de"
WIDTH, HEIGHT = 860, 480
LEFT, RIGHT, TOP, BOTTOM = 70, 210, 50, 60


class Point(NamedTuple):
    """What one load has shown: answers a second, milliseconds above 0, and the load's name."""

    rate: float
    milliseconds: float
    load: str


def draw_curves(
    curves: Mapping[str, Sequence[Point]],
    *,
    title: str,
    across: str,
    upwards: str,
    others: Sequence[Point] = (),
    limit: float | None = None,
    right: int = RIGHT,
) -> str:
    """An SVG: answers a second to the right, milliseconds upwards, logarithmic.

    Args:
        curves: by what the legend calls them. The first is drawn thicker, and its loads are named.
        title: one short line.
        across: what is answered: "faces".
        upwards: which milliseconds: "median ms".
        others: points of things that have no curve, in grey below the curves.
        limit: milliseconds at which a dashed line is drawn; None: nowhere.
        right: pixels of the column in which the legend stands.
    """
    width = WIDTH - RIGHT + right
    everything = [point for curve in curves.values() for point in curve] + list(others)
    everything = everything or [Point(1.0, 1.0, "")]
    heights = [point.milliseconds for point in everything] + ([limit] if limit else [])
    most = max(point.rate for point in everything) * 1.05
    low, high = math.floor(math.log2(min(heights))), math.ceil(math.log2(max(heights)))
    high += high == low

    def x(rate: float) -> float:
        return LEFT + (width - LEFT - right) * rate / most

    def y(milliseconds: float) -> float:
        share = (math.log2(milliseconds) - low) / (high - low)
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share

    def level(milliseconds: float, colour: str, dashes: str = "") -> str:
        at = f'y1="{y(milliseconds):.1f}" y2="{y(milliseconds):.1f}"'
        return f'<line x1="{LEFT}" x2="{width - right}" {at} stroke="{colour}"{dashes}/>'

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT}"'
        ' font-family="system-ui, sans-serif" font-size="13">',
        f'<rect width="{width}" height="{HEIGHT}" fill="#ffffff"/>',
        _text(LEFT, 28, title, INK, size=16),
        _text((LEFT + width - right) / 2, HEIGHT - 16, f"{across} a second", GREY, anchor="middle"),
        _text(LEFT - 8, TOP - 10, upwards, GREY, anchor="end"),
    ]
    for power in range(low, high + 1):
        parts.append(level(2.0**power, PALE))
        parts.append(_text(LEFT - 8, y(2.0**power) + 4, f"{2.0**power:g}", GREY, anchor="end"))
    if limit:
        parts.append(level(limit, INK, ' stroke-dasharray="6 4"'))
    parts += [
        _text(x(mark), HEIGHT - BOTTOM + 20, f"{mark:g}", GREY, anchor="middle")
        for mark in _marks(most)
    ]
    parts += [
        f'<circle cx="{x(point.rate):.1f}" cy="{y(point.milliseconds):.1f}" r="2.5" fill="{PALE}"/>'
        for point in others
    ]
    for number, (name, curve) in enumerate(curves.items()):
        colour = COLOURS[number % len(COLOURS)]
        thick = 3 if number == 0 else 1.5
        path = " ".join(f"{x(rate):.1f},{y(ms):.1f}" for rate, ms, _ in curve)
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{thick}"/>'
        )
        for rate, ms, load in curve:
            parts.append(f'<circle cx="{x(rate):.1f}" cy="{y(ms):.1f}" r="3.5" fill="{colour}"/>')
            if number == 0:
                parts.append(_text(x(rate) + 7, y(ms) + 14, load, colour))
        top = TOP + 22 * number
        parts.append(
            f'<line x1="{width - right + 20}" x2="{width - right + 44}" y1="{top}" y2="{top}"'
            f' stroke="{colour}" stroke-width="{thick}"/>'
        )
        parts.append(_text(width - right + 52, top + 4, name, INK))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _marks(most: float) -> list[float]:
    """Round numbers from 0 to `most`, a handful."""
    step = 10.0 ** math.floor(math.log10(most))
    step = step / 5 if most / step < 2 else step / 2 if most / step < 5 else step
    return [n * step for n in range(int(most / step) + 1)]


def _text(
    x: float, y: float, text: str, colour: str, *, anchor: str = "start", size: int = 13
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}" text-anchor="{anchor}"'
        f' font-size="{size}">{escape(text)}</text>'
    )
