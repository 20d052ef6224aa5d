"""What the galleries ask of a store: SQLite beside a matrix in memory, or Milvus."""

from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from mien_server.gallery.reading import Written
from mien_server.gallery.record import FaceRow
from mien_server.gallery.reembedding import Anew
from mien_server.gallery.types import (
    Collection,
    CollectionSize,
    EnrolledFace,
    ExportedFace,
    Found,
    Person,
    Query,
)
from mien_server.pipeline.types import ArrayF32, Call, ModelIdentity
from mien_server.scheduling.scheduler import Slot


class OpenCollection(Protocol):
    """A collection that is there."""

    @property
    def collection(self) -> Collection:
        """What it is."""
        ...

    @property
    def faces(self) -> int:
        """Faces in it."""
        ...

    @property
    def named(self) -> int:
        """Faces of persons in it, which is what searches look at."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of this server's memory that they take."""
        ...

    @property
    def slot(self) -> Slot | None:
        """Where its searches wait; None: not in this server."""
        ...


L = TypeVar("L", bound=OpenCollection)
L_contra = TypeVar("L_contra", bound=OpenCollection, contravariant=True)


class FaceReader(Protocol[L_contra]):
    """Tells of the persons and faces of a store. All may raise `GalleryUnavailable`, as a store may."""

    async def of_request(self, live: L_contra, request_key: str) -> Written | None:
        """The face that was enrolled with a request key, if there is one."""
        ...

    async def persons(self, live: L_contra, *, after: int, most: int) -> list[Person]:
        """The persons with keys above `after`, the first enrolled first, at most `most`."""
        ...

    async def person(self, live: L_contra, name: str) -> Person:
        """One person.

        Raises:
            NotInGallery: PERSON_NOT_FOUND.
        """
        ...

    async def faces(self, live: L_contra, *, of: str, after: int, most: int) -> list[EnrolledFace]:
        """The faces with keys above `after`, the first enrolled first, at most `most`.

        Args:
            of: only those of this person; "": all.

        Raises:
            NotInGallery: PERSON_NOT_FOUND.
        """
        ...

    async def exported(self, live: L_contra, *, after: int, most: int) -> list[ExportedFace]:
        """The first faces with keys above `after`, at most `most`, with their embeddings."""
        ...

    async def face(self, live: L_contra, key: int) -> EnrolledFace:
        """One face.

        Raises:
            NotInGallery: ENROLLED_FACE_NOT_FOUND.
        """
        ...


class GalleryStore(Protocol[L]):
    """Keeps faces and finds them. Coroutines run on one event loop, and block it with nothing.

    Every method may raise `GalleryUnavailable` where the store is another process. What a change has been
    acknowledged, every call that begins afterwards sees.
    """

    @property
    def reader(self) -> FaceReader[L]:
        """Tells of its persons and faces."""
        ...

    def close(self) -> None:
        """Makes the changes that wait, and ends the threads. Searches must have ended."""
        ...

    def find(self, name: str) -> L:
        """The collection of this name.

        Raises:
            NotInGallery: COLLECTION_NOT_FOUND.
        """
        ...

    def collections(self) -> list[L]:
        """All collections, by name."""
        ...

    async def size(self, live: L) -> CollectionSize:
        """How much is in a collection."""
        ...

    async def create(
        self,
        name: str,
        embedder: ModelIdentity,
        dimensions: int,
        threshold: float | None,
        *,
        keep_crops: bool = False,
    ) -> L:
        """Makes a collection.

        Raises:
            AlreadyInGallery: COLLECTION_EXISTS.
            InvalidRequest: INVALID_OPTION, this store keeps no crops.
        """
        ...

    async def delete(self, live: L) -> tuple[int, bool]:
        """Deletes a collection: how many faces went with it, and whether they are erased."""
        ...

    async def enrol(self, live: L, rows: Sequence[FaceRow]) -> list[Written]:
        """Adds faces: all of them durably, or none.

        Raises:
            GalleryFull: there is no room for them.
            NotInGallery: COLLECTION_NOT_FOUND, it was deleted meanwhile.
            Unmet: EMBEDDING_MISMATCH, it has got another model meanwhile.
        """
        ...

    async def move(self, live: L, faces: Sequence[int], person: str) -> list[str]:
        """Gives faces to a person; the names of those who have none any more.

        Raises:
            NotInGallery: COLLECTION_NOT_FOUND; ENROLLED_FACE_NOT_FOUND, none is moved.
        """
        ...

    async def delete_faces(self, live: L, faces: Sequence[int]) -> tuple[list[str], bool]:
        """Deletes faces: the names of persons who have none any more, and whether they are erased.

        Raises:
            NotInGallery: COLLECTION_NOT_FOUND; ENROLLED_FACE_NOT_FOUND, none is deleted.
        """
        ...

    async def delete_person(self, live: L, person: str) -> tuple[int, bool]:
        """Deletes a person: how many faces, and whether they are erased.

        Raises:
            NotInGallery: COLLECTION_NOT_FOUND, PERSON_NOT_FOUND.
        """
        ...

    async def unnamed(self, live: L, most: int) -> tuple[NDArray[np.int64], ArrayF32, int]:
        """The first faces without a person, at most `most`: keys [n], vectors [n, d], how many are left."""
        ...

    async def search(
        self, live: L, queries: Sequence[Query], call: Call, *, passed: int
    ) -> Sequence[Found]:
        """Looks for faces in a collection.

        Args:
            queries: at least one.
            passed: how many slots the call has passed already.

        Raises:
            SchedulingError: why there is no result.
            NotInGallery: COLLECTION_NOT_FOUND, it was deleted meanwhile.
        """
        ...


class CropReader(FaceReader[L_contra], Protocol[L_contra]):
    """Tells of the crops, too."""

    async def crop(self, live: L_contra, key: int) -> bytes:
        """The crop of a face of a collection that keeps them: RGB of 112x112 pixels.

        Raises:
            NotInGallery: ENROLLED_FACE_NOT_FOUND.
        """
        ...

    async def to_reembed(
        self, live: L_contra, fingerprint: str, most: int
    ) -> list[tuple[int, bytes]]:
        """The first faces that a model has not embedded: their keys and crops."""
        ...


class CropStore(GalleryStore[L], Protocol[L]):
    """A store that keeps crops, and exchanges a collection's model."""

    @property
    def reader(self) -> CropReader[L]:
        """Tells of its persons, faces and crops."""
        ...

    async def reembedded(self, live: L, fingerprint: str, faces: Sequence[Anew]) -> int:
        """Keeps what another model has made of faces, durably; how many faces it has left."""
        ...

    async def swap(self, live: L, embedder: ModelIdentity, dimensions: int) -> bool:
        """Makes another model that of a collection, if it has embedded every face; whether it did.

        Raises:
            GalleryFull: there is no room for both, which it takes for a moment.
        """
        ...


AnyStore: TypeAlias = GalleryStore[Any]
"""Whoever asks a store hands its collections back to it, and need not know which kind they are."""
