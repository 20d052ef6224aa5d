"""Goodput under overload: how many calls a second get their answer before their deadline.

    python -m bench.overload [--architecture iresnet50] [--seconds 10]

Open loop: calls with one aligned face and a deadline of 500 ms arrive at random (Poisson), at 1, 2 and 4
times the capacity that a closed loop of 16 callers has just measured, straight into the slot. Three ways
to queue them, on the same network and in the same run:

- mien: as shipped.
- batching off: max_batch_size 1, all else the same.
- unbounded queue: batches, but every call is taken, the deadline stays with the caller, as with a server
  that knows neither deadlines nor limits.

A call counts for goodput if its answer is there within 500 ms. "accepted" are those not refused at the
door; their 99th percentile includes the ones that expired in the queue.
"""

import argparse
import random
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

from bench.batching import closed_loop
from bench.slots import CROP_BYTES, crop, embedder_slot
from mien_server.load.report import machine, percentile, table
from mien_server.scheduling.batching import BatchingPolicy
from mien_server.scheduling.errors import QueueFull
from mien_server.scheduling.interface import Completion, Work
from mien_server.scheduling.scheduler import Slot

DEADLINE = 0.5
BATCHED = BatchingPolicy(max_batch_size=32, preferred_batch_sizes=(4,))
WAYS = {
    "mien": (BATCHED, True),
    "batching off": (BatchingPolicy(max_batch_size=1), True),
    "unbounded queue": (
        BatchingPolicy(max_batch_size=32, preferred_batch_sizes=(4,), max_queue_size=10**9),
        False,
    ),
}


@dataclass
class Tally:
    """What became of the calls; latencies in seconds, of those accepted."""

    offered: int = 0
    refused: int = 0
    expired: int = 0
    latencies: list[float] = field(default_factory=list)


def open_loop(slot: Slot, rate: float, seconds: float, *, with_deadline: bool) -> Tally:
    """Calls at random moments, `rate` a second on average, whether or not earlier ones are done."""
    tally = Tally()
    arrivals = random.Random(0)
    row = crop()
    pending: list[Future[Completion]] = []
    start = time.monotonic()
    due = start
    while (due := due + arrivals.expovariate(rate)) < start + seconds:
        time.sleep(max(0.0, due - time.monotonic()))
        tally.offered += 1
        deadline = due + DEADLINE if with_deadline else None
        try:
            future = slot.submit(Work(rows=[row], nbytes=CROP_BYTES, deadline=deadline))
        except QueueFull:
            tally.refused += 1
            continue
        future.add_done_callback(_record(tally, due))
        pending.append(future)
    # What has not come by then never counts; an unbounded queue would take minutes to run dry.
    wait_until = time.monotonic() + 2 * DEADLINE
    for future in pending:
        while not future.done() and time.monotonic() < wait_until:
            time.sleep(0.005)
    for future in pending:
        if not future.done():
            future.cancel()
    return tally


def _record(tally: Tally, due: float) -> Callable[[Future[Completion]], None]:
    def done(future: Future[Completion]) -> None:
        if future.cancelled() or future.exception() is not None:
            tally.expired += 1
            tally.latencies.append(float("inf"))
        else:
            tally.latencies.append(time.monotonic() - due)

    return done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--architecture", default="iresnet50")
    parser.add_argument("--seconds", type=float, default=10.0)
    options = parser.parse_args()
    print(machine())
    with embedder_slot(options.architecture, BATCHED) as slot:
        closed_loop(slot, 16, 1.0)
        capacity = len(closed_loop(slot, 16, options.seconds)) / options.seconds
    print(f"{options.architecture}, random weights: capacity {capacity:.0f} faces/s (16 callers)\n")
    lines = []
    for name, (policy, with_deadline) in WAYS.items():
        for load in (1, 2, 4):
            with embedder_slot(options.architecture, policy) as slot:
                closed_loop(slot, 4, 1.0)
                tally = open_loop(
                    slot, load * capacity, options.seconds, with_deadline=with_deadline
                )
            good = sum(latency <= DEADLINE for latency in tally.latencies)
            p99 = percentile(tally.latencies, 0.99)
            lines.append(
                (
                    name,
                    f"{load}x",
                    tally.offered,
                    tally.refused,
                    tally.expired,
                    f"{good / options.seconds:.1f}",
                    f"{good / options.seconds / capacity:.2f}",
                    "never" if p99 == float("inf") else f"{p99 * 1e3:.0f}",
                )
            )
    header = (
        *("queue", "load", "offered", "refused", "expired"),
        *("goodput/s", "goodput / capacity", "p99 of accepted, ms"),
    )
    print(table(header, lines))


if __name__ == "__main__":
    main()
