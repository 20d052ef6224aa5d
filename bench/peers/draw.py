"""Draws throughput against latency: a line for each server, a point for each number of callers."""

import math
from collections.abc import Sequence

from bench.peers.measure import Cell
from bench.peers.report import medians
from mien_server.load.curves import Point, draw_curves


def draw(cells: Sequence[Cell], title: str, unit: str) -> str:
    """An SVG of closed loops: answers a second to the right, median milliseconds upwards, logarithmic."""
    curves: dict[str, list[Point]] = {}
    for load, servers in medians(cells).items():
        for name, cell in servers.items():
            if not math.isnan(cell.p50_ms):
                curves.setdefault(name, []).append(Point(cell.rate, cell.p50_ms, load))
    return draw_curves(curves, title=title, across=unit, upwards="median ms")
