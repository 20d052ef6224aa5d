"""A collection as the store in memory has it."""

from dataclasses import dataclass

from mien_server.gallery.index import Index
from mien_server.gallery.types import Collection
from mien_server.scheduling.scheduler import Slot


@dataclass(frozen=True, slots=True)
class Live:
    """A collection that is there, its faces, and the queue of searches in front of them.

    Attributes:
        index: the faces of persons, which is what searches look at.
        unnamed: the faces without a person.
    """

    collection: Collection
    index: Index
    unnamed: Index
    slot: Slot

    @property
    def faces(self) -> int:
        """Faces in it."""
        return self.index.snapshot.faces + self.unnamed.snapshot.faces

    @property
    def named(self) -> int:
        """Faces of persons in it."""
        return self.index.snapshot.faces

    @property
    def nbytes(self) -> int:
        """Bytes of memory that they take."""
        return self.index.nbytes + self.unnamed.nbytes
