"""What the options of the command `mien` may be, and what it says of those that are not."""

import argparse
import math
import os
import re
from functools import partial
from pathlib import Path
from typing import Any

import grpc

from mien.access import read_secret, tls_credentials
from mien.bulk import CONCURRENCY
from mien.channel import MAX_TIMEOUT, checked_timeout
from mien.errors import InvalidRequest
from mien.messages import Requirement

SECRETS = {"api-key": "MIEN_API_KEY", "token": "MIEN_TOKEN"}
"""What proves who calls: the option, which has a form for a file, and the variable."""

PICTURES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


def seconds(text: str) -> float:
    """A duration, above 0 and up to a year."""
    try:
        return checked_timeout(float(text))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no number of seconds above 0, up to {MAX_TIMEOUT}"
        ) from None


def count(text: str) -> int:
    """A whole number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 on")
    return int(text)


def share(text: str) -> float:
    """A number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0.0 <= value <= 1.0:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 0 to 1")
    return value


def requirement(text: str) -> Requirement:
    """What an analyser must say: "liveness>=0.8", "expression/happy<=0.5"."""
    match = re.fullmatch(r"([^/<>=]+)(?:/([^<>=]+))?(>=|<=)([-+.0-9e]+)", text)
    try:
        value = float(match[4]) if match else math.nan
    except ValueError:
        value = math.nan
    if match is None or not math.isfinite(value):
        raise argparse.ArgumentTypeError(
            f'{text!r} is no requirement, such as "liveness>=0.8" or "expression/happy<=0.5"'
        )
    bounds = {"at_least": value} if match[3] == ">=" else {"at_most": value}
    return Requirement(match[1], match[2] or "", **bounds)


def is_picture(path: Path) -> bool:
    """Whether a file's suffix says which kind of picture it is."""
    return path.suffix.lower() in PICTURES


def add_concurrency(parser: argparse.ArgumentParser) -> None:
    """Adds the option that says how many photos are under way at a time."""
    parser.add_argument(
        "--concurrency",
        type=count,
        default=CONCURRENCY,
        metavar="N",
        help=f"photos at the same time (default: {CONCURRENCY})",
    )


def add_aligned(parser: argparse.ArgumentParser) -> None:
    """Adds the option that says that nothing has to be detected."""
    help_text = "the photos are faces, aligned to 112x112 already"
    parser.add_argument("--aligned", action="store_true", help=help_text)


def add_requirements(parser: argparse.ArgumentParser) -> None:
    """Adds the options that say what faces must fulfil."""
    parser.add_argument(
        "--require",
        type=requirement,
        action="append",
        default=[],
        metavar="WHAT",
        help='what an analyser must say, else the call fails: "liveness>=0.8", "expression/happy<=0.5"',
    )
    quality = parser.add_mutually_exclusive_group()
    quality.add_argument(
        "--require-quality",
        action="store_true",
        help="every face must be good enough to be enrolled, else the call fails",
    )
    quality.add_argument(
        "--quality-at-least",
        dest="require_quality",
        type=share,
        metavar="Q",
        help="the overall quality that every face must have, from 0 to 1, else the call fails",
    )


def add_connection(parser: argparse.ArgumentParser) -> None:
    """Adds the options that say how to reach the server, and who calls."""
    add = parser.add_argument
    add(
        "--tls",
        action="store_true",
        help="encrypt, and trust the certificates of the well-known authorities",
    )
    for flag, what in (
        ("--tls-ca", "encrypt, and trust the certificates of this PEM file instead"),
        ("--tls-cert", "encrypt, and show this client certificate, a PEM file"),
        ("--tls-key", "its private key, a PEM file"),
    ):
        add(flag, type=Path, metavar="FILE", help=what)
    for name, variable in SECRETS.items():
        what = name.replace("-", " ").replace("api", "API")
        add(
            f"--{name}",
            metavar=name.upper(),
            help=f"the {what} to send (default: ${variable}; other users see what a command line holds)",
        )
        add(
            f"--{name}-file",
            type=Path,
            metavar="FILE",
            help=f"the {what}, in a file of the mode 600",
        )
    add(
        "--insecure",
        action="store_true",
        help="send the key or token even where it crosses a network in plain text",
    )


CONNECTION_DEFAULTS: dict[str, Any] = {
    **dict.fromkeys(("tls", "insecure"), False),
    **dict.fromkeys(("tls_ca", "tls_cert", "tls_key"), None),
    **dict.fromkeys(("api_key", "api_key_file", "token", "token_file"), None),
}
"""What the options of `add_connection` are if they are not given."""


def connection(arguments: argparse.Namespace) -> dict[str, Any]:
    """What a client is made with, beside its address and timeout.

    Raises:
        OSError: a file cannot be read.
        InvalidRequest: it does not hold what it should, or others may read it.
        ValueError: the options do not go together.
    """
    return {
        "credentials": _credentials(arguments),
        "insecure": arguments.insecure,
        **_secret(arguments),
    }


def _credentials(arguments: argparse.Namespace) -> grpc.ChannelCredentials | None:
    files = (arguments.tls_ca, arguments.tls_cert, arguments.tls_key)
    if not arguments.tls and files == (None, None, None):
        return None
    ca, cert, key = files
    try:
        return tls_credentials(ca, cert=cert, key=key)
    except InvalidRequest as error:
        error.field = f"--tls-{error.field}"
        raise


def _secret(arguments: argparse.Namespace) -> dict[str, Any]:
    """The API key or the token: of the options, or else of the variables."""
    given = {
        option: value
        for name in SECRETS
        for option in (name, f"{name}-file")
        if (value := getattr(arguments, option.replace("-", "_"))) is not None
    }
    if not given:
        given = {
            name: os.environ[variable]
            for name, variable in SECRETS.items()
            if os.environ.get(variable)
        }
        several = " and ".join(SECRETS[name] for name in given)
    else:
        several = " and ".join(f"--{option}" for option in given)
    if len(given) > 1:
        raise ValueError(f"there are {several}: only one can be sent")
    for option, value in given.items():
        name = option.removesuffix("-file").replace("-", "_")
        if not option.endswith("-file"):
            return {name: value}
        secret = _read(option, value)
        # Who renews a token's file does so while `mien models watch` runs.
        return {name: partial(_read, option, value) if name == "token" else secret}
    return {}


def _read(option: str, path: Path) -> str:
    try:
        return read_secret(path)
    except InvalidRequest as error:
        error.field = f"--{option}"
        raise
