"""Vectors to enrol and to look for, and what a search must say of them, worked out plainly."""

from collections.abc import Mapping, Sequence

import numpy as np

from mien_server.gallery.index import Index, NewRow
from mien_server.gallery.labels import to_text
from mien_server.pipeline.types import ArrayF32


def unit(array: np.ndarray) -> ArrayF32:
    """The rows at unit length."""
    scaled: ArrayF32 = (array / np.linalg.norm(array, axis=-1, keepdims=True)).astype(np.float32)
    return scaled


def random_units(count: int, dimensions: int, seed: int = 0) -> ArrayF32:
    return unit(np.random.default_rng(seed).standard_normal((count, dimensions)))


def clustered_units(count: int, dimensions: int, clusters: int, seed: int = 0) -> ArrayF32:
    """Vectors around a few centres, as those of a few persons are; neighbours differ in the 4th digit."""
    random = np.random.default_rng(seed)
    centres = unit(random.standard_normal((clusters, dimensions)))
    noise = random.standard_normal((count, dimensions)) * 0.02
    return unit(centres[random.integers(0, clusters, count)] + noise)


def rows(
    vectors: ArrayF32,
    persons: Sequence[int],
    *,
    first: int = 1,
    labels: Sequence[Mapping[str, str]] | None = None,
) -> list[NewRow]:
    """Faces `first`, `first` + 1, … of persons who are called by their numbers."""
    return [
        NewRow(first + i, person, f"p{person}", to_text(labels[i]) if labels else "", vectors[i])
        for i, person in enumerate(persons)
    ]


class Kept(Index):
    """An index beside a record of the vectors as they were added, from which nothing is ever deleted."""

    def __init__(self, dimensions: int) -> None:
        super().__init__(dimensions)
        self.vectors: dict[int, ArrayF32] = {}

    def add(self, rows: Sequence[NewRow]) -> None:
        self.vectors |= {row.face: row.vector for row in rows}
        super().add(rows)

    def record(self, keys: Sequence[int]) -> dict[int, ArrayF32]:
        return {key: self.vectors[key] for key in keys if key in self.vectors}


def filled(vectors: ArrayF32, persons: Sequence[int]) -> Kept:
    index = Kept(vectors.shape[1])
    index.add(rows(vectors, persons))
    return index


def best(
    vectors: ArrayF32, persons: Sequence[int], query: ArrayF32, top_k: int, threshold: float = -1.0
) -> list[tuple[int, float]]:
    """The best persons and their similarities, by a plain product in float64."""
    cosines = vectors.astype(np.float64) @ query.astype(np.float64)
    found: dict[int, float] = {}
    for row in np.argsort(-cosines, kind="stable"):
        if cosines[row] < threshold or (len(found) == top_k and persons[row] not in found):
            break
        found.setdefault(persons[row], float(cosines[row]))
    return list(found.items())
