"""What the gallery answers, as the messages of mien.v1."""

from dataclasses import replace

from google.protobuf.timestamp_pb2 import Timestamp

from mien.v1 import face_pb2, gallery_pb2
from mien_server.gallery.interface import OpenCollection
from mien_server.gallery.reading import face_id
from mien_server.gallery.types import (
    EnrolledFace,
    Enrolment,
    Grouped,
    Identification,
    IdentifiedFace,
    Match,
    Person,
)
from mien_server.pipeline.quality import Issue
from mien_server.rpc.faces import (
    face_message,
    identity_message,
    optional_identity,
    quality_message,
)

_SOURCES = {
    "request": face_pb2.THRESHOLD_SOURCE_REQUEST,
    "collection": face_pb2.THRESHOLD_SOURCE_COLLECTION,
    "model": face_pb2.THRESHOLD_SOURCE_MODEL,
}


def enrol_response(live: OpenCollection, enrolments: list[Enrolment]) -> gallery_pb2.EnrolResponse:
    """The answer of Enrol."""
    return gallery_pb2.EnrolResponse(
        results=[_enrol_result(enrolment) for enrolment in enrolments],
        embedder=identity_message(live.collection.embedder),
    )


def _enrol_result(enrolment: Enrolment) -> gallery_pb2.EnrolResult:
    outcome = gallery_pb2.ENROL_OUTCOME_REFUSED
    if enrolment.key:
        outcome = (
            gallery_pb2.ENROL_OUTCOME_EXISTING
            if enrolment.existing
            else gallery_pb2.ENROL_OUTCOME_ENROLLED
        )
    face = enrolment.face
    return gallery_pb2.EnrolResult(
        outcome=outcome,
        face_id=face_id(enrolment.key) if enrolment.key else "",
        person_id=enrolment.person,
        face=None if face is None else face_message(replace(face, embedding=None), enrolment.size),
        quality=quality_message(enrolment.quality),
        issues=[_issue(issue) for issue in enrolment.issues],
        reason=enrolment.reason or "",
        message=enrolment.message,
        field=enrolment.field,
    )


def _issue(issue: Issue) -> gallery_pb2.QualityIssue:
    return gallery_pb2.QualityIssue(
        problem=gallery_pb2.QualityProblem.Value(f"QUALITY_PROBLEM_{issue.problem}"),
        value=issue.value,
        limit=issue.limit,
        person_id=issue.person,
    )


def identify_response(answer: Identification) -> gallery_pb2.IdentifyResponse:
    """The answer of Identify."""
    size = (answer.width, answer.height)
    return gallery_pb2.IdentifyResponse(
        faces=[_identified(face, size) for face in answer.faces],
        searched=[
            gallery_pb2.SearchedCollection(
                collection=each.collection,
                faces=each.faces,
                threshold=each.threshold,
                threshold_source=_SOURCES[each.threshold_from],
            )
            for each in answer.searched
        ],
        detector=optional_identity(answer.detector),
        embedder=identity_message(answer.embedder),
        image_width=answer.width,
        image_height=answer.height,
    )


def _identified(found: IdentifiedFace, size: tuple[int, int]) -> gallery_pb2.IdentifiedFace:
    face = None
    if found.face is not None:
        boxed = found.face.box is not None
        face = face_message(replace(found.face, embedding=None), size if boxed else None)
    persons = [_person_match(collection, match) for collection, match in found.matches]
    return gallery_pb2.IdentifiedFace(face=face, persons=persons)


def _person_match(collection: str, match: Match) -> gallery_pb2.PersonMatch:
    return gallery_pb2.PersonMatch(
        collection=collection,
        person_id=match.person,
        similarity=match.similarity,
        samples=[
            gallery_pb2.SampleMatch(
                face_id=face_id(sample.key), similarity=sample.similarity, labels=sample.labels
            )
            for sample in match.samples
        ],
    )


def group_response(found: Grouped) -> gallery_pb2.GroupResponse:
    """The answer of Group."""
    return gallery_pb2.GroupResponse(
        groups=[
            gallery_pb2.FaceGroup(face_ids=map(face_id, each.faces), similarity=each.similarity)
            for each in found.groups
        ],
        faces=found.looked_at,
        left_out=found.left_out,
        threshold=found.threshold,
        threshold_source=_SOURCES[found.threshold_from],
    )


def timestamp(seconds: float) -> Timestamp:
    """A moment in seconds since 1970."""
    stamp = Timestamp()
    stamp.FromMicroseconds(round(1e6 * seconds))
    return stamp


def person_message(person: Person) -> gallery_pb2.Person:
    """A person."""
    return gallery_pb2.Person(
        person_id=person.name, faces=person.faces, created=timestamp(person.created)
    )


def enrolled_message(face: EnrolledFace) -> gallery_pb2.EnrolledFace:
    """A face of a collection."""
    return gallery_pb2.EnrolledFace(
        face_id=face_id(face.key),
        person_id=face.person,
        labels=face.labels,
        quality=quality_message(face.quality),
        created=timestamp(face.created),
    )
