"""To and from the messages of mien.v1: what the two clients share."""

import numbers
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, TypeAlias, TypeVar

import numpy as np

from mien.analysis import Analysis, Classification, LabelProbability, Number, Points, Score
from mien.channel import MAX_MESSAGE_BYTES
from mien.errors import InvalidRequest, ServerError
from mien.images import ImageLike, image_message, too_large
from mien.results import (
    Box,
    DetectResult,
    Embedding,
    EmbedResult,
    Face,
    Landmarks,
    ModelIdentity,
    Point,
    VerifyResult,
    shortest,
)
from mien.timing import StageTiming
from mien.v1 import face_pb2 as pb

ModelLike: TypeAlias = str | tuple[str, int] | ModelIdentity
"""A model by its name, by "name:version", by (name, version), or as an answer names it, whose fingerprint
is not compared. No version: the highest ready."""


class FacePolicy(StrEnum):
    """Which faces of a photo are wanted. Everything that takes a policy takes its name, too."""

    LARGEST = "largest"
    CENTER_LARGEST = "center_largest"
    ALL = "all"
    REQUIRE_ONE = "require_one"


PolicyLike: TypeAlias = (
    FacePolicy | Literal["largest", "center_largest", "all", "require_one"] | None
)


@dataclass(frozen=True, slots=True)
class Requirement:
    """What an analyser must say of a face. One of the bounds is given, or both.

    Attributes:
        analyser: the model, one that gives a score, a number or a classification.
        label: of a classification, the label whose probability counts.
        at_least: the least that passes.
        at_most: the most that passes.
    """

    analyser: ModelLike
    label: str = ""
    at_least: float | None = None
    at_most: float | None = None


_MAX_UINT32 = 2**32 - 1
_MAX_INT64 = 2**63 - 1

_PhotoRequest = TypeVar("_PhotoRequest", pb.DetectRequest, pb.EmbedRequest, pb.AnalyzeRequest)


def detect_request(
    image: ImageLike,
    *,
    policy: PolicyLike,
    min_score: float | None,
    min_face_size: float | None,
    max_faces: int | None,
    detector: ModelLike | None,
    analysers: Sequence[ModelLike],
) -> pb.DetectRequest:
    """The request of `detect`."""
    request = pb.DetectRequest(
        image=image_message(image),
        detector=model_ref(detector, "detector"),
        selection=selection_message(policy, min_score, min_face_size, max_faces),
        analysers=model_refs(analysers, "analysers"),
    )
    return fitting(request)


def embed_request(
    image: ImageLike,
    *,
    aligned: bool,
    policy: PolicyLike,
    min_score: float | None,
    min_face_size: float | None,
    max_faces: int | None,
    detector: ModelLike | None,
    embedder: ModelLike | None,
    analysers: Sequence[ModelLike],
) -> pb.EmbedRequest:
    """The request of `embed`."""
    request = pb.EmbedRequest(
        image=image_message(image, aligned=aligned),
        detector=model_ref(detector, "detector"),
        embedder=model_ref(embedder, "embedder"),
        selection=selection_message(policy, min_score, min_face_size, max_faces),
        analysers=model_refs(analysers, "analysers"),
    )
    return fitting(request)


def verify_request(
    a: ImageLike | Embedding,
    b: ImageLike | Embedding,
    *,
    threshold: float | None,
    aligned: bool,
    policy: PolicyLike,
    min_score: float | None,
    min_face_size: float | None,
    detector: ModelLike | None,
    embedder: ModelLike | None,
    analysers: Sequence[ModelLike],
    require: Sequence[Requirement],
    require_quality: bool | float,
) -> pb.VerifyRequest:
    """The request of `verify`."""
    photos = 2 - isinstance(a, Embedding) - isinstance(b, Embedding)
    request = pb.VerifyRequest(
        a=subject_message(a, aligned, "a", photos),
        b=subject_message(b, aligned, "b", photos),
        detector=model_ref(detector, "detector"),
        embedder=model_ref(embedder, "embedder"),
        selection=selection_message(policy, min_score, min_face_size, None),
        threshold=optional_number(threshold, "threshold"),
        analysers=model_refs(analysers, "analysers"),
        require=requirements_message(require, require_quality),
    )
    if request.ByteSize() > MAX_MESSAGE_BYTES:
        larger = "a" if request.a.ByteSize() >= request.b.ByteSize() else "b"
        raise too_large(
            "what a and b hold together",
            "scale the photos down, save them as JPEG, or give the embeddings of `embed` instead",
            f"{larger}.image",
        )
    return request


def detect_result(response: pb.DetectResponse, timing: tuple[StageTiming, ...]) -> DetectResult:
    """The answer of `detect`."""
    return DetectResult(
        faces=tuple(map(face_result, response.faces)),
        detector=identity(response.detector),
        image_width=response.image_width,
        image_height=response.image_height,
        timing=timing,
    )


def embed_result(response: pb.EmbedResponse, timing: tuple[StageTiming, ...]) -> EmbedResult:
    """The answer of `embed`."""
    return EmbedResult(
        faces=tuple(map(face_result, response.faces)),
        embedder=identity(response.embedder),
        detector=identity(response.detector) if response.HasField("detector") else None,
        image_width=response.image_width,
        image_height=response.image_height,
        timing=timing,
    )


def verify_result(response: pb.VerifyResponse, timing: tuple[StageTiming, ...]) -> VerifyResult:
    """The answer of `verify`."""
    from_request = response.threshold_source == pb.THRESHOLD_SOURCE_REQUEST
    return VerifyResult(
        similarity=shortest(response.similarity),
        threshold=shortest(response.threshold),
        threshold_source="request" if from_request else "model",
        matched=response.matched,
        face_a=face_result(response.face_a),
        face_b=face_result(response.face_b),
        embedder=identity(response.embedder),
        detector=identity(response.detector) if response.HasField("detector") else None,
        timing=timing,
    )


def fitting(request: _PhotoRequest) -> _PhotoRequest:
    """The request, if it is small enough for a message.

    Raises:
        InvalidRequest: it is not.
    """
    if request.ByteSize() > MAX_MESSAGE_BYTES:  # by the few bytes around the photo
        raise too_large("the request", "scale the photo down, or save it as JPEG", "image")
    return request


def subject_message(
    subject: ImageLike | Embedding, aligned: bool, side: str, photos: int
) -> pb.Subject:
    """The message for a photo or an embedding.

    Args:
        aligned: it is a 112x112 crop.
        side: named in errors: `a`, `subject`.
        photos: how many share the request, at least 1.

    Raises:
        InvalidRequest, OSError, TypeError: as `image_message` says.
    """
    if isinstance(subject, Embedding):
        try:
            model = pb.ModelIdentity(
                name=subject.model.name,
                version=subject.model.version,
                fingerprint=subject.model.fingerprint,
            )
        except (AttributeError, TypeError, ValueError) as error:
            raise InvalidRequest(
                "an embedding's model must be a ModelIdentity of a name, a whole number as its version,"
                f" and a fingerprint, not {subject.model!r}",
                reason="INVALID_EMBEDDING",
                field=f"{side}.embedding.model",
            ) from error
        return pb.Subject(
            embedding=pb.Embedding(values=subject.values.tolist(), norm=subject.norm, model=model)
        )
    image = image_message(subject, aligned=aligned, field=f"{side}.image", photos=photos)
    return pb.Subject(image=image)


def model_ref(model: ModelLike | None, field: str) -> pb.ModelRef | None:
    """The message for a model, or None for none.

    Raises:
        InvalidRequest: it names no model.
    """
    if model is None:
        return None
    given: object = (model.name, model.version) if isinstance(model, ModelIdentity) else model
    match given:
        case str() as text:
            name, colon, number = text.partition(":")
            if colon and not re.fullmatch("[0-9]{1,19}", number):
                raise _names_no_model(model, f"{field}.version")
            version = int(number or 0)
        case (str() as name, numbers.Integral() as whole):
            version = int(whole)
        case _:
            raise _names_no_model(model, field)
    if not name:
        raise _names_no_model(model, f"{field}.name")
    if not 0 <= version <= _MAX_INT64:
        raise _names_no_model(model, f"{field}.version")
    try:
        return pb.ModelRef(name=name, version=version)
    except UnicodeEncodeError as error:
        raise _names_no_model(model, f"{field}.name") from error


def model_refs(models: Sequence[ModelLike], field: str) -> list[pb.ModelRef]:
    """The messages for models.

    Raises:
        InvalidRequest: they are no list, or one of them names no model.
    """
    if isinstance(models, str):
        raise _invalid_option(f"{field} must be several, as in [{models!r}]", field)
    refs = (model_ref(model, f"{field}[{index}]") for index, model in enumerate(models))
    return [ref or pb.ModelRef() for ref in refs]


def _names_no_model(model: object, field: str) -> InvalidRequest:
    return _invalid_option(
        f'{model!r} names no model: that takes "name", "name:version", (name, version) or the identity'
        " that an answer gives; a version is a whole number from 1 on",
        field,
    )


def requirements_message(
    require: Sequence[Requirement], require_quality: bool | float
) -> pb.Requirements | None:
    """The message for what is required of faces, or None where nothing is.

    Args:
        require_quality: True: that it passes the limits of Enrol; a number: that `overall` is at least it.

    Raises:
        InvalidRequest: what is given is no `Requirement`, or not of one analyser.
    """
    if not require and require_quality is False:
        return None
    message = pb.Requirements()
    if isinstance(require_quality, bool):
        message.quality = require_quality
    else:
        least = optional_number(require_quality, "require.quality_at_least")
        message.quality_at_least = least or 0.0
    for index, each in enumerate(require):
        field = f"require.analysers[{index}]"
        if not isinstance(each, Requirement):
            raise _invalid_option(f"require takes mien.Requirement, not {each!r}", field)
        message.analysers.add(
            analyser=model_ref(each.analyser, f"{field}.analyser"),
            label=each.label,
            at_least=optional_number(each.at_least, f"{field}.at_least"),
            at_most=optional_number(each.at_most, f"{field}.at_most"),
        )
    return message


def selection_message(
    policy: PolicyLike,
    min_score: float | None,
    min_face_size: float | None,
    max_faces: int | None,
) -> pb.FaceSelection | None:
    """The message for which faces are wanted, or None where nothing is said.

    Raises:
        InvalidRequest: an option is of a wrong type, or no policy.
    """
    if policy is None and min_score is None and min_face_size is None and max_faces is None:
        return None
    if policy is not None and policy not in list(FacePolicy):
        names = ", ".join(FacePolicy)
        raise _invalid_option(
            f"the policy must be one of {names}, not {policy!r}", "selection.policy"
        )
    return pb.FaceSelection(
        policy=pb.FacePolicy.Value(f"FACE_POLICY_{(policy or 'unspecified').upper()}"),
        min_score=optional_number(min_score, "selection.min_score"),
        min_face_size=optional_number(min_face_size, "selection.min_face_size"),
        max_faces=optional_count(max_faces, "selection.max_faces"),
    )


def optional_number(value: object, field: str) -> float | None:
    """A number, or None.

    Raises:
        InvalidRequest: it is neither.
    """
    if value is None:
        return None
    if not isinstance(value, numbers.Real):
        name = field.rpartition(".")[2]
        raise _invalid_option(f"{name} must be a number, not {value!r}", field)
    return float(value)


def optional_count(value: object, field: str) -> int | None:
    """A whole number, or None.

    Raises:
        InvalidRequest: it is neither.
    """
    if value is None:
        return None
    if not (isinstance(value, numbers.Integral) and 0 <= int(value) <= _MAX_UINT32):
        name = field.rpartition(".")[2]
        raise _invalid_option(f"{name} must be a whole number from 1 on, not {value!r}", field)
    return int(value)


def _invalid_option(message: str, field: str) -> InvalidRequest:
    return InvalidRequest(message, reason="INVALID_OPTION", field=field)


def identity(message: pb.ModelIdentity) -> ModelIdentity:
    """A model that answered."""
    return ModelIdentity(message.name, message.version, message.fingerprint)


def face_result(message: pb.Face) -> Face:
    """A face of an answer."""
    normalized = message.HasField("box_normalized")
    return Face(
        box=_box(message.box) if message.HasField("box") else None,
        box_normalized=_box(message.box_normalized) if normalized else None,
        score=shortest(message.score),
        landmarks=_landmarks(message.landmarks) if message.HasField("landmarks") else None,
        embedding=embedding_result(message.embedding) if message.HasField("embedding") else None,
        analyses=tuple(map(analysis_result, message.analyses)),
    )


def _box(message: pb.Box) -> Box:
    return Box(message.x1, message.y1, message.x2, message.y2)


def _point(message: pb.Point) -> Point:
    return Point(message.x, message.y)


def _landmarks(message: pb.Landmarks) -> Landmarks:
    return Landmarks(
        left_eye=_point(message.left_eye),
        right_eye=_point(message.right_eye),
        nose=_point(message.nose),
        left_mouth=_point(message.left_mouth),
        right_mouth=_point(message.right_mouth),
    )


def embedding_result(message: pb.Embedding) -> Embedding:
    """An embedding of an answer."""
    values = np.array(message.values, dtype=np.float32)
    return Embedding(values, message.norm, identity(message.model))


def analysis_result(message: pb.Analysis) -> Analysis:
    """What an analyser says of a face.

    Raises:
        ServerError: it is of a kind that this client does not know.
    """
    model = identity(message.model)
    match message.WhichOneof("answer"):
        case "classification":
            ranked = message.classification.labels
            return Classification(
                model, tuple(LabelProbability(each.label, each.probability) for each in ranked)
            )
        case "score":
            return Score(model, message.score)
        case "number":
            return Number(model, message.number.value, message.number.unit)
        case "points":
            return Points(model, tuple(Point(each.x, each.y) for each in message.points.points))
    raise ServerError(
        f"{model.name} gave an answer of a kind that this client does not know: update it.",
        reason="UNKNOWN_ANSWER",
    )
