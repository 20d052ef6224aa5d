"""Throughput and batch sizes against concurrency, with batching on and off.

    python -m bench.batching [--seconds 4] [--architectures sface iresnet50]

Closed loop: as many callers as the concurrency says, each with one aligned face at a time, straight into
the slot (no gRPC, no photos). "off" is the same slot with max_batch_size 1.
"""

import argparse
import threading
import time

from bench.slots import crop, embedder_slot
from mien_server.load.report import machine, percentile, table
from mien_server.scheduling.batching import BatchingPolicy
from mien_server.scheduling.interface import Work
from mien_server.scheduling.scheduler import Slot

CONCURRENCIES = (1, 2, 4, 8, 16, 32)
POLICIES = {
    "on": BatchingPolicy(max_batch_size=32, preferred_batch_sizes=(4,)),
    "off": BatchingPolicy(max_batch_size=1),
}


def closed_loop(slot: Slot, concurrency: int, seconds: float) -> list[float]:
    """Latencies in seconds of the calls that `concurrency` callers began and ended within `seconds`."""
    latencies: list[float] = []
    ends = time.monotonic() + seconds
    row = crop()

    def caller() -> None:
        while time.monotonic() < ends:
            start = time.perf_counter()
            slot.submit(Work(rows=[row])).result()
            if time.monotonic() < ends:
                latencies.append(time.perf_counter() - start)

    callers = [threading.Thread(target=caller) for _ in range(concurrency)]
    for thread in callers:
        thread.start()
    for thread in callers:
        thread.join()
    return latencies


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--architectures", nargs="+", default=["sface", "iresnet50"])
    options = parser.parse_args()
    print(machine())
    for architecture in options.architectures:
        lines = []
        peak = {"on": 0.0, "off": 0.0}
        for concurrency in CONCURRENCIES:
            for name, policy in POLICIES.items():
                with embedder_slot(architecture, policy) as slot:
                    before = slot.statistics().batch_sizes
                    latencies = closed_loop(slot, concurrency, options.seconds)
                    sizes = slot.statistics().batch_sizes - before
                rate = len(latencies) / options.seconds
                peak[name] = max(peak[name], rate)
                histogram = " ".join(f"{size}x{count}" for size, count in sorted(sizes.items()))
                lines.append(
                    (
                        concurrency,
                        name,
                        f"{rate:.0f}",
                        f"{percentile(latencies, 0.5) * 1e3:.1f}",
                        f"{percentile(latencies, 0.99) * 1e3:.1f}",
                        histogram,
                    )
                )
        print(f"\n{architecture}, random weights, precision auto")
        header = ("callers", "batching", "faces/s", "p50 ms", "p99 ms", "batches (rows x count)")
        print(table(header, lines))
        print(f"peak with batching / without: {peak['on'] / peak['off']:.2f}")


if __name__ == "__main__":
    main()
