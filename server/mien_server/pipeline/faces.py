"""The face pipeline: decode, detect, choose, align, embed, compare."""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from typing import Protocol

import numpy as np

from mien_server.errors import InvalidRequest, MienError, Reason, at
from mien_server.models.detections import Detections
from mien_server.models.interface import AnyRole
from mien_server.models.roles import DETECTOR, EMBEDDER, EmbedderOptions, EmbedderRow
from mien_server.pipeline.align import CROP_SIDE, alignable, crop_faces, magnification
from mien_server.pipeline.compare import (
    check_embedding,
    check_length,
    check_same_model,
    cosine,
    to_embedding,
)
from mien_server.pipeline.decode import Photo
from mien_server.pipeline.finding import FoundFaces, find_faces, load
from mien_server.pipeline.pool import DecodePool
from mien_server.pipeline.rows import run_rows, together
from mien_server.pipeline.selection import check_selection, select_faces
from mien_server.pipeline.types import (
    AlignedFace,
    ArrayF32,
    Call,
    Comparison,
    Embedding,
    EncodedImage,
    Face,
    FaceSelection,
    ImageSource,
    ImageU8,
    Limits,
    ModelIdentity,
    ModelRef,
    PhotoFaces,
    RawPixels,
    StageTime,
)
from mien_server.repository.leases import Lease
from mien_server.repository.versions import ReadyModel


class Models(Protocol):
    """Where the pipeline finds its models."""

    def lease(
        self, name: str, version: int, *, role: AnyRole, fingerprint: str
    ) -> AbstractContextManager[Lease]:
        """Holds the version that answers a call; version 0 lets the repository choose.

        It then chooses one of this fingerprint, if there is one.

        Raises:
            ModelNotFound: no such model or version. ModelNotReady: it does not serve now.
            InvalidRequest: it has another role.
        """
        ...


class FacePipeline:
    """Answers Detect, Embed and Verify. Its methods run on one event loop; nothing they call blocks it.

    All of them raise `MienError` for what is wrong with the request and `SchedulingError` for what kept
    it from being computed. Errors about a side of a comparison name a field that begins with "a." or "b.".

    Args:
        models: the model repository.
        pool: the threads for blocking work; the caller closes it.
        default_detector: name of the model for requests that name none.
        default_embedder: likewise.
        limits: what a call may ask for.
    """

    def __init__(
        self,
        models: Models,
        pool: DecodePool,
        *,
        default_detector: str,
        default_embedder: str,
        limits: Limits,
    ) -> None:
        self._models = models
        self._pool = pool
        self._defaults: dict[AnyRole, str] = {
            DETECTOR: default_detector,
            EMBEDDER: default_embedder,
        }
        self._limits = limits

    async def detect(
        self, image: ImageSource, *, detector: ModelRef, selection: FaceSelection, call: Call
    ) -> PhotoFaces:
        """The faces of a photo, in the policy's order; none is no error.

        Raises:
            InvalidRequest: the picture, an option or the model's role is wrong; also an aligned crop.
            Unmet: MULTIPLE_FACES under REQUIRE_ONE.
        """
        if isinstance(image, AlignedFace):
            raise InvalidRequest(
                Reason.INVALID_OPTION,
                "Detect looks for faces in photos; an aligned crop is for Embed and Verify.",
                field=image.field,
            )
        check_selection(selection, self._limits)
        with self._lease(detector, DETECTOR) as lease:
            found = await self._find(image, lease, selection, call, reserve=0.0)
        chosen = self._select(found, selection, image.field, required=False)
        faces = [_face(found.faces, i) for i in chosen]
        return PhotoFaces(
            faces, found.photo.width, found.photo.height, detector=_identity(lease.model)
        )

    async def embed(
        self,
        image: ImageSource,
        *,
        detector: ModelRef,
        embedder: ModelRef,
        selection: FaceSelection,
        call: Call,
    ) -> PhotoFaces:
        """The chosen faces of a photo, or an aligned crop, with their embeddings.

        Raises:
            InvalidRequest: the picture, an option or a model's role is wrong.
            Unmet: FACE_NOT_FOUND, FACE_TOO_SMALL (unless the policy is ALL), MULTIPLE_FACES.
        """
        with ExitStack() as leases:
            lease = leases.enter_context(self._lease(embedder, EMBEDDER))
            finder = None
            if not isinstance(image, AlignedFace):
                check_selection(selection, self._limits)
                finder = leases.enter_context(self._lease(detector, DETECTOR))
            return await self._embed_image(image, finder, lease, selection, call)

    async def verify(
        self,
        a: ImageSource | Embedding,
        b: ImageSource | Embedding,
        *,
        detector: ModelRef,
        embedder: ModelRef,
        selection: FaceSelection,
        threshold: float | None,
        call: Call,
    ) -> Comparison:
        """Compares two faces, each a photo, an aligned crop or an embedding; both sides at once.

        The embedder is the one asked for, else the one that made a given embedding, else the default. It
        must be ready even if both sides are embeddings: the threshold is its own.

        Raises:
            InvalidRequest: a picture, an embedding, an option or a model's role is wrong.
            Unmet: no usable face on a side; EMBEDDING_MISMATCH.
        """
        check_selection(selection, self._limits, one_face=True)
        if threshold is not None and not (math.isfinite(threshold) and -1.0 <= threshold <= 1.0):
            raise InvalidRequest(
                Reason.INVALID_OPTION,
                f"threshold: {threshold:g} is outside [-1, 1], where cosines lie.",
                field="threshold",
            )
        a, b = (check_embedding(x) if isinstance(x, Embedding) else x for x in (a, b))
        given = [x for x in (a, b) if isinstance(x, Embedding)]
        with ExitStack() as leases:
            lease = leases.enter_context(
                self._lease(_embedder_for(embedder, given), EMBEDDER, given=given)
            )
            model = lease.model
            for embedding in given:
                check_same_model(embedding, _identity(model))
                check_length(embedding, model.config.outputs[0].dims[0])
            limit = _match_threshold(model) if threshold is None else threshold
            finder = None
            if any(isinstance(x, EncodedImage | RawPixels) for x in (a, b)):
                finder = leases.enter_context(self._lease(detector, DETECTOR))

            async def side(name: str, source: ImageSource | Embedding) -> PhotoFaces:
                if isinstance(source, Embedding):
                    return PhotoFaces([Face(None, 0.0, None, source)], 0, 0)
                part = replace(call, stages=[])
                try:
                    return await self._embed_image(source, finder, lease, selection, part)
                except MienError as error:
                    if not error.field.startswith(f"{name}."):
                        error.field = f"{name}.{error.field}".rstrip(".")
                    raise
                finally:
                    call.stages += [
                        StageTime(f"{name}.{s.name}", s.seconds, s.batch_rows) for s in part.stages
                    ]

            found_a, found_b = await together(side("a", a), side("b", b))
        vector_a, vector_b = _embedding(found_a), _embedding(found_b)
        similarity = cosine(vector_a.values, vector_b.values)
        return Comparison(
            similarity=similarity,
            threshold=limit,
            threshold_from_request=threshold is not None,
            matched=similarity >= limit,
            face_a=found_a.faces[0],
            face_b=found_b.faces[0],
            detector=None if finder is None else _identity(finder.model),
            embedder=_identity(model),
            size_a=_size(found_a),
            size_b=_size(found_b),
        )

    async def _embed_image(
        self,
        image: ImageSource,
        detector: Lease | None,
        embedder: Lease,
        selection: FaceSelection,
        call: Call,
    ) -> PhotoFaces:
        """Embeds a crop, or the faces of a photo, which needs a detector."""
        if isinstance(image, AlignedFace):
            return await self._embed_crop(image, embedder, call)
        if detector is None:
            raise ValueError("a photo needs a detector")
        return await self._embed_photo(image, detector, embedder, selection, call)

    async def _embed_photo(
        self,
        image: EncodedImage | RawPixels,
        detector: Lease,
        embedder: Lease,
        selection: FaceSelection,
        call: Call,
    ) -> PhotoFaces:
        reserve = embedder.model.slot.expected_compute()
        found = await self._find(image, detector, selection, call, reserve=reserve)
        usable = np.flatnonzero(alignable(found.faces.landmarks))
        found = FoundFaces(found.photo, found.faces.take(usable))
        chosen = self._select(found, selection, image.field, required=True)
        width, height, detections = found.photo.width, found.photo.height, found.faces
        crops: list[ImageU8] = []
        if chosen:
            begun = time.monotonic()
            crops = await self._crop(image, found.photo, detections.landmarks[chosen])
            call.stages.append(StageTime("align", time.monotonic() - begun))
        # The crops are all that the call needs of the photo while it waits.
        del found
        embeddings = await self._embed(crops, embedder, call, stage=1)
        faces = [_face(detections, i, e) for i, e in zip(chosen, embeddings, strict=True)]
        return PhotoFaces(
            faces, width, height, _identity(detector.model), _identity(embedder.model)
        )

    async def _embed_crop(self, image: AlignedFace, embedder: Lease, call: Call) -> PhotoFaces:
        def crop() -> tuple[ImageU8, float]:
            begun = time.monotonic()
            photo = load(image.crop, self._limits)
            if (photo.width, photo.height) != (CROP_SIDE, CROP_SIDE):
                raise InvalidRequest(
                    Reason.INVALID_IMAGE,
                    f"An aligned face has {CROP_SIDE}x{CROP_SIDE} pixels, this one has"
                    f" {photo.width}x{photo.height}: align it, or send it as a photo.",
                    field=image.crop.field,
                )
            return photo.pixels, time.monotonic() - begun

        (pixels, seconds), waited = await self._pool.decode(
            crop, nbytes=len(image.crop.data), deadline=call.deadline
        )
        call.stages += [StageTime("decode.queue", waited), StageTime("decode", seconds)]
        (embedding,) = await self._embed([pixels], embedder, call, stage=0)
        face = Face(None, 0.0, None, embedding)
        return PhotoFaces([face], CROP_SIDE, CROP_SIDE, embedder=_identity(embedder.model))

    async def _crop(
        self, image: EncodedImage | RawPixels, photo: Photo, landmarks: ArrayF32
    ) -> list[ImageU8]:
        def crop() -> list[ImageU8]:
            sharp = photo
            if photo.reduction > 1 and magnification(landmarks / photo.reduction).max() > 1.0:
                # The reduced photo has fewer pixels of this face than the crop: decode it in full.
                sharp = load(image, self._limits)
            scaled = (landmarks / sharp.reduction).astype(np.float32)
            return crop_faces(sharp.pixels, scaled)

        return await self._pool.finish(crop)

    async def _embed(
        self, crops: Sequence[ImageU8], embedder: Lease, call: Call, *, stage: int
    ) -> list[Embedding]:
        size = embedder.model.config.batching.max_batch_size
        parts = [crops[i : i + size] for i in range(0, len(crops), size)]
        results = await together(
            *(
                run_rows(
                    embedder,
                    [EmbedderRow(crop) for crop in part],
                    call,
                    nbytes=sum(crop.nbytes for crop in part),
                    stage=stage,
                    deadline=call.deadline,
                )
                for part in parts
            )
        )
        identity = _identity(embedder.model)
        return [to_embedding(raw, identity) for part in results for raw in part]

    async def _find(
        self,
        image: EncodedImage | RawPixels,
        detector: Lease,
        selection: FaceSelection,
        call: Call,
        *,
        reserve: float,
    ) -> FoundFaces:
        return await find_faces(
            image,
            detector,
            selection,
            limits=self._limits,
            pool=self._pool,
            call=call,
            reserve=reserve,
        )

    def _select(
        self, found: FoundFaces, selection: FaceSelection, field: str, *, required: bool
    ) -> list[int]:
        return select_faces(
            found.faces,
            selection,
            width=found.photo.width,
            height=found.photo.height,
            limits=self._limits,
            required=required,
            field=field,
        )

    @contextmanager
    def _lease(
        self, ref: ModelRef, role: AnyRole, *, given: Sequence[Embedding] = ()
    ) -> Iterator[Lease]:
        name = ref.name or self._defaults[role]
        fingerprint = given[0].model.fingerprint if given else ""
        leased = self._models.lease(name, ref.version, role=role, fingerprint=fingerprint)
        with ExitStack() as held:
            with at(ref.field):
                lease = held.enter_context(leased)
            yield lease


def _embedder_for(asked: ModelRef, given: Sequence[Embedding]) -> ModelRef:
    if asked.name or asked.version or not given:
        return asked
    model = given[0].model
    return ModelRef(model.name, model.version, f"{given[0].field}.model")


def _match_threshold(model: ReadyModel) -> float:
    options: EmbedderOptions = model.config.options
    if options.match_threshold is None:
        raise InvalidRequest(
            Reason.INVALID_OPTION,
            f"threshold: {model.name} has no match_threshold of its own: give one.",
            field="threshold",
        )
    return options.match_threshold


def _embedding(found: PhotoFaces) -> Embedding:
    embedding = found.faces[0].embedding
    assert embedding is not None  # noqa: S101 - every side was embedded or given
    return embedding


def _size(found: PhotoFaces) -> tuple[int, int] | None:
    return (found.width, found.height) if found.faces[0].box is not None else None


def _identity(model: ReadyModel) -> ModelIdentity:
    return ModelIdentity(model.name, model.version, model.fingerprint)


def _face(found: Detections, index: int, embedding: Embedding | None = None) -> Face:
    return Face(
        found.boxes[index].astype(np.float32),
        float(found.scores[index]),
        found.landmarks[index].astype(np.float32),
        embedding,
    )
