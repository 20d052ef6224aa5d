"""What the scheduler itself costs: requests through a slot whose model does nothing.

    python -m bench.scheduler_overhead [--core N]

Three figures from one run: the time of a lone request (submit, executor wakes, result), requests a second
with 256 in flight, and the same two for a bare `ThreadPoolExecutor`, which queues but neither batches nor
knows deadlines, to see them in proportion.
"""

import argparse
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from mien_server.load.report import machine, percentile, table
from mien_server.scheduling.batching import BatchingPolicy
from mien_server.scheduling.interface import PlacedInstance, Work
from mien_server.scheduling.scheduler import Scheduler


class NoDevice:
    """A device of one executor that needs no preparation."""

    name = "cpu"
    executors = 1
    cores = 1
    ahead = 0

    def begin(self, cores: int) -> None:
        """Nothing to set."""


class NoModel:
    """Returns its rows."""

    def collate(self, rows: Sequence[Any]) -> Any:
        return rows

    def compute(self, batch: Any) -> Any:
        return batch

    def split(self, outputs: Any, rows: Sequence[Any]) -> Sequence[Any]:
        return outputs  # type: ignore[no-any-return]


def lone(submit: Callable[[], Future[Any]], count: int = 5000) -> list[float]:
    """Seconds of each of `count` requests, one after another."""
    seconds = []
    for _ in range(count):
        start = time.perf_counter()
        submit().result()
        seconds.append(time.perf_counter() - start)
    return seconds


def rate(submit: Callable[[], Future[Any]], count: int = 100_000, in_flight: int = 256) -> float:
    """Requests a second with `in_flight` of them under way."""
    room = threading.Semaphore(in_flight)
    futures = []
    start = time.perf_counter()
    for _ in range(count):
        room.acquire()
        future = submit()
        future.add_done_callback(lambda _: room.release())
        futures.append(future)
    for future in futures:
        future.result()
    return count / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--core", type=int, help="run on this core alone")
    options = parser.parse_args()
    if options.core is not None:
        os.sched_setaffinity(0, {options.core})
    scheduler = Scheduler([NoDevice()])
    policy = BatchingPolicy(max_batch_size=32)
    slot = scheduler.open_slot("nothing", 1, policy, [PlacedInstance(NoModel(), "cpu")])
    pool = ThreadPoolExecutor(1)
    rows = [0]
    subjects: dict[str, Callable[[], Future[Any]]] = {
        "mien slot": lambda: slot.submit(Work(rows=rows, deadline=time.monotonic() + 60)),
        "bare thread pool": lambda: pool.submit(list, rows),
    }
    lines = []
    for name, submit in subjects.items():
        lone(submit, 500)
        seconds = lone(submit)
        lines.append(
            (
                name,
                f"{percentile(seconds, 0.5) * 1e6:.0f}",
                f"{percentile(seconds, 0.99) * 1e6:.0f}",
                f"{rate(submit):,.0f}",
            )
        )
    print(machine())
    print(table(("queue", "lone p50 µs", "lone p99 µs", "requests/s, 256 in flight"), lines))
    statistics = slot.statistics()
    print("batches closed:", {str(reason): n for reason, n in statistics.close_reasons.items()})
    scheduler.close()
    pool.shutdown()


if __name__ == "__main__":
    main()
