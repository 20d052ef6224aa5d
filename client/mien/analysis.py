"""What analysers say of faces, as plain frozen data. `as_dict` gives what JSON can hold."""

from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from mien.enrol_results import FaceQuality
from mien.results import Face, ModelIdentity, Point, said_by, shortest, timing_dict
from mien.timing import StageTiming


class LabelProbability(NamedTuple):
    """A label, and how probable the model thinks it is, in [0, 1]."""

    label: str
    probability: float


@dataclass(frozen=True, slots=True)
class Classification:
    """How probable each label of a model is.

    Attributes:
        model: that says so.
        labels: all of them, by falling probability.
    """

    model: ModelIdentity
    labels: tuple[LabelProbability, ...]

    @property
    def label(self) -> str:
        """The most probable one."""
        return self.labels[0].label

    @property
    def probability(self) -> float:
        """Of `label`."""
        return self.labels[0].probability

    def __str__(self) -> str:
        return f"{self.label} {self.probability:.2f}"

    def as_dict(self) -> dict[str, Any]:
        """`model`, `kind`, `label` and `labels`, the probabilities by label."""
        return {
            **_head(self.model, "classification"),
            "label": self.label,
            "labels": {label: shortest(value) for label, value in self.labels},
        }


@dataclass(frozen=True, slots=True)
class Score:
    """One probability, in [0, 1]: of being live, for a liveness model."""

    model: ModelIdentity
    value: float

    def __str__(self) -> str:
        return f"{self.value:.3f}"

    def as_dict(self) -> dict[str, Any]:
        """`model`, `kind` and `value`."""
        return {**_head(self.model, "score"), "value": shortest(self.value)}


@dataclass(frozen=True, slots=True)
class Number:
    """One number, and what it counts ("years"; perhaps nothing is said)."""

    model: ModelIdentity
    value: float
    unit: str

    def __str__(self) -> str:
        return f"{self.value:.1f} {self.unit}".rstrip()

    def as_dict(self) -> dict[str, Any]:
        """`model`, `kind`, `value` and `unit`."""
        return {**_head(self.model, "number"), "value": shortest(self.value), "unit": self.unit}


@dataclass(frozen=True, slots=True)
class Points:
    """Places in the upright photo, or in the aligned crop that was sent, in the model's order."""

    model: ModelIdentity
    points: tuple[Point, ...]

    def __str__(self) -> str:
        return f"{len(self.points)} points"

    def as_dict(self) -> dict[str, Any]:
        """`model`, `kind` and `points`, [x, y] each."""
        places = [[shortest(value) for value in point] for point in self.points]
        return {**_head(self.model, "points"), "points": places}


Analysis: TypeAlias = Classification | Score | Number | Points
"""What one analyser says of one face. Which kind it is depends on the model alone."""


@dataclass(frozen=True, slots=True)
class AnalyzedFace:
    """One face, and what was found out about it. `face["age"]` is what the model `age` says.

    Attributes:
        face: where it is, and its embedding, where the call asked for it.
        quality: how good it is to recognise somebody by.
        analyses: one of each analyser, in the order in which they were asked for; of defaults, by name.
    """

    face: Face
    quality: FaceQuality
    analyses: tuple[Analysis, ...]

    def __getitem__(self, model: str) -> Analysis:
        """What the model of this name says; of several versions of it, the first.

        Raises:
            KeyError: it was not asked; the message lists those that were.
        """
        return said_by(model, self.analyses)

    def as_dict(self) -> dict[str, Any]:
        """What `Face.as_dict` gives, `quality` and `analyses`."""
        return {
            **self.face.as_dict(),
            "quality": self.quality.as_dict(),
            "analyses": [analysis.as_dict() for analysis in self.analyses],
        }


@dataclass(frozen=True, slots=True)
class AnalyzeResult:
    """The faces of one photo, and what was found out about them.

    Attributes:
        faces: by the policy's order, by falling score for "all"; empty if there is none.
        detector: the detector that ran; None for an aligned crop.
        image_width: the upright photo's width in pixels.
        image_height: its height in pixels.
        timing: the server's stages, where the call asked for them.
        embedder: the model that made the faces' embeddings, where the call asked for them.
    """

    faces: tuple[AnalyzedFace, ...]
    detector: ModelIdentity | None
    image_width: int
    image_height: int
    timing: tuple[StageTiming, ...] = ()
    embedder: ModelIdentity | None = None

    def as_dict(self) -> dict[str, Any]:
        """`faces`, `detector`, `image_width`, `image_height`, and `timing` where asked for."""
        return {
            "faces": [face.as_dict() for face in self.faces],
            "detector": self.detector.as_dict() if self.detector else None,
            "image_width": self.image_width,
            "image_height": self.image_height,
            **timing_dict(self.timing),
        }


def _head(model: ModelIdentity, kind: str) -> dict[str, Any]:
    return {"model": model.as_dict(), "kind": kind}
