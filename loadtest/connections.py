"""Calls that cost the caller next to nothing, over gRPC and over HTTP.

The generator stands on the cores of the server that it measures. So requests are serialised beforehand and
answers are not parsed, on gRPC without the SDK, which would take ten times the processor time: one process is
then enough for what two cores can serve, at a few hundredths of them.
"""

import asyncio
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import grpc

from mien import StageTiming
from mien.channel import channel_options
from mien.errors import from_rpc_error
from mien.timing import request_metadata, stages_of
from mien_server.load.loops import Call, CallFailed

_CONNECTIONS = 8
_STAGES_EVERY = 16
"""One call of so many asks the server for its stages: enough to know them, too few to slow it down."""


class Connection(Protocol):
    """A server that answers bytes with bytes."""

    async def send(
        self, path: str, payload: bytes, *, timing: bool = False
    ) -> tuple[bytes, Sequence[StageTiming]]:
        """One call: the answer, and the server's stages if they were asked for. Raises CallFailed."""
        ...

    async def close(self) -> None:
        """Ends what is open."""
        ...


def calls_of(connection: Connection, path: str, payloads: Sequence[bytes]) -> Call:
    """Calls that send the payloads in turn."""

    async def call(number: int) -> Sequence[StageTiming]:
        timing = number % _STAGES_EVERY == 0
        _, stages = await connection.send(path, payloads[number % len(payloads)], timing=timing)
        return stages

    return call


class GrpcConnection:
    """Some HTTP/2 connections to a gRPC server, in turn.

    Args:
        address: host:port.
        timeout: seconds that a call may take; the server knows it as the call's deadline.
        credential: the key or token that goes with each call; "": none.
        trusted: the authority of the server's certificate, PEM; None: in plain text.
    """

    def __init__(
        self, address: str, timeout: float, *, credential: str = "", trusted: bytes | None = None
    ) -> None:
        self._address, self._timeout = address, timeout
        self._sent = (("authorization", f"Bearer {credential}"),) if credential else ()
        options = channel_options(address)
        tls = grpc.ssl_channel_credentials(trusted) if trusted else None
        self._channels = [
            grpc.aio.secure_channel(address, tls, options)
            if tls
            else grpc.aio.insecure_channel(address, options)
            for _ in range(_CONNECTIONS)
        ]
        self._methods: dict[str, Iterator[grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]]] = {}

    async def send(
        self, path: str, payload: bytes, *, timing: bool = False
    ) -> tuple[bytes, Sequence[StageTiming]]:
        """Calls the method `path`, "/mien.v1.FaceService/Embed", with a serialised request."""
        if path not in self._methods:
            # Without serialisers, requests and answers are bytes.
            methods: list[grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]] = [
                channel.unary_unary(path) for channel in self._channels
            ]
            self._methods[path] = itertools.cycle(methods)
        method = next(self._methods[path])
        sent = (*self._sent, *request_metadata(timing))
        call = method(payload, timeout=self._timeout, metadata=sent)
        try:
            answer = await call
        except grpc.aio.AioRpcError as error:
            known = from_rpc_error(error, method=path, address=self._address, timeout=self._timeout)
            raise CallFailed(known.reason) from error
        return answer, stages_of(await call.trailing_metadata()) if timing else ()

    async def close(self) -> None:
        """Closes the connections."""
        for channel in self._channels:
            await channel.close()


@dataclass
class HttpConnection:
    """HTTP/1.1 with connections that are kept: as many as there are calls at once.

    Attributes:
        host: the server's.
        port: the server's.
        timeout: seconds that a call may take.
        content_type: what the payloads are.
    """

    host: str
    port: int
    timeout: float
    content_type: str = "image/jpeg"
    _idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = field(default_factory=list)

    async def send(
        self, path: str, payload: bytes, *, timing: bool = False
    ) -> tuple[bytes, Sequence[StageTiming]]:
        """Posts a body to `path`; nobody is asked for stages."""
        del timing
        try:
            async with asyncio.timeout(self.timeout):
                return await self._post(path, payload), ()
        except TimeoutError as error:
            raise CallFailed("DEADLINE_EXCEEDED") from error
        except (OSError, asyncio.IncompleteReadError) as error:
            raise CallFailed("SERVER_UNREACHABLE") from error

    async def _post(self, path: str, payload: bytes) -> bytes:
        while self._idle:
            reader, writer = self._idle.pop()
            try:
                return await self._on(reader, writer, path, payload)
            except (ConnectionError, asyncio.IncompleteReadError) as error:
                if isinstance(error, asyncio.IncompleteReadError) and error.partial:
                    raise
                # The server had closed it while it was idle.
        return await self._on(*await asyncio.open_connection(self.host, self.port), path, payload)

    async def _on(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str, payload: bytes
    ) -> bytes:
        try:
            writer.write(
                f"POST {path} HTTP/1.1\r\nHost: {self.host}\r\nContent-Type: {self.content_type}\r\n"
                f"Content-Length: {len(payload)}\r\n\r\n".encode()
            )
            writer.write(payload)
            await writer.drain()
            status, _, headers = (await reader.readuntil(b"\r\n\r\n")).partition(b"\r\n")
            length = next(
                int(value)
                for name, _, value in (line.partition(b":") for line in headers.split(b"\r\n"))
                if name.strip().lower() == b"content-length"
            )
            body = await reader.readexactly(length)
        except BaseException:
            writer.close()  # half an answer may be on its way
            raise
        self._idle.append((reader, writer))
        if (code := status.split()[1]) != b"200":
            raise CallFailed(f"HTTP_{code.decode()}")
        return body

    async def close(self) -> None:
        """Closes the connections."""
        for _, writer in self._idle:
            writer.close()
