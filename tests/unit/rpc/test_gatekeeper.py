"""What a refusal keeps out, and what is written down of calls that change something."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from grpc import StatusCode as Code

from mien_server.errors import PermissionDenied
from mien_server.rpc.gatekeeper import Check, audited, guarded_stream, is_audited, note_subject
from mien_server.rpc.intake import Intake

ENROL, DETECT = "/mien.v1.GalleryService/Enrol", "/mien.v1.FaceService/Detect"


def as_it_is(data: bytes) -> bytes:
    return data


@asynccontextmanager
async def calling(path: str, handler: Any) -> AsyncIterator[grpc.aio.Channel]:
    """A server with one method, and a channel to it."""
    service, method = path.strip("/").split("/")
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(service, {method: handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel
    await server.stop(None)


async def echo(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
    async for request in requests:
        yield request


async def refuse(context: Any, *, message: bool = False) -> None:
    raise PermissionDenied(f"nobody may do this: {message}.")


async def admit(context: Any, *, message: bool = False) -> None:
    """Everybody may."""


@pytest.mark.parametrize(("check", "code"), [(admit, Code.OK), (refuse, Code.PERMISSION_DENIED)])
async def test_a_stream_is_answered_once_its_caller_is_admitted(check: Check, code: Code) -> None:
    handler = grpc.stream_stream_rpc_method_handler(echo, as_it_is, as_it_is)
    async with calling(
        "/some.Service/Talk", guarded_stream(check, Intake(max_calls=1, max_bytes=1), handler)
    ) as channel:
        talk: Any = channel.stream_stream("/some.Service/Talk")
        if code is Code.OK:
            assert [each async for each in talk(iter([b"one", b"two"]))] == [b"one", b"two"]
            return
        # A message that is being sent just then would hide the refusal from this client.
        call = talk(iter([]))
        with pytest.raises(grpc.aio.AioRpcError, match="nobody may do this") as caught:
            await call.read()
        assert caught.value.code() is code


class Subject:
    """A request, as far as its audit line goes."""

    def __init__(self, **fields: str) -> None:
        self.__dict__.update(fields)


@pytest.mark.parametrize(
    ("raised", "aborted", "outcome", "level"),
    [
        (None, None, "OK", logging.INFO),
        (None, Code.NOT_FOUND, "NOT_FOUND", logging.INFO),
        (None, Code.PERMISSION_DENIED, "PERMISSION_DENIED", logging.WARNING),
        (None, Code.UNAUTHENTICATED, "UNAUTHENTICATED", logging.WARNING),
        (RuntimeError("a defect"), None, "UNKNOWN", logging.INFO),
    ],
)
async def test_a_call_that_changes_something_leaves_a_line_with_its_outcome(
    raised: Exception | None,
    aborted: Code | None,
    outcome: str,
    level: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def answer(request: bytes, context: Any) -> bytes:
        note_subject(Subject(collection="staff", name="ann"))
        if aborted:
            await context.abort(aborted, "so it is")
        if raised:
            raise raised
        return request

    caplog.set_level(logging.INFO, "mien_server.audit")
    handler = grpc.unary_unary_rpc_method_handler(audited(ENROL, answer), as_it_is, as_it_is)
    async with calling(ENROL, handler) as channel:
        method: Any = channel.unary_unary(ENROL)
        call = method(b"x")
        if outcome == "OK":
            assert await call == b"x"
        else:
            with pytest.raises(grpc.aio.AioRpcError):
                await call
    (line,) = [each for each in caplog.records if each.name == "mien_server.audit"]
    told: Any = line
    assert (told.outcome, told.levelno, told.method) == (outcome, level, ENROL)
    assert (told.subject, told.caller, told.peer[:5]) == ("staff", "anonymous", "ipv4:")


def test_a_call_that_changes_nothing_leaves_none() -> None:
    async def answer(request: bytes, context: Any) -> bytes:
        return request

    assert audited(DETECT, answer) is answer
    assert (is_audited(ENROL), is_audited(DETECT)) == (True, False)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"model_name": "sface", "name": "x"}, "sface"),
        ({"collection": "", "name": "y"}, "y"),
        ({}, ""),
        ({"name": "z" * 999}, "z" * 200),
    ],
)
async def test_a_line_is_about_what_the_request_names_first(
    fields: dict[str, str], told: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def answer(request: bytes, context: Any) -> bytes:
        note_subject(Subject(**fields))
        return request

    caplog.set_level(logging.INFO, "mien_server.audit")
    handler = grpc.unary_unary_rpc_method_handler(audited(ENROL, answer), as_it_is, as_it_is)
    async with calling(ENROL, handler) as channel:
        method: Any = channel.unary_unary(ENROL)
        await method(b"x")
    lines: list[Any] = [each for each in caplog.records if each.name == "mien_server.audit"]
    assert [line.subject for line in lines] == [told]
