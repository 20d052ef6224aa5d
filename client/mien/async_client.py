"""`AsyncClient`: the three calls for asyncio."""

import asyncio
import functools
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Self, TypeVar

import grpc

from mien import status
from mien.analysis import AnalyzeResult
from mien.analysis_messages import analyze_request, analyze_result
from mien.async_gallery import AsyncGallery
from mien.bulk import CONCURRENCY, Outcome, alone, grouped_async, in_tasks
from mien.channel import channel_options, checked_timeout
from mien.client import CLOSED, CLOSED_MEANWHILE, BaseClient, PhotoT
from mien.errors import Cancelled, DeadlineExceeded, MienError, Unavailable
from mien.gallery_messages import identify_request, identify_result, info
from mien.gallery_results import GalleryInfo, IdentifyResult
from mien.images import ImageLike
from mien.limits import Attempts, checked_whole, spread
from mien.messages import (
    ModelLike,
    PolicyLike,
    Requirement,
    detect_request,
    detect_result,
    embed_request,
    embed_result,
    verify_request,
    verify_result,
)
from mien.results import DetectResult, Embedding, EmbedResult, VerifyResult
from mien.status import HEALTH, INDEX, ModelStatus, Waiting, only_not_ready, serving, statuses
from mien.timing import StageTiming, stages_of
from mien.v1.face_pb2_grpc import FaceServiceStub
from mien.v1.gallery_pb2 import ListCollectionsRequest
from mien.v1.gallery_pb2_grpc import GalleryServiceStub

if TYPE_CHECKING:
    from mien.v1.face_pb2_grpc import FaceServiceAsyncStub
    from mien.v1.gallery_pb2_grpc import GalleryServiceAsyncStub

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")


class AsyncClient(BaseClient):
    """As `Client`, for asyncio. It belongs to the event loop of its first call.

    Calls from another loop raise `RuntimeError`. Close it, or use it in an `async with` block.
    Cancelling a task cancels its call on the server.
    """

    _channel: Any = None
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
        channels = [
            grpc.aio.insecure_channel(self.address, options)
            if self._credentials is None
            else grpc.aio.secure_channel(self.address, self._credentials, options)
            for _ in range(self.limits.max_connections)
        ]
        self._channel = spread(channels, asynchronous=True)
        opened: FaceServiceAsyncStub = FaceServiceStub(self._channel)
        return opened

    @functools.cached_property
    def _turns(self) -> asyncio.Semaphore | None:
        most = self.limits.max_calls
        return None if most is None else asyncio.Semaphore(most)

    @functools.cached_property
    def _gallery_stub(self) -> "GalleryServiceAsyncStub":
        assert self._channel is not None  # noqa: S101 - asked for once it is open
        opened: GalleryServiceAsyncStub = GalleryServiceStub(self._channel)
        return opened

    async def detect(
        self,
        image: ImageLike,
        *,
        policy: PolicyLike = None,
        min_score: float | None = None,
        min_face_size: float | None = None,
        max_faces: int | None = None,
        detector: ModelLike | None = None,
        analysers: Sequence[ModelLike] = (),
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
            analysers: models that are to tell of each face, up to 16; `analyze` asks those by default, too.
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
            analysers=analysers,
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
        analysers: Sequence[ModelLike] = (),
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
            analysers: models that are to tell of each face, too, up to 16: `result.faces[0]["age"]`.
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
            analysers=analysers,
        )
        answer = await self._call("Embed", self._stub.Embed, build, timeout, timing)
        return embed_result(*answer)

    def embed_many(
        self,
        photos: Iterable[PhotoT] | AsyncIterable[PhotoT],
        *,
        concurrency: int = CONCURRENCY,
        ordered: bool = True,
        aligned: bool = False,
        policy: PolicyLike = None,
        min_score: float | None = None,
        min_face_size: float | None = None,
        max_faces: int | None = None,
        detector: ModelLike | None = None,
        embedder: ModelLike | None = None,
        analysers: Sequence[ModelLike] = (),
        timeout: float | None = None,
    ) -> AsyncGenerator[Outcome[PhotoT, EmbedResult], None]:
        """Embeds photos, some at a time, and gives out what became of each.

        A photo that fails, has no face or cannot be read has the error in its outcome, and the rest goes on.
        Where the server is too busy, a photo waits as long as the server says, and where it starts again,
        until it is there: for up to two minutes. What would go wrong with every photo is raised.

        Args:
            photos: any iterable, with or without an end, for `AsyncClient` also an asynchronous one. At most
                2 * concurrency photos are read ahead of those that have been given out, by who asks for
                outcomes. A source that is slow should be an asynchronous one: another kind holds up results
                that are ready, and in asyncio the event loop.
            concurrency: calls at the same time, 1 or more.
            ordered: give out in the order of the photos; otherwise as the calls end.
            aligned, policy, min_score, min_face_size, max_faces, detector, embedder, analysers: as for
                `embed`.
            timeout: seconds of each try; the client's own if unset.

        Returns:
            an iterator. Closing it cancels the calls in progress: leave it early only from a block of
            `with contextlib.closing(...)`, in asyncio `async with contextlib.aclosing(...)`.

        Raises:
            MienError: while iterating, what is wrong with all of it.
        """

        async def work(some: Sequence[PhotoT]) -> list[tuple[EmbedResult | None, MienError | None]]:
            (photo,) = some
            result = await self.embed(
                photo,
                aligned=aligned,
                policy=policy,
                min_score=min_score,
                min_face_size=min_face_size,
                max_faces=max_faces,
                detector=detector,
                embedder=embedder,
                analysers=analysers,
                timeout=timeout,
            )
            return [(result, None)]

        return in_tasks(
            grouped_async(photos, alone),
            work,
            concurrency=checked_whole(concurrency, "concurrency", 1),
            ordered=ordered,
        )

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
        analysers: Sequence[ModelLike] = (),
        require: Sequence[Requirement] = (),
        require_quality: bool | float = False,
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
            analysers: models that are to tell of each face that is no embedding, too, up to 16.
            require: what analysers must say of each face that is a photo's or an aligned crop.
            require_quality: True: each of these faces must be good enough for Enrol to take it; a number in
                [0, 1]: its `quality.overall` must be at least that.
            timeout: seconds; the client's own if unset.
            timing: whether to ask for the server's stages.

        Raises:
            FaceNotFound: a photo has no face.
            EmbeddingMismatch: the embeddings come from different models.
            RequirementUnmet: a face does not fulfil what is required; the message has the figures.
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
            analysers=analysers,
            require=require,
            require_quality=require_quality,
        )
        answer = await self._call("Verify", self._stub.Verify, build, timeout, timing)
        return verify_result(*answer)

    async def analyze(
        self,
        image: ImageLike,
        *,
        analysers: Sequence[ModelLike] = (),
        aligned: bool = False,
        policy: PolicyLike = None,
        min_score: float | None = None,
        min_face_size: float | None = None,
        max_faces: int | None = None,
        detector: ModelLike | None = None,
        embed: bool = False,
        embedder: ModelLike | None = None,
        require: Sequence[Requirement] = (),
        require_quality: bool | float = False,
        timeout: float | None = None,  # noqa: ASYNC109 - it becomes the call's deadline
        timing: bool = False,
    ) -> AnalyzeResult:
        """Tells what analysers say of a photo's faces, and how good these are to recognise somebody by.

        A photo without faces is no error, unless the policy asks for one: `faces` is empty.

        Args:
            image: a path, encoded bytes, an array or a PIL image: see `mien.ImageLike`.
            analysers: the models to ask, up to 16; none: those that the server's operator has chosen.
            aligned: the image is a 112x112 crop, aligned already: nothing is detected.
            policy: which of the faces found; all of them by default.
            min_score: drops faces of a lower score, in [0.02, 1]; by default the detector's own.
            min_face_size: drops faces whose shorter side has fewer pixels; 10 by default.
            max_faces: with the policy "all", at most this many, as for `detect`.
            detector: the model that finds faces; the server's default if unset.
            embed: whether the faces are to be embedded, too, out of the same photo.
            embedder: the model that does; the server's default if unset. Naming one asks for embeddings.
            require: what analysers must say of every one of these faces.
            require_quality: True: each of them must be good enough for Enrol to take it; a number in [0, 1]:
                its `quality.overall` must be at least that.
            timeout: seconds; the client's own if unset.
            timing: whether to ask for the server's stages.

        Raises:
            ModelNotFound: there is no such analyser.
            FaceNotFound: the photo has no face, and the policy is not "all".
            RequirementUnmet: a face does not fulfil what is required; the message has the figures.
        """
        build = functools.partial(
            analyze_request,
            image,
            analysers=analysers,
            aligned=aligned,
            policy=policy,
            min_score=min_score,
            min_face_size=min_face_size,
            max_faces=max_faces,
            detector=detector,
            embed=embed,
            embedder=embedder,
            require=require,
            require_quality=require_quality,
        )
        answer = await self._call("Analyze", self._stub.Analyze, build, timeout, timing)
        return analyze_result(*answer)

    async def ready(self, *, timeout: float | None = None) -> bool:  # noqa: ASYNC109
        """Whether the server is ready: its health service says SERVING.

        False, too, where nobody answers at the address within the time. Needs no credentials.

        Args:
            timeout: seconds; the client's own if unset.

        Raises:
            Unavailable: with the reason TLS_FAILED, since that does not mend itself.
            WrongServer: what answers is no mien server.
        """
        try:
            health, _ = await self._look("Check", HEALTH, timeout)
        except (Unavailable, DeadlineExceeded) as error:
            if not only_not_ready(error):
                raise
            return False
        return serving(health)

    async def wait_ready(self, timeout: float = 60.0) -> None:  # noqa: ASYNC109
        """Waits until the server is ready, as `ready` tells it; returns at once if it is.

        Args:
            timeout: seconds to wait at most, above 0 and up to a year.

        Raises:
            Unavailable: it was not ready in time; the message says what was the matter last. At once, with
                the reason TLS_FAILED, where only one side speaks TLS or one does not trust the other.
            WrongServer: what answers is no mien server.
        """
        seconds = checked_timeout(timeout)
        waiting = Waiting(self.address, seconds, Attempts(seconds, 0).left)
        while True:
            why: MienError | None = None
            try:
                health, _ = await self._look("Check", HEALTH, waiting.look_seconds())
            except (Unavailable, DeadlineExceeded) as error:
                if not only_not_ready(error):
                    raise
                why = error
            else:
                if serving(health):
                    return
            await asyncio.sleep(waiting.pause(why))

    async def models(self, *, timeout: float | None = None) -> tuple[ModelStatus, ...]:  # noqa: ASYNC109
        """The models of the server's repository, every version with its state.

        Where the server knows its callers, this needs the role `read`.

        Args:
            timeout: seconds; the client's own if unset.

        Raises:
            PermissionDenied: the caller has not the role.
        """
        index, _ = await self._look("RepositoryIndex", INDEX, timeout)
        return statuses(index.models)

    def gallery(self, name: str) -> AsyncGallery:
        """A gallery. No call is made: it need not exist yet.

        Args:
            name: of the gallery, as it was created or will be.
        """
        return AsyncGallery(self, name)

    async def galleries(
        self,
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - it becomes the call's deadline
    ) -> tuple[GalleryInfo, ...]:
        """The server's galleries, by name.

        Args:
            timeout: seconds; the client's own if unset.

        Raises:
            WrongServer: it has none, because its operator gave it no folder for them.
        """
        response, _ = await self._call_gallery(
            "ListCollections", ListCollectionsRequest, timeout, timing=False
        )
        return tuple(map(info, response.collections))

    async def identify(
        self,
        image: ImageLike | Embedding,
        galleries: Sequence[str],
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
        timeout: float | None = None,  # noqa: ASYNC109 - it becomes the call's deadline
        timing: bool = False,
    ) -> IdentifyResult:
        """Says whose face it is: the persons of one or more galleries who are most like it.

        Args:
            image: a photo as `mien.ImageLike`, or an embedding from an earlier answer.
            galleries: their names, up to 16, all of the same model.
            aligned: the image is a 112x112 crop, aligned already: nothing is detected.
            top_k: how many persons for each face, from 1 to 100; 5 by default.
            threshold: persons of a lower similarity are left out, in [-1, 1]; by default each gallery's own,
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
            EmbeddingMismatch: the galleries or the embedding are of different models.
        """
        build = functools.partial(
            identify_request,
            galleries,
            image,
            aligned=aligned,
            top_k=top_k,
            threshold=threshold,
            labels=labels,
            policy=policy,
            min_score=min_score,
            min_face_size=min_face_size,
            max_faces=max_faces,
            detector=detector,
        )
        return identify_result(*await self._call_gallery("Identify", build, timeout, timing))

    async def close(self) -> None:
        """Closes the connection; calls in progress end with `Cancelled`. May be called twice."""
        self._closed = True
        if self._channel is not None:
            await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _call_gallery(
        self,
        method: str,
        build: Callable[[], Any],
        timeout: float | None,  # noqa: ASYNC109 - it becomes the call's deadline
        timing: bool,
    ) -> tuple[Any, tuple[StageTiming, ...]]:
        _ = self._stub  # opens the channel, or says why not
        return await self._call(method, getattr(self._gallery_stub, method), build, timeout, timing)

    async def _look(
        self,
        method: str,
        path: str,
        timeout: float | None,  # noqa: ASYNC109 - it becomes the call's deadline
    ) -> tuple[Any, tuple[StageTiming, ...]]:
        _ = self._stub  # opens the channel, or says why not
        rpc = status.method(self._channel, path)
        return await self._call(method, rpc, status.Empty, timeout, False)

    async def _call(
        self,
        method: str,
        rpc: "grpc.aio.UnaryUnaryMultiCallable[_Request, _Response]",
        build: Callable[[], _Request],
        timeout: float | None,  # noqa: ASYNC109 - it becomes the call's deadline
        timing: bool,
    ) -> tuple[_Response, tuple[StageTiming, ...]]:
        attempts = self._attempts(timeout)
        async with self._turn(method, attempts):
            request, metadata = await asyncio.to_thread(lambda: (build(), self._metadata(timing)))
            while True:
                try:
                    call = rpc(request, timeout=attempts.left(), metadata=metadata)
                    response = await call
                    trailing = await call.trailing_metadata()
                except grpc.RpcError as error:
                    # On a thread: it may look at the server's port.
                    failure = await asyncio.to_thread(self._error, error, method, attempts.seconds)
                    pause = attempts.pause(failure)
                    if pause is None:
                        raise failure from error
                except grpc.aio.UsageError as error:  # what gRPC raises for a closed channel
                    raise Cancelled(CLOSED_MEANWHILE, method=method) from error
                except asyncio.CancelledError:
                    if (task := asyncio.current_task()) and task.cancelling():
                        raise
                    # Nobody cancelled this task: closing the channel cancelled the call.
                    raise Cancelled(CLOSED_MEANWHILE, method=method) from None
                else:
                    return response, stages_of(trailing)
                await asyncio.sleep(pause)

    @asynccontextmanager
    async def _turn(self, method: str, attempts: Attempts) -> AsyncIterator[None]:
        """Lasts while the call counts as one in progress; first waits for its turn, if there is a limit."""
        if self._turns is None:
            yield
            return
        try:
            async with asyncio.timeout(attempts.left()):
                await self._turns.acquire()
        except TimeoutError as error:
            raise self._no_turn(method, attempts.seconds) from error
        try:
            yield
        finally:
            self._turns.release()
