"""mien.v1.GalleryService: a request's message in, the gallery's answer out."""

from dataclasses import replace

from google.protobuf.timestamp_pb2 import Timestamp

from mien.v1 import face_pb2, gallery_pb2, gallery_pb2_grpc
from mien_server.errors import InvalidRequest, NotInGallery, Reason
from mien_server.gallery.checks import (
    DEFAULT_TOP_K,
    MAX_COLLECTIONS,
    MAX_TOP_K,
    check_count,
    check_labels,
    check_person,
    face_key,
    face_keys,
    page_size,
)
from mien_server.gallery.enrolment import enrol
from mien_server.gallery.gallery import Gallery
from mien_server.gallery.reading import face_id
from mien_server.gallery.store import Live, Store
from mien_server.gallery.types import (
    EnrolledFace,
    Enrolment,
    Identification,
    IdentifiedFace,
    Match,
    NewFace,
    Person,
    QualityPolicy,
)
from mien_server.pipeline.quality import Issue
from mien_server.pipeline.types import FacePolicy
from mien_server.rpc.calls import Context, bounded_call
from mien_server.rpc.faces import (
    embedding_message,
    face_message,
    face_selection,
    identity_message,
    model_ref,
    optional_identity,
    quality_message,
    subject_source,
)
from mien_server.rpc.status import Unimplemented
from mien_server.settings import name_of

_POLICIES = {
    gallery_pb2.QUALITY_POLICY_UNSPECIFIED: QualityPolicy.REFUSE,
    gallery_pb2.QUALITY_POLICY_REFUSE: QualityPolicy.REFUSE,
    gallery_pb2.QUALITY_POLICY_WARN: QualityPolicy.WARN,
    gallery_pb2.QUALITY_POLICY_ACCEPT: QualityPolicy.ACCEPT,
}

_SOURCES = {
    "request": face_pb2.THRESHOLD_SOURCE_REQUEST,
    "collection": face_pb2.THRESHOLD_SOURCE_COLLECTION,
    "model": face_pb2.THRESHOLD_SOURCE_MODEL,
}


def enrol_response(live: Live, enrolments: list[Enrolment]) -> gallery_pb2.EnrolResponse:
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


def _timestamp(seconds: float) -> Timestamp:
    stamp = Timestamp()
    stamp.FromMicroseconds(round(1e6 * seconds))
    return stamp


def _person(person: Person) -> gallery_pb2.Person:
    return gallery_pb2.Person(
        person_id=person.name, faces=person.faces, created=_timestamp(person.created)
    )


def _enrolled(face: EnrolledFace) -> gallery_pb2.EnrolledFace:
    return gallery_pb2.EnrolledFace(
        face_id=face_id(face.key),
        person_id=face.person,
        labels=face.labels,
        quality=quality_message(face.quality),
        created=_timestamp(face.created),
    )


def _after(page_token: str) -> int:
    """The key that the page before ended with.

    Raises:
        InvalidRequest: INVALID_OPTION, no page can have ended so.
    """
    if not page_token:
        return 0
    try:
        return face_key(page_token, "", "page_token")
    except NotInGallery as error:
        raise InvalidRequest(
            Reason.INVALID_OPTION,
            f"page_token {page_token!r} is not one that an answer had: begin again without it.",
            field="page_token",
        ) from error


class GalleryService(gallery_pb2_grpc.GalleryServiceServicer):
    """Collections, and the faces in them.

    Errors are raised as they are; `CallInterceptor` makes statuses of them.

    Args:
        gallery: None: the server has none, and says so in every answer.
        default_deadline: how many seconds a call without a deadline of its own may take, above 0.
    """

    def __init__(self, gallery: Gallery | None, *, default_deadline: float) -> None:
        self._given = gallery
        self._default_deadline = default_deadline

    @property
    def _gallery(self) -> Gallery:
        if self._given is None:
            raise Unimplemented(
                "This server has no galleries: its operator can give it a folder for them, with"
                f" {name_of('gallery_dir')}."
            )
        return self._given

    @property
    def _store(self) -> Store:
        return self._gallery.store

    async def CreateCollection(  # noqa: N802 - the contract's name
        self, request: gallery_pb2.CreateCollectionRequest, context: Context
    ) -> gallery_pb2.CreateCollectionResponse:
        """A new collection."""
        async with bounded_call(context, self._default_deadline):
            live = await self._gallery.create(
                request.name,
                model_ref(request.embedder, "embedder"),
                request.threshold if request.HasField("threshold") else None,
            )
            return gallery_pb2.CreateCollectionResponse(collection=await self._collection(live))

    async def ListCollections(  # noqa: N802 - the contract's name
        self,
        request: gallery_pb2.ListCollectionsRequest,  # noqa: ARG002 - it asks nothing
        context: Context,
    ) -> gallery_pb2.ListCollectionsResponse:
        """All collections."""
        async with bounded_call(context, self._default_deadline):
            found = [await self._collection(live) for live in self._store.collections()]
            return gallery_pb2.ListCollectionsResponse(collections=found)

    async def GetCollection(  # noqa: N802 - the contract's name
        self, request: gallery_pb2.GetCollectionRequest, context: Context
    ) -> gallery_pb2.GetCollectionResponse:
        """One collection."""
        async with bounded_call(context, self._default_deadline):
            live = self._store.find(request.collection)
            return gallery_pb2.GetCollectionResponse(collection=await self._collection(live))

    async def DeleteCollection(  # noqa: N802 - the contract's name
        self, request: gallery_pb2.DeleteCollectionRequest, context: Context
    ) -> gallery_pb2.DeleteCollectionResponse:
        """Deletes a collection."""
        async with bounded_call(context, self._default_deadline):
            faces, erased = await self._store.delete(self._store.find(request.collection))
            return gallery_pb2.DeleteCollectionResponse(deleted_faces=faces, erased=erased)

    async def Enrol(  # noqa: N802 - the contract's name
        self, request: gallery_pb2.EnrolRequest, context: Context
    ) -> gallery_pb2.EnrolResponse:
        """Adds faces to a collection."""
        async with bounded_call(context, self._default_deadline) as call:
            policy = _POLICIES.get(request.quality_policy)
            if policy is None:
                raise InvalidRequest(
                    Reason.INVALID_OPTION,
                    f"quality_policy {request.quality_policy} is unknown; use one of"
                    f" {', '.join(QualityPolicy)}.",
                    field="quality_policy",
                )
            faces = [
                NewFace(
                    subject_source(face.subject, f"faces[{number}].subject"),
                    face.person_id,
                    dict(face.labels),
                    face.request_key,
                )
                for number, face in enumerate(request.faces)
            ]
            live, enrolments = await enrol(
                self._gallery,
                request.collection,
                faces,
                detector=model_ref(request.detector, "detector"),
                selection=face_selection(request.selection, FacePolicy.LARGEST),
                policy=policy,
                call=call,
            )
        return enrol_response(live, enrolments)

    async def Identify(  # noqa: N802 - the contract's name
        self, request: gallery_pb2.IdentifyRequest, context: Context
    ) -> gallery_pb2.IdentifyResponse:
        """Whose faces these are."""
        async with bounded_call(context, self._default_deadline) as call:
            names = list(dict.fromkeys(request.collections))
            check_count(len(names), MAX_COLLECTIONS, "collections")
            top_k = request.top_k if request.HasField("top_k") else DEFAULT_TOP_K
            check_count(top_k, MAX_TOP_K, "top_k")
            labels = dict(request.labels)
            check_labels(labels)
            answer = await self._gallery.identify(
                names,
                subject_source(request.subject, "subject"),
                detector=model_ref(request.detector, "detector"),
                selection=face_selection(request.selection, FacePolicy.LARGEST),
                top_k=top_k,
                threshold=request.threshold if request.HasField("threshold") else None,
                labels=labels,
                call=call,
            )
        return identify_response(answer)

    async def ListPersons(  # noqa: N802 - the contract's name
        self, request: gallery_pb2.ListPersonsRequest, context: Context
    ) -> gallery_pb2.ListPersonsResponse:
        """A page of persons."""
        async with bounded_call(context, self._default_deadline):
            live = self._store.find(request.collection)
            size = page_size(request.page_size)
            after = _after(request.page_token)
            page = await self._store.persons(live, after=after, most=size + 1)
        more = face_id(page[size - 1].key) if len(page) > size else ""
        persons = [_person(person) for person in page[:size]]
        return gallery_pb2.ListPersonsResponse(persons=persons, next_page_token=more)

    async def GetPerson(  # noqa: N802 - the contract's name
        self, request: gallery_pb2.GetPersonRequest, context: Context
    ) -> gallery_pb2.GetPersonResponse:
        """One person."""
        async with bounded_call(context, self._default_deadline):
            live = self._store.find(request.collection)
            found = await self._store.person(live, request.person_id)
        return gallery_pb2.GetPersonResponse(person=_person(found))

    async def ListFaces(  # noqa: N802 - the contract's name
        self, request: gallery_pb2.ListFacesRequest, context: Context
    ) -> gallery_pb2.ListFacesResponse:
        """A page of faces."""
        async with bounded_call(context, self._default_deadline):
            live = self._store.find(request.collection)
            size = page_size(request.page_size)
            after = _after(request.page_token)
            page = await self._store.faces(live, of=request.person_id, after=after, most=size + 1)
        more = face_id(page[size - 1].key) if len(page) > size else ""
        faces = [_enrolled(face) for face in page[:size]]
        return gallery_pb2.ListFacesResponse(faces=faces, next_page_token=more)

    async def GetFace(  # noqa: N802 - the contract's name
        self, request: gallery_pb2.GetFaceRequest, context: Context
    ) -> gallery_pb2.GetFaceResponse:
        """One face."""
        async with bounded_call(context, self._default_deadline):
            live = self._store.find(request.collection)
            found = await self._store.face(live, face_key(request.face_id, request.collection))
        return gallery_pb2.GetFaceResponse(face=_enrolled(found))

    async def ExportFaces(  # noqa: N802 - the contract's name
        self, request: gallery_pb2.ExportFacesRequest, context: Context
    ) -> gallery_pb2.ExportFacesResponse:
        """A page of faces with their embeddings."""
        async with bounded_call(context, self._default_deadline):
            live = self._store.find(request.collection)
            size = page_size(request.page_size)
            after = _after(request.page_token)
            page = await self._store.exported(live, after=after, most=size + 1)
        more = face_id(page[size - 1].face.key) if len(page) > size else ""
        faces = [
            gallery_pb2.ExportedFace(
                face=_enrolled(each.face), embedding=embedding_message(each.embedding)
            )
            for each in page[:size]
        ]
        return gallery_pb2.ExportFacesResponse(faces=faces, next_page_token=more)

    async def MoveFaces(  # noqa: N802 - the contract's name
        self, request: gallery_pb2.MoveFacesRequest, context: Context
    ) -> gallery_pb2.MoveFacesResponse:
        """Gives faces to another person."""
        async with bounded_call(context, self._default_deadline):
            live = self._store.find(request.collection)
            keys = face_keys(request.face_ids, request.collection)
            check_person(request.person_id)
            emptied = await self._store.move(live, keys, request.person_id)
        return gallery_pb2.MoveFacesResponse(emptied_person_ids=emptied)

    async def DeleteFaces(  # noqa: N802 - the contract's name
        self, request: gallery_pb2.DeleteFacesRequest, context: Context
    ) -> gallery_pb2.DeleteFacesResponse:
        """Deletes faces."""
        async with bounded_call(context, self._default_deadline):
            live = self._store.find(request.collection)
            keys = face_keys(request.face_ids, request.collection)
            emptied, erased = await self._store.delete_faces(live, keys)
        return gallery_pb2.DeleteFacesResponse(emptied_person_ids=emptied, erased=erased)

    async def DeletePerson(  # noqa: N802 - the contract's name
        self, request: gallery_pb2.DeletePersonRequest, context: Context
    ) -> gallery_pb2.DeletePersonResponse:
        """Deletes a person."""
        async with bounded_call(context, self._default_deadline):
            live = self._store.find(request.collection)
            faces, erased = await self._store.delete_person(live, request.person_id)
        return gallery_pb2.DeletePersonResponse(deleted_faces=faces, erased=erased)

    async def _collection(self, live: Live) -> gallery_pb2.Collection:
        collection, size = live.collection, await self._store.size(live)
        return gallery_pb2.Collection(
            name=collection.name,
            embedder=identity_message(collection.embedder),
            dimensions=collection.dimensions,
            threshold=collection.threshold,
            persons=size.persons,
            faces=size.faces,
            memory_bytes=size.nbytes,
            created=_timestamp(collection.created),
        )
