"""mien.v1.FaceService: a request's message in, the pipeline's answer out."""

from mien.v1 import face_pb2, face_pb2_grpc
from mien_server.pipeline.faces import FacePipeline
from mien_server.pipeline.types import FacePolicy
from mien_server.rpc.calls import Context, bounded_call
from mien_server.rpc.messages import (
    detect_response,
    embed_response,
    face_selection,
    image_source,
    model_ref,
    subject_source,
    verify_response,
)


class FaceService(face_pb2_grpc.FaceServiceServicer):
    """Detect, Embed and Verify.

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
            )
        return verify_response(compared)
