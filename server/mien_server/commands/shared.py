"""What the command groups share: how a command gets its flags, and how it says what came of it."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from mien_server.errors import OperatorError
from mien_server.settings import Settings, default_text, env_of, flag_of, load_settings

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
"""Where commands are added."""

_METAVARS: dict[object, str] = {int: "N", float: "SECONDS", bool: "true|false"}


def add_group(commands: Commands, name: str, help_: str) -> Commands:
    """Adds a command that only has commands of its own, such as `models`."""
    group = commands.add_parser(name, help=help_)
    return group.add_subparsers(metavar="COMMAND", required=True)


def add_command(
    commands: Commands, name: str, run: Callable[..., int], **texts: str
) -> argparse.ArgumentParser:
    """Adds a command.

    Args:
        commands: where it belongs.
        name: what is typed.
        run: gets every flag and argument by its name and returns the exit status.
        texts: `help` for the list of commands and, where it needs more words, `description` for its own page.
    """
    parser = commands.add_parser(name, **texts)  # type: ignore[arg-type]  # its keywords are all texts
    parser.set_defaults(command=run)
    return parser


def add_settings(target: argparse._ActionsContainer, *names: str) -> None:
    """Adds the flags of some settings. Those that are not given are absent from what `run` gets."""
    for name in names:
        info = Settings.model_fields[name]
        options: dict[str, Any] = {
            "dest": name,
            "default": argparse.SUPPRESS,
            "metavar": _METAVARS.get(info.annotation, "VALUE"),
            "help": f"{info.description} [{default_text(info)}; {env_of(name)}]".replace("%", "%%"),
        }
        if info.annotation is bool:
            options |= {"nargs": "?", "const": "true"}
        elif isinstance(info.default, tuple):
            options |= {"action": "append"}
        target.add_argument(flag_of(name), **options)


def add_json(parser: argparse.ArgumentParser) -> None:
    """Adds `--json`, which `run` gets as `as_json`."""
    parser.add_argument("--json", dest="as_json", action="store_true", help="print JSON")


def first_repository(flags: Mapping[str, object]) -> Path:
    """The model repository that a command writes to: the first one of the settings in force."""
    return load_settings(flags).model_repository[0]


def json_text(document: Mapping[str, Any]) -> str:
    """A report for machines."""
    return json.dumps(document, indent=2)


def say(text: str) -> None:
    """Prints what a command has found.

    Raises:
        BrokenPipeError: nobody reads it any more.
        OperatorError: it cannot be written.
    """
    try:
        print(text, flush=True)
    except OSError as error:
        # The interpreter would try to write the rest once more at exit, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            raise
        raise OperatorError(f"standard output cannot be written: {error.strerror}") from error
