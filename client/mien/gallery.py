"""`Gallery`: a collection of enrolled faces, and whose a face is among them."""

import functools
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mien import enrol_messages
from mien import gallery_messages as messages
from mien.bulk import CONCURRENCY, Calls, Outcome, grouped, in_threads
from mien.enrol_messages import QualityPolicyLike
from mien.enrol_results import EnrolResult, NewFace
from mien.errors import MienError
from mien.gallery_results import (
    Deleted,
    EnrolledFace,
    ExportedFace,
    GalleryInfo,
    GalleryPerson,
    GroupResult,
    IdentifyResult,
    ReembedResult,
)
from mien.images import ImageLike
from mien.limits import checked_whole
from mien.messages import ModelLike, PolicyLike, Requirement
from mien.results import Embedding
from mien.v1 import gallery_pb2 as pb

if TYPE_CHECKING:
    from mien.client import Client

PAGE = 500
"""Persons or faces that are asked for at a time."""


class Gallery:
    """A gallery of a server, by its name. Made by `Client.gallery`, without a call: it need not exist yet.

    Safe to share between threads. Every call takes its own `timeout` in seconds, and raises a `MienError` as
    the client's calls do: `NotInGallery` where the gallery, a person or a face does not exist, `WrongServer`
    where the server has no galleries.

    Attributes:
        name: its name.
    """

    def __init__(self, client: "Client", name: str) -> None:
        self.name = name
        self._client = client

    def __repr__(self) -> str:
        return f"{self._client!r}.gallery({self.name!r})"

    def create(
        self,
        *,
        embedder: ModelLike | None = None,
        threshold: float | None = None,
        keep_crops: bool = False,
        timeout: float | None = None,
    ) -> GalleryInfo:
        """Makes the gallery, pinned to one version of an embedding model.

        Args:
            embedder: the model; the server's default if unset.
            threshold: the similarity from which on `identify` counts a face as a person's, in [-1, 1]. If
                unset, the model's own, which is made for comparing two faces: choose a higher one for a
                gallery of many (see docs/galleries.md).
            keep_crops: keep a picture of 112x112 pixels of every face, so that `reembed` can bring the
                gallery to another model. Without, the server keeps no pictures.
            timeout: seconds; the client's own if unset.

        Raises:
            GalleryExists: there is one of this name.
        """
        build = functools.partial(
            messages.create_request, self.name, embedder, threshold, keep_crops
        )
        return messages.info(self._call("CreateCollection", build, timeout).collection)

    def info(self, *, timeout: float | None = None) -> GalleryInfo:
        """What the gallery is, and how much is in it.

        Args:
            timeout: seconds; the client's own if unset.

        Raises:
            NotInGallery: there is no such gallery.
        """
        build = functools.partial(pb.GetCollectionRequest, collection=self.name)
        return messages.info(self._call("GetCollection", build, timeout).collection)

    def enrol(
        self,
        image: ImageLike | Embedding,
        person: str | None,
        *,
        labels: Mapping[str, str] | None = None,
        request_key: str = "",
        aligned: bool = False,
        quality_policy: QualityPolicyLike = "refuse",
        policy: PolicyLike = None,
        min_score: float | None = None,
        min_face_size: float | None = None,
        detector: ModelLike | None = None,
        analysers: Sequence[ModelLike] = (),
        require: Sequence[Requirement] = (),
        require_quality: bool | float = False,
        timeout: float | None = None,
    ) -> EnrolResult:
        """Adds one face. When this returns, it is on the server's disk and is found.

        Args:
            image: a photo as `mien.ImageLike`, or an embedding from an earlier answer.
            person: whose it is, in your words; a new person begins with the first face. None: nobody's yet,
                see `NewFace`.
            labels: what you want to know of it later, at most 16.
            request_key: makes it safe to enrol it again, see `NewFace`.
            aligned: the image is a 112x112 crop, aligned already.
            quality_policy: "refuse" raises for a face that would make the gallery worse, "warn" enrols it
                and tells the issues, "accept" enrols it without a look at what is enrolled already.
            policy: which face of a photo; the largest by default. Not "all".
            min_score: ignores faces of a lower score, in [0.02, 1]; by default the detector's own.
            min_face_size: ignores faces whose shorter side has fewer pixels; 10 by default.
            detector: the model that finds faces; the server's default if unset.
            analysers: models that are to tell of the face, up to 16: `result.face["age"]`. It is not kept.
            require: what analysers must say of the face, which must not be an embedding.
            require_quality: True: it must be good enough, whatever the quality policy says of such as are
                not; a number in [0, 1]: its `quality.overall` must be at least that.
            timeout: seconds; the client's own if unset.

        Raises:
            LowQuality: the face would make the gallery worse; the message has the figures.
            RequirementUnmet: it does not fulfil what is required; the message has the figures.
            FaceNotFound: the photo has no face.
            EmbeddingMismatch: the embedding is of another model than the gallery's.
            GalleryFull: the server has no room for it.
        """
        build = functools.partial(
            enrol_messages.enrol_request,
            self.name,
            [NewFace(image, person, labels or {}, request_key, aligned)],
            quality_policy=quality_policy,
            policy=policy,
            min_score=min_score,
            min_face_size=min_face_size,
            detector=detector,
            analysers=analysers,
            require=require,
            require_quality=require_quality,
        )
        return enrol_messages.enrolled_or_raise(self._call("Enrol", build, timeout))

    def enrol_faces(
        self,
        faces: Sequence[NewFace],
        *,
        quality_policy: QualityPolicyLike = "refuse",
        policy: PolicyLike = None,
        min_score: float | None = None,
        min_face_size: float | None = None,
        detector: ModelLike | None = None,
        analysers: Sequence[ModelLike] = (),
        require: Sequence[Requirement] = (),
        require_quality: bool | float = False,
        timeout: float | None = None,
    ) -> tuple[EnrolResult, ...]:
        """Adds up to 64 faces in one call, which is quicker than one by one.

        Each is judged by itself: what is wrong with one is in its result, and keeps no other one out. An
        exception means that none was enrolled, or that nobody knows: give them request keys, and enrol again.

        Args:
            faces: 1 to 64; their photos share the 32 MiB of a request.
            quality_policy, policy, min_score, min_face_size, detector, analysers, timeout: as for `enrol`.
            require, require_quality: of every one of these faces.

        Returns:
            what became of each face, in their order.

        Raises:
            RequirementUnmet: a face does not fulfil what is required; the field says which. None is enrolled.
        """
        build = functools.partial(
            enrol_messages.enrol_request,
            self.name,
            faces,
            quality_policy=quality_policy,
            policy=policy,
            min_score=min_score,
            min_face_size=min_face_size,
            detector=detector,
            analysers=analysers,
            require=require,
            require_quality=require_quality,
        )
        return enrol_messages.enrol_results(self._call("Enrol", build, timeout))

    def enrol_many(
        self,
        faces: Iterable[NewFace],
        *,
        concurrency: int = CONCURRENCY,
        ordered: bool = True,
        quality_policy: QualityPolicyLike = "refuse",
        policy: PolicyLike = None,
        min_score: float | None = None,
        min_face_size: float | None = None,
        detector: ModelLike | None = None,
        analysers: Sequence[ModelLike] = (),
        require: Sequence[Requirement] = (),
        require_quality: bool | float = False,
        timeout: float | None = None,
    ) -> Generator[Outcome[NewFace, EnrolResult], None, None]:
        """Enrols faces, some at a time, and gives out what became of each.

        Enrolling them again, as after an interruption, enrols nothing twice: a face without a `request_key`
        of its own gets one of its person and its bytes, and what was enrolled with that is "existing".

        A face that is refused, or whose file cannot be read, has the error in its outcome, and the rest goes
        on; the outcome of one that the server has looked at and refused has its result, too. A server that is
        too busy or starts again is waited for, as by `embed_many`.

        Args:
            faces: any iterable, with or without an end, for `AsyncGallery` also an asynchronous one; read as
                `embed_many` reads photos. Photos have calls of their own, embeddings travel 32 a call.
            concurrency: calls at the same time, 1 or more.
            ordered: give out in the order of the faces; otherwise as the calls end.
            quality_policy, policy, min_score, min_face_size, detector, analysers, require, require_quality:
                as for `enrol`.
            timeout: seconds of each try; the client's own if unset.

        Returns:
            an iterator. Closing it cancels the calls in progress; what they were enrolling may be enrolled.

        Raises:
            MienError: while iterating, what is wrong with all of it, as when the gallery does not exist or is
                full.
        """

        def work(
            some: Sequence[NewFace], calls: Calls
        ) -> list[tuple[EnrolResult, MienError | None]]:
            build = functools.partial(
                enrol_messages.enrol_request,
                self.name,
                some,
                quality_policy=quality_policy,
                policy=policy,
                min_score=min_score,
                min_face_size=min_face_size,
                detector=detector,
                analysers=analysers,
                require=require,
                require_quality=require_quality,
                content_keys=True,
            )
            answer, _ = self._client._call_gallery("Enrol", build, timeout, False, calls)
            return enrol_messages.enrol_outcomes(answer)

        return in_threads(
            grouped(faces, enrol_messages.faces_in_a_call),
            work,
            concurrency=checked_whole(concurrency, "concurrency", 1),
            ordered=ordered,
        )

    def identify(
        self,
        image: ImageLike | Embedding,
        *,
        aligned: bool = False,
        top_k: int | None = None,
        threshold: float | None = None,
        labels: Mapping[str, str] | None = None,
        policy: PolicyLike = None,
        min_score: float | None = None,
        min_face_size: float | None = None,
        max_faces: int | None = None,
        detector: ModelLike | None = None,
        timeout: float | None = None,
        timing: bool = False,
    ) -> IdentifyResult:
        """Says whose face it is: the persons most like it. `Client.identify` looks in several galleries.

        Args:
            image: a photo as `mien.ImageLike`, or an embedding from an earlier answer.
            aligned: the image is a 112x112 crop, aligned already: nothing is detected.
            top_k: how many persons for each face, from 1 to 100; 5 by default.
            threshold: persons of a lower similarity are left out, in [-1, 1]; by default the gallery's own,
                or else its model's.
            labels: only faces with all of these labels are looked at.
            policy: which faces of a photo; the largest by default. With "all", every face is looked for.
            min_score: ignores faces of a lower score, in [0.02, 1]; by default the detector's own.
            min_face_size: ignores faces whose shorter side has fewer pixels; 10 by default.
            max_faces: with the policy "all", at most this many, as for `detect`.
            detector: the model that finds faces; the server's default if unset.
            timeout: seconds; the client's own if unset.
            timing: whether to ask for the server's stages.

        Raises:
            NotInGallery: there is no such gallery.
            FaceNotFound: the photo has no face, and the policy is not "all".
            EmbeddingMismatch: the embedding is of another model than the gallery.
        """
        return self._client.identify(
            image,
            [self.name],
            aligned=aligned,
            top_k=top_k,
            threshold=threshold,
            labels=labels,
            policy=policy,
            min_score=min_score,
            min_face_size=min_face_size,
            max_faces=max_faces,
            detector=detector,
            timeout=timeout,
            timing=timing,
        )

    def persons(self, *, timeout: float | None = None) -> Iterator[GalleryPerson]:
        """The persons, the first enrolled first; asked for in pages as they are needed.

        Args:
            timeout: seconds for each page; the client's own if unset.
        """
        build = functools.partial(pb.ListPersonsRequest, collection=self.name, page_size=PAGE)
        for page in self._pages("ListPersons", build, timeout):
            yield from map(messages.person, page.persons)

    def person(self, person: str, *, timeout: float | None = None) -> GalleryPerson:
        """One person: how many faces, and since when.

        Args:
            person: the name that was enrolled.
            timeout: seconds; the client's own if unset.

        Raises:
            NotInGallery: there is no such gallery, or no such person in it.
        """
        build = functools.partial(pb.GetPersonRequest, collection=self.name, person_id=person)
        return messages.person(self._call("GetPerson", build, timeout).person)

    def faces(
        self, person: str | None = None, *, timeout: float | None = None
    ) -> Iterator[EnrolledFace]:
        """The faces, the first enrolled first; asked for in pages as they are needed.

        Args:
            person: only this person's; all if unset.
            timeout: seconds for each page; the client's own if unset.
        """
        build = functools.partial(
            pb.ListFacesRequest, collection=self.name, person_id=person or "", page_size=PAGE
        )
        for page in self._pages("ListFaces", build, timeout):
            yield from map(messages.enrolled_face, page.faces)

    def export_faces(self, *, timeout: float | None = None) -> Iterator[ExportedFace]:
        """The faces with their embeddings, the first enrolled first; asked for in pages as they are needed.

        Faces that are enrolled meanwhile come at the end. Where the server knows its callers, this needs the
        role `admin`.

        Args:
            timeout: seconds for each page; the client's own if unset.
        """
        build = functools.partial(pb.ExportFacesRequest, collection=self.name, page_size=PAGE)
        for page in self._pages("ExportFaces", build, timeout):
            yield from map(messages.exported_face, page.faces)

    def face(self, face_id: str, *, timeout: float | None = None) -> EnrolledFace:
        """One face: whose it is, its labels, its quality, and when it was enrolled.

        Args:
            face_id: as `enrol` and `identify` tell it.
            timeout: seconds; the client's own if unset.

        Raises:
            NotInGallery: there is no such gallery, or no such face in it.
        """
        build = functools.partial(pb.GetFaceRequest, collection=self.name, face_id=face_id)
        return messages.enrolled_face(self._call("GetFace", build, timeout).face)

    def crop(self, face_id: str, *, timeout: float | None = None) -> NDArray[np.uint8]:
        """The picture that a gallery with `keep_crops` has of a face: [112, 112, 3] RGB, aligned.

        Where the server knows its callers, this needs the role `admin`.

        Args:
            face_id: as `enrol` and `identify` tell it.
            timeout: seconds; the client's own if unset.

        Raises:
            FailedPrecondition: the gallery keeps no crops (reason NO_CROPS).
        """
        build = functools.partial(pb.GetCropRequest, collection=self.name, face_id=face_id)
        return messages.crop(self._call("GetCrop", build, timeout).crop)

    def move(
        self, face_ids: str | Sequence[str], person: str, *, timeout: float | None = None
    ) -> tuple[str, ...]:
        """Gives faces to another person, who may be new: all of them, or none.

        Args:
            face_ids: one or up to 1000.
            person: whose they are.
            timeout: seconds; the client's own if unset.

        Returns:
            the persons who are gone, because they have no face any more.
        """
        build = functools.partial(
            pb.MoveFacesRequest,
            collection=self.name,
            face_ids=messages.face_ids(face_ids),
            person_id=person,
        )
        return tuple(self._call("MoveFaces", build, timeout).emptied_person_ids)

    def group(
        self,
        *,
        threshold: float | None = None,
        min_faces: int | None = None,
        timeout: float | None = None,
    ) -> GroupResult:
        """Puts the faces without a person together by likeness, for you to name; changes nothing.

        `move` gives a group to a person. Looks at the first 20,000 such faces.

        Args:
            threshold: two groups are joined while the pairs between them are at least so similar on average,
                in [-1, 1]; by default what `identify` goes by.
            min_faces: leaves out smaller groups; 2 by default, 1 shows single faces, too.
            timeout: seconds; the client's own if unset. Thousands of faces take some.

        Raises:
            InvalidRequest: the threshold is so low that thousands of faces hang together.
        """
        build = functools.partial(messages.group_request, self.name, threshold, min_faces)
        return messages.group_result(self._call("Group", build, timeout))

    def reembed(
        self,
        *,
        embedder: ModelLike | None = None,
        max_faces: int | None = None,
        timeout: float | None = None,
    ) -> ReembedResult:
        """Goes on bringing the gallery to another model or version, by the crops that it keeps.

        Call it until `done`; what was done is kept. The gallery serves with its old model meanwhile, which
        has to be served beside the new one, and exchanges all at once at the end.

        Args:
            embedder: the model that it is to have; the server's default if unset.
            max_faces: faces to embed in this call, at most 10,000; 256 by default.
            timeout: seconds; the client's own if unset. The call ends before, with what it could do.

        Raises:
            FailedPrecondition: the gallery was made without `keep_crops` (reason NO_CROPS).
        """
        build = functools.partial(messages.reembed_request, self.name, embedder, max_faces)
        return messages.reembed_result(self._call("Reembed", build, timeout))

    def delete_faces(
        self, face_ids: str | Sequence[str], *, timeout: float | None = None
    ) -> Deleted:
        """Deletes faces: all of them, or none.

        Args:
            face_ids: one or up to 1000, as `enrol` and `faces` tell them.
            timeout: seconds; the client's own if unset.

        Returns:
            the persons who are gone with them, and whether the faces are erased on the server's disk.

        Raises:
            NotInGallery: there is no such gallery, or no such face in it.
        """
        ids = messages.face_ids(face_ids)
        build = functools.partial(pb.DeleteFacesRequest, collection=self.name, face_ids=ids)
        return messages.deleted_faces(self._call("DeleteFaces", build, timeout), len(set(ids)))

    def delete_person(self, person: str, *, timeout: float | None = None) -> Deleted:
        """Deletes a person with all faces.

        Args:
            person: the name that was enrolled.
            timeout: seconds; the client's own if unset.

        Returns:
            how many faces that were, and whether they are erased on the server's disk.

        Raises:
            NotInGallery: there is no such gallery, or no such person in it.
        """
        build = functools.partial(pb.DeletePersonRequest, collection=self.name, person_id=person)
        return messages.deleted(self._call("DeletePerson", build, timeout), person=person)

    def delete(self, *, timeout: float | None = None) -> Deleted:
        """Deletes the gallery with everything in it.

        Args:
            timeout: seconds; the client's own if unset.

        Returns:
            how many faces went with it, and whether they are erased on the server's disk.

        Raises:
            NotInGallery: there is no such gallery.
        """
        build = functools.partial(pb.DeleteCollectionRequest, collection=self.name)
        return messages.deleted(self._call("DeleteCollection", build, timeout))

    def _pages(
        self, method: str, build: Callable[..., Any], timeout: float | None
    ) -> Iterator[Any]:
        token = ""
        while True:
            page = self._call(method, functools.partial(build, page_token=token), timeout)
            yield page
            token = page.next_page_token
            if not token:
                return

    def _call(self, method: str, build: Callable[[], Any], timeout: float | None) -> Any:
        return self._client._call_gallery(method, build, timeout, timing=False)[0]
