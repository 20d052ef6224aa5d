"""`mien-server`: one parser for all commands, and one place where their errors become exit statuses.

torch and the other heavy parts are imported by the command that needs them: `--help` and `health`,
which a container runs every few seconds, must be quick.
"""

import argparse
import signal
import sys
from collections.abc import Callable, Sequence
from importlib import metadata

from mien_server.commands import evaluate, gallery, health, keys, models, serve, tune
from mien_server.errors import OperatorError
from mien_server.settings import SettingsError


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
    except OperatorError as error:
        print(f"mien-server: {error}", file=sys.stderr)
        return 2 if isinstance(error, SettingsError) else 1
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "torch":
            raise
        from mien_server.backends.devices import NO_PYTORCH

        print(f"mien-server: {NO_PYTORCH}", file=sys.stderr)
        return 1
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
    for group in (serve, models, evaluate, tune, gallery, keys, health):
        group.add_to(commands)
    return parser
