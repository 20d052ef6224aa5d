"""Draws throughput against latency: a line for each server, a point for each number of callers."""

import math
from collections.abc import Sequence

from bench.peers.measure import Cell
from bench.peers.report import medians

COLOURS = ("#0969da", "#bf3989", "#1a7f37", "#9a6700", "#8250df", "#57606a", "#cf222e")
INK, GREY, PALE = "#24292f", "#57606a", "#d0d7de"
WIDTH, HEIGHT = 860, 480
LEFT, RIGHT, TOP, BOTTOM = 70, 210, 50, 60


def draw(cells: Sequence[Cell], title: str, unit: str) -> str:
    """An SVG of closed loops: answers a second to the right, median milliseconds upwards, logarithmic."""
    points: dict[str, list[tuple[float, float, str]]] = {}
    for load, servers in medians(cells).items():
        for name, cell in servers.items():
            if not math.isnan(cell.p50_ms):
                points.setdefault(name, []).append((cell.rate, cell.p50_ms, load))
    everything = [point for line in points.values() for point in line] or [(1.0, 1.0, "")]
    most = max(rate for rate, _, _ in everything) * 1.05
    low = math.floor(math.log2(min(ms for _, ms, _ in everything)))
    high = math.ceil(math.log2(max(ms for _, ms, _ in everything)))
    high += high == low

    def x(rate: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * rate / most

    def y(milliseconds: float) -> float:
        return (
            HEIGHT
            - BOTTOM
            - (HEIGHT - TOP - BOTTOM) * (math.log2(milliseconds) - low) / (high - low)
        )

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"'
        ' font-family="system-ui, sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        _text(LEFT, 28, title, INK, size=16),
        _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 16, f"{unit} a second", GREY, anchor="middle"),
        _text(LEFT - 8, TOP - 10, "median ms", GREY, anchor="end"),
    ]
    for power in range(low, high + 1):
        height = y(2.0**power)
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{height:.1f}" y2="{height:.1f}"'
            f' stroke="{PALE}"/>'
        )
        parts.append(_text(LEFT - 8, height + 4, f"{2.0**power:g}", GREY, anchor="end"))
    step = 10 ** math.floor(math.log10(most))
    step = step / 5 if most / step < 2 else step / 2 if most / step < 5 else step
    marks = [n * step for n in range(int(most / step) + 1)]
    parts += [_text(x(m), HEIGHT - BOTTOM + 20, f"{m:g}", GREY, anchor="middle") for m in marks]
    for number, (name, line) in enumerate(points.items()):
        colour = COLOURS[number % len(COLOURS)]
        path = " ".join(f"{x(rate):.1f},{y(ms):.1f}" for rate, ms, _ in line)
        width = 3 if number == 0 else 1.5
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}"/>'
        )
        for rate, ms, load in line:
            parts.append(f'<circle cx="{x(rate):.1f}" cy="{y(ms):.1f}" r="3.5" fill="{colour}"/>')
            if number == 0:
                parts.append(_text(x(rate) + 7, y(ms) + 14, load, colour))
        top = TOP + 22 * number
        parts.append(
            f'<line x1="{WIDTH - RIGHT + 20}" x2="{WIDTH - RIGHT + 44}" y1="{top}" y2="{top}"'
            f' stroke="{colour}" stroke-width="{width}"/>'
        )
        parts.append(_text(WIDTH - RIGHT + 52, top + 4, name, INK))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _text(
    x: float, y: float, text: str, colour: str, *, anchor: str = "start", size: int = 13
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}" text-anchor="{anchor}"'
        f' font-size="{size}">{text}</text>'
    )
