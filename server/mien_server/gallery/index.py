"""The faces of one collection in memory: what a search goes over to find those to look at.

One thread writes, any number search. What a search sees is a `Snapshot`: blocks of rows and how many of
them count. Rows are appended beyond what counts, so that no snapshot sees them and nothing is copied;
whatever changes rows that count makes new arrays for all but the vectors. A search therefore waits for
nobody and sees one state from its beginning to its end.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from mien_server.gallery.labels import LabelSets
from mien_server.gallery.rounding import Rounded, rounded
from mien_server.pipeline.types import ArrayF32

BLOCK_BYTES = 8 * 1024 * 1024
"""Bytes of the vectors of a large block: enough work for one product, little to copy when it is thinned."""

_FIRST_ROWS = 64
_ROW_BYTES = 8 + 8 + 8 + 8 + 4 + 64
"""Of a face beside its vector: that one's scale and error, its key, its person's key and name, the number of
its labels, and the name's characters, which faces of one person share: as many as a name usually has."""

_GONE = 0
"""The face of a row that has been deleted. Keys begin at 1."""


@dataclass(frozen=True, slots=True)
class Block:
    """Rows of a collection, of which the first `length` count. Arrays may be longer.

    Attributes:
        vectors: [capacity, d] of unit length, rounded.
        faces: [capacity] int64, the faces' keys; `_GONE` where one was deleted.
        persons: [capacity] int64, the persons' keys.
        names: [capacity] object, the persons' names.
        labels: [capacity] int32, the numbers of their labels' texts.
        gone: deleted rows among those that count.
    """

    vectors: Rounded
    faces: NDArray[np.int64]
    persons: NDArray[np.int64]
    names: NDArray[np.object_]
    labels: NDArray[np.int32]
    length: int
    gone: int

    @classmethod
    def empty(cls, capacity: int, dimensions: int) -> "Block":
        """A block with room for so many rows. The system gives it memory as rows are written."""
        return cls(
            Rounded.empty(capacity, dimensions),
            np.empty(capacity, np.int64),
            np.empty(capacity, np.int64),
            np.empty(capacity, object),
            np.empty(capacity, np.int32),
            0,
            0,
        )

    @property
    def room(self) -> int:
        """Rows that can be appended."""
        return len(self.faces) - self.length

    @property
    def live(self) -> int:
        """Faces in it."""
        return self.length - self.gone


@dataclass(frozen=True)
class Snapshot:
    """One state of a collection.

    Attributes:
        blocks: none of them empty.
        label_texts: by number, see `labels`; None where no face has it any more.
    """

    blocks: tuple[Block, ...]
    label_texts: list[str | None]

    @cached_property
    def faces(self) -> int:
        """Faces in it."""
        return sum(block.live for block in self.blocks)

    @cached_property
    def ends(self) -> NDArray[np.int64]:
        """Where each block's rows end, counted through all blocks."""
        return np.cumsum([block.length for block in self.blocks], dtype=np.int64)

    @cached_property
    def persons(self) -> NDArray[np.int64]:
        """The persons' keys of all rows."""
        return np.concatenate([block.persons[: block.length] for block in self.blocks])

    @cached_property
    def errors(self) -> ArrayF32:
        """How far off products with all rows are at most, [rows]."""
        return np.concatenate([block.vectors.errors[: block.length] for block in self.blocks])

    @property
    def keys(self) -> NDArray[np.int64]:
        """The keys of all faces, in their order."""
        keys = [np.empty(0, np.int64), *(block.faces[: block.length] for block in self.blocks)]
        found = np.sort(np.concatenate(keys))
        return np.delete(found, np.flatnonzero(found == _GONE))

    def in_blocks(self, rows: NDArray[np.int64]) -> Iterator[tuple[Block, NDArray[np.int64]]]:
        """Where some rows, counted through all blocks, are: each block with its rows among them."""
        of_block = np.searchsorted(self.ends, rows, side="right")
        for number in np.unique(of_block):
            block = self.blocks[number]
            yield block, rows[of_block == number] - (self.ends[number] - block.length)

    def faces_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The keys of the faces in some rows."""
        keys = [block.faces[at] for block, at in self.in_blocks(rows)]
        return np.concatenate([np.empty(0, np.int64), *keys])

    @property
    def rows(self) -> int:
        """Rows of all blocks together, deleted ones among them."""
        return int(self.ends[-1]) if self.blocks else 0


@dataclass(frozen=True, slots=True)
class NewRow:
    """A face to add: its key, its person's key and name, its labels' text, its vector [d] of unit length."""

    face: int
    person: int
    name: str
    labels: str
    vector: ArrayF32


class Index:
    """The faces of one collection. All methods but `snapshot` belong to the one thread that writes.

    Args:
        dimensions: numbers in each vector.
    """

    def __init__(self, dimensions: int) -> None:
        self.dimensions = dimensions
        self.row_bytes = dimensions + _ROW_BYTES
        self._full_rows = max(_FIRST_ROWS, BLOCK_BYTES // dimensions)
        self._labels = LabelSets()
        self._snapshot = Snapshot((), self._labels.texts)

    @property
    def snapshot(self) -> Snapshot:
        """The state after the last change."""
        return self._snapshot

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the faces take."""
        return self._snapshot.rows * self.row_bytes + self._labels.nbytes

    def add(self, rows: Sequence[NewRow]) -> None:
        """Appends faces."""
        if rows:
            self.add_arrays(
                np.stack([row.vector for row in rows]),
                np.array([row.face for row in rows], np.int64),
                np.array([row.person for row in rows], np.int64),
                [row.name for row in rows],
                [row.labels for row in rows],
            )

    def add_arrays(
        self,
        vectors: ArrayF32,
        faces: NDArray[np.int64],
        persons: NDArray[np.int64],
        names: Sequence[str],
        labels: Sequence[str],
    ) -> None:
        """Appends faces [n]: vectors [n, d], keys, and of each the person's name and the labels' text."""
        numbers = np.array([self._labels.number(each) for each in labels], np.int32)
        blocks = list(self._snapshot.blocks)
        start, count = 0, len(faces)
        while start < count:
            if not blocks or not blocks[-1].room:
                capacity = 2 * len(blocks[-1].faces) if blocks else _FIRST_ROWS
                blocks.append(Block.empty(min(capacity, self._full_rows), self.dimensions))
            block = blocks[-1]
            taken = slice(start, start + min(block.room, count - start))
            size = taken.stop - taken.start
            to = slice(block.length, block.length + size)
            block.vectors.put(to, rounded(vectors[taken]))
            block.faces[to] = faces[taken]
            block.persons[to] = persons[taken]
            block.names[to] = names[taken]
            block.labels[to] = numbers[taken]
            blocks[-1] = replace(block, length=to.stop)
            start = taken.stop
        self._publish(blocks)

    def remove(self, faces: Sequence[int]) -> None:
        """Takes out the faces with these keys."""
        wanted = np.array(faces, np.int64)
        blocks = []
        for block in self._snapshot.blocks:
            hit = np.flatnonzero(np.isin(block.faces[: block.length], wanted))
            if not len(hit):
                blocks.append(block)
                continue
            self._labels.drop(block.labels[hit])
            names, keys = block.names.copy(), block.faces.copy()
            names[hit] = None
            keys[hit] = _GONE
            thinned = replace(block, faces=keys, names=names, gone=block.gone + len(hit))
            if 2 * thinned.live > thinned.length:
                blocks.append(thinned)
            elif thinned.live:
                blocks.append(_without_gone(thinned))
        self._publish(_merged(blocks, self._full_rows))

    def take(self, vectors: Mapping[int, ArrayF32]) -> list[NewRow]:
        """Takes out those of some faces that are here, and gives them.

        Args:
            vectors: [d] as they were enrolled, by the faces' keys.
        """
        wanted = np.array(list(vectors), np.int64)
        taken = []
        for block in self._snapshot.blocks:
            for row in np.flatnonzero(np.isin(block.faces[: block.length], wanted)).tolist():
                text = self._labels.texts[block.labels[row]] or ""
                face, person = int(block.faces[row]), int(block.persons[row])
                taken.append(NewRow(face, person, block.names[row], text, vectors[face]))
        if taken:
            self.remove([row.face for row in taken])
        return taken

    def move(self, faces: Sequence[int], person: int, name: str) -> None:
        """Gives the faces with these keys to another person."""
        wanted = np.array(faces, np.int64)
        blocks = []
        for block in self._snapshot.blocks:
            hit = np.flatnonzero(np.isin(block.faces[: block.length], wanted))
            if len(hit):
                persons, names = block.persons.copy(), block.names.copy()
                persons[hit], names[hit] = person, name
                block = replace(block, persons=persons, names=names)
            blocks.append(block)
        self._publish(blocks)

    def _publish(self, blocks: Sequence[Block]) -> None:
        self._snapshot = Snapshot(tuple(blocks), self._labels.texts)


def _without_gone(block: Block) -> Block:
    """A copy of the rows that are not deleted, without room for more."""
    kept = np.flatnonzero(block.faces[: block.length] != _GONE)
    return Block(
        block.vectors.at(kept),
        block.faces[kept],
        block.persons[kept],
        block.names[kept],
        block.labels[kept],
        len(kept),
        0,
    )


def _merged(blocks: Sequence[Block], most: int) -> list[Block]:
    """The blocks, neighbours that have no more than `most` rows together made one.

    So many deletions leave no crowd of tiny blocks, each of which costs a search a product of its own.
    """
    merged: list[Block] = []
    for block in blocks:
        before = merged[-1] if merged else None
        if before is None or before.live + block.live > most // 2:
            merged.append(block)
            continue
        a, b = _without_gone(before), _without_gone(block)
        merged[-1] = Block(
            Rounded.joined([a.vectors, b.vectors]),
            np.concatenate([a.faces, b.faces]),
            np.concatenate([a.persons, b.persons]),
            np.concatenate([a.names, b.names]),
            np.concatenate([a.labels, b.labels]),
            a.length + b.length,
            0,
        )
    return merged
