"""Short ways to fill and to ask a store."""

from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np

from mien_server.gallery.interface import AnyStore, GalleryStore, OpenCollection
from mien_server.gallery.live import Live
from mien_server.gallery.record import FaceRow
from mien_server.gallery.types import Query
from mien_server.pipeline.types import ArrayF32, Call, ModelIdentity
from tests.unit.gallery.vectors import random_units

MODEL = ModelIdentity("sface", 1, "0123456789abcdef")
D = 16


L = TypeVar("L", bound=OpenCollection)


async def made(store: GalleryStore[L], name: str = "staff", dimensions: int = D) -> L:
    return await store.create(name, MODEL, dimensions, None)


def face(
    person: str,
    seed: int,
    *,
    labels: Mapping[str, str] | None = None,
    key: str = "",
    dimensions: int = D,
) -> FaceRow:
    vector = random_units(1, dimensions, seed=seed)[0]
    return FaceRow(person, labels or {}, key, None, 9.0, vector)


async def persons_like(
    store: AnyStore, live: OpenCollection, vector: ArrayF32, threshold: float = 0.999
) -> list[str]:
    (found,) = await store.search(live, [Query(vector, 100, threshold)], Call(), passed=0)
    return [match.person for match in found.matches]


async def everyone(store: AnyStore, live: OpenCollection) -> dict[str, int]:
    """Persons with their numbers of faces."""
    return {p.name: p.faces for p in await store.reader.persons(live, after=0, most=100_000)}


def in_memory(live: Live) -> dict[int, tuple[str, bytes]]:
    """Per face in memory: the person's name and the vector."""
    return {
        int(block.faces[i]): (block.names[i], block.vectors.codes[i].tobytes())
        for block in live.index.snapshot.blocks
        for i in range(block.length)
        if block.faces[i]
    }


def as_rows(vectors: Sequence[ArrayF32] | np.ndarray) -> list[FaceRow]:
    """A person for each vector."""
    return [FaceRow(f"p{i:05}", {}, "", None, 1.0, vector) for i, vector in enumerate(vectors)]
