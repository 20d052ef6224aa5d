"""What the server answers, as plain frozen data. `as_dict` gives what JSON can hold."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self, overload

import numpy as np
from numpy.typing import NDArray

from mien.crops import cut
from mien.errors import EmbeddingMismatch, InvalidRequest
from mien.images import EncodedOrPicture
from mien.timing import StageTiming

if TYPE_CHECKING:
    import PIL.Image

    from mien.analysis import Analysis

MARGIN = 0.25
"""What `Face.crop` leaves around a box, as a part of its sides."""


def shortest(value: float) -> float:
    """A float32's shortest decimal: 0.363 instead of 0.3630000054836273."""
    return float(str(np.float32(value)))


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """Which model answered.

    Attributes:
        name: the model's name.
        version: 1 or more.
        fingerprint: 16 hexadecimal digits over weights, preprocessing and alignment. Embeddings
            compare only if their fingerprints are equal.
    """

    name: str
    version: int
    fingerprint: str

    def __str__(self) -> str:
        return f"{self.name} version {self.version} (fingerprint {self.fingerprint})"

    def as_dict(self) -> dict[str, Any]:
        """`name`, `version` and `fingerprint`."""
        return {"name": self.name, "version": self.version, "fingerprint": self.fingerprint}


class Point(NamedTuple):
    """A position: pixels to the right of the left border and below the upper one."""

    x: float
    y: float

    def __repr__(self) -> str:
        return f"Point({self.x:.5g}, {self.y:.5g})"


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle by its corners, x1 < x2 and y1 < y2; in pixels, or in fractions of the photo."""

    x1: float
    y1: float
    x2: float
    y2: float

    def __repr__(self) -> str:
        return f"Box({self.x1:.5g}, {self.y1:.5g}, {self.x2:.5g}, {self.y2:.5g})"

    @property
    def width(self) -> float:
        """x2 - x1."""
        return self.x2 - self.x1

    @property
    def height(self) -> float:
        """y2 - y1."""
        return self.y2 - self.y1

    def as_list(self) -> list[float]:
        """[x1, y1, x2, y2]."""
        return [shortest(value) for value in (self.x1, self.y1, self.x2, self.y2)]


@dataclass(frozen=True, slots=True)
class Landmarks:
    """The five points that alignment uses, in pixels. Left and right are the viewer's."""

    left_eye: Point
    right_eye: Point
    nose: Point
    left_mouth: Point
    right_mouth: Point

    def as_dict(self) -> dict[str, list[float]]:
        """Each landmark's [x, y] by its name."""
        return {name: [shortest(value) for value in getattr(self, name)] for name in self.__slots__}


@dataclass(frozen=True, slots=True, eq=False)
class Embedding:
    """A face as a vector. Store it with its model, and give it to `verify` in a photo's place.

    Two are equal if values, norm and model are, to the last bit. Whether they show the same person is
    another question: `similarity`, or `Client.verify`.

    Attributes:
        values: [d] float32, L2 norm 1, read-only; any sequence of d numbers is converted.
        norm: the L2 norm before it was scaled to 1, above 0, rounded to float32. Low for blurred or
            occluded faces.
        model: the model that made it.

    Raises:
        ValueError: the values have not one dimension.
    """

    values: NDArray[np.float32]
    norm: float
    model: ModelIdentity

    def __post_init__(self) -> None:
        values = np.array(self.values, dtype=np.float32)
        if values.ndim != 1:
            raise ValueError(f"an embedding's values must have the shape [d], not {values.shape}")
        values.flags.writeable = False
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "norm", shortest(self.norm))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Embedding):
            return NotImplemented
        same = (self.norm, self.model) == (other.norm, other.model)
        return same and np.array_equal(self.values, other.values)

    def __hash__(self) -> int:
        # What is added makes one zero of the two that are equal.
        return hash(((self.values + np.float32(0)).tobytes(), self.norm, self.model))

    def __repr__(self) -> str:
        return f"Embedding({len(self.values)} values, norm={self.norm:.5g}, model={self.model!r})"

    def similarity(self, other: "Embedding") -> float:
        """The cosine of the two vectors, in [-1, 1], as `Client.verify` answers it, without a call.

        It matches where it is at or above the model's threshold, which `verify` names.

        Raises:
            EmbeddingMismatch: the embeddings come from different models, versions or preprocessing.
        """
        if self.model.fingerprint != other.model.fingerprint:
            raise EmbeddingMismatch(
                f"embeddings of {self.model} and {other.model} cannot be compared: embed both with one model",
                reason="EMBEDDING_MISMATCH",
            )
        if self.values.shape != other.values.shape:
            raise InvalidRequest(
                f"embeddings of {self.model} have {len(self.values)} and {len(other.values)} values: one of"
                " them is not as it was answered",
                reason="INVALID_EMBEDDING",
            )
        cosine = np.dot(self.values.astype(np.float64), other.values.astype(np.float64))
        return float(np.clip(cosine, -1.0, 1.0))

    # Copies and pickles are made anew: numpy's own are writable.
    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.values, self.norm, self.model)

    def as_dict(self) -> dict[str, Any]:
        """`embedding` (d numbers), `norm` and `model`; `from_dict` reads them back exactly."""
        return {
            "embedding": [shortest(value) for value in self.values],
            "norm": shortest(self.norm),
            "model": self.model.as_dict(),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The embedding that `as_dict` wrote; further keys are ignored.

        Raises:
            KeyError: a key is missing. ValueError: the values are no vector.
        """
        model = data["model"]
        identity = ModelIdentity(model["name"], model["version"], model["fingerprint"])
        return cls(data["embedding"], data["norm"], identity)


@dataclass(frozen=True, slots=True)
class Face:
    """One face.

    Attributes:
        box: where it is, in pixels of the upright photo; None for an aligned crop.
        box_normalized: the same as fractions of the photo's size; None for an aligned crop.
        score: the detector's confidence, in [0, 1]; 0 for an aligned crop.
        landmarks: eyes, nose and mouth; None for an aligned crop or a given embedding, and of a detector that
            places none.
        embedding: the face as a vector, from `embed` and `verify` only.
        analyses: one of each analyser that the call asked, in order; `analyze` has them beside the face.
    """

    box: Box | None
    box_normalized: Box | None = field(repr=False)
    score: float
    landmarks: Landmarks | None = field(repr=False)
    embedding: Embedding | None = None
    analyses: "tuple[Analysis, ...]" = ()

    def __getitem__(self, model: str) -> "Analysis":
        """What the model of this name says; of several versions of it, the first.

        Raises:
            KeyError: it was not asked; the message lists those that were.
        """
        return said_by(model, self.analyses)

    @overload
    def crop(self, photo: NDArray[np.uint8], *, margin: float = MARGIN) -> NDArray[np.uint8]: ...
    @overload
    def crop(self, photo: EncodedOrPicture, *, margin: float = MARGIN) -> "PIL.Image.Image": ...
    def crop(
        self, photo: "NDArray[np.uint8] | EncodedOrPicture", *, margin: float = MARGIN
    ) -> "NDArray[np.uint8] | PIL.Image.Image":
        """The face cut out of its photo, upright, for a person to look at.

        It is the box with a margin, as far as the photo goes; it is not turned or scaled, so it is no aligned
        crop: to embed the face, give `embed` the photo.

        Args:
            photo: the one in which the face was found. An array of pixels, [height, width, ...], needs
                nothing; a path, bytes and a PIL image need Pillow.
            margin: on each side, as a part of the box's width or height, 0 or more.

        Returns:
            A part of the array, not copied, for an array; else a PIL image, RGB.

        Raises:
            ValueError: the face has no box, as that of an aligned crop; the photo is of another size than the
                one in which the face was found; the margin is below 0.
            ImportError: Pillow is not installed.
            OSError: the photo cannot be read.
        """
        if self.box is None:
            raise ValueError("this face has no box: nothing has detected it")
        size = None
        if self.box_normalized is not None:
            # Rounded: the box's sides are float32.
            size = (
                round(self.box.width / self.box_normalized.width),
                round(self.box.height / self.box_normalized.height),
            )
        return cut(photo, self.box.as_list(), margin, size)

    def as_dict(self) -> dict[str, Any]:
        """`box`, `score`, `landmarks`, what the embedding adds, if there is one, and `analyses` likewise."""
        told = [analysis.as_dict() for analysis in self.analyses]
        return {
            "box": self.box.as_list() if self.box else None,
            "score": shortest(self.score),
            "landmarks": self.landmarks.as_dict() if self.landmarks else None,
            **(self.embedding.as_dict() if self.embedding else {}),
            **({"analyses": told} if told else {}),
        }


@dataclass(frozen=True, slots=True)
class DetectResult:
    """The faces of one photo.

    Attributes:
        faces: by the policy's order, by falling score for "all"; empty if there is none.
        detector: the detector that ran.
        image_width: the upright photo's width in pixels.
        image_height: its height in pixels.
        timing: the server's stages, where the call asked for them.
    """

    faces: tuple[Face, ...]
    detector: ModelIdentity
    image_width: int
    image_height: int
    timing: tuple[StageTiming, ...] = field(default=(), compare=False)

    def as_dict(self) -> dict[str, Any]:
        """`faces`, `detector`, `image_width`, `image_height`, and `timing` where asked for."""
        return {
            "faces": [face.as_dict() for face in self.faces],
            "detector": self.detector.as_dict(),
            "image_width": self.image_width,
            "image_height": self.image_height,
            **timing_dict(self.timing),
        }


@dataclass(frozen=True, slots=True)
class EmbedResult:
    """The faces of one photo with their embeddings.

    Attributes:
        faces: by the policy's order; one, unless the policy is "all".
        embedder: the model that made the embeddings.
        detector: the detector that ran; None for an aligned crop.
        image_width: the upright photo's width in pixels.
        image_height: its height in pixels.
        timing: the server's stages, where the call asked for them.
    """

    faces: tuple[Face, ...]
    embedder: ModelIdentity
    detector: ModelIdentity | None
    image_width: int
    image_height: int
    timing: tuple[StageTiming, ...] = field(default=(), compare=False)

    @property
    def embeddings(self) -> tuple[Embedding, ...]:
        """One embedding per face, in the order of `faces`."""
        return tuple(face.embedding for face in self.faces if face.embedding)

    @property
    def embedding(self) -> Embedding:
        """The first face's embedding: the wanted one, unless the policy is "all".

        Raises:
            IndexError: the policy was "all" and the photo has no face.
        """
        return self.embeddings[0]

    def as_dict(self) -> dict[str, Any]:
        """`faces`, `model`, `detector`, the photo's size, and `timing` where asked for."""
        return {
            "faces": [face.as_dict() for face in self.faces],
            "model": self.embedder.as_dict(),
            "detector": self.detector.as_dict() if self.detector else None,
            "image_width": self.image_width,
            "image_height": self.image_height,
            **timing_dict(self.timing),
        }


@dataclass(frozen=True, slots=True)
class VerifyResult:
    """The comparison of two faces.

    Attributes:
        similarity: cosine of the two embeddings, in [-1, 1]. It is no probability.
        threshold: the threshold that was used, in [-1, 1].
        threshold_source: whether the threshold was the model's or the request's own.
        matched: whether similarity >= threshold: the same person.
        face_a: the face compared on side a, with its embedding.
        face_b: the face compared on side b, with its embedding.
        embedder: the model that made both embeddings.
        detector: the detector that ran; None if no photo needed one.
        timing: the server's stages, where the call asked for them.
    """

    similarity: float
    threshold: float
    threshold_source: Literal["model", "request"]
    matched: bool
    face_a: Face
    face_b: Face
    embedder: ModelIdentity
    detector: ModelIdentity | None
    timing: tuple[StageTiming, ...] = field(default=(), compare=False)

    def as_dict(self) -> dict[str, Any]:
        """`similarity`, `threshold`, `threshold_source`, `matched`, `model`, `detector`, `faces`.

        The faces are those of side a and b, without their embeddings.
        """
        return {
            "similarity": shortest(self.similarity),
            "threshold": shortest(self.threshold),
            "threshold_source": self.threshold_source,
            "matched": self.matched,
            "model": self.embedder.as_dict(),
            "detector": self.detector.as_dict() if self.detector else None,
            "faces": [
                replace(face, embedding=None).as_dict() for face in (self.face_a, self.face_b)
            ],
            **timing_dict(self.timing),
        }


def said_by(model: str, analyses: "tuple[Analysis, ...]") -> "Analysis":
    """The first one of a model.

    Raises:
        KeyError: there is none; the message lists the models.
    """
    for analysis in analyses:
        if analysis.model.name == model:
            return analysis
    asked = ", ".join(analysis.model.name for analysis in analyses) or "none"
    raise KeyError(f"{model!r} was not asked; the analysers that were: {asked}")


def timing_dict(timing: tuple[StageTiming, ...]) -> dict[str, Any]:
    """`timing`, where the call asked for it."""
    return {"timing": [stage.as_dict() for stage in timing]} if timing else {}
