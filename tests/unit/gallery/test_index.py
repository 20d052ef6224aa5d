"""The faces in memory: what a search has seen once stays as it saw it, and memory follows the faces."""

import threading
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mien_server.gallery.index import Index, NewRow, Snapshot
from mien_server.gallery.labels import to_text
from mien_server.gallery.rounding import rounded
from tests.unit.gallery.vectors import filled, random_units, rows

D = 8


def state(snapshot: Snapshot) -> dict[int, tuple[int, str, str, tuple[float, ...]]]:
    """Per face: its person, the name, the labels and the vector."""
    return {
        int(block.faces[i]): (
            int(block.persons[i]),
            block.names[i],
            snapshot.label_texts[block.labels[i]] or "",
            tuple(block.vectors.codes[i].tolist()),
        )
        for block in snapshot.blocks
        for i in range(block.length)
        if block.faces[i]
    }


CHANGES = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(1, 150)),
        st.tuples(st.just("remove"), st.lists(st.integers(0, 400), min_size=1, max_size=80)),
        st.tuples(st.just("move"), st.lists(st.integers(0, 400), min_size=1, max_size=5)),
    ),
    max_size=12,
)


@given(CHANGES)
@settings(max_examples=40, deadline=None)
def test_every_state_is_what_the_changes_say_and_stays_as_it_was(
    changes: list[tuple[str, Any]],
) -> None:
    index = Index(D)
    model: dict[int, tuple[int, str, str, tuple[float, ...]]] = {}
    seen = []
    next_face = 1
    for number, (kind, argument) in enumerate(changes):
        faces = list(model)
        if kind == "add":
            vectors = random_units(argument, D, seed=number)
            new = [
                NewRow(next_face + i, 1 + i % 7, f"p{1 + i % 7}", f"label {i % 3}", vectors[i])
                for i in range(argument)
            ]
            index.add(new)
            for row in new:
                model[row.face] = (
                    row.person,
                    row.name,
                    str(row.labels),
                    tuple(rounded(row.vector[None]).codes[0].tolist()),
                )
            next_face += argument
        elif faces:
            chosen = list({faces[i % len(faces)] for i in argument})
            if kind == "remove":
                index.remove(chosen)
                for face in chosen:
                    del model[face]
            else:
                index.move(chosen, 99, "p99")
                for face in chosen:
                    model[face] = (99, "p99", *model[face][2:])
        seen.append((index.snapshot, dict(model)))
        assert index.snapshot.faces == len(model)
    for snapshot, expected in seen:
        assert state(snapshot) == expected


def test_appending_copies_no_vectors() -> None:
    index = filled(random_units(1000, D), range(1, 1001))
    before = [block.vectors for block in index.snapshot.blocks]
    index.add(rows(random_units(10, D), range(1, 11), first=1001))
    after = [block.vectors for block in index.snapshot.blocks]
    assert all(a is b for a, b in zip(before, after, strict=False))


def test_memory_follows_the_faces_that_are_left() -> None:
    index = filled(random_units(4000, D), range(1, 4001))
    full = index.nbytes
    assert full == 4000 * index.row_bytes
    index.remove(range(1, 3801))
    assert index.nbytes <= 2 * 200 * index.row_bytes
    index.remove(range(3801, 4001))
    assert index.nbytes == 0
    assert index.snapshot.blocks == ()


def test_many_deletions_leave_few_blocks() -> None:
    count = 40_000
    index = filled(random_units(count, 128), range(1, count + 1))
    many = len(index.snapshot.blocks)
    for start in range(1, count, 4000):
        index.remove([face for face in range(start, start + 4000) if face % 10])
    assert index.snapshot.faces == count // 10
    assert len(index.snapshot.blocks) <= many


def test_labels_that_nobody_has_any_more_are_forgotten() -> None:
    index = Index(D)
    vectors = random_units(3, D)
    index.add(rows(vectors, [1, 2, 3], labels=[{"a": "1"}, {"a": "1"}, {"b": "2"}]))
    before, full = index.snapshot, index.nbytes
    one, other = to_text({"a": "1"}), to_text({"b": "2"})
    index.remove([1, 3])
    assert [text for text in index.snapshot.label_texts if text] == [one]
    assert other in before.label_texts
    index.remove([2])
    assert not any(index.snapshot.label_texts)
    assert (full > 3 * index.row_bytes, index.nbytes) == (True, 0)


def test_searches_beside_a_writer_see_whole_states() -> None:
    """A writer adds and removes pairs of faces of one person: no state has half of a pair."""
    index = Index(D)
    vectors = random_units(2, D)
    over = threading.Event()

    def write() -> None:
        for pair in range(120):
            index.add(rows(vectors, [pair + 1, pair + 1], first=2 * pair + 1))
            if pair % 3:
                index.remove([2 * pair + 1, 2 * pair + 2])
        over.set()

    thread = threading.Thread(target=write)
    thread.start()
    looked = 0
    while not over.is_set() or not looked:
        _, counts = np.unique(
            [person for person, *_ in state(index.snapshot).values()], return_counts=True
        )
        assert (counts == 2).all()
        looked += 1
    thread.join()
