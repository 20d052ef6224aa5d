"""What every call passes through: admission, parsing, its deadline, its record, and errors made statuses."""

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext
from typing import Any, Literal, NoReturn, Self, TypeAlias, cast

import grpc
from google.protobuf.message import DecodeError

from mien_server.access.callers import CALLER
from mien_server.access.gate import Gate
from mien_server.errors import InvalidRequest, Reason
from mien_server.observability.call_metrics import STREAM, UNARY, CallMetrics
from mien_server.observability.logging import RateLimit
from mien_server.pipeline.types import Call, StageTime
from mien_server.rpc.gatekeeper import Check, audited, check_of, guarded_stream
from mien_server.rpc.status import Fault, fault_of
from mien_server.scheduling.admission import Budget
from mien_server.scheduling.errors import Draining, Expired, QueueFull, Unavailable

logger = logging.getLogger(__name__)
logger.addFilter(RateLimit())

_CONCERNS_THE_OPERATOR = (
    *(grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE),
    *(grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED),
)


class CallRecord:
    """One call: counted as the block begins, and by its status code as the block ends.

    Args:
        kind: UNARY or STREAM of `call_metrics`.
        method: the path of the method, /package.Service/Method.
    """

    def __init__(self, metrics: CallMetrics, kind: str, method: str) -> None:
        self._metrics = metrics
        self._kind = kind
        self._method = method
        self._ended = False
        self._started = time.perf_counter()

    def __enter__(self) -> Self:
        self._metrics.started(self._kind, self._method)
        return self

    def __exit__(self, _: object, error: BaseException | None, trace: object) -> None:
        if self._ended:
            return
        if isinstance(error, asyncio.CancelledError):
            self._end(grpc.StatusCode.CANCELLED)
        else:
            self._end(grpc.StatusCode.UNKNOWN if error else grpc.StatusCode.OK)

    def answered(self) -> None:
        """Logs that the call was answered."""
        logger.debug("call answered", extra=self._facts())

    def cancelled(self) -> None:
        """Logs that the caller gave the call up."""
        logger.debug("call cancelled by its caller", extra=self._facts())

    def failed(self, error: Exception) -> Fault:
        """Counts and logs an error that ends the call, and says what the caller is told of it."""
        fault = record_fault(error, self._metrics, self._method, self._facts())
        # The call ends here for the metrics: whoever has seen the answer must find it counted.
        self._end(fault.code)
        return fault

    def _end(self, code: grpc.StatusCode) -> None:
        self._ended = True
        self._metrics.handled(self._kind, self._method, code.name, self._seconds())

    def _facts(self) -> dict[str, object]:
        facts: dict[str, object] = {"method": self._method, "ms": round(1e3 * self._seconds(), 2)}
        caller = CALLER.get()
        return facts | {"caller": caller.name} if caller.proof else facts

    def _seconds(self) -> float:
        return time.perf_counter() - self._started


def record_fault(
    error: Exception, metrics: CallMetrics, method: str, facts: dict[str, object]
) -> Fault:
    """Counts an error, logs it as loudly as it concerns the operator, and says what its caller is told.

    Args:
        facts: go into the line of the log.
    """
    fault = fault_of(error)
    metrics.failed(method, fault.reason)
    facts = facts | {"code": fault.code.name, "reason": fault.reason}
    if fault.incident:
        facts["incident"] = fault.incident
    if fault.unexpected:
        logger.error("call failed", exc_info=error, extra=facts)
    elif fault.code is grpc.StatusCode.INTERNAL:
        logger.error("call failed in the backend", extra=facts)
    elif fault.code in _CONCERNS_THE_OPERATOR:
        logger.warning("call refused: %s", fault.message, extra=facts)
    else:
        logger.debug("call refused: %s", fault.message, extra=facts)
    return fault


TIMING_REQUEST_KEY = "mien-timing"
TIMING_KEY = "server-timing"

LONGEST_SECONDS = 86_400.0
"""The longest deadline that a call gets, whatever it asks for."""

Context = grpc.aio.ServicerContext[Any, Any]


@asynccontextmanager
async def bounded_call(context: Context, default_deadline: float) -> AsyncIterator[Call]:
    """Bounds the body by the call's deadline, and sends its timing if the caller asked for it.

    Args:
        default_deadline: how many seconds a call without a deadline of its own may take, above 0.

    Raises:
        Expired: the body was not done in time.
    """
    call = Call()
    async with bounded(call, context, default_deadline):
        yield call
    if _wants_timing(context):
        total = StageTime("total", time.monotonic() - call.arrived)
        context.set_trailing_metadata(((TIMING_KEY, server_timing([*call.stages, total])),))


@asynccontextmanager
async def bounded(call: Call, context: Context, default_deadline: float) -> AsyncIterator[None]:
    """Gives a call its deadline, and bounds the body by it.

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


RETRY_AFTER_SECONDS = 1.0
INFRASTRUCTURE = ("/grpc.health.", "/grpc.reflection.")
"""Services that answer whatever the load, and while the server drains."""

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


class Admission:
    """Counts the calls in progress and refuses those that are too early, too many or too late.

    Used from the event loop only.

    Attributes:
        budget: counts the calls in progress, with the bytes of their requests.

    Args:
        max_calls: how many calls may be in progress at the same time, at least 1.
        max_bytes: how many bytes their requests may have together, at least 1.
    """

    def __init__(self, *, max_calls: int, max_bytes: int) -> None:
        self.budget = Budget(max_count=max_calls, max_bytes=max_bytes)
        self._state: Literal["loading", "open", "draining"] = "loading"
        self._idle = asyncio.Event()
        self._last_event = -math.inf

    def open(self) -> None:
        """Begins to admit calls: until now the models were loading."""
        self._state = "open"

    def enter(self, nbytes: int) -> None:
        """Admits a call whose request has `nbytes`; `leave` must follow.

        Raises:
            Unavailable: the models are still loading. Draining: the server is stopping.
            QueueFull: it already holds as much as it may.
        """
        self._last_event = time.monotonic()
        if self._state == "loading":
            raise Unavailable("The server is still loading its models; try again in a few seconds.")
        if self._state == "draining":
            raise Draining("The server is stopping and takes no new calls; another one may serve.")
        budget = self.budget
        if budget.exceeded(nbytes):
            raise QueueFull(
                f"The server already holds {budget.count} calls with {budget.nbytes} bytes; try again.",
                retry_after=RETRY_AFTER_SECONDS,
            )
        budget.enter(nbytes)

    def leave(self, nbytes: int) -> None:
        """Ends a call that `enter` admitted."""
        self._last_event = time.monotonic()
        self.budget.leave(nbytes)
        if self._state == "draining" and not self.budget.count:
            self._idle.set()

    async def drain(self, grace: float) -> bool:
        """Refuses new calls and waits for those in progress; False if `grace` seconds ran out."""
        self._state = "draining"
        if not self.budget.count:
            return True
        try:
            await asyncio.wait_for(self._idle.wait(), grace)
        except TimeoutError:
            return False
        return True

    async def quiet(self, *, still: float, at_most: float) -> None:
        """Waits until no call has come or gone for `still` seconds, `at_most` seconds altogether."""
        end = time.monotonic() + at_most
        while (rest := min(self._last_event + still, end) - time.monotonic()) > 0:  # noqa: ASYNC110
            await asyncio.sleep(rest)


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Wraps every method of the services that do the work.

    A unary request is admitted before it is parsed, one that is no valid message is INVALID_ARGUMENT, and
    whatever a method raises becomes the status that `rpc/status.py` names. Streams admit their requests
    themselves, and meet a MienError where they read one that is no valid message, or whose caller is refused.

    Args:
        admission: counts the calls in progress.
        metrics: counts the calls that came and how they ended.
        gate: knows callers, and what they may do.
    """

    def __init__(self, admission: Admission, metrics: CallMetrics, gate: Gate) -> None:
        self._admission = admission
        self._metrics = metrics
        self._gate = gate
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
        if method.startswith(INFRASTRUCTURE):
            wrapped = guarded_stream(check, handler) if check else handler
        elif parse and run:
            answer = audited(method, parse, self._call(method, parse, run, check))
            wrapped = grpc.unary_unary_rpc_method_handler(answer, None, handler.response_serializer)
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

        async def answer(raw: bytes, context: Context) -> Any:
            with CallRecord(self._metrics, UNARY, method) as record:
                try:
                    if check:
                        await check(context)
                    with admitted(len(raw)):
                        response = await run(_parsed(parse, raw), context)
                except asyncio.CancelledError:
                    record.cancelled()
                    raise
                except Exception as error:
                    fault = record.failed(error)
                    _let_go(error)
                else:
                    record.answered()
                    return response
                # gRPC and what abort raises refer to each other, and so keep this frame until garbage is
                # collected, but nothing of the request.
                del raw
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
                yield _parsed(parse, raw)

        async def answer(stream: AsyncIterable[bytes], context: Context) -> None:
            with CallRecord(self._metrics, STREAM, method) as record:
                try:
                    if check:  # one that sends nothing is not to stay
                        await check(context)
                    await run(messages(stream, context), context)
                except Exception as error:
                    fault = record.failed(error)
                    _let_go(error)
                else:
                    return
                await _abort(context, fault)

        return answer

    @contextmanager
    def _admitted(self, nbytes: int) -> Iterator[None]:
        self._admission.enter(nbytes)
        try:
            yield
        finally:
            self._admission.leave(nbytes)


def _parsed(parse: Callable[[bytes], Any], raw: bytes) -> Any:
    try:
        return parse(raw)
    except DecodeError as error:
        raise InvalidRequest(
            Reason.INVALID_REQUEST, f"The request is no valid message of its type: {error}."
        ) from error


def _let_go(error: BaseException | None) -> None:
    """Drops the frames in which an error and what led to it were raised: they hold the call's photo."""
    while error is not None and error.__traceback__ is not None:
        error.__traceback__ = None
        for each in getattr(error, "exceptions", ()):
            _let_go(each)
        _let_go(error.__cause__)
        error = error.__context__


async def _abort(context: Context, fault: Fault) -> NoReturn:
    await context.abort(fault.code, fault.message, fault.trailing_metadata())
