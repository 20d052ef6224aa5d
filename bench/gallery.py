"""A gallery beside the bare product that it is made of: load, search by one and by many callers, enrolment.

    python -m bench.gallery [--faces 100000] [--dimensions 512] [--calls 200]

Needs the installed models (`make models`). Fills a gallery with random vectors through its store, starts
`mien-server serve` on it, and calls Identify and Enrol over gRPC by embedding, so that no network runs.
"""

import argparse
import asyncio
import os
import statistics
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import mien
from mien_server.backends.devices import CpuDevice
from mien_server.gallery.record import FaceRow
from mien_server.gallery.store import Store
from mien_server.load.report import machine, table
from mien_server.pipeline.types import ModelIdentity
from mien_server.scheduling.scheduler import Scheduler
from tools.local_server import local_server

CALLERS = (1, 4, 16)
FACES_A_CALL = 16
AT_ONCE = 2000
MODEL = mien.ModelIdentity("sface", 1, "0123456789abcdef")


def unit_vectors(count: int, dimensions: int, seed: int) -> NDArray[np.float32]:
    """Random vectors of unit length."""
    vectors = np.random.default_rng(seed).standard_normal((count, dimensions), np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def fill(folder: Path, vectors: NDArray[np.float32]) -> float:
    """Makes a gallery of one person for each vector; seconds that opening it again takes."""
    device = CpuDevice()

    async def write() -> None:
        scheduler = Scheduler([device])
        store = Store(folder, max_bytes=1 << 36, scheduler=scheduler, device=device)
        identity = ModelIdentity(MODEL.name, MODEL.version, MODEL.fingerprint)
        live = await store.create("bench", identity, vectors.shape[1], 0.5)
        rows = [FaceRow(f"p{i}", {}, "", None, 1.0, vector) for i, vector in enumerate(vectors)]
        for start in range(0, len(rows), AT_ONCE):
            await store.enrol(live, rows[start : start + AT_ONCE])
        scheduler.close()
        store.close()

    asyncio.run(write())
    began = time.perf_counter()
    scheduler = Scheduler([device])
    store = Store(folder, max_bytes=1 << 36, scheduler=scheduler, device=device)
    seconds = time.perf_counter() - began
    scheduler.close()
    store.close()
    return seconds


def bare_product(vectors: NDArray[np.float32], calls: int) -> float:
    """Milliseconds of the product of all vectors with one, and its largest element."""
    took = []
    for query in vectors[:calls]:
        began = time.perf_counter()
        (vectors @ query).argmax()
        took.append((time.perf_counter() - began) * 1e3)
    return statistics.median(took)


def identify(
    address: str, vectors: NDArray[np.float32], callers: int, calls: int
) -> tuple[float, float]:
    """The median milliseconds of a call, and calls a second of all callers together."""
    barrier = threading.Barrier(callers + 1)

    def call(number: int) -> list[float]:
        faces = [
            mien.Embedding(vectors[(number * calls + i) * 37 % len(vectors)], 1.0, MODEL)
            for i in range(calls)
        ]
        took = []
        with mien.Client(address, timeout=60) as client:
            gallery = client.gallery("bench")
            gallery.identify(faces[0])
            barrier.wait()
            for face in faces:
                began = time.perf_counter()
                found = gallery.identify(face)
                took.append((time.perf_counter() - began) * 1e3)
                assert found.best is not None
        return took

    with ThreadPoolExecutor(callers) as pool:
        running = [pool.submit(call, number) for number in range(callers)]
        barrier.wait()
        began = time.perf_counter()
        took = [each for future in running for each in future.result()]
        rate = len(took) / (time.perf_counter() - began)
    return statistics.median(took), rate


def enrol(address: str, dimensions: int, callers: int, calls: int) -> float:
    """Faces a second that are enrolled durably, several a call, in the gallery that is searched, too."""
    vectors = unit_vectors(callers * calls * FACES_A_CALL, dimensions, 2)

    def call(number: int) -> None:
        with mien.Client(address, timeout=60) as client:
            gallery = client.gallery("bench")
            for start in range(number * calls, (number + 1) * calls):
                some = range(start * FACES_A_CALL, (start + 1) * FACES_A_CALL)
                faces = [
                    mien.NewFace(mien.Embedding(vectors[i], 1.0, MODEL), f"new{i}") for i in some
                ]
                gallery.enrol_faces(faces)

    began = time.perf_counter()
    with ThreadPoolExecutor(callers) as pool:
        list(pool.map(call, range(callers)))
    return len(vectors) / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faces", type=int, default=100_000)
    parser.add_argument("--dimensions", type=int, default=512)
    parser.add_argument("--calls", type=int, default=200)
    options = parser.parse_args()
    print(machine())
    vectors = unit_vectors(options.faces, options.dimensions, 1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        loaded = fill(folder / "galleries", vectors)
        bare = bare_product(vectors, 50)
        size = f"{options.faces} faces x {options.dimensions}"
        print(f"\n{size}: loaded in {loaded:.2f} s; bare product with numpy {bare:.2f} ms\n")
        # What was set for this process is not for the server.
        environment = {k: v for k, v in os.environ.items() if k != "OPENBLAS_NUM_THREADS"}
        flags = ["--gallery-dir", str(folder / "galleries"), "--gallery-max-bytes", str(1 << 36)]
        with local_server(folder / "log", flags=flags, environment=environment) as server:
            rows = []
            for callers in CALLERS:
                median, rate = identify(server.address, vectors, callers, options.calls // callers)
                times = f"{rate * bare / 1e3:.2f}"
                rows.append([str(callers), f"{median:.2f}", f"{rate:.0f}", times])
            head = ["callers", "p50 ms", "searches/s", "of the bare product's rate"]
            print(table(head, rows))
            rows = [
                [str(callers), f"{enrol(server.address, options.dimensions, callers, 10):.0f}"]
                for callers in (1, 8)
            ]
            print(table(["callers", f"faces/s enrolled, {FACES_A_CALL} a call"], rows))


if __name__ == "__main__":
    main()
