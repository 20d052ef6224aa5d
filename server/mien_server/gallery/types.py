"""The galleries' own vocabulary: plain data, without SQL and gRPC."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from mien_server.errors import Reason
from mien_server.pipeline.quality import Issue
from mien_server.pipeline.requirements import Requirements
from mien_server.pipeline.types import (
    ArrayF32,
    Embedding,
    Face,
    FaceSelection,
    ImageSource,
    ModelIdentity,
    ModelRef,
    Quality,
)

Labels = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Collection:
    """What a collection is, but for its faces.

    Attributes:
        key: the record's own number; no other collection ever has it.
        name: unique among those that exist.
        embedder: the model that it is pinned to.
        dimensions: numbers in each embedding.
        threshold: the cosine from which on a face is a person's, in [-1, 1]; None: the embedder's.
        created: seconds since 1970.
        keeps_crops: whether each face's crop is kept, so that it can be embedded anew.
    """

    key: int
    name: str
    embedder: ModelIdentity
    dimensions: int
    threshold: float | None
    created: float
    keeps_crops: bool = False


@dataclass(frozen=True, slots=True)
class CollectionSize:
    """How much is in a collection: `unnamed` of the faces have no person; `nbytes` of memory."""

    persons: int
    faces: int
    unnamed: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Person:
    """A person of a collection; `created` in seconds since 1970, as the first face was enrolled."""

    key: int
    name: str
    faces: int
    created: float


@dataclass(frozen=True, slots=True)
class EnrolledFace:
    """A face of a collection, without its vector; `created` in seconds since 1970.

    `person` is "" for one that has none.
    """

    key: int
    person: str
    labels: Labels
    quality: Quality | None
    created: float


@dataclass(frozen=True, slots=True)
class ExportedFace:
    """A face of a collection with its embedding."""

    face: EnrolledFace
    embedding: Embedding


@dataclass(frozen=True, slots=True)
class StoredFace:
    """A face as a store keeps it.

    Attributes:
        key: ascending with the time of enrolment.
        person: "" for nobody yet.
        request: the salted hash of the request key; None: there was none.
        norm: of the vector before it was brought to unit length.
        created: seconds since 1970.
        vector: [d] of unit length.
        crop: RGB of 112x112 pixels; None: none is kept.
    """

    key: int
    person: str
    labels: Labels
    quality: Quality | None
    request: bytes | None
    norm: float
    created: float
    vector: ArrayF32
    crop: bytes | None = None


@dataclass(frozen=True, slots=True)
class NewFace:
    """A face that a caller wants enrolled. `person` may be "", for nobody yet, and `request_key`, too."""

    subject: ImageSource | Embedding
    person: str
    labels: Labels
    request_key: str


class QualityPolicy(StrEnum):
    """What happens to faces that make a gallery worse; see the contract."""

    REFUSE = "REFUSE"
    WARN = "WARN"
    ACCEPT = "ACCEPT"


@dataclass(frozen=True, slots=True)
class EnrolOptions:
    """How the faces of one call are found, judged and enrolled.

    Attributes:
        detector: for photos.
        selection: which face of a photo.
        policy: what happens to those of poor quality.
        analysers: that are to tell of each.
        require: what every one of them must fulfil; if one does not, none is enrolled.
    """

    detector: ModelRef
    selection: FaceSelection
    policy: QualityPolicy
    analysers: Sequence[ModelRef] = ()
    require: Requirements = Requirements()  # noqa: RUF009 - frozen


@dataclass(slots=True)
class Enrolment:
    """What became of a face that was to be enrolled.

    Attributes:
        person: whose it is.
        key: of the enrolled face; 0 if it was refused.
        existing: whether it was enrolled before, with the same request key.
        face: in its photo; None for an embedding, and where there is none.
        size: the upright photo's width and height, as the face has a box there.
        quality: its figures; None where `face` is.
        issues: what is wrong with it.
        reason, message, field: why it was refused.
    """

    person: str
    key: int = 0
    existing: bool = False
    face: Face | None = None
    size: tuple[int, int] | None = None
    quality: Quality | None = None
    issues: list[Issue] = field(default_factory=list)
    reason: Reason | None = None
    message: str = ""
    field: str = ""


@dataclass(frozen=True, slots=True)
class Query:
    """One face to look for in one collection.

    Attributes:
        vector: [d] float32 of unit length.
        top_k: how many persons at most, at least 1.
        threshold: persons below are left out; in [-1, 1].
        labels: which a face must have to be looked at.
    """

    vector: ArrayF32
    top_k: int
    threshold: float
    labels: Labels = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Sample:
    """An enrolled face that is like the one looked for, and the cosine to it."""

    key: int
    similarity: float
    labels: Labels


@dataclass(frozen=True, slots=True)
class Match:
    """A person, the cosine to the most similar face, and the faces at or above the threshold."""

    person: str
    similarity: float
    samples: list[Sample]


@dataclass(frozen=True, slots=True)
class Found:
    """What a search found, the most similar person first, and how many faces the collection then had."""

    matches: list[Match]
    faces: int


@dataclass(frozen=True, slots=True)
class FaceGroup:
    """Faces that belong together.

    Attributes:
        faces: their keys, the first enrolled first.
        similarity: the mean cosine of their pairs, in [-1, 1].
    """

    faces: list[int]
    similarity: float


@dataclass(frozen=True, slots=True)
class Reembedding:
    """How far a collection is on its way to another embedder.

    Attributes:
        embedder: the other one.
        done: faces that have been embedded by it.
        left: faces that have not.
        swapped: whether it is the collection's embedder now.
    """

    embedder: ModelIdentity
    done: int
    left: int
    swapped: bool


@dataclass(frozen=True, slots=True)
class Grouped:
    """The answer of Group.

    Attributes:
        groups: the largest first.
        looked_at: how many faces without a person were looked at.
        left_out: how many were not, since there are too many for one call.
        threshold: the mean cosine down to which faces were put together.
        threshold_from: "request", "collection" or "model".
    """

    groups: list[FaceGroup]
    looked_at: int
    left_out: int
    threshold: float
    threshold_from: str


@dataclass(frozen=True, slots=True)
class Searched:
    """A collection that was looked in, and with which threshold.

    Attributes:
        threshold_from: "request", "collection" or "model".
    """

    collection: str
    faces: int
    threshold: float
    threshold_from: str


@dataclass(frozen=True, slots=True)
class IdentifiedFace:
    """A face that was looked for, and who it may be: collections and persons, the most similar first."""

    face: Face | None
    matches: list[tuple[str, Match]]


@dataclass(frozen=True, slots=True)
class Identification:
    """The answer of Identify; sizes are those of the upright photo, 0 for an embedding."""

    faces: list[IdentifiedFace]
    searched: list[Searched]
    embedder: ModelIdentity
    detector: ModelIdentity | None = None
    width: int = 0
    height: int = 0
