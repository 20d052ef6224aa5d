"""Fills a gallery until the file system that it is on is full, and checks what it then does.

    python -m tests.integration.gallery_full_disk FOLDER

Run as root of a mount namespace of its own (`unshare --mount`): it mounts a file system of a few MiB on
FOLDER. Prints how many faces were enrolled before the disk was full.
"""

import asyncio
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from mien_server.backends.devices import CpuDevice
from mien_server.errors import GalleryFull
from mien_server.gallery.live import Live
from mien_server.gallery.record import FaceRow
from mien_server.gallery.store import Store
from mien_server.gallery.types import Query
from mien_server.pipeline.types import Call, ModelIdentity
from mien_server.scheduling.scheduler import Scheduler
from tests.unit.gallery.vectors import random_units

DIMENSIONS = 512
FACES_A_CALL = 16
MIB = 4
"""Of the file system; a multiple of it once there is room again."""


def mount(folder: Path, *options: str) -> None:
    """Mounts a file system in memory, or remounts it with other options."""
    command = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(folder)]
    subprocess.run(command, check=True)


@contextmanager
def opened(folder: Path) -> Iterator[Store]:
    device = CpuDevice(1)
    scheduler = Scheduler([device])
    store = Store(folder / "galleries", max_bytes=1 << 31, scheduler=scheduler, device=device)
    try:
        yield store
    finally:
        scheduler.close()
        store.close()


def rows(first: int) -> list[FaceRow]:
    """`FACES_A_CALL` faces from `first` on; face n is person `p<n>`."""
    return [
        FaceRow(f"p{seed}", {}, f"k{seed}", None, 1.0, random_units(1, DIMENSIONS, seed=seed)[0])
        for seed in range(first, first + FACES_A_CALL)
    ]


async def find(store: Store, live: Live, seed: int) -> list[str]:
    query = Query(random_units(1, DIMENSIONS, seed=seed)[0], 5, 0.999)
    (found,) = await store.search(live, [query], Call(), passed=0)
    return [match.person for match in found.matches]


async def fill(store: Store, live: Live, starts: Iterator[int]) -> tuple[list[int], str]:
    """Enrols until it is refused: the first seeds of the calls that were kept, and the refusal."""
    kept: list[int] = []
    for start in starts:
        try:
            await store.enrol(live, rows(start))
        except GalleryFull as error:
            return kept, error.message
        kept.append(start)
    raise AssertionError("the disk was never full")


async def until_full_and_beyond(folder: Path, grow: Callable[[], None]) -> int:
    """The faces that were enrolled before the disk was full."""
    starts = count(0, FACES_A_CALL)
    with opened(folder) as store:
        live = await store.create("kept", ModelIdentity("m", 1, "0" * 16), DIMENSIONS, None)
        kept, told = await fill(store, live, starts)
        assert "disk" in told, told
        faces = FACES_A_CALL * len(kept)
        assert faces > 0
        for seed in (0, faces // 2, faces - 1):
            assert await find(store, live, seed) == [f"p{seed}"]
        assert await find(store, live, faces) == [], "what was refused is found"
        # It is still full, and still told so, to those who delete, too.
        again, told = await fill(store, live, iter([faces]))
        assert (again, "disk" in told) == ([], True)
        (refused,) = await asyncio.gather(store.delete_person(live, "p0"), return_exceptions=True)
        assert isinstance(refused, GalleryFull)
        assert await find(store, live, 0) == ["p0"]
        grow()
        assert (await store.delete_person(live, "p0"))[0] == 1
        await store.enrol(live, rows(faces))
        faces += FACES_A_CALL
        assert live.index.snapshot.faces == faces - 1
    with opened(folder) as store:
        live = store.find("kept")
        assert live.index.snapshot.faces == faces - 1
        assert await find(store, live, 0) == []
        for seed in (1, faces // 2, faces - 1):
            assert await find(store, live, seed) == [f"p{seed}"]
    return faces


def main() -> None:
    folder = Path(sys.argv[1])
    mount(folder, f"size={MIB}m")
    faces = asyncio.run(
        until_full_and_beyond(folder, lambda: mount(folder, "remount", f"size={8 * MIB}m"))
    )
    print(faces)


if __name__ == "__main__":
    main()
