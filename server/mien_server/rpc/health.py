"""grpc.health.v1: what the server says of itself to everybody who asks.

Not by grpcio-health-checking's own servicer: there, of several who watch a service, the first that leaves
keeps all news from the others. And gRPC would read the requests, which prove nothing, of whatever size and
for however long; so its methods are streams here, which is the same to the caller.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
from grpc_health.v1 import health_pb2

from mien_server.errors import MienError
from mien_server.rpc.calls import arrived, parsed
from mien_server.rpc.intake import Intake
from mien_server.rpc.status import fault_of
from mien_server.scheduling.errors import SchedulingError

NAME = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name

_Response = health_pb2.HealthCheckResponse


class Health:
    """Knows of each service whether it serves, and tells those who ask or watch. Event loop only.

    Args:
        intake: counts the requests on their way.
        arrival_seconds: a request, of a few bytes, has arrived by then.
    """

    def __init__(self, intake: Intake, arrival_seconds: float) -> None:
        self._intake = intake
        self._arrival_seconds = arrival_seconds
        self._serving: dict[str, bool] = {}
        self._changed = asyncio.Event()
        self._ended = False

    def set(self, service: str, serving: bool) -> None:
        """Says of a service whether it serves; after `end` it is too late for that.

        Args:
            service: its full name; "" is the whole server.
        """
        if not self._ended:
            self._serving[service] = serving
            self._changed.set()
            self._changed = asyncio.Event()

    def end(self) -> None:
        """Says of all services, for good, that they do not serve."""
        for service in self._serving:
            self.set(service, False)
        self._ended = True

    def add_to(self, server: grpc.aio.Server) -> None:
        """Serves it."""
        answer = _Response.SerializeToString
        methods: dict[str, Any] = {
            "Check": grpc.stream_unary_rpc_method_handler(self._check, None, answer),
            "Watch": grpc.stream_stream_rpc_method_handler(self._watch, None, answer),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(NAME, methods),))

    async def _check(self, requests: AsyncIterator[bytes], context: Any) -> _Response:
        service = await self._asked(requests, context)
        if service not in self._serving:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such service")
        return _Response(status=self._status(service))

    async def _watch(self, requests: AsyncIterator[bytes], context: Any) -> None:
        service = await self._asked(requests, context)
        told: int | None = None
        while True:
            changed, status = self._changed, self._status(service)
            if status != told:
                await context.write(_Response(status=status))
                told = status
            await changed.wait()

    def _status(self, service: str) -> int:
        if (serving := self._serving.get(service)) is None:
            return _Response.SERVICE_UNKNOWN
        return _Response.SERVING if serving else _Response.NOT_SERVING

    async def _asked(self, requests: AsyncIterator[bytes], context: Any) -> str:
        """Which service a caller asks for; ends the call if it does not say so in time."""
        try:
            async with self._intake.check():
                raw = await arrived(requests, self._arrival_seconds)
            service: str = parsed(health_pb2.HealthCheckRequest.FromString, raw).service
        except (MienError, SchedulingError) as error:
            fault = fault_of(error)
            await context.abort(fault.code, fault.message, fault.trailing_metadata())
        return service
