"""What is counted and logged of a call, and what its caller is told of an error."""

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Iterable, Sequence
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

import grpc

from mien_server.access.callers import CALLER
from mien_server.observability.call_metrics import CallMetrics
from mien_server.observability.logging import RateLimit, log_quickly
from mien_server.pipeline.types import ModelIdentity, StageTime
from mien_server.quoting import without_folders
from mien_server.rpc.status import Fault, fault_of

if TYPE_CHECKING:
    from mien_server.observability.spans import CallTrace

_REFUSED = "call refused: %s"
_CANCELLED = "call cancelled by its caller"

logger = logging.getLogger(__name__)
_limit = RateLimit(also={_REFUSED, _CANCELLED})
logger.addFilter(_limit)

REQUEST_ID_KEY = "x-request-id"
"""Metadata of a call, in which its caller may name it, and of the answer, where it is named in any case."""

_REQUEST_ID = re.compile(r"[0-9A-Za-z._:@/+=-]{1,128}")

current_record: "ContextVar[CallRecord | None]" = ContextVar("current_record", default=None)
"""The record of the call that the running task answers."""

_CONCERNS_THE_OPERATOR = (
    *(grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE),
    *(grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED),
)


class CallRecord:
    """One call: counted as the block begins, by its status code as it ends, and told of in one log line.

    Args:
        kind: UNARY or STREAM of `call_metrics`.
        method: the path of the method, /package.Service/Method.
        request_id: its name in the log, the answer and the error.
        hide: folders whose place on this machine the caller is not told.
        level: of the lines of calls that went as they should, or were refused for what they asked.
        trace: gets its spans; None: it is not traced.

    Attributes:
        stages: how long its parts took so far.
        trace: as given.
    """

    def __init__(
        self,
        metrics: CallMetrics,
        kind: str,
        method: str,
        *,
        request_id: str = "",
        hide: Sequence[Path] = (),
        level: int = logging.DEBUG,
        trace: "CallTrace | None" = None,
    ) -> None:
        self.stages: Sequence[StageTime] = ()
        self.trace = trace
        self._metrics = metrics
        self._hide = hide
        self._kind = kind
        self._method = method
        self._request_id = request_id
        self._level = level
        self._ended = False
        self._started = time.perf_counter()

    def __enter__(self) -> Self:
        self._metrics.started(self._kind, self._method)
        current_record.set(self)
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
        if logger.isEnabledFor(self._level):
            if _limit.dropped:  # the line has to tell of them
                logger.log(self._level, "call answered", extra=self._facts("OK"))
            else:
                log_quickly(logger, self._level, "call answered", self._facts("OK"))

    def cancelled(self) -> None:
        """Logs that the caller gave the call up."""
        if logger.isEnabledFor(self._level):
            logger.log(self._level, _CANCELLED, extra=self._facts("CANCELLED"))

    def failed(self, error: Exception) -> Fault:
        """Counts and logs an error that ends the call, and says what the caller is told of it."""
        fault = record_fault(
            error, self._metrics, self._method, self._facts(""), self._hide, self._level
        )
        # The call ends here for the metrics: whoever has seen the answer must find it counted.
        self._end(fault.code, fault.reason)
        return replace(fault, request_id=self._request_id)

    def _end(self, code: grpc.StatusCode, reason: str = "") -> None:
        self._ended = True
        trace_id = ""
        if self.trace is not None:
            self.trace.end(code.name, reason)
            trace_id = self.trace.trace_id
        seconds = self._seconds()
        self._metrics.handled(self._kind, self._method, code.name, seconds, trace_id=trace_id)

    def _facts(self, code: str) -> dict[str, object]:
        facts: dict[str, object] = {
            "request_id": self._request_id,
            "method": self._method,
            "code": code,
            "ms": round(1e3 * self._seconds(), 2),
        }
        if self.trace is not None:
            facts["trace_id"] = self.trace.trace_id
        caller = CALLER.get()
        if caller.proof:
            facts["caller"] = caller.name
        if self.stages:
            facts |= _durations(self.stages)
        return facts

    def _seconds(self) -> float:
        return time.perf_counter() - self._started


def record_fault(
    error: Exception,
    metrics: CallMetrics,
    method: str,
    facts: dict[str, object],
    hide: Sequence[Path] = (),
    level: int = logging.DEBUG,
) -> Fault:
    """Counts an error, logs it as loudly as it concerns the operator, and says what its caller is told.

    Args:
        facts: go into the line of the log, which has the whole message.
        hide: folders whose place on this machine the caller is not told.
        level: of the line, if the error does not concern the operator.
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
        logger.warning(_REFUSED, fault.message, extra=facts)
    else:
        logger.log(level, _REFUSED, fault.message, extra=facts)
    return replace(fault, message=without_folders(fault.message, hide))


def request_id_of(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    """What the caller calls its call, if that is a short word of usual characters; else a name made up."""
    for key, value in metadata:
        if key == REQUEST_ID_KEY and isinstance(value, str) and _REQUEST_ID.fullmatch(value):
            return value
    return secrets.token_hex(8)


def _durations(stages: Iterable[StageTime]) -> dict[str, float | int | str]:
    """Milliseconds of decoding, in queues and in networks, rows of a batch, and the models that ran.

    Both sides of Verify count together.
    """
    sums, rows = {"decode": 0.0, "queue": 0.0, "compute": 0.0}, 0
    models: dict[ModelIdentity, None] = {}  # in their order
    for stage in stages:
        if stage.model is not None:
            models[stage.model] = None
        part = stage.name.rpartition(".")[2]
        if part in sums:
            sums[part] += stage.seconds
            rows = max(rows, stage.batch_rows or 0)
    facts: dict[str, float | int | str] = {
        f"{part}_ms": round(1e3 * sums[part], 2) for part in sums
    }
    facts["batch"] = rows
    if models:
        facts["models"] = ",".join(f"{model.name}:{model.version}" for model in models)
    return facts
