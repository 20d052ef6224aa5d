"""How the server listens but on a plain TCP port: by TLS, whose certificate changes, or on a Unix socket."""

import errno
import os
import resource
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import grpc

from mien_server.access.certificates import Certificate, Tls
from mien_server.errors import OperatorError
from mien_server.settings import name_of

MAX_PATH_BYTES = 107
"""Of a Unix socket, as Linux has it."""

SPARE_DESCRIPTORS, MOST_CONNECTIONS = 128, 10_000
"""File descriptors that are left to models, metrics and libraries, and connections that are always enough."""


class ListenError(OperatorError):
    """The server cannot listen where it was told to; the message says why and what to do."""


def server_credentials(certificate: Certificate) -> grpc.ServerCredentials:
    """TLS with whatever certificate there is when a connection is made; those that are there keep theirs."""
    told = certificate.tls

    def changed() -> grpc.ServerCertificateConfiguration | None:
        # gRPC asks at every handshake, on threads of its own; None: as before.
        nonlocal told
        if (now := certificate.tls) is told:
            return None
        told = now
        return _configuration(now)

    return grpc.dynamic_ssl_server_credentials(
        _configuration(told),
        changed,  # type: ignore[arg-type]  # its type stubs do not know of None
        require_client_authentication=told.client_ca is not None,
    )


def _configuration(tls: Tls) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(tls.key, tls.chain)], tls.client_ca)


def file_descriptors() -> int:
    """How many this process may have open."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def connections_for(descriptors: int) -> int:
    """How many connections fit into so many file descriptors, of which others need some, at least 1."""
    spare = min(SPARE_DESCRIPTORS, descriptors // 2)
    return max(1, min(descriptors - spare, MOST_CONNECTIONS))


@dataclass(frozen=True)
class Connections:
    """How many connections there may be, and what they may do; times in seconds.

    Attributes:
        most: more are closed as they come in; None: as many as there are file descriptors for.
        handshake: one that has not said what it is by then is closed.
        max_idle: one without a call for so long is closed; None: never.
        max_streams: calls in progress on one connection.
        max_age: after which a connection gets no new calls; None: any.
        max_age_grace: that its calls may take to finish then.
        keepalive: without traffic after which a client is pinged.
        keepalive_timeout: that it may take to answer.
    """

    most: int | None = None
    handshake: float = 10.0
    max_idle: float | None = None
    max_streams: int = 4096
    max_age: float | None = None
    max_age_grace: float = 60.0
    keepalive: float = 120.0
    keepalive_timeout: float = 20.0

    @property
    def limit(self) -> int:
        """`most`, as it is in force."""
        return self.most or connections_for(file_descriptors())

    def options(self) -> list[tuple[str, int]]:
        """The options of gRPC for that."""
        found = [
            ("grpc.max_allowed_incoming_connections", self.limit),
            ("grpc.server_handshake_timeout_ms", round(1e3 * self.handshake)),
            ("grpc.max_concurrent_streams", self.max_streams),
            ("grpc.keepalive_time_ms", round(1e3 * self.keepalive)),
            ("grpc.keepalive_timeout_ms", round(1e3 * self.keepalive_timeout)),
            # Else any ping has a minute, and the line above no effect.
            ("grpc.http2.ping_timeout_ms", round(1e3 * self.keepalive_timeout)),
        ]
        if self.max_idle is not None:
            found.append(("grpc.max_connection_idle_ms", round(1e3 * self.max_idle)))
        if self.max_age is not None:
            found += [
                ("grpc.max_connection_age_ms", round(1e3 * self.max_age)),
                ("grpc.max_connection_age_grace_ms", round(1e3 * self.max_age_grace)),
            ]
        return found


@dataclass(frozen=True)
class UnixSocket:
    """A Unix socket to listen on.

    Attributes:
        path: of its file.
        mode: of its file, 0 to 0o777.
    """

    path: Path
    mode: int

    def bind(self, add_port: Callable[[str], int]) -> str:
        """Listens, and says where: unix:PATH.

        Args:
            add_port: has gRPC listen.

        Raises:
            ListenError: it cannot.
        """
        path = self.path.absolute()
        if why := _why_not(path):
            raise ListenError(
                f"cannot listen on {path}: {why}. Choose another with {name_of('grpc_socket')}."
            )
        before = os.umask(0o777 & ~self.mode)  # so that nobody gets in before a chmod
        try:
            add_port(f"unix:{path}")
        except RuntimeError as error:
            raise ListenError(f"cannot listen on {path} ({name_of('grpc_socket')}).") from error
        finally:
            os.umask(before)
        return f"unix:{path}"


def _why_not(path: Path) -> str:
    """Why nothing can listen there; "" if it can. gRPC would take the socket away from who listens on it."""
    if len(os.fsencode(path)) > MAX_PATH_BYTES:
        return f"the path has more than {MAX_PATH_BYTES} bytes"
    if not path.parent.is_dir():
        return f"{path.parent} is no folder"
    if not os.access(path.parent, os.W_OK):
        return f"{path.parent} cannot be written to"
    if not path.exists():
        return ""
    if not path.is_socket():
        return "something else is there"
    with socket.socket(socket.AF_UNIX) as probe:
        taken = probe.connect_ex(os.fspath(path)) != errno.ECONNREFUSED
    return "another server listens there" if taken else ""
