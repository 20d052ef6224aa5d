"""A mien-server of one's own on loopback, for the length of a `with` block."""

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

PROGRAM = Path(sys.executable).parent / "mien-server"


class ServerFailed(Exception):
    """The server did not start or did not stop as it should; the message ends with its log."""


@dataclass(frozen=True)
class LocalServer:
    """A running `mien-server serve`.

    Attributes:
        address: host:port of its gRPC endpoint, on loopback.
        process: the process itself.
        log: the file that its standard output and error go to.
    """

    address: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def metrics_url(self) -> str:
        """Where its metrics are, as its log says."""
        found = re.search(r'http://[^\s"]+/metrics', self.log.read_text())
        if found is None:
            raise ServerFailed(f"no metrics:\n{self.log.read_text()}")
        return found[0]


@contextmanager
def local_server(
    log: Path,
    *,
    port: int = 0,
    flags: Sequence[str] = (),
    program: Path = PROGRAM,
    environment: Mapping[str, str] = os.environ,
    trusted: bytes | None = None,
    start_seconds: float = 120.0,
    stop_seconds: float = 60.0,
) -> Iterator[LocalServer]:
    """Starts a server, waits until its health service says SERVING, ends it by SIGTERM.

    Args:
        log: where its output goes; overwritten.
        port: 0 takes a free one.
        flags: further flags of `mien-server serve`.
        program: the `mien-server` to run.
        environment: its environment variables.
        trusted: the authority of its certificate, PEM, if the flags have it speak TLS.
        start_seconds: how long the start may take.
        stop_seconds: how long it may take to finish after SIGTERM.

    Raises:
        ServerFailed: it ended before it served, was not ready in time, or left with a status.
    """
    port = port or free_port()
    # Several may run at once, and would share Triton's port of the metrics.
    command = [str(program), "serve", "--grpc-port", str(port), "--metrics-port", "0", *flags]
    with (
        log.open("wb") as sink,
        # In a session of its own, Ctrl-C reaches it only as the SIGTERM below.
        subprocess.Popen(
            command, stdout=sink, stderr=sink, env=dict(environment), start_new_session=True
        ) as process,
    ):
        server = LocalServer(f"127.0.0.1:{port}", process, log)
        try:
            _wait_until_serving(server, trusted, start_seconds)
            yield server
        finally:
            process.terminate()
            try:
                status = process.wait(stop_seconds)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
    if status:
        raise ServerFailed(f"the server left with status {status}:\n{log.read_text()}")


def open_channel(address: str, trusted: bytes | None = None) -> grpc.Channel:
    """A channel to a server on loopback, past all proxies and with a connection of its own.

    Args:
        trusted: the authority of its certificate, PEM; None: in plain text.
    """
    options = [("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)]
    if trusted is None:
        return grpc.insecure_channel(address, options)
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(trusted), options)


def free_port() -> int:
    """A TCP port of loopback that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_until_serving(server: LocalServer, trusted: bytes | None, seconds: float) -> None:
    request = health_pb2.HealthCheckRequest()
    give_up = time.monotonic() + seconds
    with open_channel(server.address, trusted) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)  # its type stubs list no methods
        while time.monotonic() < give_up:
            with suppress(grpc.RpcError):
                answer = stub.Check(request, timeout=1, wait_for_ready=True)
                if answer.status == health_pb2.HealthCheckResponse.SERVING:
                    return
            with suppress(subprocess.TimeoutExpired):
                status = server.process.wait(0.05)
                raise ServerFailed(f"no start, status {status}:\n{server.log.read_text()}")
    raise ServerFailed(f"not serving after {seconds:g} s:\n{server.log.read_text()}")
