"""The grpc.aio server: its port, its limits, its services, its health and its way out."""

import asyncio
import logging
import socket
import time
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc

from mien.v1 import face_pb2, face_pb2_grpc, gallery_pb2, gallery_pb2_grpc
from mien_server.access.certificates import Certificate
from mien_server.access.gate import Gate
from mien_server.observability.call_metrics import CallMetrics
from mien_server.quoting import without_folders
from mien_server.rpc.calls import CallInterceptor
from mien_server.rpc.health import NAME as HEALTH_SERVICE
from mien_server.rpc.health import Health
from mien_server.rpc.intake import Intake
from mien_server.rpc.ports import Connections, ListenError, UnixSocket, server_credentials
from mien_server.rpc.reflection import add_reflection

if TYPE_CHECKING:
    from mien_server.observability.spans import Tracing

logger = logging.getLogger(__name__)

SERVICE = face_pb2.DESCRIPTOR.services_by_name["FaceService"].full_name
GALLERY_SERVICE = gallery_pb2.DESCRIPTOR.services_by_name["GalleryService"].full_name
INFERENCE_SERVICE = "inference.GRPCInferenceService"

MIN_PING_INTERVAL_MS = 10_000
"""Clients may send keepalive pings this often, even without calls. gRPC's own limit is 5 minutes."""

QUIET_SECONDS, LINGER_SECONDS = 0.25, 1.0
"""gRPC answers calls that reach a server while it shuts down with a bare CANCELLED. So the server goes on
refusing them properly until none has come for QUIET_SECONDS, for LINGER_SECONDS at most."""

FLUSH_SECONDS = 0.5
"""How long answers that are on their way out, and the streams of health watchers, get to end."""


class _Generic:
    """A server as generated code adds services to it; their methods are found by name when they are called.

    Generated code registers each method, too. gRPC's server from 1.82 on then waits anew, at every call, for
    the next one of each method: with 21 of them it is a tenth of what a small call takes (grpc/grpc#43461).
    """

    def __init__(self, server: grpc.aio.Server) -> None:
        self.add_generic_rpc_handlers = server.add_generic_rpc_handlers

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """Leaves it at the generic ones."""


class RpcServer:
    """Serves the face calls, Triton's protocol, health and reflection on one port.

    To be made and used in one event loop.

    Args:
        address: the IP address to listen on.
        port: the TCP port; 0 takes any free one.
        max_message_bytes: no request or response may have more.
        intake: admits the calls that do the work, and tells when they are done.
        metrics: counts the calls.
        hide: folders whose place on this machine callers are not told.
        access_log: whether each call gets a line at info.
        arrival_seconds: how long a request may take to arrive, if its call has no deadline that is nearer.
        check_seconds: how long that of a health check may take.
        gate: knows callers, and what they may do; None admits everybody.
        certificate: what TLS works with; None: plain text.
        unix: the socket to listen on instead of address and port.
        connections: what connections may do; None: the defaults.
        tracing: traces calls; None: nobody does.

    Attributes:
        address: host:port, as it listens, or unix:PATH.
        ready: what the health service says.
        max_connections: as it is in force.
        unready: why it says NOT_SERVING: what is the matter with what, as far as callers may know.
    """

    def __init__(
        self,
        *,
        address: IPv4Address | IPv6Address,
        port: int,
        max_message_bytes: int,
        intake: Intake,
        metrics: CallMetrics,
        hide: Sequence[Path] = (),
        access_log: bool = False,
        arrival_seconds: float = 60.0,
        check_seconds: float = 2.0,
        gate: Gate | None = None,
        certificate: Certificate | None = None,
        unix: UnixSocket | None = None,
        connections: Connections | None = None,
        tracing: "Tracing | None" = None,
    ) -> None:
        self._intake = intake
        self.ready = False
        self.unready: Mapping[str, str] = {"server": "it is loading its models"}
        self._hide = hide
        self._services = [SERVICE]
        self._health = Health(intake, check_seconds)
        connections = connections or Connections()
        self.max_connections = connections.limit
        self._server = grpc.aio.server(
            interceptors=(
                CallInterceptor(
                    intake,
                    metrics,
                    gate or Gate(),
                    hide=hide,
                    access_log=access_log,
                    arrival_seconds=arrival_seconds,
                    tracing=tracing,
                ),
            ),
            options=(
                ("grpc.max_receive_message_length", max_message_bytes),
                ("grpc.max_send_message_length", max_message_bytes),
                # Two servers that share a port by accident would each get half of the calls.
                ("grpc.so_reuseport", 0),
                ("grpc.http2.min_recv_ping_interval_without_data_ms", MIN_PING_INTERVAL_MS),
                ("grpc.keepalive_permit_without_calls", 1),
                *connections.options(),
            ),
        )
        self._credentials = None if certificate is None else server_credentials(certificate)
        self.address = self._bind(address, port) if unix is None else unix.bind(self._add_port)

    def _add_port(self, where: str) -> int:
        if self._credentials is None:
            return self._server.add_insecure_port(where)
        return self._server.add_secure_port(where, self._credentials)

    def _bind(self, address: IPv4Address | IPv6Address, port: int) -> str:
        host = f"[{address}]" if address.version == 6 else str(address)
        family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
        try:
            # gRPC does not say why it cannot listen; a socket of our own does.
            socket.create_server((str(address), port), family=family).close()
            bound = self._add_port(f"{host}:{port}")
        except (OSError, RuntimeError) as error:
            why = error.strerror if isinstance(error, OSError) else "address already in use"
            raise ListenError(
                f"cannot listen on {host}:{port}: {why}."
                " Choose another port with --grpc-port (MIEN_GRPC_PORT)"
                " or another address with --grpc-address (MIEN_GRPC_ADDRESS)."
            ) from error
        return f"{host}:{bound}"

    async def start(
        self,
        faces: face_pb2_grpc.FaceServiceServicer,
        *,
        galleries: gallery_pb2_grpc.GalleryServiceServicer | None = None,
        inference: Any = None,
        reflect: bool,
    ) -> None:
        """Starts to answer; the health service says NOT_SERVING until `set_ready`.

        Args:
            faces: `mien.v1.FaceService`.
            galleries: `mien.v1.GalleryService`, or None.
            inference: `inference.GRPCInferenceService`, of tritonclient's stubs, or None.
            reflect: whether to serve reflection.
        """
        add_to: Any = _Generic(self._server)
        face_pb2_grpc.add_FaceServiceServicer_to_server(faces, add_to)
        if galleries is not None:
            self._services.append(GALLERY_SERVICE)
            gallery_pb2_grpc.add_GalleryServiceServicer_to_server(galleries, add_to)
        if inference is not None:
            # Its stubs take half a second to import, and what is wrong at the start is told sooner.
            from tritonclient.grpc import service_pb2_grpc

            self._services.append(INFERENCE_SERVICE)
            service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(inference, add_to)
        self._health.add_to(self._server)
        if reflect:
            add_reflection((*self._services, HEALTH_SERVICE), self._server)
        await self.set_ready(False)
        await self._server.start()

    async def set_ready(self, ready: bool, why: Mapping[str, str] | None = None) -> None:
        """What the health service says, of the server ("") and of its services.

        Args:
            why: what is the matter with what, if it is not ready; None: as before.
        """
        self.ready = ready
        if ready or why is not None:
            self.unready = {
                name: without_folders(reason, self._hide) for name, reason in (why or {}).items()
            }
        for name in ("", *self._services):
            self._health.set(name, ready)

    async def stop(self, *, lame_duck: float, grace: float) -> bool:
        """Says NOT_SERVING, serves on for `lame_duck` seconds, then finishes the accepted calls.

        Returns:
            False if calls had to be cancelled because `grace` seconds ran out.
        """
        self.ready, self.unready = False, {"server": "it is stopping"}
        self._health.end()
        if lame_duck:
            logger.info("lame duck", extra={"seconds": lame_duck})
            await asyncio.sleep(lame_duck)
        started = time.monotonic()
        logger.info("draining", extra={"calls": self._intake.budget.count})
        finished = await self._intake.drain(grace)
        if finished:
            await self._intake.quiet(still=QUIET_SECONDS, at_most=LINGER_SECONDS)
        else:
            logger.warning("exit timeout", extra={"cancelled_calls": self._intake.budget.count})
        await self._server.stop(FLUSH_SECONDS if finished else None)
        if not finished:
            await self._intake.drain(FLUSH_SECONDS)  # gRPC does not wait for what it cancels
        logger.info("drained", extra={"seconds": round(time.monotonic() - started, 3)})
        return finished

    async def close(self) -> None:
        """Ends at once whatever still runs."""
        await self._server.stop(None)
