"""To and from the messages of mien.v1's galleries: what the two clients share."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Literal

import numpy as np
from google.protobuf.message import Message
from numpy.typing import NDArray

from mien.channel import MAX_MESSAGE_BYTES
from mien.enrol_results import FaceQuality
from mien.errors import InvalidRequest
from mien.gallery_results import (
    Deleted,
    EnrolledFace,
    ExportedFace,
    FaceGroup,
    GalleryInfo,
    GalleryPerson,
    GroupResult,
    IdentifiedFace,
    IdentifyResult,
    PersonMatch,
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

_SOURCES: Mapping[int, Literal["model", "request", "collection"]] = {
    face_pb2.THRESHOLD_SOURCE_MODEL: "model",
    face_pb2.THRESHOLD_SOURCE_REQUEST: "request",
    face_pb2.THRESHOLD_SOURCE_COLLECTION: "collection",
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


def checked_labels(labels: Mapping[str, str], field: str) -> dict[str, str]:
    """Labels as the server takes them, as `text` says."""
    return {text(key, field): text(value, field) for key, value in labels.items()}


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
        overall=message.overall if message.HasField("overall") else None,
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
        labels=checked_labels(labels or {}, "labels"),
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
