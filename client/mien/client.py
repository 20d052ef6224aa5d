"""`Client`: the calls, blocking; and what it shares with `AsyncClient`."""

import functools
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self, TypeVar, cast

import grpc

from mien import status
from mien.access import Bearer, TokenLike
from mien.analysis import AnalyzeResult
from mien.analysis_messages import analyze_request, analyze_result
from mien.bulk import CONCURRENCY, Calls, Outcome, alone, grouped, in_threads
from mien.channel import checked_timeout, open_channel, resolve_address
from mien.errors import Cancelled, DeadlineExceeded, MienError, Unavailable, from_rpc_error
from mien.gallery import Gallery
from mien.gallery_messages import identify_request, identify_result, info
from mien.gallery_results import GalleryInfo, IdentifyResult
from mien.images import ImageLike
from mien.limits import Attempts, Limits, checked_limits, checked_whole, spread
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
from mien.timing import StageTiming, request_metadata, stages_of
from mien.v1.face_pb2_grpc import FaceServiceStub
from mien.v1.gallery_pb2 import ListCollectionsRequest
from mien.v1.gallery_pb2_grpc import GalleryServiceStub

DEFAULT_TIMEOUT = 10.0
CLOSED = "this client is closed"
CLOSED_MEANWHILE = "the client was closed during the call"

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")
PhotoT = TypeVar("PhotoT", bound=ImageLike)


class BaseClient:
    """What does not depend on how calls wait.

    Attributes:
        address: the server's address, host:port.
        timeout: seconds that a call may take unless it says otherwise.
        limits: on calls and connections.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        credentials: grpc.ChannelCredentials | None = None,
        api_key: str | None = None,
        token: TokenLike | None = None,
        insecure: bool = False,
        limits: Limits | None = None,
        overload_retries: int = 0,
    ) -> None:
        self.limits = checked_limits(limits)
        self._overload_retries = checked_whole(overload_retries, "overload_retries", 0)
        self.address = resolve_address(address)
        self.timeout = checked_timeout(timeout)
        if not isinstance(credentials, grpc.ChannelCredentials | None):
            raise TypeError(
                "credentials must come from grpc.ssl_channel_credentials() or the like, not"
                f" {credentials!r}"
            )
        self._credentials = credentials
        self._bearer = Bearer(
            api_key,
            token,
            address=self.address,
            encrypted=credentials is not None,
            insecure=insecure,
        )
        self._closed = False

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.address!r})"

    def _metadata(self, timing: bool) -> tuple[tuple[str, str], ...]:
        return (*request_metadata(timing), *self._bearer.metadata())

    def _attempts(self, timeout: float | None) -> Attempts:
        seconds = self.timeout if timeout is None else checked_timeout(timeout)
        return Attempts(seconds, self._overload_retries)

    def _no_turn(self, method: str, seconds: float) -> DeadlineExceeded:
        return DeadlineExceeded(
            f"none of this client's {self.limits.max_calls} calls at the same time ended within"
            f" {seconds:g} s. Allow more time with the timeout, or more calls with"
            " limits=mien.Limits(max_calls=...).",
            method=method,
        )

    def _error(self, error: grpc.RpcError, method: str, timeout: float) -> MienError:
        if self._closed and cast(grpc.Call, error).code() is grpc.StatusCode.CANCELLED:
            return Cancelled(CLOSED_MEANWHILE, method=method)
        return from_rpc_error(
            error,
            method=method,
            address=self.address,
            timeout=timeout,
            encrypted=self._credentials is not None,
        )


class Client(BaseClient):
    """Calls a mien server over one connection, which is made at the first call and kept.

    Safe to share between threads. Close it, or use it in a `with` block.

    Args:
        address: host:port; unset, the variable MIEN_ADDRESS, or else localhost:8001.
        timeout: seconds that a call may take, retries included, above 0 and up to a year.
        credentials: for TLS, as from `mien.tls_credentials()`; unset, plain text.
        api_key: the key that the server's operator has made for you.
        token: a token instead (JWT), or what gives one, asked before every call: see `mien.TokenLike`.
        insecure: send the key or token even where it crosses a network in plain text.
        limits: on the calls in progress and on the connections; by default there is one connection and no
            limit on calls.
        overload_retries: how often a call is tried again that the server is too busy for (`Overloaded`).
            Each try waits as long as the server says (`retry_after`), up to half as much more, and none is
            made that would begin after the call's timeout.

    Every call takes its own `timeout` in seconds, and `timing=True` to have the server's stages in
    the result's `timing`. Every call raises a `MienError`, by what went wrong: see `mien.errors`;
    `OSError` if a photo's file cannot be read. What no call could mean is Python's own: `TypeError`
    for what is no photo or no number of seconds, `ValueError` for a timeout out of range or a key that would
    cross a network in plain text, and `RuntimeError` if the client is closed.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        credentials: grpc.ChannelCredentials | None = None,
        api_key: str | None = None,
        token: TokenLike | None = None,
        insecure: bool = False,
        limits: Limits | None = None,
        overload_retries: int = 0,
    ) -> None:
        super().__init__(
            address,
            timeout=timeout,
            credentials=credentials,
            api_key=api_key,
            token=token,
            insecure=insecure,
            limits=limits,
            overload_retries=overload_retries,
        )
        channels = [
            open_channel(self.address, credentials) for _ in range(self.limits.max_connections)
        ]
        self._channel = spread(channels)
        self._stub = FaceServiceStub(self._channel)
        self._gallery_stub = GalleryServiceStub(self._channel)
        most = self.limits.max_calls
        self._turns = None if most is None else threading.Semaphore(most)

    def detect(
        self,
        image: ImageLike,
        *,
        policy: PolicyLike = None,
        min_score: float | None = None,
        min_face_size: float | None = None,
        max_faces: int | None = None,
        detector: ModelLike | None = None,
        analysers: Sequence[ModelLike] = (),
        timeout: float | None = None,
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
        return detect_result(*self._call("Detect", self._stub.Detect, build, timeout, timing))

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
        analysers: Sequence[ModelLike] = (),
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
        return embed_result(*self._call("Embed", self._stub.Embed, build, timeout, timing))

    def embed_many(
        self,
        photos: Iterable[PhotoT],
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
    ) -> Generator[Outcome[PhotoT, EmbedResult], None, None]:
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

        def work(
            some: Sequence[PhotoT], calls: Calls
        ) -> list[tuple[EmbedResult | None, MienError | None]]:
            (photo,) = some
            build = functools.partial(
                embed_request,
                photo,
                aligned=aligned,
                policy=policy,
                min_score=min_score,
                min_face_size=min_face_size,
                max_faces=max_faces,
                detector=detector,
                embedder=embedder,
                analysers=analysers,
            )
            answer = self._call("Embed", self._stub.Embed, build, timeout, False, calls)
            return [(embed_result(*answer), None)]

        return in_threads(
            grouped(photos, alone),
            work,
            concurrency=checked_whole(concurrency, "concurrency", 1),
            ordered=ordered,
        )

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
        analysers: Sequence[ModelLike] = (),
        require: Sequence[Requirement] = (),
        require_quality: bool | float = False,
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
        return verify_result(*self._call("Verify", self._stub.Verify, build, timeout, timing))

    def analyze(
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
        timeout: float | None = None,
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
        return analyze_result(*self._call("Analyze", self._stub.Analyze, build, timeout, timing))

    def ready(self, *, timeout: float | None = None) -> bool:
        """Whether the server is ready: its health service says SERVING.

        False, too, where nobody answers at the address within the time. Needs no credentials.

        Args:
            timeout: seconds; the client's own if unset.

        Raises:
            Unavailable: with the reason TLS_FAILED, since that does not mend itself.
            WrongServer: what answers is no mien server.
        """
        try:
            health, _ = self._look("Check", HEALTH, timeout)
        except (Unavailable, DeadlineExceeded) as error:
            if not only_not_ready(error):
                raise
            return False
        return serving(health)

    def wait_ready(self, timeout: float = 60.0) -> None:
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
                health, _ = self._look("Check", HEALTH, waiting.look_seconds())
            except (Unavailable, DeadlineExceeded) as error:
                if not only_not_ready(error):
                    raise
                why = error
            else:
                if serving(health):
                    return
            time.sleep(waiting.pause(why))

    def models(self, *, timeout: float | None = None) -> tuple[ModelStatus, ...]:
        """The models of the server's repository, every version with its state.

        Where the server knows its callers, this needs the role `read`.

        Args:
            timeout: seconds; the client's own if unset.

        Raises:
            PermissionDenied: the caller has not the role.
        """
        index, _ = self._look("RepositoryIndex", INDEX, timeout)
        return statuses(index.models)

    def gallery(self, name: str) -> Gallery:
        """A gallery. No call is made: it need not exist yet.

        Args:
            name: of the gallery, as it was created or will be.
        """
        return Gallery(self, name)

    def galleries(self, *, timeout: float | None = None) -> tuple[GalleryInfo, ...]:
        """The server's galleries, by name.

        Args:
            timeout: seconds; the client's own if unset.

        Raises:
            WrongServer: it has none, because its operator gave it no folder for them.
        """
        response, _ = self._call_gallery(
            "ListCollections", ListCollectionsRequest, timeout, timing=False
        )
        return tuple(map(info, response.collections))

    def identify(
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
        timeout: float | None = None,
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
        return identify_result(*self._call_gallery("Identify", build, timeout, timing))

    def close(self) -> None:
        """Closes the connection; calls in progress end with `Cancelled`. May be called twice."""
        self._closed = True
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _call_gallery(
        self,
        method: str,
        build: Callable[[], Any],
        timeout: float | None,
        timing: bool,
        calls: Calls | None = None,
    ) -> tuple[Any, tuple[StageTiming, ...]]:
        rpc = getattr(self._gallery_stub, method)
        return self._call(method, rpc, build, timeout, timing, calls)

    def _look(
        self, method: str, path: str, timeout: float | None
    ) -> tuple[Any, tuple[StageTiming, ...]]:
        return self._call(method, status.method(self._channel, path), status.Empty, timeout, False)

    def _call(
        self,
        method: str,
        rpc: "grpc.UnaryUnaryMultiCallable[_Request, _Response]",
        build: Callable[[], _Request],
        timeout: float | None,
        timing: bool,
        calls: Calls | None = None,
    ) -> tuple[_Response, tuple[StageTiming, ...]]:
        if self._closed:
            raise RuntimeError(CLOSED)
        attempts = self._attempts(timeout)
        with self._turn(method, attempts):
            request, metadata = build(), self._metadata(timing)
            while True:
                try:
                    # A call by itself is made in this thread alone, which is cheaper.
                    response, call = (
                        rpc.with_call(request, timeout=attempts.left(), metadata=metadata)
                        if calls is None
                        else calls.with_call(rpc, request, attempts.left(), metadata)
                    )
                except grpc.RpcError as error:
                    failure = self._error(error, method, attempts.seconds)
                    pause = attempts.pause(failure)
                    if pause is None:
                        raise failure from error
                # What gRPC raises for a channel that has been closed, and for calls on it of `embed_many`.
                except (ValueError, grpc.FutureCancelledError) as error:
                    raise Cancelled(CLOSED_MEANWHILE, method=method) from error
                else:
                    return response, stages_of(call.trailing_metadata())
                (time if calls is None else calls).sleep(pause)

    @contextmanager
    def _turn(self, method: str, attempts: Attempts) -> Iterator[None]:
        """Lasts while the call counts as one in progress; first waits for its turn, if there is a limit."""
        if self._turns is None:
            yield
            return
        if not self._turns.acquire(timeout=attempts.left()):
            raise self._no_turn(method, attempts.seconds)
        try:
            yield
        finally:
            self._turns.release()
