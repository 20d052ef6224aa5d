"""`Client` and `AsyncClient`: the three calls, once blocking and once for asyncio."""

import asyncio
import functools
import math
from typing import TYPE_CHECKING, Self, TypeVar

import grpc

from mien.channel import channel_options, resolve_address
from mien.errors import Cancelled, MienError, from_rpc_error
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
from mien.timing import StageTiming, request_metadata, stages_of
from mien.v1.face_pb2_grpc import FaceServiceStub

if TYPE_CHECKING:
    from mien.v1.face_pb2_grpc import FaceServiceAsyncStub

DEFAULT_TIMEOUT = 10.0
CLOSED = "this client is closed"

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")


class _BaseClient:
    """What does not depend on how calls wait.

    Attributes:
        address: the server's address, host:port.
        timeout: seconds that a call may take unless it says otherwise.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        self.address = resolve_address(address)
        self.timeout = _checked_timeout(timeout)
        self._credentials = credentials

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.address!r})"

    def _seconds(self, timeout: float | None) -> float:
        return self.timeout if timeout is None else _checked_timeout(timeout)

    def _error(self, error: grpc.RpcError, method: str, timeout: float) -> MienError:
        return from_rpc_error(error, method=method, address=self.address, timeout=timeout)


class Client(_BaseClient):
    """Calls a mien server over one connection, which is made at the first call and kept.

    Safe to share between threads. Close it, or use it in a `with` block.

    Args:
        address: host:port; unset, the variable MIEN_ADDRESS, or else localhost:8001.
        timeout: seconds that a call may take, retries included, above 0.
        credentials: for TLS, as from `grpc.ssl_channel_credentials()`; unset, plain text.

    Every call takes its own `timeout` in seconds, and `timing=True` to have the server's stages in
    the result's `timing`. Every call raises a `MienError`, by what went wrong: see `mien.errors`;
    `OSError` if a photo's file cannot be read, and `RuntimeError` if the client is closed.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        super().__init__(address, timeout=timeout, credentials=credentials)
        options = channel_options(self.address)
        self._channel = (
            grpc.insecure_channel(self.address, options)
            if credentials is None
            else grpc.secure_channel(self.address, credentials, options)
        )
        self._stub = FaceServiceStub(self._channel)

    def detect(
        self,
        image: ImageLike,
        *,
        policy: PolicyLike = None,
        min_score: float | None = None,
        min_face_size: float | None = None,
        max_faces: int | None = None,
        detector: ModelLike | None = None,
        timeout: float | None = None,
        timing: bool = False,
    ) -> DetectResult:
        """Finds the faces of one photo. A photo without faces is no error: `faces` is empty.

        Args:
            image: a path, encoded bytes, an array or a PIL image: see `mien.ImageLike`.
            policy: which of the faces found; all of them by default.
            min_score: drops faces of a lower score, in [0.02, 1]; by default the detector's own.
            min_face_size: drops faces whose shorter side has fewer pixels; 10 by default.
            max_faces: keeps at most this many, in [1, 1000]; by default the server's limit.
            detector: the model that finds faces; the server's default if unset.
            timeout: seconds; the client's own if unset.
            timing: whether to ask for the server's stages.
        """
        request = detect_request(
            image,
            policy=policy,
            min_score=min_score,
            min_face_size=min_face_size,
            max_faces=max_faces,
            detector=detector,
        )
        return detect_result(*self._call("Detect", self._stub.Detect, request, timeout, timing))

    def embed(
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
        timeout: float | None = None,
        timing: bool = False,
    ) -> EmbedResult:
        """Turns one or several faces of one photo into embeddings.

        Args:
            image: a path, encoded bytes, an array or a PIL image: see `mien.ImageLike`.
            aligned: the image is a 112x112 crop, aligned already: nothing is detected.
            policy: which of the faces found; the largest by default.
            min_score: ignores faces of a lower score, in [0.02, 1]; by default the detector's own.
            min_face_size: ignores faces whose shorter side has fewer pixels; 10 by default.
            max_faces: with the policy "all", at most this many, in [1, 1000].
            detector: the model that finds faces; the server's default if unset.
            embedder: the model that makes embeddings; the server's default if unset.
            timeout: seconds; the client's own if unset.
            timing: whether to ask for the server's stages.

        Raises:
            FaceNotFound: the photo has no face, and the policy is not "all".
        """
        request = embed_request(
            image,
            aligned=aligned,
            policy=policy,
            min_score=min_score,
            min_face_size=min_face_size,
            max_faces=max_faces,
            detector=detector,
            embedder=embedder,
        )
        return embed_result(*self._call("Embed", self._stub.Embed, request, timeout, timing))

    def verify(
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
        timeout: float | None = None,
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
        request = verify_request(
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
        return verify_result(*self._call("Verify", self._stub.Verify, request, timeout, timing))

    def close(self) -> None:
        """Closes the connection; calls in progress end with `Cancelled`. May be called twice."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _call(
        self,
        method: str,
        rpc: "grpc.UnaryUnaryMultiCallable[_Request, _Response]",
        request: _Request,
        timeout: float | None,
        timing: bool,
    ) -> tuple[_Response, tuple[StageTiming, ...]]:
        seconds = self._seconds(timeout)
        try:
            response, call = rpc.with_call(
                request, timeout=seconds, metadata=request_metadata(timing)
            )
        except grpc.RpcError as error:
            raise self._error(error, method, seconds) from error
        except ValueError as error:  # what gRPC raises for a channel that has been closed
            raise RuntimeError(CLOSED) from error
        return response, stages_of(call.trailing_metadata())


class AsyncClient(_BaseClient):
    """As `Client`, for asyncio. It belongs to the event loop of its first call.

    Close it, or use it in an `async with` block. Cancelling a task cancels its call on the server.
    """

    _channel: grpc.aio.Channel | None = None
    _closed = False

    # gRPC ties a channel to the event loop in which it is made: at the first call, not before.
    @functools.cached_property
    def _stub(self) -> "FaceServiceAsyncStub":
        if self._closed:
            raise RuntimeError(CLOSED)
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
        """As `Client.detect`."""
        request = await asyncio.to_thread(
            detect_request,
            image,
            policy=policy,
            min_score=min_score,
            min_face_size=min_face_size,
            max_faces=max_faces,
            detector=detector,
        )
        answer = await self._call("Detect", self._stub.Detect, request, timeout, timing)
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
        """As `Client.embed`."""
        request = await asyncio.to_thread(
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
        answer = await self._call("Embed", self._stub.Embed, request, timeout, timing)
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
        """As `Client.verify`."""
        request = await asyncio.to_thread(
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
        answer = await self._call("Verify", self._stub.Verify, request, timeout, timing)
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
        request: _Request,
        timeout: float | None,  # noqa: ASYNC109 - it becomes the call's deadline
        timing: bool,
    ) -> tuple[_Response, tuple[StageTiming, ...]]:
        seconds = self._seconds(timeout)
        try:
            call = rpc(request, timeout=seconds, metadata=request_metadata(timing))
            response = await call
            trailing = await call.trailing_metadata()
        except grpc.RpcError as error:
            raise self._error(error, method, seconds) from error
        except grpc.aio.UsageError as error:  # what gRPC raises for a channel that has been closed
            raise RuntimeError(CLOSED) from error
        except asyncio.CancelledError:
            if (task := asyncio.current_task()) and task.cancelling():
                raise
            # Nobody cancelled this task: closing the channel cancelled the call.
            raise Cancelled("the client was closed during the call", method=method) from None
        return response, stages_of(trailing)


def _checked_timeout(timeout: float) -> float:
    if not (math.isfinite(timeout) and timeout > 0):
        raise ValueError(f"the timeout must be a finite number of seconds above 0, not {timeout}")
    return timeout
