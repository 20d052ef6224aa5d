"""mien.v1.FaceService: a request's message in, the pipeline's answer out."""

from collections.abc import Iterable

import numpy as np

from mien.v1 import face_pb2, face_pb2_grpc
from mien_server.errors import InvalidRequest, Reason
from mien_server.pipeline.faces import FacePipeline
from mien_server.pipeline.requirements import Demand, Requirements
from mien_server.pipeline.types import (
    AlignedFace,
    Embedding,
    EncodedImage,
    FacePolicy,
    FaceSelection,
    ImageSource,
    ModelIdentity,
    ModelRef,
    RawPixels,
)
from mien_server.rpc.calls import Context, bounded_call
from mien_server.rpc.face_answers import (
    analyze_response,
    detect_response,
    embed_response,
    verify_response,
)

_POLICIES = {
    face_pb2.FACE_POLICY_LARGEST: FacePolicy.LARGEST,
    face_pb2.FACE_POLICY_CENTER_LARGEST: FacePolicy.CENTER_LARGEST,
    face_pb2.FACE_POLICY_ALL: FacePolicy.ALL,
    face_pb2.FACE_POLICY_REQUIRE_ONE: FacePolicy.REQUIRE_ONE,
}


def image_source(image: face_pb2.Image, path: str) -> ImageSource:
    """The source that an `Image` names, which stands at `path` in the request.

    Raises:
        InvalidRequest: none is set.
    """
    match image.WhichOneof("source"):
        case "encoded":
            return EncodedImage(image.encoded)
        case "pixels":
            return _raw_pixels(image.pixels)
        case "aligned_face":
            return _aligned_face(image.aligned_face, f"{path}.aligned_face")
        case _:
            raise _unset(path, "encoded, pixels or aligned_face")


def _raw_pixels(pixels: face_pb2.Pixels) -> RawPixels:
    return RawPixels(pixels.height, pixels.width, pixels.data)


def _aligned_face(face: face_pb2.AlignedFace, path: str) -> AlignedFace:
    match face.WhichOneof("crop"):
        case "encoded":
            return AlignedFace(EncodedImage(face.encoded))
        case "pixels":
            return AlignedFace(_raw_pixels(face.pixels))
        case _:
            raise _unset(path, "encoded or pixels")


def subject_source(subject: face_pb2.Subject, path: str) -> ImageSource | Embedding:
    """One side of a comparison: a picture, or an embedding with values [d] float32.

    Raises:
        InvalidRequest: none is set.
    """
    match subject.WhichOneof("subject"):
        case "image":
            return image_source(subject.image, f"{path}.image")
        case "embedding":
            given = subject.embedding
            return Embedding(
                values=np.fromiter(given.values, np.float32, count=len(given.values)),
                norm=given.norm,
                model=ModelIdentity(given.model.name, given.model.version, given.model.fingerprint),
            )
        case _:
            raise _unset(path, "image or embedding")


def _unset(path: str, choices: str) -> InvalidRequest:
    return InvalidRequest(
        Reason.INVALID_REQUEST, f"{path} is not set; set {choices} in it.", field=path
    )


def model_ref(ref: face_pb2.ModelRef, path: str) -> ModelRef:
    """The model that a `ModelRef` names, which stands at `path` in the request.

    Raises:
        InvalidRequest: a negative version.
    """
    if ref.version < 0:
        raise InvalidRequest(
            Reason.INVALID_OPTION,
            f"{path}.version is {ref.version}; use 1 or more, or 0 for the highest that is ready.",
            field=f"{path}.version",
        )
    return ModelRef(ref.name, ref.version)


def model_refs(refs: Iterable[face_pb2.ModelRef], path: str) -> list[ModelRef]:
    """The models that a repeated field names, which stands at `path` in the request.

    Raises:
        InvalidRequest: a negative version.
    """
    return [model_ref(ref, f"{path}[{index}]") for index, ref in enumerate(refs)]


def face_selection(selection: face_pb2.FaceSelection, default: FacePolicy) -> FaceSelection:
    """The selection that a request asks for, `default` standing for the unspecified policy.

    Raises:
        InvalidRequest: a policy that this server does not know.
    """
    policy = default
    if selection.policy != face_pb2.FACE_POLICY_UNSPECIFIED:
        known = _POLICIES.get(selection.policy)
        if known is None:
            raise InvalidRequest(
                Reason.INVALID_OPTION,
                f"selection.policy {selection.policy} is unknown; use one of"
                f" {', '.join(_POLICIES.values())}.",
                field="selection.policy",
            )
        policy = known
    return FaceSelection(
        policy,
        min_score=selection.min_score if selection.HasField("min_score") else None,
        min_face_size=selection.min_face_size if selection.HasField("min_face_size") else None,
        max_faces=selection.max_faces if selection.HasField("max_faces") else None,
    )


def requirements(message: face_pb2.Requirements) -> Requirements:
    """What a request requires of faces.

    Raises:
        InvalidRequest: a negative version.
    """
    return Requirements(
        quality=message.quality,
        demands=tuple(
            Demand(
                model_ref(each.analyser, f"require.analysers[{index}].analyser"),
                each.label,
                at_least=each.at_least if each.HasField("at_least") else None,
                at_most=each.at_most if each.HasField("at_most") else None,
            )
            for index, each in enumerate(message.analysers)
        ),
        quality_at_least=message.quality_at_least if message.HasField("quality_at_least") else None,
    )


class FaceService(face_pb2_grpc.FaceServiceServicer):
    """Detect, Embed, Verify and Analyze.

    Errors are raised as they are; `CallInterceptor` makes statuses of them.

    Args:
        default_deadline: how many seconds a call without a deadline of its own may take, above 0.
    """

    def __init__(self, pipeline: FacePipeline, *, default_deadline: float) -> None:
        self._pipeline = pipeline
        self._default_deadline = default_deadline

    async def Detect(  # noqa: N802 - the contract's name
        self, request: face_pb2.DetectRequest, context: Context
    ) -> face_pb2.DetectResponse:
        """The faces of a photo."""
        async with bounded_call(context, self._default_deadline) as call:
            found = await self._pipeline.detect(
                image_source(request.image, "image"),
                detector=model_ref(request.detector, "detector"),
                selection=face_selection(request.selection, FacePolicy.ALL),
                call=call,
                analysers=model_refs(request.analysers, "analysers"),
            )
        return detect_response(found)

    async def Embed(  # noqa: N802 - the contract's name
        self, request: face_pb2.EmbedRequest, context: Context
    ) -> face_pb2.EmbedResponse:
        """The embeddings of a photo's faces."""
        async with bounded_call(context, self._default_deadline) as call:
            found = await self._pipeline.embed(
                image_source(request.image, "image"),
                detector=model_ref(request.detector, "detector"),
                embedder=model_ref(request.embedder, "embedder"),
                selection=face_selection(request.selection, FacePolicy.LARGEST),
                call=call,
                analysers=model_refs(request.analysers, "analysers"),
            )
        return embed_response(found)

    async def Verify(  # noqa: N802 - the contract's name
        self, request: face_pb2.VerifyRequest, context: Context
    ) -> face_pb2.VerifyResponse:
        """Whether two faces belong to the same person."""
        async with bounded_call(context, self._default_deadline) as call:
            compared = await self._pipeline.verify(
                subject_source(request.a, "a"),
                subject_source(request.b, "b"),
                detector=model_ref(request.detector, "detector"),
                embedder=model_ref(request.embedder, "embedder"),
                selection=face_selection(request.selection, FacePolicy.LARGEST),
                threshold=request.threshold if request.HasField("threshold") else None,
                call=call,
                analysers=model_refs(request.analysers, "analysers"),
                require=requirements(request.require),
            )
        return verify_response(compared)

    async def Analyze(  # noqa: N802 - the contract's name
        self, request: face_pb2.AnalyzeRequest, context: Context
    ) -> face_pb2.AnalyzeResponse:
        """What analysers say of a photo's faces."""
        async with bounded_call(context, self._default_deadline) as call:
            found = await self._pipeline.analyse(
                image_source(request.image, "image"),
                detector=model_ref(request.detector, "detector"),
                analysers=model_refs(request.analysers, "analysers"),
                selection=face_selection(request.selection, FacePolicy.ALL),
                call=call,
                require=requirements(request.require),
                embedder=model_ref(request.embedder, "embedder")
                if request.HasField("embedder")
                else None,
            )
        return analyze_response(found)
