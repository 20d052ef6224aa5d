"""The whole server as a caller sees it: start, memory, and where the time of a lone call goes.

    python -m bench.serving [--calls 60]

Needs the installed models (`make models`). Starts `mien-server serve` with its defaults three times for
the start and the memory, then calls Detect, Embed and Verify on the six portraits, one call at a time.
"""

import argparse
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from itertools import cycle, islice, pairwise
from pathlib import Path

import psutil

import mien
from mien_server.load.report import machine, percentile, table
from tools.local_server import free_port, local_server

PHOTOS = sorted((Path(__file__).resolve().parent.parent / "samples").glob("*.jpg"))


def start_once(folder: Path) -> tuple[float, float]:
    """Seconds from the start of the process to ready, and MiB resident once idle."""
    began = time.monotonic()
    with local_server(folder / "server.log", port=free_port()) as server:
        seconds = time.monotonic() - began
        time.sleep(1.0)
        return seconds, psutil.Process(server.process.pid).memory_info().rss / 2**20


def measure(
    call: Callable[[Path], tuple[mien.StageTiming, ...]], calls: int
) -> tuple[list[float], dict[str, float]]:
    """Milliseconds of each call, and the median milliseconds of each of the server's stages."""
    for photo in PHOTOS:
        call(photo)
    latencies = []
    stages: dict[str, list[float]] = defaultdict(list)
    for photo in islice(cycle(PHOTOS), calls):
        start = time.perf_counter()
        timing = call(photo)
        latencies.append((time.perf_counter() - start) * 1e3)
        sums: dict[str, float] = defaultdict(float)
        for stage in timing:
            sums[stage.name] += stage.milliseconds
        for name, milliseconds in sums.items():
            stages[name].append(milliseconds)
    return latencies, {name: statistics.median(values) for name, values in stages.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=60)
    options = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        starts = [start_once(folder) for _ in range(3)]
        print(
            f"start to ready: {statistics.median(s for s, _ in starts):.1f} s;"
            f" resident when idle: {statistics.median(m for _, m in starts):.0f} MiB"
            " (medians of three)\n"
        )
        with (
            local_server(folder / "server.log", port=free_port()) as server,
            mien.Client(server.address) as client,
        ):
            partner = dict(pairwise([*PHOTOS, PHOTOS[0]]))
            subjects: dict[str, Callable[[Path], tuple[mien.StageTiming, ...]]] = {
                "Detect": lambda photo: client.detect(photo, timing=True).timing,
                "Embed": lambda photo: client.embed(photo, timing=True).timing,
                "Verify": lambda photo: client.verify(photo, partner[photo], timing=True).timing,
            }
            for method, call in subjects.items():
                latencies, stages = measure(call, options.calls)
                median = statistics.median(latencies)
                p99 = percentile(latencies, 0.99)
                print(f"{method}: median {median:.1f} ms, p99 {p99:.1f} ms, {options.calls} calls")
                rows = [
                    (stage, f"{milliseconds:.2f}", f"{milliseconds / median:.0%}")
                    for stage, milliseconds in stages.items()
                ]
                print(table(("stage", "median ms", "of the call"), rows), "\n")


if __name__ == "__main__":
    main()
