"""`mien-server health`: what a container runs every few seconds, so that it imports little."""

from typing import TYPE_CHECKING, Any

from mien_server.commands.shared import Commands, add_command, say
from mien_server.errors import OperatorError
from mien_server.settings import Settings, load_settings, name_of

if TYPE_CHECKING:
    import grpc


def add_to(commands: Commands) -> None:
    """Adds `health`."""
    parser = add_command(
        commands, "health", _health, help="exit with 0 if a running server is ready, else 1"
    )
    parser.add_argument("--address", metavar="HOST:PORT", help="default: the settings' own")
    parser.add_argument("--timeout", type=float, default=5.0, metavar="SECONDS")


def _health(address: str | None, timeout: float) -> int:
    from grpc import RpcError
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    settings = load_settings()
    target = address or _local_address(settings)
    with _channel(target, settings) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)  # its type stubs list no methods
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=timeout)
        except RpcError as error:
            told = f"{target}: {error.code().name}: {error.details()}"
            if not settings.tls_cert and "Socket closed" in (error.details() or ""):
                told += (
                    ". Was it asked without the TLS that it speaks? Then give its own"
                    f" {name_of('tls_cert')} and {name_of('tls_key')}"
                )
            raise OperatorError(told) from error
    state = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    say(f"{target}: {state}")
    return 0 if answer.status == health_pb2.HealthCheckResponse.SERVING else 1


def _channel(target: str, settings: Settings) -> "grpc.Channel":
    """A channel to a server with these settings, whose certificate alone is trusted if it speaks TLS.

    Raises:
        OperatorError: its certificate cannot be read.
    """
    import grpc

    # A proxy is never between a server and its own health check.
    options: list[tuple[str, Any]] = [("grpc.enable_http_proxy", 0)]
    if not (settings.tls_cert and settings.tls_key):
        return grpc.insecure_channel(target, options)
    from mien_server.access.certificates import TlsFiles

    tls = TlsFiles(settings.tls_cert, settings.tls_key, settings.tls_client_ca).read()
    if tls.names:  # it need not be for the address on which the server is reached from here
        options.append(("grpc.ssl_target_name_override", tls.names[0]))
    # A server that asks clients for certificates gets its own, which helps if the same authority signed it.
    shown = (tls.key, tls.chain) if tls.client_ca else (None, None)
    return grpc.secure_channel(target, grpc.ssl_channel_credentials(tls.chain, *shown), options)


def _local_address(settings: Settings) -> str:
    """Where a server with these settings is reached from the same machine."""
    if settings.grpc_socket is not None:
        return f"unix:{settings.grpc_socket.absolute()}"
    address = settings.grpc_address
    if address.version == 4:
        return f"{'127.0.0.1' if address.is_unspecified else address}:{settings.grpc_port}"
    return f"[{'::1' if address.is_unspecified else address}]:{settings.grpc_port}"
