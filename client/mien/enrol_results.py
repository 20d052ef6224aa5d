"""A face to enrol, how good it is, and what becomes of it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from mien.images import ImageLike
from mien.results import Embedding, Face, shortest

Labels = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class NewFace:
    """A face to enrol.

    Attributes:
        image: a photo as `mien.ImageLike`, or an embedding from an earlier answer.
        person: whose it is, in your words: 1 to 256 bytes of UTF-8. None: nobody's yet; `identify` does not
            look at it, `Gallery.group` puts it beside faces like it, and `Gallery.move` gives it to a person.
        labels: what you want to know of it later; `identify` can look among faces with certain ones.
        request_key: makes it safe to enrol it again: a face that was enrolled with this key is answered as
            "existing". Empty: a key of its own, for the SDK's retries.
        aligned: the image is a 112x112 crop, aligned already.
    """

    image: ImageLike | Embedding
    person: str | None
    labels: Labels = field(default_factory=dict)
    request_key: str = ""
    aligned: bool = False


@dataclass(frozen=True, slots=True)
class FaceQuality:
    """Figures of a face, from its pixels and landmarks; None is unknown, as of an aligned crop.

    Of a face without landmarks the first three are of its box, and how it is turned is unknown.

    Attributes:
        sharpness: 0 or more: a sharp face has about 0.2, a blurred one less than 0.1.
        brightness: mean, in [0, 1].
        contrast: standard deviation of the brightness, in [0, 1].
        size: the shorter side of its box, in pixels.
        yaw: how far it is turned, in degrees; above 0, to the right of the picture.
        pitch: how far it looks up, in degrees; below 0, down.
        roll: how far it leans, in degrees, clockwise.
        cut_off: the share of it that is outside of the photo.
        next_face: the side of the photo's next largest face, as a part of this one's; 0 if it is alone.
        score: the detector's confidence, in [0, 1].
        overall: how good it is to recognise somebody by, in [0, 1]: the other figures in one number, but for
            `next_face` and `roll`. None: the server does not tell it.
    """

    sharpness: float
    brightness: float
    contrast: float
    size: float | None = None
    yaw: float | None = None
    pitch: float | None = None
    roll: float | None = None
    cut_off: float | None = None
    next_face: float | None = None
    score: float | None = None
    overall: float | None = None

    def as_dict(self) -> dict[str, float | None]:
        """The figures by their names."""
        figures: dict[str, float | None] = asdict(self)
        return {key: None if v is None else shortest(v) for key, v in figures.items()}


@dataclass(frozen=True, slots=True)
class QualityIssue:
    """One thing that is wrong with a face.

    Attributes:
        problem: "small", "blurred", "turned", "dark", "bright", "flat", "cut_off", "several_faces", "unsure"
            or "like_another_person".
        value: the figure that says so.
        limit: what would pass.
        person: the other person, for "like_another_person".
    """

    problem: str
    value: float
    limit: float
    person: str = ""

    def as_dict(self) -> dict[str, Any]:
        """`problem`, `value`, `limit`, and `person` if there is one."""
        told = {"problem": self.problem, "value": shortest(self.value)}
        told["limit"] = shortest(self.limit)
        return {**told, "person": self.person} if self.person else told


@dataclass(frozen=True, slots=True)
class EnrolResult:
    """What became of a face.

    Attributes:
        outcome: "enrolled", "existing" (enrolled before, with the same request key) or "refused".
        face_id: the enrolled face; "" if it was refused.
        person: whose it is; of an existing face, whose it is now.
        face: where it is in its photo; None for an embedding, and where there is none.
        quality: its figures; None where `face` is.
        issues: why it was refused, or, if it is enrolled, what to be wary of.
        reason: of a refused face, such as "LOW_QUALITY" or "FACE_NOT_FOUND".
        message: of a refused face, what is wrong and what to do, for a person.
        field: of a refused face, the field of the request at fault, or "".
    """

    outcome: Literal["enrolled", "existing", "refused"]
    face_id: str
    person: str
    face: Face | None = None
    quality: FaceQuality | None = None
    issues: tuple[QualityIssue, ...] = ()
    reason: str = ""
    message: str = ""
    field: str = ""

    def as_dict(self) -> dict[str, Any]:
        """All of it."""
        return {
            "outcome": self.outcome,
            "face_id": self.face_id,
            "person": self.person,
            "face": self.face.as_dict() if self.face else None,
            "quality": self.quality.as_dict() if self.quality else None,
            "issues": [issue.as_dict() for issue in self.issues],
            "reason": self.reason,
            "message": self.message,
            "field": self.field,
        }
