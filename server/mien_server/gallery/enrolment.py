"""Enrol: faces are embedded, judged, compared with those that are enrolled, and written together."""

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mien_server.errors import InvalidRequest, MienError, Reason, Unmet, at
from mien_server.gallery.checks import (
    MAX_FACES_A_CALL,
    check_count,
    check_labels,
    check_person,
    check_request_key,
)
from mien_server.gallery.gallery import Gallery
from mien_server.gallery.interface import OpenCollection
from mien_server.gallery.record import FaceRow
from mien_server.gallery.types import Enrolment, EnrolOptions, NewFace, QualityPolicy, Query
from mien_server.pipeline.quality import Issue, Problem, problems
from mien_server.pipeline.running import together
from mien_server.pipeline.types import Call, Embedding, FacePolicy
from mien_server.scheduling.errors import RowFailed

_LIKE_WITHOUT_THRESHOLD = 0.7

_OF_THE_CALL = ("detector", "selection", "collection", "analysers", "require")
"""Fields that all faces of a call have in common: what is wrong there ends the call."""


async def enrol(
    gallery: Gallery,
    name: str,
    faces: Sequence[NewFace],
    *,
    options: EnrolOptions,
    call: Call,
) -> tuple[OpenCollection, list[Enrolment]]:
    """Enrols faces in a collection. One that is refused keeps no other one out, but for what is required.

    Args:
        name: of the collection.
        faces: 1 to `MAX_FACES_A_CALL`; the fields of each begin with `faces[0]`.

    Returns:
        the collection, and what became of each face.

    Raises:
        InvalidRequest: a name, a label, a key or an option is out of range.
        NotInGallery: COLLECTION_NOT_FOUND. GalleryFull: there is no room for all of them.
        Unmet: REQUIREMENT_UNMET. SchedulingError: why nothing could be computed. Nothing is enrolled then.
    """
    live = gallery.store.find(name)
    check_count(len(faces), MAX_FACES_A_CALL, "faces")
    if options.selection.policy is FacePolicy.ALL:
        raise InvalidRequest(
            Reason.INVALID_OPTION,
            "selection.policy: ALL is for Detect, Embed and Identify: say which face is the person's.",
            field="selection.policy",
        )
    for number, face in enumerate(faces):
        with at(f"faces[{number}]"):
            if face.person:
                check_person(face.person)
            check_labels(face.labels)
            check_request_key(face.request_key)
            if options.require and isinstance(face.subject, Embedding):
                raise InvalidRequest(
                    Reason.INVALID_OPTION,
                    "require: nothing is known of an embedding but who it is; send the photo.",
                    field="subject.embedding",
                )
    try:
        return live, await _enrolled(gallery, live, faces, options, call)
    except Unmet:
        before, live = live, gallery.store.find(name)
        if live.collection.embedder == before.collection.embedder:
            raise
    # It has got another model meanwhile, which these faces need, too.
    return live, await _enrolled(gallery, live, faces, options, call)


async def _enrolled(
    gallery: Gallery,
    live: OpenCollection,
    faces: Sequence[NewFace],
    options: EnrolOptions,
    call: Call,
) -> list[Enrolment]:
    """What becomes of faces that may be asked for.

    Raises:
        Unmet: EMBEDDING_MISMATCH, the collection has got another model meanwhile; REQUIREMENT_UNMET. None is
            enrolled.
    """
    judged = await together(
        *(
            _judge(gallery, live, face, f"faces[{number}]", options, call)
            for number, face in enumerate(faces)
        )
    )
    if options.policy is not QualityPolicy.ACCEPT:
        await _compare(gallery, live, faces, judged, options.policy, call)
    await _write(gallery, live, faces, judged)
    return [enrolment for enrolment, _, _ in judged]


_Judged = tuple[Enrolment, Embedding | None, bytes | None]
"""What is known of a face; its embedding, while it is to be enrolled; and its crop, if that is kept."""


async def _judge(
    gallery: Gallery,
    live: OpenCollection,
    face: NewFace,
    path: str,
    options: EnrolOptions,
    call: Call,
) -> _Judged:
    """Embeds a face and looks at its quality."""
    if face.request_key:
        known = await gallery.store.reader.of_request(live, face.request_key)
        if known:
            return Enrolment(known.name, known.face, existing=True), None, None
    part = replace(call, stages=[])
    try:
        photo = await gallery.embed(
            face.subject,
            live,
            options.detector,
            options.selection,
            part,
            inspect=True,
            analysers=options.analysers,
            require=options.require,
        )
    except (InvalidRequest, Unmet) as error:
        if re.split(r"[.\[]", error.field)[0] in _OF_THE_CALL:
            raise
        if error.reason is Reason.REQUIREMENT_UNMET:
            error.field = f"{path}.{error.field}"
            raise
        return _refused(face, error.reason, error.message, f"{path}.{error.field}"), None, None
    except RowFailed as error:
        return _refused(face, Reason.BACKEND_ERROR, f"{error} ({error.incident})", path), None, None
    (found,) = photo.faces
    enrolment = Enrolment(face.person)
    if not isinstance(face.subject, Embedding):
        enrolment.face, enrolment.quality = found, found.quality
        enrolment.size = (photo.width, photo.height) if found.box is not None else None
    if enrolment.quality:
        enrolment.issues = problems(enrolment.quality)
    if enrolment.issues and options.policy is QualityPolicy.REFUSE:
        _refuse_for_issues(enrolment, path)
        return enrolment, None, None
    kept = found.crop.tobytes() if live.collection.keeps_crops and found.crop is not None else None
    return enrolment, found.embedding, kept


async def _compare(
    gallery: Gallery,
    live: OpenCollection,
    faces: Sequence[NewFace],
    judged: list[_Judged],
    policy: QualityPolicy,
    call: Call,
) -> None:
    """Notes which faces are very much like one of another person, enrolled or before it in the call.

    Those without a person are anybody's.
    """
    limit = _likeness(gallery, live)
    left = [
        (number, e)
        for number, (_, e, _) in enumerate(judged)
        if e is not None and faces[number].person
    ]
    if not left:
        return
    # The person's own faces may be the most similar ones, so the second person counts, too.
    found = await gallery.store.search(
        live, [Query(e.values, 2, limit) for _, e in left], call, passed=2
    )
    vectors = np.stack([e.values for _, e in left])
    cosines = vectors @ vectors.T
    for place, (number, _) in enumerate(left):
        like: dict[str, float] = {m.person: m.similarity for m in found[place].matches}
        for earlier in range(place):
            before, _ = left[earlier]
            if judged[before][1] is not None and cosines[place, earlier] >= limit:
                who = faces[before].person
                like[who] = max(like.get(who, -1.0), float(cosines[place, earlier]))
        like.pop(faces[number].person, None)
        if not like:
            continue
        other = max(like, key=lambda who: like[who])
        enrolment = judged[number][0]
        issue = Issue(Problem.LIKE_ANOTHER_PERSON, like[other], limit, other)
        enrolment.issues.append(issue)
        if policy is QualityPolicy.REFUSE:
            _refuse_for_issues(enrolment, f"faces[{number}]")
            judged[number] = (enrolment, None, None)


async def _write(
    gallery: Gallery, live: OpenCollection, faces: Sequence[NewFace], judged: Sequence[_Judged]
) -> None:
    """Enrols what is left."""
    left = [(number, e) for number, (_, e, _) in enumerate(judged) if e is not None]
    if not left:
        return
    rows = [
        FaceRow(
            person=faces[number].person,
            labels=faces[number].labels,
            request_key=faces[number].request_key,
            quality=judged[number][0].quality,
            norm=embedding.norm,
            vector=embedding.values,
            crop=judged[number][2],
        )
        for number, embedding in left
    ]
    for (number, _), written in zip(left, await gallery.store.enrol(live, rows), strict=True):
        enrolment = judged[number][0]
        enrolment.key, enrolment.person = written.face, written.name
        enrolment.existing = written.existing


def _likeness(gallery: Gallery, live: OpenCollection) -> float:
    """From which cosine on two faces are so alike that they can hardly be of two persons.

    Half way from the threshold of a match to the same picture: strangers of a large gallery match, but not
    like that.
    """
    try:
        threshold = gallery.model_threshold(live)
    except MienError:
        threshold = None  # embeddings are enrolled while their model does not serve
    if threshold is None:
        return _LIKE_WITHOUT_THRESHOLD
    return (1.0 + threshold) / 2


def _refused(face: NewFace, reason: Reason, message: str, field: str) -> Enrolment:
    return Enrolment(face.person, reason=reason, message=message, field=field)


def _refuse_for_issues(enrolment: Enrolment, path: str) -> None:
    enrolment.reason = Reason.LOW_QUALITY
    told = "; ".join(str(issue) for issue in enrolment.issues)
    enrolment.message = (
        f"The face would make the gallery worse: {told}. Send a better photo, check whose it is, or enrol it"
        " all the same with the quality policy WARN."
    )
    enrolment.field = path
