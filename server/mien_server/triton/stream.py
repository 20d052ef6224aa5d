"""ModelStreamInfer: requests of one stream run side by side, their answers leave in order."""

import asyncio
from collections.abc import AsyncIterable, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from tritonclient.grpc import service_pb2 as triton

from mien_server.errors import MienError
from mien_server.observability.call_metrics import CallMetrics
from mien_server.rpc.record import record_fault

METHOD = "/inference.GRPCInferenceService/ModelStreamInfer"

WINDOW = 32
"""Requests of one stream that may be under way; the next is read when the oldest has been answered."""

FINAL_RESPONSE = "triton_final_response"
"""The parameter of an answer that is the last one to its request. Here every answer is."""


async def answer_stream(
    requests: AsyncIterable[Any],
    write: Callable[[Any], Awaitable[None]],
    infer: Callable[[Any], Awaitable[Any]],
    metrics: CallMetrics,
    hide: Sequence[Path] = (),
) -> None:
    """Answers the requests of a stream, each with one `inference.ModelStreamInferResponse`.

    What `infer` raises becomes the answer's `error_message`, as Triton's, with the request's id in
    `infer_response`; the stream goes on. One that is no valid message has no id: it ends the stream,
    once those before it are answered. So does one whose caller is not allowed any more.

    Args:
        requests: each an `inference.ModelInferRequest`; they end when the caller has sent its last.
        write: sends an answer.
        infer: makes the `inference.ModelInferResponse` to a request.
        metrics: counts the errors.
        hide: folders whose place on this machine the caller is not told.

    Raises:
        MienError: what reading from `requests` raises.
    """
    answers: asyncio.Queue[asyncio.Task[Any] | None] = asyncio.Queue(WINDOW)

    async with asyncio.TaskGroup() as group:

        async def read() -> MienError | None:
            refused = None
            try:
                async for request in requests:
                    await answers.put(group.create_task(_answer(request, infer, metrics, hide)))
            except MienError as error:
                refused = error
            await answers.put(None)
            return refused

        reading = group.create_task(read())
        while (answer := await answers.get()) is not None:
            await write(await answer)
    if refused := reading.result():
        raise refused


async def _answer(
    request: Any,
    infer: Callable[[Any], Awaitable[Any]],
    metrics: CallMetrics,
    hide: Sequence[Path],
) -> Any:
    try:
        response = await infer(request)
    except Exception as error:
        facts: dict[str, object] = {"method": METHOD, "request": request.id}
        fault = record_fault(error, metrics, METHOD, facts, hide)
        return triton.ModelStreamInferResponse(
            error_message=fault.message, infer_response=triton.ModelInferResponse(id=request.id)
        )
    response.parameters[FINAL_RESPONSE].bool_param = True
    return triton.ModelStreamInferResponse(infer_response=response)
