"""mien.v1.GalleryService: a request's message in, the gallery's answer out."""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeAlias, TypeVar

from mien.v1 import face_pb2, gallery_pb2, gallery_pb2_grpc
from mien_server.errors import InvalidRequest, NotInGallery, Reason
from mien_server.gallery import grouping
from mien_server.gallery.checks import (
    DEFAULT_REEMBEDDED,
    DEFAULT_TOP_K,
    MAX_COLLECTIONS,
    MAX_REEMBEDDED,
    MAX_TOP_K,
    check_count,
    check_labels,
    check_person,
    face_key,
    face_keys,
    page_size,
)
from mien_server.gallery.crops import crop_of, reembed
from mien_server.gallery.enrolment import enrol
from mien_server.gallery.gallery import Gallery
from mien_server.gallery.interface import AnyStore, OpenCollection
from mien_server.gallery.reading import face_id
from mien_server.gallery.types import EnrolOptions, NewFace, QualityPolicy
from mien_server.models.interface import CROP_SIDE
from mien_server.pipeline.types import FacePolicy
from mien_server.rpc.calls import Context, bounded_call
from mien_server.rpc.faces import (
    embedding_message,
    face_selection,
    identity_message,
    model_ref,
    model_refs,
    requirements,
    subject_source,
)
from mien_server.rpc.gallery_answers import (
    enrol_response,
    enrolled_message,
    group_response,
    identify_response,
    person_message,
    timestamp,
)
from mien_server.rpc.status import Unimplemented
from mien_server.settings import name_of

_POLICIES = {
    gallery_pb2.QUALITY_POLICY_UNSPECIFIED: QualityPolicy.REFUSE,
    gallery_pb2.QUALITY_POLICY_REFUSE: QualityPolicy.REFUSE,
    gallery_pb2.QUALITY_POLICY_WARN: QualityPolicy.WARN,
    gallery_pb2.QUALITY_POLICY_ACCEPT: QualityPolicy.ACCEPT,
}


T = TypeVar("T")

_PageRequest: TypeAlias = (
    gallery_pb2.ListPersonsRequest | gallery_pb2.ListFacesRequest | gallery_pb2.ExportFacesRequest
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
                f" {name_of('gallery_dir')}, or a Milvus, with {name_of('gallery_url')}."
            )
        return self._given

    @property
    def _store(self) -> AnyStore:
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
                keep_crops=request.keep_crops,
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
                options=EnrolOptions(
                    detector=model_ref(request.detector, "detector"),
                    selection=face_selection(request.selection, FacePolicy.LARGEST),
                    policy=policy,
                    analysers=model_refs(request.analysers, "analysers"),
                    require=requirements(request.require),
                ),
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
            page, more = await self._page(
                request, self._store.reader.persons, lambda each: each.key
            )
        persons = [person_message(person) for person in page]
        return gallery_pb2.ListPersonsResponse(persons=persons, next_page_token=more)

    async def GetPerson(  # noqa: N802 - the contract's name
        self, request: gallery_pb2.GetPersonRequest, context: Context
    ) -> gallery_pb2.GetPersonResponse:
        """One person."""
        async with bounded_call(context, self._default_deadline):
            live = self._store.find(request.collection)
            found = await self._store.reader.person(live, request.person_id)
        return gallery_pb2.GetPersonResponse(person=person_message(found))

    async def ListFaces(  # noqa: N802 - the contract's name
        self, request: gallery_pb2.ListFacesRequest, context: Context
    ) -> gallery_pb2.ListFacesResponse:
        """A page of faces."""
        async with bounded_call(context, self._default_deadline):
            read = partial(self._store.reader.faces, of=request.person_id)
            page, more = await self._page(request, read, lambda each: each.key)
        faces = [enrolled_message(face) for face in page]
        return gallery_pb2.ListFacesResponse(faces=faces, next_page_token=more)

    async def GetFace(  # noqa: N802 - the contract's name
        self, request: gallery_pb2.GetFaceRequest, context: Context
    ) -> gallery_pb2.GetFaceResponse:
        """One face."""
        async with bounded_call(context, self._default_deadline):
            live = self._store.find(request.collection)
            found = await self._store.reader.face(
                live, face_key(request.face_id, request.collection)
            )
        return gallery_pb2.GetFaceResponse(face=enrolled_message(found))

    async def GetCrop(  # noqa: N802 - the contract's name
        self, request: gallery_pb2.GetCropRequest, context: Context
    ) -> gallery_pb2.GetCropResponse:
        """The crop of one face."""
        async with bounded_call(context, self._default_deadline):
            key = face_key(request.face_id, request.collection)
            data = await crop_of(self._gallery, request.collection, key)
        crop = face_pb2.Pixels(height=CROP_SIDE, width=CROP_SIDE, data=data)
        return gallery_pb2.GetCropResponse(crop=crop)

    async def ExportFaces(  # noqa: N802 - the contract's name
        self, request: gallery_pb2.ExportFacesRequest, context: Context
    ) -> gallery_pb2.ExportFacesResponse:
        """A page of faces with their embeddings."""
        async with bounded_call(context, self._default_deadline):
            page, more = await self._page(
                request, self._store.reader.exported, lambda each: each.face.key
            )
        faces = [
            gallery_pb2.ExportedFace(
                face=enrolled_message(each.face), embedding=embedding_message(each.embedding)
            )
            for each in page
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

    async def Group(  # noqa: N802 - the contract's name
        self, request: gallery_pb2.GroupRequest, context: Context
    ) -> gallery_pb2.GroupResponse:
        """Which faces without a person belong together."""
        async with bounded_call(context, self._default_deadline) as call:
            gallery = self._gallery
            if not grouping.available():
                raise Unimplemented(
                    "This server cannot group faces: its operator can install what does, with"
                    " pip install 'mien[grouping]'."
                )
            least = request.min_faces if request.HasField("min_faces") else 2
            check_count(least, grouping.MAX_FACES, "min_faces")
            found = await gallery.group(
                request.collection,
                threshold=request.threshold if request.HasField("threshold") else None,
                least=least,
                call=call,
            )
        return group_response(found)

    async def Reembed(  # noqa: N802 - the contract's name
        self, request: gallery_pb2.ReembedRequest, context: Context
    ) -> gallery_pb2.ReembedResponse:
        """Goes on bringing a collection to another model."""
        async with bounded_call(context, self._default_deadline) as call:
            most = request.max_faces or DEFAULT_REEMBEDDED
            check_count(most, MAX_REEMBEDDED, "max_faces")
            found = await reembed(
                self._gallery,
                request.collection,
                model_ref(request.embedder, "embedder"),
                most=most,
                call=call,
            )
        return gallery_pb2.ReembedResponse(
            embedder=identity_message(found.embedder),
            reembedded=found.done,
            left=found.left,
            done=found.swapped,
        )

    async def _collection(self, live: OpenCollection) -> gallery_pb2.Collection:
        collection, size = live.collection, await self._store.size(live)
        return gallery_pb2.Collection(
            name=collection.name,
            embedder=identity_message(collection.embedder),
            dimensions=collection.dimensions,
            threshold=collection.threshold,
            persons=size.persons,
            faces=size.faces,
            memory_bytes=size.nbytes,
            unnamed_faces=size.unnamed,
            keeps_crops=collection.keeps_crops,
            created=timestamp(collection.created),
        )

    async def _page(
        self,
        request: _PageRequest,
        read: Callable[..., Awaitable[list[T]]],
        key: Callable[[T], int],
    ) -> tuple[list[T], str]:
        """A page of what `read` gives of a collection, and the token of the next one, "" after the last."""
        live = self._store.find(request.collection)
        size = page_size(request.page_size)
        found = await read(live, after=_after(request.page_token), most=size + 1)
        return found[:size], face_id(key(found[size - 1])) if len(found) > size else ""
