"""The gate of `access` as gRPC sees it: metadata and certificate in, a refusal or an audit line out."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextvars import ContextVar
from typing import Any

import grpc

from mien_server.access.callers import CALLER
from mien_server.access.gate import Gate
from mien_server.access.roles import AUDITED, METHODS, OPEN
from mien_server.errors import MienError
from mien_server.observability.logging import RateLimit
from mien_server.rpc.intake import Intake
from mien_server.rpc.status import fault_of
from mien_server.scheduling.errors import SchedulingError

audit = logging.getLogger("mien_server.audit")
audit.addFilter(RateLimit())
audit.setLevel(logging.INFO)  # whatever the level of the other lines

Check = Callable[..., Awaitable[None]]
"""Admits the call with this context, or, with `message=True`, the next message of its stream."""

_DENIED = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)

# What an audited request calls the thing that it is about: the first of these fields that it has.
_SUBJECTS = ("model_name", "collection", "name")
_subject: ContextVar[str] = ContextVar("subject", default="")


def check_of(gate: Gate, method: str, *, streams: bool) -> Check | None:
    """What a method's calls have to pass; None where everybody may call it.

    The check raises Unauthenticated, PermissionDenied or CallerLimit. A message of a stream waits until its
    caller may make another call; to have it refused would end the stream.

    Args:
        gate: knows callers, and what they may do.
        method: its path.
        streams: whether its requests are streams.
    """
    if not gate.closed or METHODS.get(method) == OPEN:
        return None

    limits = gate.limits

    async def check(context: Any, *, message: bool = False) -> None:
        caller = await gate.admit(
            method, context.invocation_metadata() or (), lambda: _certificate_names(context)
        )
        if limits is None:
            return
        if message:
            await limits.wait_and_spend(caller)
            return
        if not streams:
            limits.spend(caller)
        limits.enter(caller)
        context.add_done_callback(lambda _: limits.leave(caller))

    return check


def _certificate_names(context: Any) -> Iterator[str]:
    """The alternative names of a verified client certificate, then its common name."""
    verified = context.auth_context()
    for key in ("x509_subject_alternative_name", "x509_common_name"):
        for name in verified.get(key, ()):
            if name:
                yield name.decode("utf-8", "replace")


def guarded_stream(check: Check | None, intake: Intake, handler: Any) -> Any:
    """The handler of a streaming method of gRPC's own (reflection), behind a check, and counted."""

    async def answer(requests: Any, context: Any) -> AsyncIterator[Any]:
        try:
            if check:
                await check(context)
            with intake.arrival():
                async for response in handler.stream_stream(requests, context):
                    yield response
        except (MienError, SchedulingError) as error:
            fault = fault_of(error)
            await context.abort(fault.code, fault.message, fault.trailing_metadata())

    return grpc.stream_stream_rpc_method_handler(
        answer, handler.request_deserializer, handler.response_serializer
    )


def is_audited(method: str) -> bool:
    """Whether calls of a method leave a line in the log `mien_server.audit`: if its role asks for that."""
    return METHODS.get(method) in AUDITED


def audited(method: str, answer: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """A method whose every call leaves a line in the log `mien_server.audit`, if its role asks for that.

    Lines about those who may not call are warnings, of which a flood is cut short like any other.
    """
    if not is_audited(method):
        return answer

    async def run(requests: Any, context: Any) -> Any:
        code = grpc.StatusCode.OK
        _subject.set("")
        try:
            return await answer(requests, context)
        except asyncio.CancelledError:
            code = grpc.StatusCode.CANCELLED
            raise
        except BaseException:
            code = context.code() or grpc.StatusCode.UNKNOWN
            raise
        finally:
            caller = CALLER.get()
            facts = {
                "caller": caller.name,
                "proof": caller.proof,
                "peer": context.peer(),
                "method": method,
                "subject": _subject.get(),
                "outcome": code.name,
            }
            level = logging.WARNING if code in _DENIED else logging.INFO
            audit.log(level, "audit", extra=facts)

    return run


def note_subject(request: Any) -> None:
    """Keeps what an audited call is about for its line: the first of `_SUBJECTS` that its request has."""
    found = (str(getattr(request, field, "")) for field in _SUBJECTS)
    _subject.set(next(filter(None, found), "")[:200])
