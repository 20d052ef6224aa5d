"""What replacing a model costs the calls that go on meanwhile, and whether its memory comes back.

    python -m bench.reload [--reloads 50] [--callers 4]

Needs the installed models (`make models`). Starts `mien-server serve` on a copy of them, embeds the six
portraits from several callers, first in peace and then while sface is replaced again and again.
"""

import argparse
import itertools
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import psutil
from safetensors.numpy import load_file
from tritonclient.grpc import InferenceServerClient

import mien
from mien_server.backends.weights_file import GRAPH
from mien_server.load.report import machine, percentile, table
from mien_server.repository.manifest import describe, write_manifest
from mien_server.weights.write.version_folder import write_tensors
from tools.local_server import LocalServer, local_server

ROOT = Path(__file__).resolve().parent.parent
PHOTOS = sorted((ROOT / "samples").glob("*.jpg"))
MODEL = "sface"
PEACE_SECONDS = 15.0


class Callers:
    """Threads that embed portraits until the block ends, and the milliseconds of their calls."""

    def __init__(self, address: str) -> None:
        self.latencies: list[float] = []
        self.failures: list[str] = []
        self._address = address
        self._stop = threading.Event()

    @contextmanager
    def running(self, count: int) -> Iterator["Callers"]:
        threads = [threading.Thread(target=self._call_on, args=(n,)) for n in range(count)]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()

    def _call_on(self, number: int) -> None:
        with mien.Client(self._address) as client:
            for photo in itertools.cycle(PHOTOS[number % 6 :] + PHOTOS[: number % 6]):
                if self._stop.is_set():
                    return
                start = time.perf_counter()
                try:
                    client.embed(photo)
                except mien.MienError as error:
                    self.failures.append(str(error))
                self.latencies.append((time.perf_counter() - start) * 1e3)


def variants(repository: Path, folder: Path) -> list[Path]:
    """Two version folders whose weights differ a little from those installed."""
    found = []
    for factor in (1.0001, 0.9999):
        variant = folder / f"{MODEL}-{factor}"
        variant.mkdir()
        state = load_file(repository / MODEL / "1" / "model.safetensors")
        state = {key: value * factor if value.ndim == 4 else value for key, value in state.items()}
        write_tensors(variant / "model.safetensors", state)
        shutil.copy(repository / MODEL / "1" / GRAPH, variant)  # the tensors stand where they stood
        facts = describe(
            variant, source="bench", license_="", created=datetime.now(UTC), importer="bench.reload"
        )
        write_manifest(variant, facts)
        found.append(variant)
    return found


def resident(server: LocalServer) -> float:
    """MiB."""
    return float(psutil.Process(server.process.pid).memory_info().rss) / 2**20


def row(name: str, callers: Callers, seconds: float) -> tuple[str, ...]:
    times = callers.latencies
    return (
        name,
        f"{len(times) / seconds:.1f}",
        f"{statistics.median(times):.1f}",
        f"{percentile(times, 0.99):.1f}",
        f"{max(times):.1f}",
        str(len(callers.failures)),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reloads", type=int, default=50)
    parser.add_argument("--callers", type=int, default=4)
    options = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        repository = folder / "repository"
        for model in ("retinaface", MODEL):
            shutil.copytree(ROOT / "model_repository" / model, repository / model)
        weights = itertools.cycle(variants(repository, folder))
        flags = ["--model-repository", str(repository), "--model-control-mode", "explicit"]
        with local_server(folder / "server.log", flags=[*flags, "--load-model", "*"]) as server:
            with mien.Client(server.address) as client:
                for photo in PHOTOS:
                    client.embed(photo)
            rows = []
            with Callers(server.address).running(options.callers) as callers:
                time.sleep(PEACE_SECONDS)
            rows.append(row("in peace", callers, PEACE_SECONDS))

            loads: list[float] = []
            memory: dict[int, float] = {}
            control = InferenceServerClient(server.address)
            began = time.monotonic()
            with Callers(server.address).running(options.callers) as callers:
                for number in range(1, options.reloads + 1):
                    for file in next(weights).iterdir():
                        shutil.copy(file, repository / MODEL / "1" / file.name)
                    start = time.monotonic()
                    control.load_model(MODEL)
                    loads.append(time.monotonic() - start)
                    if number in (5, options.reloads):
                        memory[number] = resident(server)
            rows.append(row("while reloading", callers, time.monotonic() - began))
            control.close()
    header = ("Embed", "calls/s", "median ms", "p99 ms", "longest ms", "failed")
    print(f"{options.callers} callers\n\n" + table(header, rows))
    print(
        f"\n{options.reloads} reloads of {MODEL} (39 MB), each in"
        f" {statistics.median(loads):.2f} s (median), {max(loads):.2f} s at most; MiB resident "
        + ", ".join(f"{mib:.0f} after reload {number}" for number, mib in memory.items())
    )


if __name__ == "__main__":
    main()
