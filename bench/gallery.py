"""A gallery beside the bare product that it is made of: load, search by one and by many callers, enrolment.

    python -m bench.gallery [--faces 100000] [--dimensions 512] [--seconds 3] [--rounds 5]

Needs the installed models (`make models`). Fills a gallery with random vectors through its store, starts
`mien-server serve` on it, and calls Identify and Enrol over gRPC by embedding, so that no network runs.
"""

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import mien
from loadtest.connections import GrpcConnection, calls_of
from mien.messages import subject_message
from mien.v1 import gallery_pb2
from mien_server.backends.devices import CpuDevice
from mien_server.gallery.record import FaceRow
from mien_server.gallery.store import Store
from mien_server.load.loops import closed_loop
from mien_server.load.report import machine, table
from mien_server.load.shapes import steady
from mien_server.pipeline.types import ModelIdentity
from mien_server.scheduling.scheduler import Scheduler
from tools.local_server import local_server

CALLERS = (1, 4, 16)
WARM_UP = 1.0
IDENTIFY = "/mien.v1.GalleryService/Identify"
FACES_A_CALL = 16
EMPTY = {1: "new1", 8: "new8"}
"""A gallery to enrol into for each number of callers."""
AT_ONCE = 2000
MODEL = mien.ModelIdentity("sface", 1, "0123456789abcdef")


def unit_vectors(count: int, dimensions: int, seed: int) -> NDArray[np.float32]:
    """Random vectors of unit length."""
    vectors = np.random.default_rng(seed).standard_normal((count, dimensions), np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def fill(folder: Path, vectors: NDArray[np.float32]) -> float:
    """Makes a gallery of one person for each vector, and empty ones; seconds that opening it again takes."""
    device = CpuDevice()

    async def write() -> None:
        scheduler = Scheduler([device])
        store = Store(folder, max_bytes=1 << 36, scheduler=scheduler, device=device)
        identity = ModelIdentity(MODEL.name, MODEL.version, MODEL.fingerprint)
        live = await store.create("bench", identity, vectors.shape[1], 0.5)
        for name in EMPTY.values():
            await store.create(name, identity, vectors.shape[1], 0.5)
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


async def identify(
    address: str, vectors: NDArray[np.float32], seconds: float, rounds: int
) -> list[tuple[int, float, float, float]]:
    """What searches take and how many there are, by the bare product beside them: medians over the rounds.

    For each number of callers: it, the median milliseconds of a call, that by the product's, and the calls a
    second of all callers by its rate. The product and the numbers of callers take turns, so that the
    machine's moods meet all of them.
    """
    asked = vectors[:: max(1, len(vectors) // 100)]
    requests = [
        gallery_pb2.IdentifyRequest(
            collections=["bench"],
            subject=subject_message(mien.Embedding(vector, 1.0, MODEL), False, "subject", 1),
        ).SerializeToString()
        for vector in asked
    ]
    connection = GrpcConnection(address, 60)
    answer, _ = await connection.send(IDENTIFY, requests[0])
    assert gallery_pb2.IdentifyResponse.FromString(answer).faces[0].persons
    found: dict[int, list[tuple[float, float, float]]] = {callers: [] for callers in CALLERS}
    for _ in range(rounds):
        for callers in CALLERS:
            bare = bare_product(vectors, 20)
            shape = steady(callers, WARM_UP + seconds)
            load = await closed_loop(
                calls_of(connection, IDENTIFY, requests), shape, warm_up=WARM_UP
            )
            if load.tally.failures:
                raise SystemExit(f"calls failed: {dict(load.tally.failures)}")
            latencies = load.tally.latencies
            took, rate = 1e3 * statistics.median(latencies), len(latencies) / load.seconds
            found[callers].append((took, took / bare, rate * bare / 1e3))
    await connection.close()
    return [
        (callers, *(statistics.median(each) for each in zip(*rows, strict=True)))
        for callers, rows in found.items()
    ]


def enrol(address: str, name: str, dimensions: int, callers: int, calls: int) -> float:
    """Faces a second that are enrolled durably in a gallery, several a call.

    Each is looked for among those that are there, as the check for near-duplicates wants it.
    """
    vectors = unit_vectors(callers * calls * FACES_A_CALL, dimensions, 2)

    def call(number: int) -> None:
        with mien.Client(address, timeout=60) as client:
            gallery = client.gallery(name)
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
    parser.add_argument("--seconds", type=float, default=3, help="for each number of callers [3]")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print(machine())
    vectors = unit_vectors(options.faces, options.dimensions, 1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        loaded = fill(folder / "galleries", vectors)
        size = f"{options.faces} faces x {options.dimensions}"
        print(f"\n{size}: loaded in {loaded:.2f} s\n")
        # What was set for this process is not for the server.
        environment = {k: v for k, v in os.environ.items() if k != "OPENBLAS_NUM_THREADS"}
        flags = ["--gallery-dir", str(folder / "galleries"), "--gallery-max-bytes", str(1 << 36)]
        with local_server(folder / "log", flags=flags, environment=environment) as server:
            searches = asyncio.run(
                identify(server.address, vectors, options.seconds, options.rounds)
            )
            rows = [
                [str(callers), f"{median:.2f}", f"{times:.2f}", f"{rate:.2f}"]
                for callers, median, times, rate in searches
            ]
            head = ["callers", "p50 ms", "times the bare product", "of its rate"]
            print(table(head, rows))
            rows = []
            for callers, new in EMPTY.items():
                rates = [
                    enrol(server.address, each, options.dimensions, callers, 20)
                    for each in (new, "bench")
                ]
                rows.append([str(callers), *(f"{rate:.0f}" for rate in rates)])
            print(f"\nfaces/s enrolled, {FACES_A_CALL} a call:\n")
            print(table(["callers", "into an empty gallery", f"beside {options.faces}"], rows))


if __name__ == "__main__":
    main()
