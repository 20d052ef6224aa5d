"""One call of a service: its deadline, and the timing that its caller may ask for."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import grpc

from mien_server.pipeline.types import Call, StageTime
from mien_server.scheduling.errors import Expired

TIMING_REQUEST_KEY = "mien-timing"
TIMING_KEY = "server-timing"

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
