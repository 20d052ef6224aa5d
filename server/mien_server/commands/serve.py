"""`mien-server serve`: the server itself."""

import os

from mien_server.commands.shared import Commands, add_command, add_settings
from mien_server.settings import GROUPS, load_settings, settings_of


def add_to(commands: Commands) -> None:
    """Adds `serve`, with a flag for every setting."""
    parser = add_command(commands, "serve", _serve, help="serve Detect, Embed, Verify and Analyze")
    for group in GROUPS:
        add_settings(parser.add_argument_group(group), *settings_of(group))


def _serve(**flags: object) -> int:
    settings = load_settings(flags)
    # gRPC writes a line past the log for every handshake that fails, and anybody can have one fail.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    from mien_server.app import serve
    from mien_server.observability.logging import configure_logging

    configure_logging(settings.log_level, settings.log_format)
    return serve(settings)
