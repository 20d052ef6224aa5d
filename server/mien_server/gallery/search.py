"""Searching a collection: one product for the queries of many callers, then the best persons of each.

`Search` is what a collection's slot runs. The product is one with rounded vectors, and only says which rows
may be among the best. Of those the record has the vectors as they were enrolled, and similarities are told
from these in float64: exact, and the same alone and in a batch.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from mien_server.backends.devices import CpuDevice
from mien_server.gallery.index import Block, Index, Snapshot
from mien_server.gallery.labels import fitting, from_text
from mien_server.gallery.rounding import MIDDLE, Rounded, rounded, widened
from mien_server.gallery.types import Found, Labels, Match, Query, Sample
from mien_server.pipeline.types import ArrayF32

MAX_SAMPLES = 10
"""Faces of a person that an answer lists."""

TOGETHER = 8
"""BLAS takes no longer for so many queries than for one fewer, and so with their multiples."""

_SCORES_BYTES = 32 * 1024 * 1024
"""Similarities of the queries of one product, which are all in memory at once."""

_TRIES = 3
"""How often a search begins until it makes do with the rounded vectors of faces that are just deleted."""

_PIECE_ROWS = 8192
"""What a core takes at once: so little that all of them are done at about the same time."""

_STRIP_BYTES = 4 * 1024 * 1024
_FEW = 4

_STRETCH = 64
"""Rows of which the best one says something about the others at next to no cost."""

_GONE = float("-inf")

_Rows: TypeAlias = NDArray[np.int64]

Record: TypeAlias = Callable[[Sequence[int]], Mapping[int, ArrayF32]]
"""The vectors [d] of faces by their keys, as they were enrolled; none of a face that has gone."""


class Lanes:
    """Threads beside the scheduler's, for batches that it grants more than one core.

    Args:
        device: says how many cores the calling thread's batch may use.
    """

    def __init__(self, device: CpuDevice) -> None:
        self._device = device
        self._strips = threading.local()
        self._pool = ThreadPoolExecutor(max(1, device.cores - 1), thread_name_prefix="search")

    def highest(self, snapshot: Snapshot, queries: ArrayF32) -> ArrayF32:
        """What the cosines of queries [n, d] with all rows may be at most: [n, rows] float32.

        They are at least that less twice the row's error. -inf for rows that are deleted.
        """
        scores = np.empty((len(queries), snapshot.rows), np.float32)
        offsets = MIDDLE * queries.sum(axis=1, keepdims=True)
        if len(queries) > _FEW:
            queries = np.pad(queries, ((0, -len(queries) % TOGETHER), (0, 0)))
        pieces = _pieces(snapshot)
        left = iter(pieces)

        def work() -> None:
            room = self._room(queries.shape[1])
            for block, rows, columns in left:  # each goes to the thread that is free first
                out = scores[:, columns]
                _multiply(queries, block.vectors.codes[rows], room, out)
                out -= offsets
                out *= block.vectors.scales[rows]
                out += block.vectors.errors[rows]
                if block.gone:
                    out[:, block.faces[rows] == 0] = _GONE

        threads = min(self._device.granted, len(pieces))
        others = [self._pool.submit(work) for _ in range(1, threads)]
        work()
        for other in others:
            other.result()
        return scores

    def _room(self, dimensions: int) -> ArrayF32:
        """Rows [m, d] of finite numbers for `widened`; each thread keeps its own."""
        if not hasattr(self._strips, "numbers"):
            self._strips.numbers = np.zeros(_STRIP_BYTES // 4, np.float32)
        numbers: ArrayF32 = self._strips.numbers
        rows = max(1, len(numbers) // dimensions)
        return numbers[: rows * dimensions].reshape(rows, dimensions)

    def close(self) -> None:
        """Ends the threads."""
        self._pool.shutdown()


def _multiply(queries: ArrayF32, codes: NDArray[np.uint8], room: ArrayF32, out: ArrayF32) -> None:
    """Writes the products of the first n queries [n or more, d] with bytes [m, d] into `out` [n, m].

    In strips that stay in a core's cache, which every query then reads from there. For a few queries BLAS has
    no product that is faster than one for each.

    Args:
        room: [rows of a strip, d], finite.
    """
    rows = len(room)
    for start in range(0, len(codes), rows):
        strip = widened(codes[start : start + rows], room)
        part = out[:, start : start + rows]
        if len(queries) > _FEW:
            part[:] = (strip @ queries.T)[:, : len(out)].T
        else:
            for query, products in zip(queries, part, strict=True):
                np.dot(strip, query, out=products)


def _pieces(snapshot: Snapshot) -> list[tuple[Block, slice, slice]]:
    """All rows in pieces of a block each: its rows, and which these are counted through all blocks."""
    pieces = []
    for block, end in zip(snapshot.blocks, snapshot.ends.tolist(), strict=True):
        before = end - block.length
        for start in range(0, block.length, _PIECE_ROWS):
            stop = min(start + _PIECE_ROWS, block.length)
            pieces.append((block, slice(start, stop), slice(before + start, before + stop)))
    return pieces


@dataclass(frozen=True, slots=True)
class _Batch:
    snapshot: Snapshot
    queries: Sequence[Query]


class Search:
    """Runs batches of `Query` against one collection: `scheduling.interface.Instance`.

    A batch sees the collection as it is when the batch begins.

    Args:
        index: the collection's faces.
        lanes: where products run.
        record: what it reads the vectors from that may be among the best; called by several threads.
    """

    def __init__(self, index: Index, lanes: Lanes, record: Record) -> None:
        self._index = index
        self._lanes = lanes
        self._record = record

    def collate(self, rows: Sequence[Query]) -> _Batch:
        """The queries, and the state of the collection that they are to see."""
        return _Batch(self._index.snapshot, rows)

    def compute(self, batch: _Batch) -> list[Found]:
        """What each query finds."""
        most = max(1, _SCORES_BYTES // (4 * max(1, batch.snapshot.rows)))
        found = []
        for start in range(0, len(batch.queries), most):
            found += self._found(batch.snapshot, batch.queries[start : start + most])
        return found

    def _found(self, snapshot: Snapshot, queries: Sequence[Query]) -> list[Found]:
        """What some queries find: in the state that is given, or in a later one.

        Of faces that were deleted since, the record has nothing more to compare with. If some of them might
        be found, the search begins again.
        """
        stacked = np.stack([query.vector for query in queries])
        for tries_left in reversed(range(_TRIES)):
            if not snapshot.blocks:
                break
            highest = self._lanes.highest(snapshot, stacked)
            chosen = [
                candidates(snapshot, row, query)
                for query, row in zip(queries, highest, strict=True)
            ]
            keys = {key for rows in chosen for key in snapshot.faces_of(rows).tolist()}
            vectors = self._record(sorted(keys)) if keys else {}
            if tries_left and len(vectors) < len(keys):
                snapshot = self._index.snapshot
                continue
            return [
                Found(_persons(snapshot, rows, query, vectors)[: query.top_k], snapshot.faces)
                for query, rows in zip(queries, chosen, strict=True)
            ]
        return [Found([], 0) for _ in queries]

    def split(self, outputs: list[Found], rows: Sequence[Query]) -> list[Found]:  # noqa: ARG002
        """What each query found."""
        return outputs


def candidates(snapshot: Snapshot, highest: ArrayF32, query: Query) -> _Rows:
    """The rows that may be among the best faces of the persons most like a query, in their order.

    A person none of whose faces may be as much like the query as the person at place `top_k` is at least is
    not among the first `top_k`; and so with a person's faces.

    Args:
        snapshot: not empty.
        highest: what the similarities of its rows may be at most, as `Lanes.highest` tells; changed.
        query: what was compared with.
    """
    if query.labels:
        highest[~_with_labels(snapshot, query.labels)] = _GONE
    above = highest >= max(query.threshold, -2.0)
    if np.count_nonzero(above) <= query.top_k:
        return np.flatnonzero(above)
    rows = np.flatnonzero(above & (highest >= _reached(snapshot, highest, query.top_k)))
    enough = _score_of_place(snapshot, highest, rows, query.top_k)
    best = rows[highest[rows] >= enough]
    rows = np.flatnonzero(above & _rows_of(snapshot, snapshot.persons[best]))
    highest, persons = highest[rows], snapshot.persons[rows]
    lowest = highest - 2 * snapshot.errors[rows]
    order = np.lexsort((-lowest, persons))
    _, first, counts = np.unique(persons[order], return_index=True, return_counts=True)
    lasts = lowest[order[first + np.minimum(counts, MAX_SAMPLES) - 1]]
    kept = highest[order] >= np.repeat(lasts, counts)
    return np.sort(rows[order[kept]])


def _reached(snapshot: Snapshot, highest: ArrayF32, place: int) -> float:
    """What the person at a place is known to reach, by one row of each short stretch; -2 if nothing is."""
    stretches = highest[: len(highest) // _STRETCH * _STRETCH].reshape(-1, _STRETCH)
    best = stretches.argmax(axis=1) + np.arange(0, stretches.size, _STRETCH)
    return _score_of_place(snapshot, highest, best, place)


def _rows_of(snapshot: Snapshot, persons: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which rows [rows] are faces of some persons, at least one."""
    # Their keys count up from 1. A table is four times as quick as np.isin.
    wanted = np.zeros(persons.max() + 2, np.bool_)
    wanted[persons] = True
    return wanted.take(snapshot.persons, mode="clip")


def _score_of_place(snapshot: Snapshot, highest: ArrayF32, rows: _Rows, place: int) -> float:
    """What the person is at least like who comes in at a place by some rows, the first being 1.

    -2 if they are of fewer persons.
    """
    scores, persons = highest[rows] - 2 * snapshot.errors[rows], snapshot.persons[rows]
    most = 4 * place + 64
    while True:
        best = np.arange(len(scores))
        if most < len(scores):
            best = np.argpartition(scores, len(scores) - most)[-most:]
        order = best[np.argsort(-scores[best])]
        _, first = np.unique(persons[order], return_index=True)
        if len(first) >= place:
            return float(scores[order[np.sort(first)[place - 1]]])
        if len(best) == len(scores):
            return -2.0
        most *= 4


def _with_labels(snapshot: Snapshot, wanted: Labels) -> NDArray[np.bool_]:
    """Which rows [rows] have all of the labels."""
    fits = fitting(snapshot.label_texts, wanted)
    return np.concatenate([fits[block.labels[: block.length]] for block in snapshot.blocks])


def _persons(
    snapshot: Snapshot, rows: _Rows, query: Query, vectors: Mapping[int, ArrayF32]
) -> list[Match]:
    """The persons of some rows at or above the query's threshold, the best first.

    Of equals the one comes first who was enrolled first.
    """
    found: dict[int, tuple[str, list[Sample]]] = {}
    for person, name, sample in sorted(
        _looked_at(snapshot, rows, query, vectors),
        key=lambda each: (-each[2].similarity, each[2].key),
    ):
        _, samples = found.setdefault(person, (name, []))
        if len(samples) < MAX_SAMPLES:
            samples.append(sample)
    return [Match(name, samples[0].similarity, samples) for name, samples in found.values()]


def _looked_at(
    snapshot: Snapshot, rows: _Rows, query: Query, vectors: Mapping[int, ArrayF32]
) -> Iterator[tuple[int, str, Sample]]:
    """The rows at or above the query's threshold: the person's key and name, and the face."""
    parts = list(snapshot.in_blocks(rows))
    if not parts:
        return
    exact = _enrolled(parts, vectors).astype(np.float64)
    similarities = np.clip((exact * query.vector.astype(np.float64)).sum(axis=1), -1.0, 1.0)
    places = [(block, row) for block, at in parts for row in at.tolist()]
    for (block, row), similarity in zip(places, similarities.tolist(), strict=True):
        if similarity >= query.threshold:
            labels = from_text(snapshot.label_texts[block.labels[row]] or "")
            sample = Sample(int(block.faces[row]), similarity, labels)
            yield int(block.persons[row]), block.names[row], sample


def _enrolled(parts: Sequence[tuple[Block, _Rows]], vectors: Mapping[int, ArrayF32]) -> ArrayF32:
    """The vectors [n, d] of rows of some blocks, at least one, as they were enrolled.

    Of a face that was deleted or embedded anew since the snapshot, the rounded ones are all there is.
    """
    codes, scales, _ = Rounded.joined([block.vectors.at(at) for block, at in parts])
    keys = np.concatenate([block.faces[at] for block, at in parts])
    exact = scales[:, None] * (codes.astype(np.float32) - MIDDLE)
    told = {
        place: vectors[key]
        for place, key in enumerate(keys.tolist())
        if key in vectors and vectors[key].shape == exact.shape[1:]
    }
    if told:
        places, found = np.array(list(told)), np.stack(list(told.values()))
        same = (rounded(found).codes == codes[places]).all(axis=1)
        exact[places[same]] = found[same]
    return exact
