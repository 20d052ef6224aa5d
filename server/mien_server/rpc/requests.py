"""A request on its way in: waited for until its time is up, and made a message."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import TypeVar

from google.protobuf.message import DecodeError

from mien_server.errors import InvalidRequest, Reason
from mien_server.scheduling.errors import Expired

Message = TypeVar("Message")


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
