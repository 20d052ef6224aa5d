"""`AsyncClient`: the three calls for asyncio."""

import asyncio
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Self, TypeVar

import grpc

from mien.channel import channel_options
from mien.client import CLOSED, CLOSED_MEANWHILE, BaseClient
from mien.errors import Cancelled
from mien.images import ImageLike
from mien.messages import (
    ModelLike,
    PolicyLike,
    detect_request,
    detect_result,
    embed_request,
    embed_result,
    verify_request,
    verify_result,
)
from mien.results import DetectResult, Embedding, EmbedResult, VerifyResult
from mien.timing import StageTiming, stages_of
from mien.v1.face_pb2_grpc import FaceServiceStub

if TYPE_CHECKING:
    from mien.v1.face_pb2_grpc import FaceServiceAsyncStub

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")


class AsyncClient(BaseClient):
    """As `Client`, for asyncio. It belongs to the event loop of its first call.

    Calls from another loop raise `RuntimeError`. Close it, or use it in an `async with` block.
    Cancelling a task cancels its call on the server.
    """

    _channel: grpc.aio.Channel | None = None
    _loop: asyncio.AbstractEventLoop | None = None

    @property
    def _stub(self) -> "FaceServiceAsyncStub":
        if self._closed:
            raise RuntimeError(CLOSED)
        loop = asyncio.get_running_loop()
        if self._loop not in (None, loop):
            raise RuntimeError(
                "this client belongs to another event loop, that of its first call: make one in each"
            )
        self._loop = loop
        return self._opened

    # gRPC ties a channel to the event loop in which it is made: at the first call, not before.
    @functools.cached_property
    def _opened(self) -> "FaceServiceAsyncStub":
        options = channel_options(self.address)
        self._channel = (
            grpc.aio.insecure_channel(self.address, options)
            if self._credentials is None
            else grpc.aio.secure_channel(self.address, self._credentials, options)
        )
        return FaceServiceStub(self._channel)

    async def detect(
        self,
        image: ImageLike,
        *,
        policy: PolicyLike = None,
        min_score: float | None = None,
        min_face_size: float | None = None,
        max_faces: int | None = None,
        detector: ModelLike | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - it becomes the call's deadline
        timing: bool = False,
    ) -> DetectResult:
        """Finds the faces of one photo. A photo without faces is no error: `faces` is empty.

        Args:
            image: a path, encoded bytes, an array or a PIL image: see `mien.ImageLike`.
            policy: which of the faces found; all of them by default.
            min_score: drops faces of a lower score, in [0.02, 1]; by default the detector's own.
            min_face_size: drops faces whose shorter side has fewer pixels; 10 by default.
            max_faces: keeps at most this many, from 1 to the server's own limit, which is 100 unless its
                operator has set another, up to 1000; that limit by default.
            detector: the model that finds faces; the server's default if unset.
            timeout: seconds; the client's own if unset.
            timing: whether to ask for the server's stages.
        """
        build = functools.partial(
            detect_request,
            image,
            policy=policy,
            min_score=min_score,
            min_face_size=min_face_size,
            max_faces=max_faces,
            detector=detector,
        )
        answer = await self._call("Detect", self._stub.Detect, build, timeout, timing)
        return detect_result(*answer)

    async def embed(
        self,
        image: ImageLike,
        *,
        aligned: bool = False,
        policy: PolicyLike = None,
        min_score: float | None = None,
        min_face_size: float | None = None,
        max_faces: int | None = None,
        detector: ModelLike | None = None,
        embedder: ModelLike | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - it becomes the call's deadline
        timing: bool = False,
    ) -> EmbedResult:
        """Turns one or several faces of one photo into embeddings.

        Args:
            image: a path, encoded bytes, an array or a PIL image: see `mien.ImageLike`.
            aligned: the image is a 112x112 crop, aligned already: nothing is detected.
            policy: which of the faces found; the largest by default.
            min_score: ignores faces of a lower score, in [0.02, 1]; by default the detector's own.
            min_face_size: ignores faces whose shorter side has fewer pixels; 10 by default.
            max_faces: with the policy "all", at most this many, as for `detect`.
            detector: the model that finds faces; the server's default if unset.
            embedder: the model that makes embeddings; the server's default if unset.
            timeout: seconds; the client's own if unset.
            timing: whether to ask for the server's stages.

        Raises:
            FaceNotFound: the photo has no face, and the policy is not "all".
        """
        build = functools.partial(
            embed_request,
            image,
            aligned=aligned,
            policy=policy,
            min_score=min_score,
            min_face_size=min_face_size,
            max_faces=max_faces,
            detector=detector,
            embedder=embedder,
        )
        answer = await self._call("Embed", self._stub.Embed, build, timeout, timing)
        return embed_result(*answer)

    async def verify(
        self,
        a: ImageLike | Embedding,
        b: ImageLike | Embedding,
        *,
        threshold: float | None = None,
        aligned: bool = False,
        policy: PolicyLike = None,
        min_score: float | None = None,
        min_face_size: float | None = None,
        detector: ModelLike | None = None,
        embedder: ModelLike | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - it becomes the call's deadline
        timing: bool = False,
    ) -> VerifyResult:
        """Says whether two faces belong to the same person.

        Args:
            a: a photo as `mien.ImageLike`, or an embedding from an earlier answer.
            b: the other one.
            threshold: similarities at or above it match, in [-1, 1]; the model's own if unset.
            aligned: the images are 112x112 crops, aligned already: nothing is detected.
            policy: which face of a photo counts; the largest by default. Not "all".
            min_score: ignores faces of a lower score, in [0.02, 1]; by default the detector's own.
            min_face_size: ignores faces whose shorter side has fewer pixels; 10 by default.
            detector: the model that finds faces; the server's default if unset.
            embedder: the model that makes embeddings; the one of a given embedding if unset, else
                the server's default.
            timeout: seconds; the client's own if unset.
            timing: whether to ask for the server's stages.

        Raises:
            FaceNotFound: a photo has no face.
            EmbeddingMismatch: the embeddings come from different models.
        """
        build = functools.partial(
            verify_request,
            a,
            b,
            threshold=threshold,
            aligned=aligned,
            policy=policy,
            min_score=min_score,
            min_face_size=min_face_size,
            detector=detector,
            embedder=embedder,
        )
        answer = await self._call("Verify", self._stub.Verify, build, timeout, timing)
        return verify_result(*answer)

    async def close(self) -> None:
        """Closes the connection; calls in progress end with `Cancelled`. May be called twice."""
        self._closed = True
        if self._channel is not None:
            await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _call(
        self,
        method: str,
        rpc: "grpc.aio.UnaryUnaryMultiCallable[_Request, _Response]",
        build: Callable[[], _Request],
        timeout: float | None,  # noqa: ASYNC109 - it becomes the call's deadline
        timing: bool,
    ) -> tuple[_Response, tuple[StageTiming, ...]]:
        seconds = self._seconds(timeout)
        request, metadata = await asyncio.to_thread(lambda: (build(), self._metadata(timing)))
        try:
            call = rpc(request, timeout=seconds, metadata=metadata)
            response = await call
            trailing = await call.trailing_metadata()
        except grpc.RpcError as error:
            # On a thread: it may look at the server's port.
            raise await asyncio.to_thread(self._error, error, method, seconds) from error
        except grpc.aio.UsageError as error:  # what gRPC raises for a channel that has been closed
            raise Cancelled(CLOSED_MEANWHILE, method=method) from error
        except asyncio.CancelledError:
            if (task := asyncio.current_task()) and task.cancelling():
                raise
            # Nobody cancelled this task: closing the channel cancelled the call.
            raise Cancelled(CLOSED_MEANWHILE, method=method) from None
        return response, stages_of(trailing)
