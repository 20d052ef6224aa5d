"""Draws what a server held during a soak: a panel each for memory, threads, descriptors and latency."""

from collections.abc import Sequence

from mien_server.load.curves import COLOURS, GREY, INK, PALE
from tests.soak.run import Held, Soak

WIDTH, PANEL, LEFT, RIGHT, TOP, BOTTOM = 860, 130, 84, 20, 44, 40
_PANELS = (
    ("MiB", "mib"),
    ("threads", "threads"),
    ("open files", "descriptors"),
    ("median ms", "milliseconds"),
)


def draw(soak: Soak, title: str) -> str:
    """An SVG: minutes to the right, each panel from 0 upwards; dots are the server at rest."""
    height = TOP + len(_PANELS) * PANEL + BOTTOM
    minutes = max((each.minutes for each in (*soak.looks, *soak.rests)), default=1.0)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}"'
        f' font-family="system-ui, sans-serif" font-size="12" fill="{INK}">',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="24" font-size="15">{title}</text>',
    ]
    for number, (name, fact) in enumerate(_PANELS):
        rests = soak.rests if fact != "milliseconds" else ()
        colour = COLOURS[number]
        parts += _panel(soak.looks, rests, minutes, name, fact, TOP + number * PANEL, colour)
    marks = range(0, int(minutes) + 1, max(1, round(minutes / 6)))
    parts += [_text(_x(mark, minutes), height - 20, f"{mark}", "middle") for mark in marks]
    parts.append(_text(WIDTH - RIGHT, height - 4, "minutes", "end"))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(
    looks: Sequence[Held],
    rests: Sequence[Held],
    minutes: float,
    name: str,
    fact: str,
    top: int,
    colour: str,
) -> list[str]:
    most = max((getattr(each, fact) for each in (*looks, *rests)), default=1) * 1.1 or 1
    foot = top + PANEL - 24

    def y(value: float) -> float:
        return foot - (foot - top) * value / most

    points = " ".join(f"{_x(e.minutes, minutes):.0f},{y(getattr(e, fact)):.1f}" for e in looks)
    parts = [
        f'<path d="M{LEFT} {y(v):.1f}H{WIDTH - RIGHT}" stroke="{PALE}"/>' for v in (0, most / 1.1)
    ]
    parts += [
        _text(LEFT - 8, y(0) + 4, "0", "end"),
        _text(LEFT - 8, y(most / 1.1) + 4, f"{most / 1.1:.0f}", "end"),
        _text(LEFT - 8, (top + foot) / 2 + 4, name, "end"),
        f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.2"/>',
    ]
    parts += [
        f'<circle cx="{_x(e.minutes, minutes):.0f}" cy="{y(getattr(e, fact)):.1f}" r="3.5" fill="{colour}"/>'
        for e in rests
    ]
    return parts


def _x(minute: float, minutes: float) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * minute / minutes


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}" fill="{GREY}">{text}</text>'
