"""`mien-server models import`, `pull` and `quantize`: a person's own weights into the repository."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mien_server.settings import load_settings

if TYPE_CHECKING:
    from mien_server.weights.importer import Imported


class CommandFailed(Exception):
    """The message for the person who typed the command."""


def say(text: str) -> None:
    """Prints what a command has found.

    Raises:
        BrokenPipeError: nobody reads it any more. CommandFailed: it cannot be written.
    """
    try:
        print(text, flush=True)
    except OSError as error:
        # The interpreter would try to write the rest once more at exit, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            raise
        raise CommandFailed(f"standard output cannot be written: {error.strerror}") from error


def add_import(models: Any) -> argparse.ArgumentParser:
    """Adds `models import`; the caller adds the settings that it takes."""
    parser: argparse.ArgumentParser = models.add_parser(
        "import",
        help="bring your own weights",
        description="Recognise a checkpoint, check it and write it as a new version of a model.",
    )
    parser.add_argument("model", metavar="MODEL", help="its folder; made if it does not exist")
    parser.add_argument(
        "path",
        metavar="FILE",
        type=Path,
        help="a PyTorch, safetensors or ONNX file, a folder or a zip archive of some",
    )
    parser.add_argument("--source", metavar="TEXT", help="where it comes from [the file's name]")
    _add_shared(parser)
    parser.set_defaults(command=_import)
    return parser


def add_pull(models: Any) -> argparse.ArgumentParser:
    """Adds `models pull`; the caller adds the settings that it takes."""
    parser: argparse.ArgumentParser = models.add_parser(
        "pull",
        help="download weights and import them",
        description="Download a checkpoint and import it, once its licence is accepted.",
    )
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="hf:owner/name[/file], modelscope:owner/name[/file] or an https address",
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        nargs="?",
        help="its folder; made if it does not exist [the only model of that network]",
    )
    parser.add_argument("--sha256", metavar="HEX", help="of the file; needed for an https address")
    parser.add_argument(
        "--accept-license", action="store_true", help="do not ask whether the licence is accepted"
    )
    _add_shared(parser)
    parser.set_defaults(command=_pull)
    return parser


def add_quantize(models: Any) -> argparse.ArgumentParser:
    """Adds `models quantize`; the caller adds the settings that it takes."""
    parser: argparse.ArgumentParser = models.add_parser(
        "quantize",
        help="make an int8 version of an embedding model",
        description="Quantise a version to int8, compare it to the original and write it as a new version.",
    )
    parser.add_argument("model", metavar="MODEL", help="an embedding model")
    parser.add_argument(
        "--calibration",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="aligned faces of 112x112 pixels, some hundred of different people",
    )
    parser.add_argument("--version", type=int, metavar="N", help="to quantise [the highest]")
    parser.set_defaults(command=_quantize)
    return parser


def _add_shared(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--version", type=int, metavar="N", help="[one more than the highest]")
    parser.add_argument(
        "--license", metavar="TEXT", help="who may use the weights for what, for the manifest"
    )


def _import(
    model: str,
    path: Path,
    source: str | None,
    version: int | None,
    license: str | None,
    **flags: object,
) -> int:
    repository = load_settings(flags).model_repository[0]
    from mien_server.repository.config.pbtxt import ConfigError
    from mien_server.weights.importer import ImportRefused, import_weights
    from mien_server.weights.recognise.onnx_weights import WeightsError

    try:
        done = import_weights(
            repository, model, path, version=version, license_=license, source=source
        )
    except (ImportRefused, WeightsError, ConfigError) as error:
        raise CommandFailed(str(error)) from error
    _say_next(repository, done)
    return 0


def _pull(
    source: str,
    model: str | None,
    sha256: str | None,
    accept_license: bool,
    version: int | None,
    license: str | None,
    **flags: object,
) -> int:
    repository = load_settings(flags).model_repository[0]
    from mien_server.repository.config.pbtxt import ConfigError
    from mien_server.weights.fetch.packages import FetchError
    from mien_server.weights.importer import ImportRefused
    from mien_server.weights.pull import pull
    from mien_server.weights.recognise.onnx_weights import WeightsError

    try:
        done = pull(
            source,
            repository,
            model,
            accept=_accepting(always=accept_license),
            sha256=sha256,
            version=version,
            license_=license,
        )
    except (FetchError, ImportRefused, WeightsError, ConfigError, OSError) as error:
        raise CommandFailed(str(error)) from error
    _say_next(repository, done)
    return 0


def _quantize(model: str, calibration: Path, version: int | None, **flags: object) -> int:
    repository = load_settings(flags).model_repository[0]
    from mien_server.weights.quantise import QuantiseError, quantise

    try:
        quantise(repository, model, calibration, version=version)
    except QuantiseError as error:
        raise CommandFailed(str(error)) from error
    return 0


def _accepting(*, always: bool) -> Callable[[str], bool]:
    """Shows a licence, and asks on a terminal whether it is accepted."""

    def ask(licence: str) -> bool:
        print(licence, file=sys.stderr)
        if always:
            return True
        if not sys.stdin.isatty():
            raise CommandFailed(
                "nobody can be asked here whether the licence is accepted: read it and add --accept-license"
            )
        return input("Do you accept it? [y/N] ").strip().lower() in ("y", "yes")

    return ask


def _say_next(repository: Path, done: "Sequence[Imported]") -> None:
    at = f"--model-repository {repository}"
    for each in done:
        print(f"next: mien-server models check {each.model} {at}", file=sys.stderr)
    print(f"then: mien-server serve {at}", file=sys.stderr)
