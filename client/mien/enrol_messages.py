"""To and from the messages of Enrol: what the two clients share."""

import hashlib
import secrets
from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

import numpy as np

from mien.channel import MAX_MESSAGE_BYTES
from mien.enrol_results import EnrolResult, NewFace, QualityIssue
from mien.errors import InvalidRequest, MienError, refused
from mien.gallery_messages import checked_labels, quality_from, text
from mien.images import too_large
from mien.messages import (
    ModelLike,
    PolicyLike,
    Requirement,
    face_result,
    model_ref,
    model_refs,
    requirements_message,
    selection_message,
    subject_message,
)
from mien.results import Embedding
from mien.v1 import face_pb2
from mien.v1 import gallery_pb2 as pb

QualityPolicyLike: TypeAlias = Literal["refuse", "warn", "accept"]
"""What happens to faces of poor quality: they are refused; or enrolled, with the issues in the answer; or
enrolled without a look at what is enrolled already."""

POLICIES = ("refuse", "warn", "accept")

EMBEDDINGS_A_CALL = 32

_OUTCOMES: Mapping[int, Literal["enrolled", "existing", "refused"]] = {
    pb.ENROL_OUTCOME_ENROLLED: "enrolled",
    pb.ENROL_OUTCOME_EXISTING: "existing",
    pb.ENROL_OUTCOME_REFUSED: "refused",
}


def _person_id(person: str | None, field: str) -> str:
    if person == "":
        raise InvalidRequest(
            f"{field}: it is empty: say whose face it is, or None for nobody's",
            reason="INVALID_OPTION",
            field=field,
        )
    return "" if person is None else text(person, field)


def enrol_request(
    name: str,
    faces: Sequence[NewFace],
    *,
    quality_policy: str,
    policy: PolicyLike,
    min_score: float | None,
    min_face_size: float | None,
    detector: ModelLike | None,
    analysers: Sequence[ModelLike],
    require: Sequence[Requirement],
    require_quality: bool | float,
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
        labels = checked_labels(face.labels, f"faces[{i}].labels")
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
        analysers=model_refs(analysers, "analysers"),
        require=requirements_message(require, require_quality),
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
