"""mien.v1.FaceService: a request's message in, the pipeline's answer out, as a message."""

from collections.abc import Callable, Iterable
from dataclasses import asdict, replace

import numpy as np

from mien.v1 import face_pb2, face_pb2_grpc
from mien_server.errors import InvalidRequest, Reason
from mien_server.pipeline.faces import FacePipeline
from mien_server.pipeline.quality import overall
from mien_server.pipeline.requirements import Demand, Requirements
from mien_server.pipeline.types import (
    AlignedFace,
    Analysis,
    Comparison,
    Embedding,
    EncodedImage,
    Face,
    FacePolicy,
    FaceSelection,
    ImageSource,
    ModelIdentity,
    ModelRef,
    PhotoFaces,
    Quality,
    RawPixels,
)
from mien_server.rpc.calls import Context, bounded_call

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
        answered: is told how many faces each answer of Detect, Embed and Analyze has.
    """

    def __init__(
        self,
        pipeline: FacePipeline,
        *,
        default_deadline: float,
        answered: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._pipeline = pipeline
        self._default_deadline = default_deadline
        self._answered = answered

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
        self._answered(len(found.faces))
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
        self._answered(len(found.faces))
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
        self._answered(len(found.faces))
        return analyze_response(found)


def detect_response(found: PhotoFaces) -> face_pb2.DetectResponse:
    """The answer of Detect."""
    return face_pb2.DetectResponse(
        faces=[face_message(face, (found.width, found.height)) for face in found.faces],
        detector=optional_identity(found.detector),
        image_width=found.width,
        image_height=found.height,
    )


def embed_response(found: PhotoFaces) -> face_pb2.EmbedResponse:
    """The answer of Embed."""
    return face_pb2.EmbedResponse(
        faces=[face_message(face, (found.width, found.height)) for face in found.faces],
        detector=optional_identity(found.detector),
        embedder=optional_identity(found.embedder),
        image_width=found.width,
        image_height=found.height,
    )


def verify_response(compared: Comparison) -> face_pb2.VerifyResponse:
    """The answer of Verify."""
    return face_pb2.VerifyResponse(
        similarity=compared.similarity,
        threshold=compared.threshold,
        threshold_source=(
            face_pb2.THRESHOLD_SOURCE_REQUEST
            if compared.threshold_from_request
            else face_pb2.THRESHOLD_SOURCE_MODEL
        ),
        matched=compared.matched,
        face_a=face_message(compared.face_a, compared.size_a),
        face_b=face_message(compared.face_b, compared.size_b),
        detector=optional_identity(compared.detector),
        embedder=identity_message(compared.embedder),
    )


def face_message(face: Face, size: tuple[int, int] | None) -> face_pb2.Face:
    """A face, of an upright photo of this width and height; None for a crop or an embedding."""
    message = face_pb2.Face(score=face.score)
    if face.box is not None:
        x1, y1, x2, y2 = face.box.tolist()
        message.box.CopyFrom(face_pb2.Box(x1=x1, y1=y1, x2=x2, y2=y2))
        if size is not None:
            w, h = size
            message.box_normalized.CopyFrom(
                face_pb2.Box(x1=x1 / w, y1=y1 / h, x2=x2 / w, y2=y2 / h)
            )
    if face.landmarks is not None:
        points = [face_pb2.Point(x=x, y=y) for x, y in face.landmarks.tolist()]
        left_eye, right_eye, nose, left_mouth, right_mouth = points
        message.landmarks.CopyFrom(
            face_pb2.Landmarks(
                left_eye=left_eye,
                right_eye=right_eye,
                nose=nose,
                left_mouth=left_mouth,
                right_mouth=right_mouth,
            )
        )
    if face.embedding is not None:
        message.embedding.CopyFrom(embedding_message(face.embedding))
    message.analyses.extend(map(_analysis, face.analyses))
    return message


def embedding_message(embedding: Embedding) -> face_pb2.Embedding:
    """A face as a vector."""
    return face_pb2.Embedding(
        values=embedding.values.tolist(),
        norm=embedding.norm,
        model=identity_message(embedding.model),
    )


def identity_message(model: ModelIdentity) -> face_pb2.ModelIdentity:
    """Which model answered."""
    return face_pb2.ModelIdentity(
        name=model.name, version=model.version, fingerprint=model.fingerprint
    )


def optional_identity(model: ModelIdentity | None) -> face_pb2.ModelIdentity | None:
    """Which model answered, if any did."""
    return None if model is None else identity_message(model)


def analyze_response(found: PhotoFaces) -> face_pb2.AnalyzeResponse:
    """The answer of Analyze."""
    size = (found.width, found.height)
    return face_pb2.AnalyzeResponse(
        faces=[
            face_pb2.AnalyzedFace(
                face=face_message(replace(face, analyses=()), size),
                quality=quality_message(face.quality),
                analyses=[_analysis(analysis) for analysis in face.analyses],
            )
            for face in found.faces
        ],
        detector=optional_identity(found.detector),
        embedder=optional_identity(found.embedder),
        image_width=found.width,
        image_height=found.height,
    )


def quality_message(quality: Quality | None) -> face_pb2.FaceQuality | None:
    """A face's figures, if they were asked for."""
    if quality is None:
        return None
    return face_pb2.FaceQuality(overall=overall(quality), **asdict(quality))


def _analysis(analysis: Analysis) -> face_pb2.Analysis:
    message = face_pb2.Analysis(model=identity_message(analysis.model))
    values = analysis.values.tolist()
    match analysis.kind:
        case "classification":
            ranked = sorted(zip(analysis.labels, values, strict=True), key=lambda each: -each[1])
            message.classification.labels.extend(
                face_pb2.LabelProbability(label=label, probability=value) for label, value in ranked
            )
        case "score":
            (message.score,) = values
        case "number":
            message.number.CopyFrom(face_pb2.Number(value=values[0], unit=analysis.unit))
        case "points":
            message.points.points.extend(face_pb2.Point(x=x, y=y) for x, y in values)
    return message
