"""Throughput on the CPU: one single-threaded executor per core against one executor with all cores.

Networks have random weights and run as the server runs them (batch norms folded, channels last,
normalisation included, post-processing not).

    python bench/cpu_threads.py [--seconds 1] [--networks sface iresnet50] [--batch-sizes 1 4 8]

Set OMP_WAIT_POLICY=PASSIVE or GOMP_SPINCOUNT in the environment to see what they change.
"""

import argparse
import os
import threading
import time
from pathlib import Path

import numpy as np
import torch

from mien_server.backends.cpu import CpuRunner
from mien_server.backends.devices import available_cores
from mien_server.backends.network import PixelNetwork
from mien_server.backends.precision import ResolvedPrecision
from mien_server.backends.pytorch import DTYPES
from mien_server.models.families import find_family
from mien_server.models.interface import Normalisation
from mien_server.models.networks.folding import fold_batch_norms
from mien_server.models.roles import DETECTOR, EMBEDDER

SIDES = {DETECTOR: 640, EMBEDDER: 112}
PRECISIONS: tuple[ResolvedPrecision, ...] = ("fp32", "bf16")


def cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "unknown processor"


def engine(architecture: str, precision: ResolvedPrecision) -> CpuRunner:
    network = fold_batch_norms(find_family(architecture).network())
    normalisation = Normalisation("RGB", (127.5, 127.5, 127.5), 1 / 127.5)
    return CpuRunner(PixelNetwork(network, normalisation, DTYPES[precision]))


def throughput(
    running: CpuRunner, batch: torch.Tensor, *, executors: int, cores: int, seconds: float
) -> tuple[float, float]:
    """Rows a second of `executors` threads with `cores` each, and the cores they kept busy."""
    rows: list[float] = []
    ready = threading.Barrier(executors + 1)

    def work() -> None:
        torch.set_num_threads(cores)
        running.run(batch)
        ready.wait()
        started = time.perf_counter()
        batches = 0
        while time.perf_counter() - started < seconds:
            running.run(batch)
            batches += 1
        rows.append(batches * len(batch) / (time.perf_counter() - started))

    threads = [threading.Thread(target=work) for _ in range(executors)]
    for thread in threads:
        thread.start()
    ready.wait()
    wall, cpu = time.perf_counter(), time.process_time()
    for thread in threads:
        thread.join()
    return sum(rows), (time.process_time() - cpu) / (time.perf_counter() - wall)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument(
        "--networks", nargs="+", default=["sface", "iresnet50", "retinaface_mobilenet0.25"]
    )
    options = parser.parse_args()
    n = available_cores()
    print(f"{cpu_name()}, {n} cores, PyTorch {torch.__version__}, rows/s (cores busy)")
    policy = {key: value for key, value in os.environ.items() if key.startswith(("OMP", "GOMP"))}
    print(policy or "OpenMP's defaults")
    layouts = ((n, 1), (1, n))
    names = "".join(f"{f'{executors} x {cores}':>16}" for executors, cores in layouts)
    print(f"{'network':28}{'precision':>10}{'batch':>6}{names}")
    for architecture in options.networks:
        side = SIDES[find_family(architecture).role]
        for precision in PRECISIONS:
            running = engine(architecture, precision)
            for size in options.batch_sizes:
                images = [np.zeros((side, side, 3), np.uint8) for _ in range(size)]
                batch = running.collate(images)
                cells = ""
                for executors, cores in layouts:
                    rate, busy = throughput(
                        running,
                        batch,
                        executors=executors,
                        cores=cores,
                        seconds=options.seconds,
                    )
                    cells += f"{f'{rate:.0f} ({busy:.1f})':>16}"
                print(f"{architecture:28}{precision:>10}{size:>6}{cells}", flush=True)


if __name__ == "__main__":
    main()
