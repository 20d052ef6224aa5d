"""Kills a store of galleries while eight writers fill it, again and again, and checks what is left of it.

    python -m tests.integration.gallery_writers FOLDER ROUNDS SEED

Each round runs in a forked process, which tells what it begins and what was acknowledged through a pipe,
until SIGKILL ends it. Enrolments that nobody acknowledged are sent again in the next round, with their keys.
Prints how many faces are left, were acknowledged and were deleted; fails on the first thing that is wrong.
"""

import asyncio
import os
import random
import select
import signal
import sys
import time
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import numpy as np

from mien_server.backends.devices import CpuDevice
from mien_server.gallery import reading
from mien_server.gallery.database import FILENAME, lock, open_database
from mien_server.gallery.labels import from_text
from mien_server.gallery.live import Live
from mien_server.gallery.record import FaceRow
from mien_server.gallery.store import Store
from mien_server.pipeline.types import ModelIdentity
from mien_server.scheduling.scheduler import Scheduler
from tests.unit.gallery.vectors import random_units

DIMENSIONS = 512
WRITERS = 8
FACES_A_CALL = 3


def row(seed: int) -> FaceRow:
    """The face that is enrolled as person `p<seed>`, with the request key `k<seed>`."""
    vector = random_units(1, DIMENSIONS, seed=seed)[0]
    return FaceRow(f"p{seed}", {"seed": str(seed)}, f"k{seed}", None, 1.0, vector)


async def write_until_killed(folder: Path, again: list[int], first: int, told: int) -> None:
    """Sends `again` once more, then goes on with new faces from `first` on, and deletes some."""
    device = CpuDevice(1)
    store = Store(folder, max_bytes=1 << 31, scheduler=Scheduler([device]), device=device)
    names = {live.collection.name for live in store.collections()}
    live = store.find("kept") if "kept" in names else await _create(store)
    seeds = count(first)

    def tell(kind: str, *numbers: int) -> None:
        os.write(told, f"{kind} {' '.join(map(str, numbers))}\n".encode())

    async def enrol(some: list[int]) -> None:
        for seed in some:
            tell("begin", seed)
        for seed, written in zip(some, await store.enrol(live, list(map(row, some))), strict=True):
            tell("kept", seed, written.face)

    async def write(mine: list[int]) -> None:
        for start in range(0, len(mine), FACES_A_CALL):
            await enrol(mine[start : start + FACES_A_CALL])
        while True:
            some = [next(seeds) for _ in range(FACES_A_CALL)]
            await enrol(some)
            if some[0] % 2 == 0:
                tell("delete", some[0])
                await store.delete_person(live, f"p{some[0]}")
                tell("gone", some[0])

    await asyncio.gather(*(write(again[i::WRITERS]) for i in range(WRITERS)))


async def _create(store: Store) -> Live:
    return await store.create("kept", ModelIdentity("m", 1, "0" * 16), DIMENSIONS, None)


@dataclass
class Ledger:
    """What the writers have told: seeds begun, kept with their faces, being deleted, and gone."""

    begun: set[int] = field(default_factory=set)
    kept: dict[int, int] = field(default_factory=dict)
    deleting: set[int] = field(default_factory=set)
    gone: set[int] = field(default_factory=set)

    def note(self, line: str) -> None:
        kind, seed, *face = line.split()
        number = int(seed)
        match kind:
            case "begin":
                self.begun.add(number)
            case "kept":
                known = self.kept.setdefault(number, int(face[0]))
                assert known == int(face[0]), f"{seed} was enrolled twice"
            case "delete":
                self.deleting.add(number)
            case "gone":
                self.gone.add(number)

    @property
    def open(self) -> list[int]:
        """Enrolments that nobody acknowledged."""
        return sorted(self.begun - self.kept.keys() - self.deleting)

    def check(self, folder: Path) -> int:
        """Compares with what is in the file; the number of faces there."""
        with lock(folder):
            connection = open_database(folder / FILENAME)
            collections = reading.collections(connection)
            loaded = [part for each in collections for part in reading.load(connection, each)]
            connection.close()
        there: dict[int, int] = {}
        for part in loaded:
            for face, name, labels, vector in zip(
                part.faces.tolist(), part.names, part.labels, part.vectors, strict=True
            ):
                seed = int(name[1:])
                assert seed not in there, f"{name} is there twice"
                there[seed] = face
                expected = row(seed)
                assert from_text(labels) == expected.labels
                np.testing.assert_array_equal(vector, expected.vector)
        assert there.keys() <= self.begun
        for seed, face in self.kept.items():
            if seed not in self.deleting:
                assert there.get(seed) == face, f"p{seed} was acknowledged and is not there"
        assert not self.gone & there.keys(), "what was deleted is there"
        return len(there)


def one_round(folder: Path, ledger: Ledger, seconds: float) -> None:
    """Lets the writers run for so long, and kills them."""
    reader, writer = os.pipe()
    first = max(ledger.begun, default=0) + 1
    child = os.fork()
    if not child:
        os.close(reader)
        try:
            asyncio.run(write_until_killed(folder, ledger.open, first, writer))
        finally:
            os._exit(3)
    os.close(writer)
    end = time.monotonic() + seconds
    told = b""
    while (left := end - time.monotonic()) > 0:
        if select.select([reader], [], [], left)[0]:
            part = os.read(reader, 1 << 16)
            assert part, "the writers ended by themselves"
            told += part
    os.kill(child, signal.SIGKILL)
    while part := os.read(reader, 1 << 16):
        told += part
    os.waitpid(child, 0)
    os.close(reader)
    for line in told.decode().splitlines():
        ledger.note(line)


def main() -> None:
    folder, rounds, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    moments = random.Random(seed)  # noqa: S311 - it picks moments
    ledger, faces = Ledger(), 0
    for _ in range(rounds):
        one_round(folder, ledger, moments.uniform(0.02, 0.5))
        faces = ledger.check(folder)
    print(faces, len(ledger.kept), len(ledger.gone))


if __name__ == "__main__":
    main()
