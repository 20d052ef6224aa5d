"""`mien-server health`: what a container runs every few seconds, so that it imports little."""

from typing import Any

from mien_server.commands.shared import Commands, add_command, say
from mien_server.errors import OperatorError
from mien_server.settings import Settings, load_settings


def add_to(commands: Commands) -> None:
    """Adds `health`."""
    parser = add_command(
        commands, "health", _health, help="exit with 0 if a running server is ready, else 1"
    )
    parser.add_argument("--address", metavar="HOST:PORT", help="default: the settings' own")
    parser.add_argument("--timeout", type=float, default=5.0, metavar="SECONDS")


def _health(address: str | None, timeout: float) -> int:
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    target = address or _local_address(load_settings())
    # A proxy is never between a server and its own health check.
    with grpc.insecure_channel(target, [("grpc.enable_http_proxy", 0)]) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)  # its type stubs list no methods
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=timeout)
        except grpc.RpcError as error:
            raise OperatorError(f"{target}: {error.code().name}: {error.details()}") from error
    state = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    say(f"{target}: {state}")
    return 0 if answer.status == health_pb2.HealthCheckResponse.SERVING else 1


def _local_address(settings: Settings) -> str:
    """Where a server with these settings is reached from the same machine."""
    address = settings.grpc_address
    if address.version == 4:
        return f"{'127.0.0.1' if address.is_unspecified else address}:{settings.grpc_port}"
    return f"[{'::1' if address.is_unspecified else address}]:{settings.grpc_port}"
