"""Identify, and what is asked of a gallery beside it: photos and embeddings in, persons out."""

import asyncio
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from mien_server.errors import InvalidRequest, NotInGallery, Reason, Unmet, at
from mien_server.gallery import grouping
from mien_server.gallery.checks import check_collection_name
from mien_server.gallery.interface import AnyStore, OpenCollection
from mien_server.gallery.types import (
    FaceGroup,
    Found,
    Grouped,
    Identification,
    IdentifiedFace,
    Labels,
    Match,
    Query,
    Searched,
)
from mien_server.models.interface import CROP_SIDE
from mien_server.models.roles import EMBEDDER, EmbedderOptions
from mien_server.pipeline.compare import check_embedding, check_length, check_threshold
from mien_server.pipeline.faces import FacePipeline
from mien_server.pipeline.requirements import Requirements
from mien_server.pipeline.running import identity_of, together
from mien_server.pipeline.types import (
    AlignedFace,
    ArrayF32,
    Call,
    Embedding,
    Face,
    FacePolicy,
    FaceSelection,
    ImageSource,
    ModelIdentity,
    ModelRef,
    PhotoFaces,
    RawPixels,
    StageTime,
)
from mien_server.repository.catalogue import Catalogue
from mien_server.repository.versions import Lease
from mien_server.scheduling.errors import Expired


class Gallery:
    """Answers what is asked of the galleries. Its methods run on one event loop, and block it with nothing.

    All of them raise `MienError` for what is wrong with the request, with the field at fault, and
    `SchedulingError` for what kept it from being computed.

    Args:
        store: where the faces are; the caller closes it.
        models: the model repository.
        pipeline: finds and embeds faces.
        default_embedder: name of the model for collections that are to have none in particular.
    """

    def __init__(
        self, store: AnyStore, models: Catalogue, pipeline: FacePipeline, *, default_embedder: str
    ) -> None:
        self.store = store
        self._models = models
        self._pipeline = pipeline
        self._default_embedder = default_embedder
        # One grouping at a time: beside it, cores are for calls that take milliseconds.
        self._grouping = ThreadPoolExecutor(1, thread_name_prefix="gallery-group")
        self._grouping_turn = asyncio.Lock()

    async def create(
        self,
        name: str,
        embedder: ModelRef,
        threshold: float | None,
        *,
        keep_crops: bool = False,
    ) -> OpenCollection:
        """Makes a collection, pinned to the embedder that serves now.

        Raises:
            InvalidRequest: the name, the threshold or the model's role is wrong.
            AlreadyInGallery: COLLECTION_EXISTS.
        """
        check_collection_name(name)
        check_threshold(threshold)
        identity, dimensions = await self.embedder(embedder)
        made: OpenCollection = await self.store.create(
            name, identity, dimensions, threshold, keep_crops=keep_crops
        )
        return made

    async def identify(
        self,
        names: Sequence[str],
        subject: ImageSource | Embedding,
        *,
        detector: ModelRef,
        selection: FaceSelection,
        top_k: int,
        threshold: float | None,
        labels: Labels,
        call: Call,
    ) -> Identification:
        """The persons of some collections who are most like the faces of a photo, or like an embedding.

        Args:
            names: of the collections, at least one.
            subject: its field is `subject`.
            top_k: how many persons for each face, in [1, 100].
            threshold: None: each collection's own, or else its embedder's.

        Raises:
            InvalidRequest: the picture, the embedding, an option or a model's role is wrong.
            Unmet: as Embed says; EMBEDDING_MISMATCH.
            NotInGallery: COLLECTION_NOT_FOUND.
        """
        check_threshold(threshold)
        searched: list[OpenCollection] = []
        for number, name in enumerate(names):
            try:
                searched.append(self.store.find(name))
            except NotInGallery as error:
                error.field = f"collections[{number}]"
                raise
        first = searched[0].collection
        for number, live in enumerate(searched):
            if live.collection.embedder.fingerprint != first.embedder.fingerprint:
                raise Unmet(
                    Reason.EMBEDDING_MISMATCH,
                    f"Collections {first.name!r} and {live.collection.name!r} hold embeddings of different"
                    " models: look in each by a call of its own.",
                    field=f"collections[{number}]",
                )
        photo = await self.embed(subject, searched[0], detector, selection, call)
        thresholds = [self._threshold(live, threshold) for live in searched]
        faces = [face for face in photo.faces if face.embedding is not None]
        passed = 0 if isinstance(subject, Embedding) else 2
        found: Sequence[Sequence[Found]] = [[] for _ in searched]
        if faces:
            found = await together(
                *(
                    self._search(live, faces, top_k, limit, labels, call, passed)
                    for live, (limit, _) in zip(searched, thresholds, strict=True)
                )
            )
        return Identification(
            faces=[
                IdentifiedFace(
                    None if isinstance(subject, Embedding) else face,
                    _best(searched, [of_live[number] for of_live in found], top_k),
                )
                for number, face in enumerate(faces)
            ],
            searched=[
                Searched(
                    live.collection.name,
                    of_live[0].faces if of_live else live.named,
                    limit,
                    source,
                )
                for live, of_live, (limit, source) in zip(searched, found, thresholds, strict=True)
            ],
            embedder=first.embedder,
            detector=photo.detector,
            width=photo.width,
            height=photo.height,
        )

    async def group(self, name: str, *, threshold: float | None, least: int, call: Call) -> Grouped:
        """The faces of a collection that have no person, put together by likeness.

        Args:
            name: of the collection.
            threshold: down to which mean cosine groups are joined; None: as for Identify.
            least: faces that a group must have, at least 1.

        Raises:
            InvalidRequest: INVALID_OPTION, the threshold is out of range or too low.
            NotInGallery: COLLECTION_NOT_FOUND. Expired: the call's time was not enough.
        """
        check_threshold(threshold)
        live = self.store.find(name)
        limit, source = self._threshold(live, threshold)
        async with self._grouping_turn:  # who waits for it holds no vectors
            faces, vectors, left_out = await self.store.unnamed(live, grouping.MAX_FACES)
            began = time.monotonic()
            groups = await self._grouped(faces, vectors, limit, least, call)
        call.add(began, StageTime("group", time.monotonic() - began))
        return Grouped(groups, len(faces), left_out, limit, source)

    async def _grouped(
        self, faces: NDArray[np.int64], vectors: ArrayF32, threshold: float, least: int, call: Call
    ) -> list[FaceGroup]:
        abandoned = threading.Event()

        def check() -> None:
            if abandoned.is_set():
                raise Expired("nobody waits for the groups any more")
            if call.deadline is not None and time.monotonic() > call.deadline:
                raise Expired(
                    f"The call's time was not enough to group {len(faces):,} faces: give it more."
                )

        work = partial(
            grouping.group, faces, vectors, threshold=threshold, least=least, check=check
        )
        try:
            return await asyncio.wrap_future(self._grouping.submit(work))
        finally:
            abandoned.set()

    async def embedder(self, asked: ModelRef) -> tuple[ModelIdentity, int]:
        """The embedder that serves under a name, or else the default one, and the length of its vectors.

        Raises:
            ModelNotFound, ModelNotReady: it does not serve. InvalidRequest: it is no embedder.
        """
        name = asked.name or self._default_embedder
        with at("embedder"):
            held = self._models.hold(name, asked.version, role=EMBEDDER, fingerprint="")
            async with held as lease:
                return identity_of(lease.model), lease.model.config.outputs[0].dims[0]

    async def embed_crop(self, crop: bytes, embedder: ModelIdentity, call: Call) -> Embedding:
        """The embedding of RGB of 112x112 pixels by a model; its stages are not those of the call."""
        photo = await self._pipeline.embed(
            AlignedFace(RawPixels(CROP_SIDE, CROP_SIDE, crop)),
            detector=ModelRef(),
            embedder=ModelRef(embedder.name, embedder.version),
            selection=FaceSelection(FacePolicy.LARGEST),
            call=replace(call, stages=[]),
        )
        embedding = photo.faces[0].embedding
        assert embedding is not None  # noqa: S101 - that is what was asked for
        return embedding

    async def embed(
        self,
        subject: ImageSource | Embedding,
        live: OpenCollection,
        detector: ModelRef,
        selection: FaceSelection,
        call: Call,
        *,
        inspect: bool = False,
        analysers: Sequence[ModelRef] = (),
        require: Requirements = Requirements(),  # noqa: B008 - frozen
    ) -> PhotoFaces:
        """The faces of a photo with embeddings that fit a collection; a given embedding is one without box.

        Args:
            inspect, analysers, require: as `FacePipeline.embed` has them; of an embedding they say nothing.

        Raises:
            InvalidRequest: the picture, the embedding, an option or a model's role is wrong; in the field
                `subject.image` or `subject.embedding`.
            Unmet: as Embed says; EMBEDDING_MISMATCH, REQUIREMENT_UNMET.
        """
        collection = live.collection
        if isinstance(subject, Embedding):
            if inspect and collection.keeps_crops:
                raise Unmet(
                    Reason.NO_CROPS,
                    f"Collection {collection.name!r} keeps the crops of its faces, and an embedding has none:"
                    " enrol the photo.",
                    field="subject.embedding",
                )
            with at("subject.embedding"):
                given = check_embedding(subject)
                if given.model.fingerprint != collection.embedder.fingerprint:
                    raise _mismatch(
                        collection.name, collection.embedder, given.model, field="model"
                    )
                check_length(given, collection.dimensions)
            return PhotoFaces([Face(None, 0.0, None, given)], 0, 0)
        async with self._pinned(live) as lease:
            model = lease.model
            if model.fingerprint != collection.embedder.fingerprint:
                serving = identity_of(model)
                raise _mismatch(collection.name, collection.embedder, serving, field="collection")
            try:
                return await self._pipeline.embed(
                    subject,
                    detector=detector,
                    embedder=ModelRef(model.name, model.version),
                    selection=selection,
                    call=call,
                    inspect=inspect,
                    analysers=analysers,
                    require=require,
                )
            except (InvalidRequest, Unmet) as error:
                if error.field.partition(".")[0] == "image":
                    error.field = f"subject.{error.field}"
                raise

    def model_threshold(self, live: OpenCollection) -> float | None:
        """The match threshold of a collection's embedder, if it has one.

        Raises:
            ModelNotFound, ModelNotReady: it does not serve.
        """
        pinned = live.collection.embedder
        config = self._models.config(pinned.name, 0, role=EMBEDDER, fingerprint=pinned.fingerprint)
        options: EmbedderOptions = config.options
        return options.match_threshold

    def _pinned(self, live: OpenCollection) -> AbstractAsyncContextManager[Lease]:
        """The embedder of a collection, or what serves under its name instead."""
        embedder = live.collection.embedder
        return self._models.hold(embedder.name, 0, role=EMBEDDER, fingerprint=embedder.fingerprint)

    def _threshold(self, live: OpenCollection, asked: float | None) -> tuple[float, str]:
        """The threshold that holds for a collection, and where it comes from."""
        if asked is not None:
            return asked, "request"
        if live.collection.threshold is not None:
            return live.collection.threshold, "collection"
        own = self.model_threshold(live)
        if own is None:
            raise InvalidRequest(
                Reason.INVALID_OPTION,
                f"threshold: neither collection {live.collection.name!r} nor its model"
                f" {live.collection.embedder.name} has one: give one.",
                field="threshold",
            )
        return own, "model"

    async def _search(
        self,
        live: OpenCollection,
        faces: Sequence[Face],
        top_k: int,
        threshold: float,
        labels: Mapping[str, str],
        call: Call,
        passed: int,
    ) -> Sequence[Found]:
        queries = [
            Query(face.embedding.values, top_k, threshold, labels)
            for face in faces
            if face.embedding is not None
        ]
        return await self.store.search(live, queries, call, passed=passed)


def _best(
    searched: Sequence[OpenCollection], found: Sequence[Found], top_k: int
) -> list[tuple[str, Match]]:
    """The best persons of all collections."""
    matches = [
        (live.collection.name, match)
        for live, of_live in zip(searched, found, strict=True)
        for match in of_live.matches
    ]
    return sorted(matches, key=lambda match: -match[1].similarity)[:top_k]


def _mismatch(collection: str, pinned: ModelIdentity, other: ModelIdentity, *, field: str) -> Unmet:
    return Unmet(
        Reason.EMBEDDING_MISMATCH,
        f"Collection {collection!r} holds embeddings of {pinned.name} version {pinned.version}"
        f" ({pinned.fingerprint}), not of {other.name} version {other.version} ({other.fingerprint}): serve"
        " that version beside the other one (version_policy in its config.pbtxt), or enrol the photos in a"
        " new collection.",
        field=field,
    )
