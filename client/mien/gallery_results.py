"""What the server answers of galleries, as plain frozen data. `as_dict` gives what JSON can hold."""

from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, Literal

from mien.enrol_results import FaceQuality, Labels
from mien.results import Embedding, Face, ModelIdentity, shortest, timing_dict
from mien.timing import StageTiming


@dataclass(frozen=True, slots=True)
class GalleryInfo:
    """A gallery: a collection of enrolled faces.

    Attributes:
        name: its name.
        embedder: the model that it is pinned to.
        dimensions: numbers in each of its embeddings.
        threshold: the similarity from which on a face is a person's; None: the model's own, which was made
            for comparing two faces and is too low for many.
        persons: how many persons are in it, each with at least one face.
        faces: how many faces.
        memory_bytes: what they take in the server's memory.
        created: when it was made, in UTC.
        unnamed_faces: how many of the faces have no person.
        keeps_crops: whether the server keeps a picture of each face, for `Gallery.reembed`.
    """

    name: str
    embedder: ModelIdentity
    dimensions: int
    threshold: float | None
    persons: int
    faces: int
    memory_bytes: int
    created: datetime
    unnamed_faces: int = 0
    keeps_crops: bool = False

    def as_dict(self) -> dict[str, Any]:
        """All of it, `created` in ISO 8601."""
        threshold = None if self.threshold is None else shortest(self.threshold)
        return {
            "name": self.name,
            "embedder": self.embedder.as_dict(),
            "dimensions": self.dimensions,
            "threshold": threshold,
            "persons": self.persons,
            "faces": self.faces,
            "memory_bytes": self.memory_bytes,
            "created": self.created.isoformat(),
            "unnamed_faces": self.unnamed_faces,
            "keeps_crops": self.keeps_crops,
        }


@dataclass(frozen=True, slots=True)
class SampleMatch:
    """An enrolled face that is like the one looked for; `similarity` is a cosine, in [-1, 1]."""

    face_id: str
    similarity: float
    labels: Labels

    def as_dict(self) -> dict[str, Any]:
        """`face_id`, `similarity` and `labels`."""
        similarity = shortest(self.similarity)
        return {"face_id": self.face_id, "similarity": similarity, "labels": dict(self.labels)}


@dataclass(frozen=True, slots=True)
class PersonMatch:
    """A person whom a face may be of.

    Attributes:
        gallery: where the person is.
        person: who it is.
        similarity: the cosine to the most similar of the person's faces. It is no probability.
        samples: the person's faces at or above the threshold, the most similar first, at most 10.
    """

    gallery: str
    person: str
    similarity: float
    samples: tuple[SampleMatch, ...]

    def as_dict(self) -> dict[str, Any]:
        """`gallery`, `person`, `similarity` and `samples`."""
        return {
            "gallery": self.gallery,
            "person": self.person,
            "similarity": shortest(self.similarity),
            "samples": [sample.as_dict() for sample in self.samples],
        }


@dataclass(frozen=True, slots=True)
class IdentifiedFace:
    """A face that was looked for.

    Attributes:
        face: where it is, without its embedding; None if an embedding was looked for.
        persons: those at or above the threshold, the most similar first; empty: nobody known.
    """

    face: Face | None
    persons: tuple[PersonMatch, ...]

    def as_dict(self) -> dict[str, Any]:
        """`face` and `persons`."""
        return {
            "face": self.face.as_dict() if self.face else None,
            "persons": [person.as_dict() for person in self.persons],
        }


@dataclass(frozen=True, slots=True)
class SearchedGallery:
    """A gallery that was looked in: how many faces it had, and the threshold and where that came from."""

    gallery: str
    faces: int
    threshold: float
    threshold_source: Literal["model", "request", "collection"]

    def as_dict(self) -> dict[str, Any]:
        """All of it."""
        return asdict(self) | {"threshold": shortest(self.threshold)}


@dataclass(frozen=True, slots=True)
class IdentifyResult:
    """Whose faces they are.

    Attributes:
        faces: those of the photo by the policy's order; one for a crop or an embedding.
        searched: the galleries that were looked in.
        embedder: the model that they are pinned to.
        detector: the detector that ran; None if no photo needed one.
        image_width: the upright photo's width in pixels; 0 for an embedding.
        image_height: its height in pixels; 0 for an embedding.
        timing: the server's stages, where the call asked for them.
    """

    faces: tuple[IdentifiedFace, ...]
    searched: tuple[SearchedGallery, ...]
    embedder: ModelIdentity
    detector: ModelIdentity | None
    image_width: int
    image_height: int
    timing: tuple[StageTiming, ...] = field(default=(), compare=False)

    @property
    def persons(self) -> tuple[PersonMatch, ...]:
        """The persons whom the first face may be of: the wanted one, unless the policy is "all"."""
        return self.faces[0].persons if self.faces else ()

    @property
    def best(self) -> PersonMatch | None:
        """The person most like the first face; None: nobody known."""
        return self.persons[0] if self.persons else None

    def as_dict(self) -> dict[str, Any]:
        """`faces`, `searched`, `model`, `detector`, the photo's size, and `timing` where asked for."""
        return {
            "faces": [face.as_dict() for face in self.faces],
            "searched": [each.as_dict() for each in self.searched],
            "model": self.embedder.as_dict(),
            "detector": self.detector.as_dict() if self.detector else None,
            "image_width": self.image_width,
            "image_height": self.image_height,
            **timing_dict(self.timing),
        }


@dataclass(frozen=True, slots=True)
class GalleryPerson:
    """A person of a gallery: the name, the number of faces, and when the first one was enrolled, in UTC."""

    person: str
    faces: int
    created: datetime

    def as_dict(self) -> dict[str, Any]:
        """All of it, `created` in ISO 8601."""
        created = self.created.isoformat()
        return {"person": self.person, "faces": self.faces, "created": created}


@dataclass(frozen=True, slots=True)
class EnrolledFace:
    """A face of a gallery.

    Attributes:
        face_id: 16 hexadecimal digits.
        person: whose it is; "": nobody's yet.
        labels: as it was enrolled.
        quality: its figures as it was enrolled; None if that was as an embedding.
        created: when it was enrolled, in UTC.
    """

    face_id: str
    person: str
    labels: Labels
    quality: FaceQuality | None
    created: datetime

    def as_dict(self) -> dict[str, Any]:
        """All of it, `created` in ISO 8601."""
        return {
            "face_id": self.face_id,
            "person": self.person,
            "labels": dict(self.labels),
            "quality": self.quality.as_dict() if self.quality else None,
            "created": self.created.isoformat(),
        }


@dataclass(frozen=True, slots=True)
class ExportedFace:
    """A face of a gallery with its embedding, which another gallery of the same model can enrol."""

    face: EnrolledFace
    embedding: Embedding

    def as_dict(self) -> dict[str, Any]:
        """What `face` and `embedding` have."""
        return {**self.face.as_dict(), **self.embedding.as_dict()}


@dataclass(frozen=True, slots=True)
class Deleted:
    """What was deleted.

    Attributes:
        faces: how many faces.
        erased: whether no file of the server has a byte of it any more. False while somebody else, such as a
            backup, reads the files: the server then erases the rest as soon as it can.
        emptied: persons who are gone, because they had no other face.
    """

    faces: int
    erased: bool
    emptied: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """`faces`, `erased` and `emptied`."""
        return {"faces": self.faces, "erased": self.erased, "emptied": list(self.emptied)}


@dataclass(frozen=True, slots=True)
class FaceGroup:
    """Faces that belong together, as far as their embeddings tell.

    Attributes:
        face_ids: the first enrolled first.
        similarity: the mean cosine of their pairs; 1 for a single face.
    """

    face_ids: tuple[str, ...]
    similarity: float

    def as_dict(self) -> dict[str, Any]:
        """Both."""
        return {"face_ids": list(self.face_ids), "similarity": shortest(self.similarity)}


@dataclass(frozen=True, slots=True)
class GroupResult:
    """The faces without a person, in groups.

    Attributes:
        groups: the largest first; no face is in two of them.
        faces: how many faces were looked at.
        left_out: how many faces without a person were not, because there are too many for one call.
        threshold: down to which mean similarity groups were joined.
        threshold_source: where it came from.
    """

    groups: tuple[FaceGroup, ...]
    faces: int
    left_out: int
    threshold: float
    threshold_source: Literal["model", "request", "collection"]

    def as_dict(self) -> dict[str, Any]:
        """All of it."""
        return {
            "groups": [group.as_dict() for group in self.groups],
            "faces": self.faces,
            "left_out": self.left_out,
            "threshold": shortest(self.threshold),
            "threshold_source": self.threshold_source,
        }


@dataclass(frozen=True, slots=True)
class ReembedResult:
    """How far a gallery is on its way to another model.

    Attributes:
        embedder: the other model.
        reembedded: faces that it has embedded, in all calls together.
        left: faces that it has not.
        done: whether it is the gallery's model now.
    """

    embedder: ModelIdentity
    reembedded: int
    left: int
    done: bool

    def as_dict(self) -> dict[str, Any]:
        """All of it."""
        return {
            "embedder": self.embedder.as_dict(),
            "reembedded": self.reembedded,
            "left": self.left,
            "done": self.done,
        }
