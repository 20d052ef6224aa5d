"""How the time of a call grows: with the pixels of a photo, the faces in it, the callers at once.

    python -m bench.growth [--seconds 4] [--out docs/growth.svg]

Needs the installed models (`make models`). Starts `mien-server serve` with its defaults and measures:

- Embed of a JPEG of 0.3 to 24 megapixels with one large face (a portrait enlarged, with a sensor's noise),
- Embed of all faces of a photo of 2048x2048 with 1 to 100 faces,

both by one caller, and Embed of the six portraits by 1 to 64 callers in a closed loop. The picture has both
axes logarithmic, and a dashed line on which twice as much takes twice as long.
"""

import argparse
import asyncio
import math
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.peers.workloads import EMBED, enlarged, group_photo, portraits
from loadtest.connections import GrpcConnection, calls_of
from mien.v1 import face_pb2 as pb
from mien_server.load.loops import closed_loop
from mien_server.load.report import machine, percentile, table
from mien_server.load.shapes import steady
from tools.local_server import local_server

MEGAPIXELS = (0.3, 0.7, 1.5, 3, 6, 12, 24)
FACES = (1, 2, 5, 10, 20, 50, 100)
CALLERS = (1, 2, 4, 8, 16, 32, 64)
GROUP_SIDE = 2048
PATH = EMBED.path
SIZE, MARGIN, HEIGHT = 300, 56, 320


@dataclass(frozen=True)
class Growth:
    """One thing that grows.

    Attributes:
        title: what is called, and with what.
        across: what grows.
        points: how much of it, median milliseconds, p99, calls a second.
    """

    title: str
    across: str
    points: Sequence[tuple[float, float, float, float]]


def embed(photo: bytes, policy: pb.FacePolicy.ValueType = pb.FACE_POLICY_LARGEST) -> bytes:
    request = pb.EmbedRequest(image=pb.Image(encoded=photo))
    request.selection.policy = policy
    return request.SerializeToString()


async def measure(address: str, seconds: float) -> list[Growth]:
    connection = GrpcConnection(address, timeout=60)

    async def point(
        amount: float, requests: Sequence[bytes], callers: int = 1
    ) -> tuple[float, float, float, float]:
        calls = calls_of(connection, PATH, requests)
        load = await closed_loop(calls, steady(callers, seconds + 1), warm_up=1)
        if load.tally.failures or not load.tally.latencies:
            raise SystemExit(f"calls failed: {dict(load.tally.failures)}")
        latencies = load.tally.latencies
        median, p99 = statistics.median(latencies) * 1e3, percentile(latencies, 0.99) * 1e3
        return amount, median, p99, len(latencies) / load.seconds

    async def faces_of(photo: bytes) -> int:
        answer, _ = await connection.send(PATH, embed(photo, pb.FACE_POLICY_ALL))
        return len(pb.EmbedResponse.FromString(answer).faces)

    try:
        groups = [group_photo(faces, GROUP_SIDE) for faces in FACES]
        for wanted, photo in zip(FACES, groups, strict=True):
            print(f"{await faces_of(photo)} of {wanted} faces found")
        return [
            Growth(
                "Embed, photo with one face",
                "megapixels",
                [await point(size, [embed(enlarged(portraits()[1], size))]) for size in MEGAPIXELS],
            ),
            Growth(
                "Embed, all faces of a photo",
                "faces",
                [
                    await point(faces, [embed(photo, pb.FACE_POLICY_ALL)])
                    for faces, photo in zip(FACES, groups, strict=True)
                ],
            ),
            Growth(
                "Embed of portraits",
                "callers",
                [await point(callers, EMBED.requests, callers) for callers in CALLERS],
            ),
        ]
    finally:
        await connection.close()


def picture(growths: Sequence[Growth]) -> str:
    """An SVG with a panel for each, all on the same scale of milliseconds."""
    every = [median for growth in growths for _, median, _, _ in growth.points]
    low, high = math.floor(math.log2(min(every))), math.ceil(math.log2(max(every)))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {len(growths) * SIZE} {HEIGHT}"'
        ' font-family="system-ui, sans-serif" font-size="12" fill="#24292f">',
        f'<rect width="{len(growths) * SIZE}" height="{HEIGHT}" fill="#ffffff"/>',
    ]
    parts += [
        _panel(growth, number * SIZE, low, high, number == 0)
        for number, growth in enumerate(growths)
    ]
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(growth: Growth, start: int, low: int, high: int, first: bool) -> str:
    amounts = [amount for amount, *_ in growth.points]
    least, most = math.log2(amounts[0]), math.log2(amounts[-1])
    left, right, top, bottom = start + MARGIN, start + SIZE - 16, 44, HEIGHT - 48

    def x(amount: float) -> float:
        return left + (right - left) * (math.log2(amount) - least) / (most - least)

    def y(milliseconds: float) -> float:
        return bottom - (bottom - top) * (math.log2(milliseconds) - low) / (high - low)

    def text(across: float, down: float, what: str, anchor: str = "middle") -> str:
        return f'<text x="{across:.1f}" y="{down:.1f}" text-anchor="{anchor}">{what}</text>'

    parts = [text((left + right) / 2, 22, growth.title)]
    for power in range(low, high + 1):
        level = y(2.0**power)
        parts.append(f'<path d="M{left} {level:.1f}H{right}" stroke="#d0d7de"/>')
        parts.append(text(left - 6, level + 4, f"{2**power:g}", "end"))
    if first:
        parts.append(text(start + 4, 22, "median ms", "start"))
    begin = growth.points[0][1]
    reach = min(amounts[-1], amounts[0] * 2**high / begin)
    linear = (
        f"M{x(amounts[0]):.1f} {y(begin):.1f}L{x(reach):.1f} {y(begin * reach / amounts[0]):.1f}"
    )
    parts.append(f'<path d="{linear}" stroke="#57606a" stroke-dasharray="5 4"/>')
    line = " ".join(f"{x(amount):.1f},{y(median):.1f}" for amount, median, *_ in growth.points)
    parts.append(f'<polyline points="{line}" fill="none" stroke="#0969da" stroke-width="2.5"/>')
    for amount, median, *_ in growth.points:
        parts.append(f'<circle cx="{x(amount):.1f}" cy="{y(median):.1f}" r="3.5" fill="#0969da"/>')
        parts.append(text(x(amount), bottom + 18, f"{amount:g}"))
    parts.append(text((left + right) / 2, HEIGHT - 12, growth.across))
    return "\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=4, help="of each point [4]")
    parser.add_argument("--out", type=Path, help="where the picture goes [nowhere]")
    options = parser.parse_args()
    print(machine())
    with (
        tempfile.TemporaryDirectory() as folder,
        local_server(Path(folder) / "server.log") as server,
    ):
        growths = asyncio.run(measure(server.address, options.seconds))
    for growth in growths:
        rows = [
            (f"{amount:g}", f"{median:.1f}", f"{p99:.1f}", f"{rate:.1f}")
            for amount, median, p99, rate in growth.points
        ]
        print(f"\n{growth.title}\n")
        print(table((growth.across, "median ms", "p99 ms", "calls a second"), rows))
    if options.out:
        options.out.write_text(picture(growths))


if __name__ == "__main__":
    main()
