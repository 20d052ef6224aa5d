"""What serving costs beside the network: crops a second through gRPC and by the network alone.

    python -m bench.crops [--seconds 5] [--rounds 5] [--callers 16]

The server with its defaults, called in a closed loop, and in turn with it the same network in this process:
on each core a thread that runs one batch after the other, of the size that is fastest. Both have all cores,
and the one that rests is stopped. IR-50 has random weights. `bench.peers.setup` makes the models.
"""

import argparse
import asyncio
import contextlib
import statistics
import tempfile
import threading
import time
from pathlib import Path

from bench.peers.servers import hold, mien_running
from bench.peers.setup import repository_for
from bench.peers.workloads import WORKLOADS, crops
from mien_server.backends.devices import CpuDevice
from mien_server.load.loops import closed_loop
from mien_server.load.report import machine, table
from mien_server.load.shapes import steady
from mien_server.models.roles import EmbedderRow
from mien_server.repository.config.model import ModelConfig, read_config
from mien_server.repository.instances import load_instance

CANVAS = 320
SIZES = (1, 2, 4, 8)


class Alone:
    """An embedder of the repository without a server."""

    def __init__(self, name: str) -> None:
        folder = repository_for(CANVAS) / name
        config = read_config(folder / "config.pbtxt")
        assert isinstance(config, ModelConfig)
        self._device = CpuDevice()
        self._instance = load_instance(config, folder / "1", self._device)
        self._crops = [EmbedderRow(crop) for crop in crops()]

    def rate(self, size: int, seconds: float) -> float:
        """Rows a second of all cores together, in batches of this size."""
        rows = [self._crops[n % len(self._crops)] for n in range(size)]
        rates = [0.0] * self._device.cores
        began = time.monotonic()

        def work(core: int) -> None:
            self._device.begin(1)
            done = 0
            while (passed := time.monotonic() - began) < seconds:
                self._instance.compute(self._instance.collate(rows))
                done += size
            rates[core] = done / passed

        threads = [threading.Thread(target=work, args=(core,)) for core in range(len(rates))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sum(rates)


async def compare(callers: int, seconds: float, rounds: int) -> None:
    """Prints a line for each network."""
    lines = []
    with tempfile.TemporaryDirectory() as logs:
        async with contextlib.AsyncExitStack() as stack:
            server = await stack.enter_async_context(mien_running(CANVAS, Path(logs)))
            hold(server.process)
            for key, name in (("sface", "sface"), ("ir50", "arcface")):
                (workload,) = (each for each in WORKLOADS if each.key == key)
                alone = Alone(name)
                best = max(SIZES, key=lambda size: alone.rate(size, seconds / 2))
                network, served = [], []
                for _ in range(rounds):
                    network.append(alone.rate(best, seconds))
                    with server.running():
                        load = await closed_loop(
                            server.calls(workload), steady(callers, seconds + 2), warm_up=2
                        )
                    served.append(len(load.tally.latencies) / load.seconds)
                shares = [ours / most for ours, most in zip(served, network, strict=True)]
                lines.append(
                    (
                        workload.title,
                        best,
                        f"{statistics.median(network):.1f}",
                        f"{statistics.median(served):.1f}",
                        f"{statistics.median(shares):.2f}",
                        f"{min(shares):.2f} to {max(shares):.2f}",
                    )
                )
    header = ("workload", "rows a batch, alone", "alone", "served", "share", "over the rounds")
    print(table(header, lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--callers", type=int, default=16)
    options = parser.parse_args()
    print(machine())
    asyncio.run(compare(options.callers, options.seconds, options.rounds))


if __name__ == "__main__":
    main()
