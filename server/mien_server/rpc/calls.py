"""What every call passes through: admission, parsing, its deadline, its record, and errors made statuses."""

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias, TypeVar, cast

import grpc
from google.protobuf.message import DecodeError

from mien_server.access.gate import Gate
from mien_server.errors import InvalidRequest, Reason
from mien_server.observability.call_metrics import STREAM, UNARY, CallMetrics
from mien_server.pipeline.types import Call, StageTime
from mien_server.rpc.gatekeeper import (
    Check,
    audited,
    check_of,
    guarded_stream,
    is_audited,
    note_subject,
)
from mien_server.rpc.intake import Intake
from mien_server.rpc.record import REQUEST_ID_KEY, CallRecord, current_record, request_id_of
from mien_server.rpc.status import Fault
from mien_server.scheduling.errors import Expired

if TYPE_CHECKING:
    from mien_server.observability.spans import Tracing

TIMING_REQUEST_KEY = "mien-timing"
TIMING_KEY = "server-timing"
CLOCK_KEY = "mien-clock"

LONGEST_SECONDS = 86_400.0
"""The longest deadline that a call gets, whatever it asks for."""

Context = grpc.aio.ServicerContext[Any, Any]

Message = TypeVar("Message")


@asynccontextmanager
async def bounded_call(context: Context, default_deadline: float) -> AsyncIterator[Call]:
    """Bounds the body by the call's deadline, and sends its timing if the caller asked for it.

    Args:
        default_deadline: how many seconds a call without a deadline of its own may take, above 0.

    Raises:
        Expired: the body was not done in time.
    """
    call = Call()
    if (record := current_record.get()) is not None:
        record.stages = call.stages
    async with bounded(call, context, default_deadline):
        yield call
    if _wants_timing(context):
        total = StageTime("total", time.monotonic() - call.arrived)
        timing = (TIMING_KEY, server_timing([*call.stages, total]))
        clock = (CLOCK_KEY, f"{time.time():.3f}")  # `mien doctor` compares it
        context.set_trailing_metadata((*(context.trailing_metadata() or ()), timing, clock))


@asynccontextmanager
async def bounded(call: Call, context: Context, default_deadline: float) -> AsyncIterator[None]:
    """Gives a call its deadline, and bounds the body by it. Its stages go into the trace, if there is one.

    Raises:
        Expired: the body was not done in time.
    """
    remaining = cast(float | None, context.time_remaining())
    if remaining is None:
        remaining = default_deadline
    # gRPC lets a caller ask for ten thousand years, which no clock here can wait for.
    remaining = min(remaining, LONGEST_SECONDS)
    call.deadline = call.arrived + remaining
    try:
        async with asyncio.timeout_at(call.deadline) as limit:
            yield
    except TimeoutError as error:
        if not limit.expired():
            raise
        raise Expired(f"No answer within the call's {remaining:.3f} s.") from error
    finally:
        if (record := current_record.get()) is not None and record.trace is not None:
            record.trace.add(call.stages)


def _wants_timing(context: Context) -> bool:
    metadata = context.invocation_metadata() or ()
    return any(key == TIMING_REQUEST_KEY and value == "1" for key, value in metadata)


def server_timing(stages: list[StageTime]) -> str:
    """The stages in the syntax of W3C Server-Timing: milliseconds, and the rows of batches.

    Example: `decode;dur=3.214, detect.compute;dur=9.500;batch=4`.
    """
    return ", ".join(
        f"{stage.name};dur={1e3 * stage.seconds:.3f}"
        + ("" if stage.batch_rows is None else f";batch={stage.batch_rows}")
        for stage in stages
    )


HEALTH, REFLECTION = "/grpc.health.", "/grpc.reflection."
"""Services that answer while the server drains, and the first of them whatever the load."""

UNCOUNTED = frozenset(
    f"/inference.GRPCInferenceService/{method}"
    for method in (
        *("ServerLive", "ServerReady", "ModelReady"),
        *("ServerMetadata", "ModelMetadata", "ModelConfig", "ModelStatistics", "RepositoryIndex"),
    )
)
"""Methods that look at the server and cost it nothing. They, too, answer at any time."""

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"
"""What gRPC found for a method; None if there is none. The class is generic in its type stubs only, so this
is a string."""


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Wraps every method of the services that do the work.

    A unary request must arrive in time, is admitted before it is parsed, one that is no valid message is
    INVALID_ARGUMENT, and whatever a method raises becomes the status that `rpc/status.py` names. Streams
    admit their requests themselves, and meet a MienError where they read one that is no valid message, or
    whose caller is refused.

    Args:
        intake: counts the calls in progress.
        metrics: counts the calls that came and how they ended.
        gate: knows callers, and what they may do.
        hide: folders whose place on this machine callers are not told.
        access_log: whether each call gets a line at info, and not at debug.
        arrival_seconds: how long a request may take to arrive, if its call has no deadline that is nearer.
        tracing: traces calls, but those that only look at the server; None: nobody does.
    """

    def __init__(
        self,
        intake: Intake,
        metrics: CallMetrics,
        gate: Gate,
        *,
        hide: Sequence[Path] = (),
        access_log: bool = False,
        arrival_seconds: float = 60.0,
        tracing: "Tracing | None" = None,
    ) -> None:
        self._intake = intake
        self._metrics = metrics
        self._gate = gate
        self._hide = hide
        self._level = logging.INFO if access_log else logging.DEBUG
        self._arrival_seconds = arrival_seconds
        self._tracing = tracing
        self._wrapped: dict[str, Handler] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """The wrapped handler of a method, made once."""
        method: str = handler_call_details.method
        if (known := self._wrapped.get(method)) is not None:
            return known
        handler = await continuation(handler_call_details)
        # None: no such method. gRPC answers UNIMPLEMENTED, and nothing may be remembered of names
        # that callers make up.
        if handler is None:
            return handler
        check = check_of(self._gate, method, streams=bool(handler.request_streaming))
        parse, run = handler.request_deserializer, handler.unary_unary
        wrapped: Handler
        if method.startswith(HEALTH):
            wrapped = handler
        elif method.startswith(REFLECTION):
            wrapped = guarded_stream(check, self._intake, handler)
        elif parse and run:
            # To the caller it is the same as a unary method. But gRPC reads the request of one of those
            # before it asks anybody, of whatever size and for however long.
            wrapped = grpc.stream_unary_rpc_method_handler(
                audited(method, self._call(method, parse, run, check)),
                None,
                handler.response_serializer,
            )
        elif parse and handler.stream_stream:
            wrapped = grpc.stream_stream_rpc_method_handler(
                self._stream(method, parse, handler.stream_stream, check),
                None,
                handler.response_serializer,
            )
        else:
            raise AssertionError(f"{method} is of a kind that no service here has")
        self._wrapped[method] = wrapped
        return wrapped

    def _call(
        self,
        method: str,
        parse: Callable[[bytes], Any],
        run: Callable[..., Any],
        check: Check | None,
    ) -> Callable[..., Any]:
        admitted = nullcontext if method in UNCOUNTED else self._admitted
        told = is_audited(method)

        async def respond(requests: AsyncIterator[bytes], context: Context) -> Any:
            if check:  # before anything of the request is taken in
                await check(context)
            raw = await self._arrived(requests, context)
            with admitted(len(raw)):
                request = parsed(parse, raw)
                if told:
                    note_subject(request)
                del raw  # parsing has copied it
                return await run(request, context)

        # gRPC and what abort raises refer to each other, and so keep this function's frame until garbage is
        # collected: nothing of the request may be in it.
        async def answer(requests: AsyncIterator[bytes], context: Context) -> Any:
            with self._record(UNARY, method, context) as record:
                try:
                    response = await respond(requests, context)
                except asyncio.CancelledError:
                    record.cancelled()
                    raise
                except Exception as error:
                    fault = record.failed(error)
                    _let_go(error)
                else:
                    record.answered()
                    return response
                return await _abort(context, fault)

        return answer

    def _stream(
        self,
        method: str,
        parse: Callable[[bytes], Any],
        run: Callable[..., Any],
        check: Check | None,
    ) -> Callable[..., Any]:
        async def messages(stream: AsyncIterable[bytes], context: Context) -> AsyncIterator[Any]:
            async for raw in stream:
                if check:  # a key may be revoked while its stream is open
                    await check(context, message=True)
                yield parsed(parse, raw)

        async def answer(stream: AsyncIterable[bytes], context: Context) -> None:
            with self._record(STREAM, method, context) as record:
                try:
                    if check:  # one that sends nothing is not to stay
                        await check(context)
                    # Nobody can tell half a message from a pause between two.
                    with self._intake.arrival():
                        await run(messages(stream, context), context)
                except asyncio.CancelledError:
                    record.cancelled()
                    raise
                except Exception as error:
                    fault = record.failed(error)
                    _let_go(error)
                else:
                    record.answered()
                    return
                await _abort(context, fault)

        return answer

    async def _arrived(self, requests: AsyncIterator[bytes], context: Context) -> bytes:
        """The request of a call, once it is all there.

        Raises:
            QueueFull: too many requests are on their way. Expired: it is not there in time.
            InvalidRequest: the call ends without one.
        """
        remaining = cast(float | None, context.time_remaining())
        seconds = min(self._arrival_seconds, remaining if remaining is not None else math.inf)
        with self._intake.arrival():
            return await arrived(requests, seconds)

    def _record(self, kind: str, method: str, context: Context) -> CallRecord:
        """The record of a call, whose name the answer gets."""
        metadata = context.invocation_metadata() or ()
        request_id = request_id_of(metadata)
        context.set_trailing_metadata(((REQUEST_ID_KEY, request_id),))
        level = logging.DEBUG if method in UNCOUNTED else self._level
        trace = None
        if self._tracing is not None and method not in UNCOUNTED:
            trace = self._tracing.begin(method, request_id, metadata)
        return CallRecord(
            self._metrics,
            kind,
            method,
            request_id=request_id,
            hide=self._hide,
            level=level,
            trace=trace,
        )

    @contextmanager
    def _admitted(self, nbytes: int) -> Iterator[None]:
        self._intake.enter(nbytes)
        try:
            yield
        finally:
            self._intake.leave(nbytes)


def _let_go(error: BaseException | None) -> None:
    """Drops the frames in which an error and what led to it were raised: they hold the call's photo."""
    while error is not None and error.__traceback__ is not None:
        error.__traceback__ = None
        for each in getattr(error, "exceptions", ()):
            _let_go(each)
        _let_go(error.__cause__)
        error = error.__context__


async def arrived(requests: AsyncIterator[bytes], seconds: float) -> bytes:
    """The request of a call, once it is all there.

    Raises:
        Expired: it is not there in time. InvalidRequest: the call ends without one.
    """
    try:
        async with asyncio.timeout(seconds):
            return await anext(requests)
    except StopAsyncIteration:
        raise InvalidRequest(
            Reason.INVALID_REQUEST,
            "The call has no request message, or a larger one than the server takes.",
        ) from None
    except TimeoutError:
        raise Expired(f"The request did not arrive within {seconds:.3f} s.") from None


def parsed(parse: Callable[[bytes], Message], raw: bytes) -> Message:
    """The message that the bytes of a request are.

    Raises:
        InvalidRequest: they are none of its type.
    """
    try:
        return parse(raw)
    except DecodeError as error:
        raise InvalidRequest(
            Reason.INVALID_REQUEST, f"The request is no valid message of its type: {error}."
        ) from error


async def _abort(context: Context, fault: Fault) -> NoReturn:
    named = (REQUEST_ID_KEY, fault.request_id)
    await context.abort(fault.code, fault.message, (*fault.trailing_metadata(), named))
