"""To and from the messages of mien.v1's galleries: what the two clients share."""

import hashlib
import secrets
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Literal, TypeAlias

import numpy as np
from google.protobuf.message import Message
from numpy.typing import NDArray

from mien.channel import MAX_MESSAGE_BYTES
from mien.errors import InvalidRequest, MienError, refused
from mien.gallery_results import (
    Deleted,
    EnrolledFace,
    EnrolResult,
    ExportedFace,
    FaceGroup,
    FaceQuality,
    GalleryInfo,
    GalleryPerson,
    GroupResult,
    IdentifiedFace,
    IdentifyResult,
    NewFace,
    PersonMatch,
    QualityIssue,
    ReembedResult,
    SampleMatch,
    SearchedGallery,
)
from mien.images import ImageLike, too_large
from mien.messages import (
    ModelLike,
    PolicyLike,
    embedding_result,
    face_result,
    identity,
    model_ref,
    optional_count,
    optional_number,
    selection_message,
    subject_message,
)
from mien.results import Embedding
from mien.timing import StageTiming
from mien.v1 import face_pb2
from mien.v1 import gallery_pb2 as pb

QualityPolicyLike: TypeAlias = Literal["refuse", "warn", "accept"]
"""What happens to faces of poor quality: they are refused; or enrolled, with the issues in the answer; or
enrolled without a look at what is enrolled already."""

POLICIES = ("refuse", "warn", "accept")

EMBEDDINGS_A_CALL = 32

_SOURCES: Mapping[int, Literal["model", "request", "collection"]] = {
    face_pb2.THRESHOLD_SOURCE_MODEL: "model",
    face_pb2.THRESHOLD_SOURCE_REQUEST: "request",
    face_pb2.THRESHOLD_SOURCE_COLLECTION: "collection",
}

_OUTCOMES: Mapping[int, Literal["enrolled", "existing", "refused"]] = {
    pb.ENROL_OUTCOME_ENROLLED: "enrolled",
    pb.ENROL_OUTCOME_EXISTING: "existing",
    pb.ENROL_OUTCOME_REFUSED: "refused",
}


def text(value: object, field: str) -> str:
    """A text as the server takes it.

    Raises:
        InvalidRequest: it is no str, or one that UTF-8 cannot hold.
    """
    if not isinstance(value, str):
        problem = f"it must be a str, not {value!r}"
    else:
        try:
            value.encode()
        except UnicodeEncodeError as error:
            problem = f"{value!r} is no text: {error.reason}"
        else:
            return value
    raise InvalidRequest(f"{field}: {problem}", reason="INVALID_OPTION", field=field)


def _labels(labels: Mapping[str, str], field: str) -> dict[str, str]:
    return {text(key, field): text(value, field) for key, value in labels.items()}


def _person_id(person: str | None, field: str) -> str:
    if person == "":
        raise InvalidRequest(
            f"{field}: it is empty: say whose face it is, or None for nobody's",
            reason="INVALID_OPTION",
            field=field,
        )
    return "" if person is None else text(person, field)


def create_request(
    name: str, embedder: ModelLike | None, threshold: float | None, keep_crops: bool = False
) -> pb.CreateCollectionRequest:
    """The request of `create`."""
    return pb.CreateCollectionRequest(
        name=text(name, "name"),
        embedder=model_ref(embedder, "embedder"),
        threshold=optional_number(threshold, "threshold"),
        keep_crops=keep_crops,
    )


def info(message: pb.Collection) -> GalleryInfo:
    """A gallery."""
    return GalleryInfo(
        name=message.name,
        embedder=identity(message.embedder),
        dimensions=message.dimensions,
        threshold=message.threshold if message.HasField("threshold") else None,
        persons=message.persons,
        faces=message.faces,
        memory_bytes=message.memory_bytes,
        created=_time(message),
        unnamed_faces=message.unnamed_faces,
        keeps_crops=message.keeps_crops,
    )


def enrol_request(
    name: str,
    faces: Sequence[NewFace],
    *,
    quality_policy: str,
    policy: PolicyLike,
    min_score: float | None,
    min_face_size: float | None,
    detector: ModelLike | None,
    content_keys: bool = False,
) -> pb.EnrolRequest:
    """The request of `enrol`, `enrol_faces` and `enrol_many`.

    Args:
        content_keys: faces without a request key get one by what they are, rather than a random one.
    """
    if quality_policy not in POLICIES:
        raise InvalidRequest(
            f"the quality policy must be one of {', '.join(POLICIES)}, not {quality_policy!r}",
            reason="INVALID_OPTION",
            field="quality_policy",
        )
    photos = max(1, sum(not isinstance(face.image, Embedding) for face in faces))
    messages = []
    for i, face in enumerate(faces):
        subject = subject_message(face.image, face.aligned, f"faces[{i}].subject", photos)
        person = _person_id(face.person, f"faces[{i}].person_id")
        labels = _labels(face.labels, f"faces[{i}].labels")
        key = text(face.request_key, f"faces[{i}].request_key")
        # Without one, a retry after a broken connection could enrol the face twice.
        key = key or (content_key(person, subject) if content_keys else secrets.token_hex(16))
        messages.append(
            pb.NewFace(subject=subject, person_id=person, labels=labels, request_key=key)
        )
    request = pb.EnrolRequest(
        collection=name,
        faces=messages,
        detector=model_ref(detector, "detector"),
        selection=selection_message(policy, min_score, min_face_size, None),
        quality_policy=pb.QualityPolicy.Value(f"QUALITY_POLICY_{quality_policy.upper()}"),
    )
    if request.ByteSize() > MAX_MESSAGE_BYTES:
        raise too_large("what the faces hold together", "send fewer of them at a time", "faces")
    return request


def content_key(person: str, subject: face_pb2.Subject) -> str:
    """The request key of a face that is known by its person and its bytes, 40 hexadecimal digits.

    The file of a photo gives the same key whatever its name is.
    """
    image = subject.image
    if subject.WhichOneof("subject") == "embedding":
        values = np.array(subject.embedding.values, "<f4").tobytes()
        parts = [f"embedding {subject.embedding.model.fingerprint} ".encode(), values]
    elif image.WhichOneof("source") == "encoded":
        parts = [image.encoded]
    elif image.WhichOneof("source") == "pixels":
        parts = _pixels_of(image.pixels)
    else:
        crop = image.aligned_face
        is_encoded = crop.WhichOneof("crop") == "encoded"
        parts = [b"aligned ", *([crop.encoded] if is_encoded else _pixels_of(crop.pixels))]
    whose = hashlib.sha256(person.encode()).digest()
    return hashlib.blake2b(b"".join(parts), key=whose, digest_size=20).hexdigest()


def _pixels_of(pixels: face_pb2.Pixels) -> list[bytes]:
    return [f"pixels {pixels.height} {pixels.width} ".encode(), pixels.data]


def faces_in_a_call(face: NewFace) -> int:
    """How many faces like this one share a call of `enrol_many`.

    A photo takes long by itself, and may fail by itself; embeddings are written together much quicker.
    """
    return EMBEDDINGS_A_CALL if isinstance(face.image, Embedding) else 1


def enrol_outcomes(response: pb.EnrolResponse) -> list[tuple[EnrolResult, MienError | None]]:
    """What became of each face, with the exception that it would have been by itself."""
    return [
        (result, refused_error(result) if result.outcome == "refused" else None)
        for result in enrol_results(response)
    ]


def enrol_results(response: pb.EnrolResponse) -> tuple[EnrolResult, ...]:
    """What became of each face."""
    return tuple(_enrol_result(each) for each in response.results)


def enrolled_or_raise(response: pb.EnrolResponse) -> EnrolResult:
    """What became of the only face of a request.

    Raises:
        MienError: it was refused.
    """
    (result,) = enrol_results(response)
    if result.outcome == "refused":
        raise refused_error(result)
    return result


def refused_error(result: EnrolResult) -> MienError:
    """The exception that a refused face would be by itself."""
    return refused(result.message, reason=result.reason, field=result.field, method="Enrol")


def _enrol_result(message: pb.EnrolResult) -> EnrolResult:
    return EnrolResult(
        outcome=_OUTCOMES.get(message.outcome, "refused"),
        face_id=message.face_id,
        person=message.person_id,
        face=face_result(message.face) if message.HasField("face") else None,
        quality=quality_from(message.quality) if message.HasField("quality") else None,
        issues=tuple(
            QualityIssue(
                pb.QualityProblem.Name(issue.problem).removeprefix("QUALITY_PROBLEM_").lower(),
                issue.value,
                issue.limit,
                issue.person_id,
            )
            for issue in message.issues
        ),
        reason=message.reason,
        message=message.message,
        field=message.field,
    )


def quality_from(message: face_pb2.FaceQuality) -> FaceQuality:
    """A face's figures."""
    return FaceQuality(
        sharpness=message.sharpness,
        brightness=message.brightness,
        contrast=message.contrast,
        size=message.size if message.HasField("size") else None,
        yaw=message.yaw if message.HasField("yaw") else None,
        pitch=message.pitch if message.HasField("pitch") else None,
        roll=message.roll if message.HasField("roll") else None,
        cut_off=message.cut_off if message.HasField("cut_off") else None,
        next_face=message.next_face if message.HasField("next_face") else None,
        score=message.score if message.HasField("score") else None,
    )


def identify_request(
    names: Sequence[str],
    image: ImageLike | Embedding,
    *,
    aligned: bool,
    top_k: int | None,
    threshold: float | None,
    labels: Mapping[str, str] | None,
    policy: PolicyLike,
    min_score: float | None,
    min_face_size: float | None,
    max_faces: int | None,
    detector: ModelLike | None,
) -> pb.IdentifyRequest:
    """The request of `identify`."""
    request = pb.IdentifyRequest(
        collections=[text(name, f"collections[{i}]") for i, name in enumerate(names)],
        subject=subject_message(image, aligned, "subject", 1),
        detector=model_ref(detector, "detector"),
        selection=selection_message(policy, min_score, min_face_size, max_faces),
        top_k=optional_count(top_k, "top_k"),
        threshold=optional_number(threshold, "threshold"),
        labels=_labels(labels or {}, "labels"),
    )
    if request.ByteSize() > MAX_MESSAGE_BYTES:  # by the few bytes around the photo
        raise too_large("the request", "scale the photo down, or save it as JPEG", "subject.image")
    return request


def identify_result(
    response: pb.IdentifyResponse, timing: tuple[StageTiming, ...]
) -> IdentifyResult:
    """The result of `identify`."""
    return IdentifyResult(
        faces=tuple(
            IdentifiedFace(
                face_result(found.face) if found.HasField("face") else None,
                tuple(_person_match(match) for match in found.persons),
            )
            for found in response.faces
        ),
        searched=tuple(
            SearchedGallery(
                each.collection,
                each.faces,
                each.threshold,
                _SOURCES.get(each.threshold_source, "model"),
            )
            for each in response.searched
        ),
        embedder=identity(response.embedder),
        detector=identity(response.detector) if response.HasField("detector") else None,
        image_width=response.image_width,
        image_height=response.image_height,
        timing=timing,
    )


def _person_match(message: pb.PersonMatch) -> PersonMatch:
    samples = (
        SampleMatch(each.face_id, each.similarity, dict(each.labels)) for each in message.samples
    )
    return PersonMatch(message.collection, message.person_id, message.similarity, tuple(samples))


def person(message: pb.Person) -> GalleryPerson:
    """A person."""
    return GalleryPerson(message.person_id, message.faces, _time(message))


def enrolled_face(message: pb.EnrolledFace) -> EnrolledFace:
    """A face of a gallery."""
    return EnrolledFace(
        message.face_id,
        message.person_id,
        dict(message.labels),
        quality_from(message.quality) if message.HasField("quality") else None,
        _time(message),
    )


def exported_face(message: pb.ExportedFace) -> ExportedFace:
    """A face of a gallery with its embedding."""
    return ExportedFace(enrolled_face(message.face), embedding_result(message.embedding))


def face_ids(given: str | Sequence[str]) -> list[str]:
    """One or several ids of faces."""
    return [given] if isinstance(given, str) else list(given)


def group_request(name: str, threshold: float | None, min_faces: int | None) -> pb.GroupRequest:
    """The request of `group`."""
    return pb.GroupRequest(
        collection=name,
        threshold=optional_number(threshold, "threshold"),
        min_faces=optional_count(min_faces, "min_faces"),
    )


def group_result(response: pb.GroupResponse) -> GroupResult:
    """The result of `group`."""
    return GroupResult(
        groups=tuple(FaceGroup(tuple(g.face_ids), g.similarity) for g in response.groups),
        faces=response.faces,
        left_out=response.left_out,
        threshold=response.threshold,
        threshold_source=_SOURCES.get(response.threshold_source, "model"),
    )


def reembed_request(
    name: str, embedder: ModelLike | None, max_faces: int | None
) -> pb.ReembedRequest:
    """The request of `reembed`."""
    return pb.ReembedRequest(
        collection=name,
        embedder=model_ref(embedder, "embedder"),
        max_faces=optional_count(max_faces, "max_faces") or 0,
    )


def crop(message: face_pb2.Pixels) -> NDArray[np.uint8]:
    """The picture of a face: [height, width, 3] RGB."""
    pixels = np.frombuffer(message.data, np.uint8)
    return pixels.reshape(message.height, message.width, 3)


def reembed_result(response: pb.ReembedResponse) -> ReembedResult:
    """The result of `reembed`."""
    return ReembedResult(
        identity(response.embedder), response.reembedded, response.left, response.done
    )


def deleted_faces(response: pb.DeleteFacesResponse, faces: int) -> Deleted:
    """What `delete_faces` has deleted."""
    return Deleted(faces, response.erased, tuple(response.emptied_person_ids))


def deleted(
    response: pb.DeletePersonResponse | pb.DeleteCollectionResponse, *, person: str = ""
) -> Deleted:
    """What `delete_person` or `delete` has deleted."""
    return Deleted(response.deleted_faces, response.erased, (person,) if person else ())


def _time(message: Message) -> datetime:
    moment: datetime = message.created.ToDatetime(tzinfo=UTC)  # type: ignore[attr-defined]
    return moment
