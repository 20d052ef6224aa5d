"""Collections copied from one store to another: a folder, or a Milvus.

Faces keep their ids, so that a copy that was interrupted goes on where it was: what the target has is not
written again.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from mien_server.errors import OperatorError
from mien_server.gallery.types import Collection, StoredFace


class CopySource(Protocol):
    """A store that is copied from."""

    def collections(self) -> list[Collection]:
        """What is in it."""
        ...

    def salt(self) -> bytes:
        """What its hashes are made with."""
        ...

    def count(self, collection: Collection) -> tuple[int, int]:
        """Faces and persons of a collection, counted anew."""
        ...

    def read(self, collection: Collection) -> Iterator[list[StoredFace]]:
        """All faces of a collection, some at a time."""
        ...


class CopyTarget(CopySource, Protocol):
    """A store that is copied to."""

    @property
    def takes_crops(self) -> bool:
        """Whether it keeps crops."""
        ...

    def take_salt(self, salt: bytes) -> bool:
        """Makes its hashes those of the source, if it has none yet; whether they are now."""
        ...

    def make(self, collection: Collection) -> Collection:
        """The collection, made as the source has it; its key is the target's own."""
        ...

    def missing(self, collection: Collection, keys: Sequence[int]) -> set[int]:
        """Those of the keys that no face of the collection has."""
        ...

    def write(self, collection: Collection, faces: Sequence[StoredFace]) -> None:
        """Writes faces; durable when it returns."""
        ...


@dataclass(frozen=True, slots=True)
class Copied:
    """What became of a collection: how much the source has of it, and how many faces were copied now."""

    name: str
    faces: int
    persons: int
    copied: int


def copy(
    source: CopySource,
    target: CopyTarget,
    *,
    step: Callable[[str, int, int], None],
    warn: Callable[[str], None],
) -> list[Copied]:
    """Copies all collections, and counts both ends.

    Args:
        source: nobody changes it meanwhile.
        target: keeps what it has.
        step: told the collection, how many of its faces have been looked at, and how many there are.
        warn: told what goes without.

    Raises:
        OperatorError: the target has another collection of a name, or the counts differ at the end.
    """
    same_salt = target.take_salt(source.salt())
    if not same_salt:
        warn("the target has request keys of its own: faces are copied without theirs")
    there = {each.name: each for each in target.collections()}
    done = []
    for each in source.collections():
        collection = each
        if each.keeps_crops and not target.takes_crops:
            warn(f"the target keeps no crops: collection {each.name!r} is copied without")
            collection = replace(each, keeps_crops=False)
        into = there.get(collection.name) or target.make(collection)
        if _facts(into) != _facts(collection):
            raise OperatorError(
                f"the target has another collection {collection.name!r}, which is no copy of the source's:"
                " delete or empty one of them"
            )
        done.append(_copy(source, target, collection, into, same_salt, step))
    return done


def _facts(collection: Collection) -> tuple[object, ...]:
    embedder, size = collection.embedder, collection.dimensions
    return embedder, size, collection.threshold, collection.created


def _copy(
    source: CopySource,
    target: CopyTarget,
    collection: Collection,
    into: Collection,
    same_salt: bool,
    step: Callable[[str, int, int], None],
) -> Copied:
    faces, persons = source.count(collection)
    looked_at = copied = 0
    for some in source.read(collection):
        wanted = target.missing(into, [face.key for face in some])
        new = [face for face in some if face.key in wanted]
        if not same_salt:
            new = [replace(face, request=None) for face in new]
        if not into.keeps_crops:
            new = [replace(face, crop=None) for face in new]
        if new:
            target.write(into, new)
        looked_at += len(some)
        copied += len(new)
        step(collection.name, looked_at, faces)
    counted = target.count(into)
    if counted != (faces, persons):
        raise OperatorError(
            f"collection {collection.name!r} has {faces:,} faces of {persons:,} persons in the source and"
            f" {counted[0]:,} of {counted[1]:,} in the target: somebody changed one of them; copy again, or"
            " delete the target's"
        )
    return Copied(collection.name, faces, persons, copied)
