"""What every call passes through: admission, parsing, and the mapping of errors to statuses."""

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterable, Awaitable, Callable
from typing import Any, Literal, Self, TypeAlias

import grpc
from google.protobuf.message import DecodeError

from mien_server.errors import InvalidRequest, Reason
from mien_server.observability.call_metrics import STREAM, UNARY, CallMetrics
from mien_server.observability.logging import RateLimit
from mien_server.rpc.status import Fault, fault_of
from mien_server.scheduling.errors import Draining, QueueFull, Unavailable

logger = logging.getLogger(__name__)
logger.addFilter(RateLimit())

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
"""Methods that look at the server and cost it nothing: they, too, answer at any time."""

_OVERLOAD = (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE)

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"
"""None: no such method. A string, as the class is generic in its type stubs only."""


class Admission:
    """Counts the calls in progress and refuses those that are too early, too many or too late.

    Used from the event loop only.

    Args:
        max_calls: calls in progress at the same time, at least 1.
        max_bytes: bytes of their requests together, at least 1.
    """

    def __init__(self, *, max_calls: int, max_bytes: int) -> None:
        self.calls = 0
        self.bytes = 0
        self._max_calls = max_calls
        self._max_bytes = max_bytes
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
        if self.calls >= self._max_calls or self.bytes + nbytes > self._max_bytes:
            raise QueueFull(
                f"The server already holds {self.calls} calls with {self.bytes} bytes; try again.",
                retry_after=RETRY_AFTER_SECONDS,
            )
        self.calls += 1
        self.bytes += nbytes

    def leave(self, nbytes: int) -> None:
        """Ends a call that `enter` admitted."""
        self._last_event = time.monotonic()
        self.calls -= 1
        self.bytes -= nbytes
        if self._state == "draining" and not self.calls:
            self._idle.set()

    async def drain(self, grace: float) -> bool:
        """Refuses new calls and waits for those in progress; False if `grace` seconds ran out."""
        self._state = "draining"
        if not self.calls:
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
    themselves, and meet InvalidRequest where they read one that is no valid message.

    Args:
        admission: of the calls.
        metrics: where they are counted.
    """

    def __init__(self, admission: Admission, metrics: CallMetrics) -> None:
        self._admission = admission
        self._metrics = metrics
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
        if handler is None or method.startswith(INFRASTRUCTURE):
            return handler
        parse, run = handler.request_deserializer, handler.unary_unary
        wrapped: Handler
        if parse and run:
            wrapped = grpc.unary_unary_rpc_method_handler(
                self._guarded(method, parse, run), None, handler.response_serializer
            )
        elif parse and handler.stream_stream:
            wrapped = grpc.stream_stream_rpc_method_handler(
                self._observed(method, parse, handler.stream_stream),
                None,
                handler.response_serializer,
            )
        else:
            raise AssertionError(f"{method} is of a kind that no service here has")
        self._wrapped[method] = wrapped
        return wrapped

    def _guarded(
        self, method: str, parse: Callable[[bytes], Any], run: Callable[..., Any]
    ) -> Callable[..., Any]:
        counted = method not in UNCOUNTED

        async def answer(raw: bytes, context: Context) -> Any:
            admitted = False
            with _Call(self._metrics, UNARY, method) as call:
                try:
                    if counted:
                        self._admission.enter(len(raw))
                        admitted = True
                    response = await run(_parsed(parse, raw), context)
                except asyncio.CancelledError:
                    logger.debug("call cancelled by its caller", extra=call.facts())
                    raise
                except Exception as error:
                    await self._fail(call, method, error, context)
                else:
                    logger.debug("call answered", extra=call.facts())
                    return response
                finally:
                    if admitted:
                        self._admission.leave(len(raw))

        return answer

    def _observed(
        self, method: str, parse: Callable[[bytes], Any], run: Callable[..., Any]
    ) -> Callable[..., Any]:
        async def answer(stream: AsyncIterable[bytes], context: Context) -> None:
            requests = (_parsed(parse, raw) async for raw in stream)
            with _Call(self._metrics, STREAM, method) as call:
                try:
                    await run(requests, context)
                except Exception as error:
                    await self._fail(call, method, error, context)

        return answer

    async def _fail(self, call: "_Call", method: str, error: Exception, context: Context) -> None:
        """Ends a call with what its caller is told of an error."""
        fault = fault_of(error)
        call.code = fault.code
        log_fault(error, fault, call.facts())
        self._metrics.failed(method, fault.reason)
        await context.abort(fault.code, fault.message, fault.trailing_metadata())


class _Call:
    """One call: counted as it begins, and by its status code as it ends.

    Attributes:
        code: what it will have been, if it ends well or by `context.abort`.
    """

    def __init__(self, metrics: CallMetrics, kind: str, method: str) -> None:
        self.code = grpc.StatusCode.OK
        self._metrics = metrics
        self._kind = kind
        self._method = method
        self._started = time.perf_counter()

    def __enter__(self) -> Self:
        self._metrics.started(self._kind, self._method)
        return self

    def __exit__(self, _: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, asyncio.CancelledError):
            self.code = grpc.StatusCode.CANCELLED
        elif error and self.code is grpc.StatusCode.OK:
            self.code = grpc.StatusCode.UNKNOWN
        self._metrics.handled(self._kind, self._method, self.code.name, self._seconds())

    def facts(self) -> dict[str, object]:
        """For its line in the log."""
        return {"method": self._method, "ms": round(1e3 * self._seconds(), 2)}

    def _seconds(self) -> float:
        return time.perf_counter() - self._started


def _parsed(parse: Callable[[bytes], Any], raw: bytes) -> Any:
    try:
        return parse(raw)
    except DecodeError as error:
        raise InvalidRequest(
            Reason.INVALID_REQUEST, f"The request is no valid message of its type: {error}."
        ) from error


def log_fault(error: Exception, fault: Fault, facts: dict[str, object]) -> None:
    """Logs what a caller was told, as loudly as it concerns the operator."""
    facts |= {"code": fault.code.name, "reason": fault.reason}
    if fault.incident:
        facts["incident"] = fault.incident
    if fault.unexpected:
        logger.error("call failed", exc_info=error, extra=facts)
    elif fault.code is grpc.StatusCode.INTERNAL:
        logger.error("call failed in the backend", extra=facts)
    elif fault.code in _OVERLOAD:
        logger.warning("call refused: %s", fault.message, extra=facts)
    else:
        logger.debug("call refused: %s", fault.message, extra=facts)
