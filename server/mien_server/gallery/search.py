"""Searching a collection: one product for the queries of many callers, then the best persons of each.

`Search` is what a collection's slot runs. Similarities are told in float64 from the stored vectors, so that
a face gets the same one alone and in a batch; the product in float32 only says which rows to look at.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from mien_server.backends.devices import CpuDevice
from mien_server.gallery.index import Block, Index, Snapshot
from mien_server.gallery.labels import fitting, from_text
from mien_server.gallery.types import Found, Labels, Match, Query, Sample
from mien_server.pipeline.types import ArrayF32

MAX_SAMPLES = 10
"""Faces of a person that an answer lists."""

_ROUNDING = 1e-4
"""More than a product of unit vectors in float32 can be wrong by, whatever the order of its sums."""

_SCORES_BYTES = 32 * 1024 * 1024
"""Similarities of the queries of one product, which are all in memory at once."""

_STRIP_BYTES = 1024 * 1024
_FEW = 4

_GONE = float("-inf")

_Rows: TypeAlias = NDArray[np.int64]


class Lanes:
    """Threads beside the scheduler's, for batches that it grants more than one core.

    Args:
        device: says how many cores the calling thread's batch may use.
    """

    def __init__(self, device: CpuDevice) -> None:
        self._device = device
        self._pool = ThreadPoolExecutor(max(1, device.cores - 1), thread_name_prefix="search")

    def scores(self, snapshot: Snapshot, queries: ArrayF32) -> ArrayF32:
        """The cosines of queries [n, d] with all rows: [n, rows] float32; -inf for rows that are deleted."""
        scores = np.empty((len(queries), snapshot.rows), np.float32)
        shares = _shares(snapshot, max(1, self._device.granted))

        def work(share: Sequence[tuple[Block, int]]) -> None:
            for block, end in share:
                out = scores[:, end - block.length : end]
                _multiply(queries, block.vectors[: block.length], out)
                if block.gone:
                    out[:, block.faces[: block.length] == 0] = _GONE

        others = [self._pool.submit(work, share) for share in shares[1:]]
        work(shares[0])
        for other in others:
            other.result()
        return scores

    def close(self) -> None:
        """Ends the threads."""
        self._pool.shutdown()


def _multiply(queries: ArrayF32, vectors: ArrayF32, out: ArrayF32) -> None:
    """Writes the products of queries [n, d] with vectors [m, d] into `out` [n, m].

    In strips that stay in a core's cache, which every query then reads from there. For a few queries BLAS has
    no product that is faster than one for each.
    """
    if len(queries) == 1:
        np.dot(vectors, queries[0], out=out[0])
        return
    rows = max(1, _STRIP_BYTES // (4 * vectors.shape[1]))
    for start in range(0, len(vectors), rows):
        strip = vectors[start : start + rows]
        part = out[:, start : start + rows]
        if len(queries) > _FEW:
            np.matmul(queries, strip.T, out=part)
        else:
            for query, products in zip(queries, part, strict=True):
                np.dot(strip, query, out=products)


def _shares(snapshot: Snapshot, count: int) -> list[list[tuple[Block, int]]]:
    """The blocks with the ends of their rows, in at most `count` parts of about equally many rows."""
    shares: list[list[tuple[Block, int]]] = [[]]
    for block, end in zip(snapshot.blocks, snapshot.ends.tolist(), strict=True):
        if len(shares) < count and end - block.length >= snapshot.rows * len(shares) / count:
            shares.append([])
        shares[-1].append((block, end))
    return shares


@dataclass(frozen=True, slots=True)
class _Batch:
    snapshot: Snapshot
    queries: Sequence[Query]


class Search:
    """Runs batches of `Query` against one collection: `scheduling.interface.Instance`.

    A batch sees the collection as it is when the batch begins.
    """

    def __init__(self, index: Index, lanes: Lanes) -> None:
        self._index = index
        self._lanes = lanes

    def collate(self, rows: Sequence[Query]) -> _Batch:
        """The queries, and the state of the collection that they are to see."""
        return _Batch(self._index.snapshot, rows)

    def compute(self, batch: _Batch) -> list[Found]:
        """What each query finds."""
        snapshot = batch.snapshot
        if not snapshot.blocks:
            return [Found([], 0) for _ in batch.queries]
        most = max(1, _SCORES_BYTES // (4 * snapshot.rows))
        found = []
        for start in range(0, len(batch.queries), most):
            queries = batch.queries[start : start + most]
            scores = self._lanes.scores(snapshot, np.stack([query.vector for query in queries]))
            for query, row in zip(queries, scores, strict=True):
                found.append(Found(best_persons(snapshot, row, query), snapshot.faces))
        return found

    def split(self, outputs: list[Found], rows: Sequence[Query]) -> list[Found]:  # noqa: ARG002
        """What each query found."""
        return outputs


def best_persons(snapshot: Snapshot, scores: ArrayF32, query: Query) -> list[Match]:
    """The persons most like a query, the best first; of equals the one enrolled first.

    Args:
        snapshot: not empty.
        scores: of its rows, as `Lanes.scores` gives them; changed.
        query: what was compared with.
    """
    if query.labels:
        scores[~_with_labels(snapshot, query.labels)] = _GONE
    floor = max(query.threshold - _ROUNDING, -2.0)
    rows = np.flatnonzero(scores >= floor)
    if not len(rows):
        return []
    keep = 4 * query.top_k + 64
    while True:
        few = rows
        sure = -2.0
        if keep < len(rows):
            at = len(rows) - keep
            cut = float(np.partition(scores[rows], at)[at])
            few = rows[scores[rows] >= cut - _ROUNDING]
            sure = cut  # no row that was left out is truly as similar as this
        matches = _persons(snapshot, few, query)
        certain = sum(match[1] > sure for match in matches)
        if len(few) == len(rows) or certain >= query.top_k:
            break
        keep *= 4
    best = matches[: query.top_k]
    if len(few) < len(rows):
        # The best persons may have further faces among the rows that were not looked at.
        keys = np.array([key for key, _, _ in best])
        of_best = rows[np.isin(snapshot.persons[rows], keys)]
        best = _persons(snapshot, of_best, query)
    return [match for _, _, match in best]


def _with_labels(snapshot: Snapshot, wanted: Labels) -> NDArray[np.bool_]:
    """Which rows [rows] have all of the labels."""
    fits = fitting(snapshot.label_texts, wanted)
    return np.concatenate([fits[block.labels[: block.length]] for block in snapshot.blocks])


def _persons(snapshot: Snapshot, rows: _Rows, query: Query) -> list[tuple[int, float, Match]]:
    """The persons of some rows at or above the query's threshold, the best first: key, similarity, match."""
    found: dict[int, tuple[str, list[Sample]]] = {}
    for person, name, sample in sorted(
        _looked_at(snapshot, rows, query), key=lambda each: (-each[2].similarity, each[2].key)
    ):
        _, samples = found.setdefault(person, (name, []))
        if len(samples) < MAX_SAMPLES:
            samples.append(sample)
    return [
        (person, samples[0].similarity, Match(name, samples[0].similarity, samples))
        for person, (name, samples) in found.items()
    ]


def _looked_at(snapshot: Snapshot, rows: _Rows, query: Query) -> Iterator[tuple[int, str, Sample]]:
    """The rows at or above the query's threshold: the person's key and name, and the face."""
    vector = query.vector.astype(np.float64)
    ends = snapshot.ends
    of_block = np.searchsorted(ends, rows, side="right")
    for number in np.unique(of_block):
        block = snapshot.blocks[number]
        at = rows[of_block == number] - (ends[number] - block.length)
        exact = np.clip((block.vectors[at].astype(np.float64) * vector).sum(axis=1), -1.0, 1.0)
        for row, similarity in zip(at.tolist(), exact.tolist(), strict=True):
            if similarity >= query.threshold:
                labels = from_text(snapshot.label_texts[block.labels[row]] or "")
                sample = Sample(int(block.faces[row]), similarity, labels)
                yield int(block.persons[row]), block.names[row], sample
