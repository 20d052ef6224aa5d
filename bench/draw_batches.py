"""Draws docs/images/batches.svg: a few photos on their way through one slot, as the dispatcher decides.

    python -m bench.draw_batches > docs/images/batches.svg

The clock is virtual and the compute times are made up (8 ms a batch and 6 ms a photo, on one core); which
photos share a batch, when it starts, on how many cores and why it closed is the real dispatcher's doing.
"""

import heapq
from collections.abc import Sequence
from typing import Any, NamedTuple

from mien_server.scheduling.batching import BatchingPolicy
from mien_server.scheduling.dispatch import Dispatcher
from mien_server.scheduling.interface import PlacedInstance, Work
from mien_server.scheduling.state import Assignment

ARRIVALS = [
    (0, 640), (3, 640), (5.5, 320), (8, 640), (10.5, 640), (13, 320), (16, 640), (20, 640), (24, 320),
    (28, 640), (76, 640), (80, 640),
]  # fmt: skip
"""Milliseconds, and the canvas that the photo was letterboxed to."""
COLOURS = {640: "#0969da", 320: "#bf3989"}
INK, GREY, PALE = "#24292f", "#57606a", "#f6f8fa"
LEFT, SCALE, WIDTH = 110, 8.0, 1010


class TwoCores:
    """A processor of two cores and so two executors."""

    name = "cpu"
    executors = 2
    cores = 2
    ahead = 0

    def begin(self, cores: int) -> None:
        """Nothing to set: nothing runs."""


class NoModel:
    """Gives rows back: the drawing is about time."""

    def collate(self, rows: Sequence[Any]) -> Any:
        return rows

    def compute(self, batch: Any) -> Any:
        return batch

    def split(self, outputs: Any, rows: Sequence[Any]) -> Sequence[Any]:
        return rows


class Ran(NamedTuple):
    """One batch of the drawing; times in milliseconds."""

    executor: int
    start: float
    end: float
    photos: list[int]
    side: int
    cores: int
    reason: str


def simulate() -> list[Ran]:
    """Runs the arrivals through the dispatcher."""
    dispatcher = Dispatcher([TwoCores()], max_requests=100, max_bytes=1 << 30)
    policy = BatchingPolicy(max_batch_size=8, preferred_batch_sizes=(3,))
    slot = dispatcher.open_slot("retinaface", 1, policy, [PlacedInstance(NoModel(), "cpu", 2)])
    ran: list[Ran] = []
    free = [0, 1]
    executor_of: dict[Assignment, int] = {}
    events: list[tuple[float, int, int | Assignment]] = []
    for photo, (at, _) in enumerate(ARRIVALS):
        heapq.heappush(events, (at, photo, photo))
    order = len(events)
    while events:
        now, _, event = heapq.heappop(events)
        if isinstance(event, Assignment):
            event.run.run(lambda: now / 1000)  # noqa: B023 - called at once
            dispatcher.finish(event, now / 1000)
            free.append(executor_of.pop(event))
            free.sort()
        else:
            work = Work(rows=[event], shape=ARRIVALS[event][1])
            dispatcher.submit(slot, work, now / 1000, lambda _: False)
        while free:
            assignment, _ = dispatcher.take("cpu", now / 1000)
            if not isinstance(assignment, Assignment):
                break
            batch = assignment.batch
            seconds = 8 + 6 * batch.rows / assignment.cores
            executor = executor_of[assignment] = free.pop(0)
            photos = [part.request.rows[0] for part in batch.parts]
            side: Any = batch.shape
            ran.append(
                Ran(executor, now, now + seconds, photos, side, assignment.cores, str(batch.reason))
            )
            order += 1
            heapq.heappush(events, (now + seconds, order, assignment))
    return ran


def draw(ran: Sequence[Ran]) -> str:
    """The SVG."""
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} 345" role="img"'
        ' font-family="ui-sans-serif, system-ui, Helvetica, Arial, sans-serif"'
        ' aria-label="Photos arrive, wait, and share batches on two executors">',
        f'<rect width="{WIDTH}" height="345" rx="8" fill="#ffffff" stroke="#d0d7de"/>',
        _text(24, 34, "How batches form", 18, INK, bold=True),
        _text(
            24,
            56,
            "One slot, max_batch_size 8, preferred_batch_size 3, no queue delay; two cores.",
            13,
        ),
    ]
    for side, left in ((640, 620), (320, 810)):
        out.append(_square(left, 42, COLOURS[side], ""))
        out.append(_text(left + 26, 56, f"photo on a {side} canvas", 13))
    out.append(_text(24, 105, "arrive", 13, INK, bold=True))
    waits = {photo: batch for batch in ran for photo in batch.photos}
    for photo, (at, side) in enumerate(ARRIVALS):
        x: float = LEFT + at * SCALE
        out.append(_square(x, 90, COLOURS[side], str(photo + 1)))
        batch = waits[photo]
        y = 150 + 85 * batch.executor
        to = LEFT + batch.start * SCALE + 8 + 22 * batch.photos.index(photo) + 10
        out.append(
            f'<path d="M{x + 10:.0f} 110 C{x + 10:.0f} 132 {to:.0f} {y - 24} {to:.0f} {y + 6}"'
            f' fill="none" stroke="{COLOURS[side]}" stroke-opacity="0.35" stroke-width="1.5"/>'
        )
    for executor in (0, 1):
        y = 150 + 85 * executor
        out.append(_text(24, y + 34, f"executor {executor + 1}", 13, INK, bold=True))
    for batch in ran:
        x, y = LEFT + batch.start * SCALE, 150 + 85 * batch.executor
        width = (batch.end - batch.start) * SCALE - 3
        out.append(
            f'<rect x="{x:.0f}" y="{y}" width="{width:.0f}" height="62" rx="6" fill="{PALE}"'
            f' stroke="{COLOURS[batch.side]}" stroke-width="1.5"/>'
        )
        for index, photo in enumerate(batch.photos):
            out.append(_square(x + 8 + 22 * index, y + 7, COLOURS[batch.side], str(photo + 1)))
        cores = "1 core" if batch.cores == 1 else f"{batch.cores} cores"
        out.append(_text(x + 9, y + 43, batch.reason, 12, INK, bold=True))
        out.append(_text(x + 9, y + 56, cores, 11))
    out.append(
        _text(
            24,
            328,
            "A batch closes when an executor is free to take it, not when a timer fires. Below the photos:"
            " why it closed.",
            13,
        )
    )
    return "\n".join([*out, "</svg>"])


def _text(
    x: float, y: float, words: str, size: int, fill: str = GREY, *, bold: bool = False
) -> str:
    weight = ' font-weight="600"' if bold else ""
    return f'<text x="{x:.0f}" y="{y:.0f}" font-size="{size}" fill="{fill}"{weight}>{words}</text>'


def _square(x: float, y: float, fill: str, label: str) -> str:
    box = f'<rect x="{x:.0f}" y="{y:.0f}" width="20" height="20" rx="4" fill="{fill}"/>'
    return box + (
        f'<text x="{x + 10:.0f}" y="{y + 14.5:.1f}" font-size="12" fill="#fff" text-anchor="middle"'
        f' font-weight="600">{label}</text>'
    )


if __name__ == "__main__":
    print(draw(simulate()))
