"""One line a call, its request id everywhere, and no flood of lines."""

import asyncio
import contextlib
import gc
import io
import json
import logging
import re
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from mien.v1 import face_pb2
from mien_server.errors import InvalidRequest, Reason
from mien_server.observability.logging import GATHER_SECONDS, configure_logging
from mien_server.pipeline.types import Call, ModelIdentity, PhotoFaces, StageTime
from mien_server.rpc.record import request_id_of
from mien_server.scheduling.errors import RowFailed
from tests.unit.rpc.test_face_service import (
    EMPTY,
    PHOTO,
    Held,
    Running,
    details_of,
    failure,
    raising,
    returning,
    serving,
)

MADE_UP = re.compile("[0-9a-f]{16}")
DETECT = "/mien.v1.FaceService/Detect"


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """What the server logs, as JSON."""
    gc.collect()  # what is left of other tests' loops and servers says so when it goes
    handlers, level = logging.root.handlers[:], logging.root.level
    stream = io.StringIO()
    configure_logging("info", "json", stream)
    yield stream
    for handler in logging.root.handlers:
        handler.flush()
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)
    logging.captureWarnings(False)


def lines(log: io.StringIO) -> list[dict[str, Any]]:
    for handler in logging.root.handlers:
        handler.flush()
    return [json.loads(line) for line in log.getvalue().splitlines()]


FINDER, VECTORS = ModelIdentity("retinaface", 1, "a"), ModelIdentity("sface", 2, "b")


async def staged(call: Call) -> PhotoFaces:
    call.stages += [
        StageTime("decode.queue", 0.001),
        StageTime("decode", 0.002),
        StageTime("detect.queue", 0.004),
        StageTime("detect.compute", 0.008, 4, model=FINDER),
        StageTime("a.embed.compute", 0.010, 2, model=VECTORS),
        StageTime("b.embed.compute", 0.006, 2, model=VECTORS),
        StageTime("align", 1.0),
    ]
    return EMPTY


async def answered(running: Running, **options: Any) -> str:
    call = running.faces.Detect(PHOTO, **options)
    await call
    return str(dict(await call.trailing_metadata())["x-request-id"])


async def test_call_has_one_line_with_its_durations_and_the_name_its_caller_gave_it(
    log: io.StringIO,
) -> None:
    async with serving(staged, access_log=True) as running:
        metadata = (("x-request-id", "order-66/a"), ("mien-timing", "1"))
        assert await answered(running, metadata=metadata) == "order-66/a"
    told = lines(log)
    assert len(told) == 1, told
    (line,) = told
    assert line.pop("ms") >= 0
    assert line.pop("time")
    assert line == {
        "level": "info",
        "logger": "mien_server.rpc.record",
        "message": "call answered",
        "request_id": "order-66/a",
        "method": DETECT,
        "code": "OK",
        "decode_ms": 2,
        "queue_ms": 5,
        "compute_ms": 24,
        "batch": 4,
        "models": "retinaface:1,sface:2",
    }


async def test_lines_of_calls_are_written_soon_and_before_lines_of_others(log: io.StringIO) -> None:
    async with serving(returning(EMPTY), access_log=True) as running:
        await answered(running)
        await answered(running)
        assert log.getvalue() == ""  # they wait a moment, to be written together
        logging.getLogger("other").info("something else")
        assert [json.loads(line)["logger"] for line in log.getvalue().splitlines()] == [
            *("mien_server.rpc.record", "mien_server.rpc.record", "other")
        ]
        await answered(running)
        await asyncio.sleep(3 * GATHER_SECONDS)
        assert len(log.getvalue().splitlines()) == 4


async def test_call_without_a_name_gets_one(log: io.StringIO) -> None:
    async with serving(returning(EMPTY), access_log=True) as running:
        first, second = await answered(running), await answered(running)
    assert MADE_UP.fullmatch(first)
    assert first != second
    assert [line["request_id"] for line in lines(log)] == [first, second]


@pytest.mark.parametrize("name", ["", "a b", "x" * 129, "a\nb", "é", "<script>", b"bytes", "a\x00"])
def test_odd_names_are_replaced(name: str | bytes) -> None:
    assert MADE_UP.fullmatch(request_id_of((("x-request-id", name),)))
    assert request_id_of((("x-request-id", name), ("x-request-id", "good"))) == "good"


async def test_error_carries_the_request_id_in_its_details_its_metadata_and_the_log(
    log: io.StringIO,
) -> None:
    error = RowFailed("it broke", incident="abc123")
    async with serving(raising(error), access_log=True) as running:
        raised = await failure(running, metadata=(("x-request-id", "mine"),))
    assert dict(raised.trailing_metadata())["x-request-id"] == "mine"
    told = details_of(raised)["ErrorInfo"].metadata
    assert (told["request_id"], told["incident"]) == ("mine", "abc123")
    (line,) = lines(log)
    assert (line["level"], line["request_id"], line["code"]) == ("error", "mine", "INTERNAL")


async def test_refused_and_cancelled_calls_have_one_line_each(log: io.StringIO) -> None:
    error = InvalidRequest(Reason.INVALID_IMAGE, "no image")
    async with serving(raising(error), access_log=True) as running:
        await failure(running)
    held = Held()
    async with serving(held, access_log=True) as running:
        call = running.faces.Detect(PHOTO)
        await held.entered.wait()
        call.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await call
        await held.cancelled.wait()
    refused, cancelled = lines(log)
    assert refused["message"] == "call refused: no image"
    assert (refused["code"], refused["reason"]) == ("INVALID_ARGUMENT", "INVALID_IMAGE")
    assert (cancelled["code"], cancelled["level"]) == ("CANCELLED", "info")


async def test_flood_of_refusals_has_few_lines_and_the_next_answer_says_how_many_there_were(
    log: io.StringIO,
) -> None:
    floods = [InvalidRequest(Reason.INVALID_IMAGE, "no image")] * 60

    async def script(call: Call) -> PhotoFaces:
        if floods:
            raise floods.pop()
        return EMPTY

    async with serving(script, access_log=True) as running:
        for _ in range(60):
            await failure(running)
        await answered(running)
        await answered(running)
    *refused, first, second = lines(log)
    assert len(refused) == 10
    assert first["suppressed"] == 50
    assert "suppressed" not in second


async def test_switched_off_it_is_silent(log: io.StringIO) -> None:
    async with serving(staged) as running:
        await answered(running)
    error = InvalidRequest(Reason.INVALID_IMAGE, "no image")
    async with serving(raising(error)) as running:
        await failure(running)
    assert lines(log) == []


async def test_neither_photo_nor_vector_is_logged(log: io.StringIO) -> None:
    photo = b"PHOTOBYTES" * 20
    request = face_pb2.DetectRequest(image=face_pb2.Image(encoded=photo))
    async with serving(staged, access_log=True) as running:
        await running.faces.Detect(request)
        with pytest.raises(grpc.aio.AioRpcError):
            await running.raw(DETECT, b"\xffPHOTOBYTES")
    assert "PHOTOBYTES" not in log.getvalue()
    assert len(lines(log)) == 2


async def test_a_reader_of_the_log_that_is_gone_costs_no_call(log: io.StringIO) -> None:
    async with serving(staged, access_log=True) as running:
        log.close()
        logging.raiseExceptions, before = False, logging.raiseExceptions
        try:
            assert await answered(running)
        finally:
            logging.raiseExceptions = before
