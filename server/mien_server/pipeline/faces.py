"""The face pipeline: decode, detect, choose, align, embed, compare."""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import replace
from itertools import chain
from typing import TypedDict

from mien_server.errors import InvalidRequest, Reason, at
from mien_server.models.analyser import ANALYSER
from mien_server.models.interface import AnyRole
from mien_server.models.roles import DETECTOR, EMBEDDER
from mien_server.pipeline.analysing import analyse_image
from mien_server.pipeline.compare import (
    check_length,
    check_same_model,
    check_threshold,
    checked_sides,
    compared,
    embedder_for,
    match_threshold,
)
from mien_server.pipeline.embedding import embed_image, face_of
from mien_server.pipeline.finding import find_faces
from mien_server.pipeline.landmarks import check_boxes_do
from mien_server.pipeline.pool import PicturePool
from mien_server.pipeline.requirements import (
    Asked,
    Requirements,
    check_met,
    default_analysers,
    lease_asked,
    with_named,
)
from mien_server.pipeline.running import identity_of, together
from mien_server.pipeline.selection import check_selection, select_faces
from mien_server.pipeline.types import (
    AlignedFace,
    Call,
    Comparison,
    Embedding,
    EncodedImage,
    Face,
    FaceSelection,
    ImageSource,
    Limits,
    ModelRef,
    PhotoFaces,
    RawPixels,
)
from mien_server.repository.catalogue import Catalogue
from mien_server.repository.versions import Lease


class _Here(TypedDict):
    """What all pictures of a pipeline are handled with."""

    limits: Limits
    pool: PicturePool


class FacePipeline:
    """Answers the calls of the face service. Its methods run on one event loop; nothing they call blocks it.

    All of them raise `MienError` for what is wrong with the request and `SchedulingError` for what kept
    it from being computed. The field of a `MienError` begins with the argument at fault: `image.encoded`,
    `detector`, `selection.min_score`, `a.image.pixels`, `b.embedding.values`.

    Args:
        models: the model repository.
        pool: the threads for blocking work; the caller closes it.
        default_detector: name of the model for requests that name none.
        default_embedder: likewise.
        limits: what a call may ask for.
    """

    def __init__(
        self,
        models: Catalogue,
        pool: PicturePool,
        *,
        default_detector: str,
        default_embedder: str,
        limits: Limits,
    ) -> None:
        self._limits = limits
        self._here: _Here = {"limits": limits, "pool": pool}
        self._models = models
        self._defaults: dict[AnyRole, str] = {
            DETECTOR: default_detector,
            EMBEDDER: default_embedder,
        }

    async def detect(
        self,
        image: ImageSource,
        *,
        detector: ModelRef,
        selection: FaceSelection,
        call: Call,
        analysers: Sequence[ModelRef] = (),
    ) -> PhotoFaces:
        """The faces of a photo, in the policy's order; none is no error.

        Args:
            analysers: that are to tell of each, which then is one that can be aligned.

        Raises:
            InvalidRequest: the picture, an option or a model's role is wrong; also an aligned crop.
            Unmet: MULTIPLE_FACES under REQUIRE_ONE.
        """
        if isinstance(image, AlignedFace):
            raise InvalidRequest(
                Reason.INVALID_OPTION,
                "Detect looks for faces in photos; an aligned crop is for Embed and Verify.",
                field=f"image.{image.part}",
            )
        if analysers:
            return await self._analysed(
                image,
                detector=detector,
                embedder=None,
                analysers=analysers,
                selection=selection,
                call=call,
                required=False,
            )
        with at("selection"):
            check_selection(selection, self._limits)
        async with AsyncExitStack() as leases:
            with at("detector"):
                lease = await leases.enter_async_context(self._lease(detector, DETECTOR))
            with at("image"), at(image.part):
                found = await find_faces(image, lease, selection, **self._here, call=call)
                chosen = select_faces(
                    found.faces,
                    selection,
                    width=found.photo.width,
                    height=found.photo.height,
                    limits=self._limits,
                    required=False,
                )
        faces = [face_of(found.faces, i) for i in chosen]
        return PhotoFaces(
            faces, found.photo.width, found.photo.height, detector=identity_of(lease.model)
        )

    async def embed(
        self,
        image: ImageSource,
        *,
        detector: ModelRef,
        embedder: ModelRef,
        selection: FaceSelection,
        call: Call,
        inspect: bool = False,
        analysers: Sequence[ModelRef] = (),
        require: Requirements = Requirements(),  # noqa: B008 - frozen
    ) -> PhotoFaces:
        """The chosen faces of a photo, or an aligned crop, with their embeddings.

        Args:
            inspect: whether to tell the faces' quality and give their crops, too.
            analysers: that are to tell of each.
            require: of every one of these faces.

        Raises:
            InvalidRequest: the picture, an option or a model's role is wrong; also a detector that places no
                landmarks.
            Unmet: FACE_NOT_FOUND, FACE_TOO_SMALL (unless the policy is ALL), MULTIPLE_FACES,
                REQUIREMENT_UNMET.
        """
        if analysers or require:
            found = await self._analysed(
                image,
                detector=detector,
                embedder=embedder,
                analysers=analysers,
                selection=selection,
                call=call,
                require=require,
            )
            return with_named(found, len(analysers))
        async with AsyncExitStack() as leases:
            with at("embedder"):
                lease = await leases.enter_async_context(self._lease(embedder, EMBEDDER))
            finder = await self._lease_finder(leases, image, selection, detector, [lease])
            return await embed_image(
                image,
                finder,
                lease,
                selection,
                **self._here,
                call=call,
                inspect=inspect,
            )

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
        analysers: Sequence[ModelRef] = (),
        require: Requirements = Requirements(),  # noqa: B008 - frozen
    ) -> Comparison:
        """Compares two faces, each a photo, an aligned crop or an embedding; both sides at once.

        The embedder is the one asked for, else the one that made a given embedding, else the default. It
        must be ready even if both sides are embeddings: the threshold is its own.

        Args:
            analysers: that are to tell of each face that is no embedding.
            require: of each of these.

        Raises:
            InvalidRequest: a picture, an embedding, an option or a model's role is wrong.
            Unmet: no usable face on a side; EMBEDDING_MISMATCH, REQUIREMENT_UNMET.
        """
        with at("selection"):
            check_selection(selection, self._limits, one_face=True)
        check_threshold(threshold)
        sides, given = checked_sides(a, b)
        if (require or analysers) and len(given) == len(sides):
            field = "require" if require else "analysers"
            raise InvalidRequest(
                Reason.INVALID_OPTION,
                f"{field}: nothing is known of embeddings but who it is; send a photo.",
                field=field,
            )

        # Of a model that is asked for without a version, the one that made the embedding is preferred.
        fingerprint = next((embedding.model.fingerprint for embedding in given.values()), "")
        async with AsyncExitStack() as leases:
            ref, path = embedder_for(embedder, given)
            with at(path):
                lease = await leases.enter_async_context(
                    self._lease(ref, EMBEDDER, fingerprint=fingerprint)
                )
            model = lease.model
            for name, embedding in given.items():
                with at(name), at("embedding"):
                    check_same_model(embedding, identity_of(model))
                    check_length(embedding, model.config.outputs[0].dims[0])
            limit = match_threshold(model) if threshold is None else threshold
            finder = None
            if any(isinstance(source, EncodedImage | RawPixels) for source in sides.values()):
                with at("detector"):
                    finder = await self._hold_finder(leases, detector, [lease])

            aligned = any(isinstance(source, AlignedFace) for source in sides.values())
            asked = await self._lease_asked(
                leases, analysers, "analysers[{}]", require, aligned=aligned
            )

            async def face(name: str, source: ImageSource | Embedding) -> PhotoFaces:
                if isinstance(source, Embedding):
                    return PhotoFaces([Face(None, 0.0, None, source)], 0, 0)
                part = replace(call, stages=[])
                try:
                    with at(name):
                        if not (require or analysers):
                            return await embed_image(
                                source, finder, lease, selection, **self._here, call=part
                            )
                        found = await analyse_image(
                            source,
                            finder,
                            asked.leases,
                            selection,
                            **self._here,
                            call=part,
                            embedder=lease,
                        )
                        with at("image"):
                            check_met(require, found.faces, asked.places)
                        return with_named(found, len(analysers))
                finally:
                    for stage in part.stages:
                        stage.name = f"{name}.{stage.name}"
                    call.stages += part.stages

            found_a, found_b = await together(*(face(*side) for side in sides.items()))
        return compared(
            found_a,
            found_b,
            limit,
            from_request=threshold is not None,
            detector=None if finder is None else identity_of(finder.model),
            embedder=identity_of(model),
        )

    async def analyse(
        self,
        image: ImageSource,
        *,
        detector: ModelRef,
        analysers: Sequence[ModelRef],
        selection: FaceSelection,
        call: Call,
        require: Requirements = Requirements(),  # noqa: B008 - frozen
        embedder: ModelRef | None = None,
    ) -> PhotoFaces:
        """The chosen faces of a photo, or an aligned crop, with their quality and what analysers say of them.

        Args:
            analysers: none: those whose configuration says so. Of these, an aligned crop is not shown to
                those that see more of the photo, nor a face without landmarks to those that see it aligned.
            require: of every one of these faces.
            embedder: what embeds them, too; None: nothing does.

        Raises:
            InvalidRequest: the picture, an option or a model's role is wrong.
            Unmet: FACE_NOT_FOUND, FACE_TOO_SMALL (unless the policy is ALL), MULTIPLE_FACES,
                REQUIREMENT_UNMET.
        """
        by_default: Sequence[ModelRef] = ()
        if not analysers:
            by_default = self._by_default(image, detector)
        return await self._analysed(
            image,
            detector=detector,
            embedder=embedder,
            analysers=analysers or by_default,
            path="analysers[{}]" if analysers else "analysers",
            selection=selection,
            call=call,
            require=require,
        )

    async def _analysed(
        self,
        image: ImageSource,
        *,
        detector: ModelRef,
        embedder: ModelRef | None,
        analysers: Sequence[ModelRef],
        selection: FaceSelection,
        call: Call,
        require: Requirements = Requirements(),  # noqa: B008 - frozen
        path: str = "analysers[{}]",
        required: bool = True,
    ) -> PhotoFaces:
        """The chosen faces with what these analysers say, and their embeddings unless there is no embedder.

        Args:
            path: as `lease_asked` has it.
            required: as `analyse_image` has it.
        """
        aligned = isinstance(image, AlignedFace)
        async with AsyncExitStack() as leases:
            held, places = await self._lease_asked(
                leases, analysers, path, require, aligned=aligned
            )
            vectors = None
            if embedder is not None:
                with at("embedder"):
                    vectors = await leases.enter_async_context(self._lease(embedder, EMBEDDER))
            models = [*chain.from_iterable(held), *([vectors] if vectors else [])]
            finder = await self._lease_finder(leases, image, selection, detector, models)
            found = await analyse_image(
                image,
                finder,
                held,
                selection,
                **self._here,
                call=call,
                embedder=vectors,
                required=required,
            )
        with at("image"):
            check_met(require, found.faces, places)
        return found

    def _lease(
        self, ref: ModelRef, role: AnyRole, *, fingerprint: str = ""
    ) -> AbstractAsyncContextManager[Lease]:
        """As `Catalogue.hold`, of the role's default where none is named."""
        name = ref.name or self._defaults[role]
        return self._models.hold(name, ref.version, role=role, fingerprint=fingerprint)

    async def _lease_finder(
        self,
        leases: AsyncExitStack,
        image: ImageSource,
        selection: FaceSelection,
        detector: ModelRef,
        models: Sequence[Lease],
    ) -> Lease | None:
        """What finds the faces of a photo for these models, some selected; None of an aligned face."""
        if isinstance(image, AlignedFace):
            return None
        with at("selection"):
            check_selection(selection, self._limits)
        with at("detector"):
            return await self._hold_finder(leases, detector, models)

    async def _hold_finder(
        self, leases: AsyncExitStack, detector: ModelRef, models: Sequence[Lease]
    ) -> Lease:
        """A detector that can do for these models."""
        finder = await leases.enter_async_context(self._lease(detector, DETECTOR))
        if not finder.model.config.options.landmarks:
            check_boxes_do(finder, models, self._models.in_use(DETECTOR))
        return finder

    async def _lease_asked(
        self,
        leases: AsyncExitStack,
        named: Sequence[ModelRef],
        path: str,
        require: Requirements,
        *,
        aligned: bool,
    ) -> Asked:
        """The analysers of a call: `lease_asked`."""

        async def enter(ref: ModelRef) -> Lease:
            lease = self._models.hold(ref.name, ref.version, role=ANALYSER, fingerprint="")
            return await leases.enter_async_context(lease)

        return await lease_asked(enter, named, path, require, aligned=aligned)

    def _by_default(self, image: ImageSource, detector: ModelRef) -> list[ModelRef]:
        """The analysers of callers that name none: those that can see these faces."""
        finder = self._models.in_use(DETECTOR).get(detector.name or self._defaults[DETECTOR])
        boxed = not isinstance(image, AlignedFace)
        aligned = not boxed or finder is None or finder.landmarks
        return default_analysers(self._models.in_use(ANALYSER), boxed=boxed, aligned=aligned)
