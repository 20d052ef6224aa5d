"""What is counted and logged of a call, and what its caller is told of an error."""

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self

import grpc

from mien_server.observability.call_metrics import CallMetrics
from mien_server.observability.logging import RateLimit
from mien_server.quoting import without_folders
from mien_server.rpc.status import Fault, fault_of

logger = logging.getLogger(__name__)
logger.addFilter(RateLimit())

_OVERLOAD = (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE)


class CallRecord:
    """One call: counted as the block begins, and by its status code as the block ends.

    Args:
        kind: UNARY or STREAM of `call_metrics`.
        method: the path of the method, /package.Service/Method.
        hide: folders whose place on this machine the caller is not told.
    """

    def __init__(
        self, metrics: CallMetrics, kind: str, method: str, hide: Sequence[Path] = ()
    ) -> None:
        self._metrics = metrics
        self._hide = hide
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
        fault = record_fault(error, self._metrics, self._method, self._facts(), self._hide)
        # The call ends here for the metrics: whoever has seen the answer must find it counted.
        self._end(fault.code)
        return fault

    def _end(self, code: grpc.StatusCode) -> None:
        self._ended = True
        self._metrics.handled(self._kind, self._method, code.name, self._seconds())

    def _facts(self) -> dict[str, object]:
        return {"method": self._method, "ms": round(1e3 * self._seconds(), 2)}

    def _seconds(self) -> float:
        return time.perf_counter() - self._started


def record_fault(
    error: Exception,
    metrics: CallMetrics,
    method: str,
    facts: dict[str, object],
    hide: Sequence[Path] = (),
) -> Fault:
    """Counts an error, logs it as loudly as it concerns the operator, and says what its caller is told.

    Args:
        facts: go into the line of the log, which has the whole message.
        hide: folders whose place on this machine the caller is not told.
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
    elif fault.code in _OVERLOAD:
        logger.warning("call refused: %s", fault.message, extra=facts)
    else:
        logger.debug("call refused: %s", fault.message, extra=facts)
    return replace(fault, message=without_folders(fault.message, hide))
