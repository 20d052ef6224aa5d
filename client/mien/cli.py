"""The command `mien`: detect, embed, verify, analyze, galleries, and a server's models, from a shell."""

import argparse
import errno
import importlib.metadata
import io
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mien import cli_options
from mien.channel import ADDRESS_VARIABLE, DEFAULT_ADDRESS
from mien.client import DEFAULT_TIMEOUT, Client
from mien.crop_command import add_crop_command
from mien.doctor import add_doctor_command
from mien.embed_folder import embed_folder
from mien.errors import FailedPrecondition, InvalidRequest, MienError
from mien.gallery_cli import add_gallery_command
from mien.images import read_encoded, read_file
from mien.many_photos import OVERLOAD_RETRIES, detect_many, draw, target_in
from mien.messages import FacePolicy
from mien.models_cli import LOAD_TIMEOUT, add_models_command
from mien.printable import printable
from mien.results import Embedding
from mien.saved import is_json, saved_embedding
from mien.tables import analyze_table, detect_table, embed_table, timing_table, verify_table
from mien.timing import StageTiming

STDIN = "-"

# The statuses that a shell gives to what SIGINT and SIGPIPE ended.
INTERRUPTED = 130
BROKEN_PIPE = 141


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status: 0 for an answer, 1 for a failure."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A file's name may hold what the terminal's encoding does not.
        sys.stdout.reconfigure(errors="backslashreplace")
    arguments = _parse(argv)
    try:
        with arguments.connect(arguments) as client:
            status: int = arguments.run(client, arguments) or 0
        print(end="", flush=True)
    except BrokenPipeError:
        # The reader has gone; without this, the interpreter would complain of it once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except KeyboardInterrupt:
        return INTERRUPTED
    except (MienError, OSError, ImportError) as error:
        return _fail(_as_mien_error(error), as_json=arguments.json)
    return status


def _client(arguments: argparse.Namespace) -> Client:
    parser: argparse.ArgumentParser = arguments.parser
    timeout = DEFAULT_TIMEOUT if arguments.timeout is None else arguments.timeout
    many = getattr(arguments, "many", False) or len(getattr(arguments, "photos", ())) > 1
    try:
        return Client(
            arguments.address,
            timeout=timeout,
            overload_retries=OVERLOAD_RETRIES if many else 0,
            **cli_options.connection(arguments),
        )
    except ValueError as error:
        parser.error(str(error))


def _detect(client: Client, arguments: argparse.Namespace) -> int:
    photos: list[str] = arguments.photos
    if photos.count(STDIN) > 1:
        arguments.parser.error("only one photo can come from standard input")
    if len(photos) > 1:
        if arguments.timing:
            arguments.parser.error("--timing is of one photo")
        return detect_many(client, arguments, _read, _as_mien_error)
    (name,) = photos
    out = _target(arguments, name)
    photo = _read(name)
    result = client.detect(photo, detector=arguments.detector, timing=arguments.timing)
    if out is not None:
        draw(photo, result, out)
    if arguments.json:
        _print_json([face.as_dict() for face in result.faces])
    else:
        print(detect_table(_name(name), result))
        if out is not None:
            print(f"picture   {_name(out)}")
    _report_timing(result.timing, arguments)
    return 0


def _analyze(client: Client, arguments: argparse.Namespace) -> int:
    out = _target(arguments, arguments.photo)
    photo = _read(arguments.photo)
    result = client.analyze(
        photo,
        analysers=arguments.analyser or (),
        detector=arguments.detector,
        require=arguments.require,
        require_quality=arguments.require_quality,
        timing=arguments.timing,
    )
    if out is not None:
        draw(photo, result, out)
    if arguments.json:
        _print_json([face.as_dict() for face in result.faces])
    else:
        print(analyze_table(_name(arguments.photo), result))
        if out is not None:
            print(f"picture   {_name(out)}")
    _report_timing(result.timing, arguments)
    return 0


def _target(arguments: argparse.Namespace, photo: str) -> Path | None:
    """Where to write the picture of the only photo; None without `--out`."""
    out: Path | None = arguments.out
    if out is None:
        return None
    if out.is_dir():
        out = target_in(out, photo)
    elif not cli_options.is_picture(out):
        kinds = ", ".join(cli_options.PICTURES)
        arguments.parser.error(f"argument --out: {os.fspath(out)!r} ends in none of {kinds}")
    from mien import pictures  # noqa: F401 - before the call: Pillow may be missing

    return out


def _embed(client: Client, arguments: argparse.Namespace) -> int:
    parser: argparse.ArgumentParser = arguments.parser
    if Path(arguments.photo).is_dir():
        if arguments.out is None:
            parser.error("of a folder the embeddings go to a file: --out faces.npz")
        if arguments.timing:
            parser.error("--timing is of one photo")
        return embed_folder(client, arguments)
    if arguments.out is not None:
        parser.error(f"--out is for a folder of photos, and {arguments.photo} is none")
    result = client.embed(
        _read(arguments.photo),
        aligned=arguments.aligned,
        policy=FacePolicy.ALL if arguments.all else FacePolicy.LARGEST,
        detector=arguments.detector,
        embedder=arguments.embedder,
        timing=arguments.timing,
    )
    if arguments.json:
        faces = [face.as_dict() for face in result.faces]
        _print_json(faces if arguments.all else faces[0])
    else:
        print(embed_table(_name(arguments.photo), result))
    _report_timing(result.timing, arguments)
    return 0


def _verify(client: Client, arguments: argparse.Namespace) -> None:
    if arguments.a == arguments.b == STDIN:
        arguments.parser.error("only one of the two can come from standard input")
    result = client.verify(
        _photo_or_embedding(arguments.a),
        _photo_or_embedding(arguments.b),
        threshold=arguments.threshold,
        detector=arguments.detector,
        embedder=arguments.embedder,
        require=arguments.require,
        require_quality=arguments.require_quality,
        timing=arguments.timing,
    )
    if arguments.json:
        _print_json({key: value for key, value in result.as_dict().items() if key != "timing"})
    else:
        print(verify_table(result))
    _report_timing(result.timing, arguments)


def _photo_or_embedding(name: str) -> bytes | Embedding:
    content = _read(name)
    return saved_embedding(content, _name(name)) if is_json(content) else content


def _read(photo: str) -> bytes:
    if photo != STDIN:
        return read_file(photo)
    if sys.stdin is None:  # the shell has closed it
        raise OSError(errno.EBADF, "standard input is closed")
    return read_encoded(sys.stdin.buffer)


def _report_timing(timing: Sequence[StageTiming], arguments: argparse.Namespace) -> None:
    if not arguments.timing:
        return
    if arguments.json:
        # Standard output holds one document, the answer.
        print(json.dumps({"timing": [stage.as_dict() for stage in timing]}), file=sys.stderr)
    else:
        print()
        print(timing_table(timing))


def _print_json(document: Any) -> None:
    print(json.dumps(document))


def _name(path: str | Path) -> str:
    return "standard input" if path == STDIN else os.fspath(path)


def _as_mien_error(error: MienError | OSError | ImportError) -> MienError:
    match error:
        case MienError():
            return error
        case ImportError():
            return FailedPrecondition(str(error), reason="MISSING_EXTRA")
    name = f"{_name(error.filename)}: " if isinstance(error.filename, str) else ""
    return InvalidRequest(f"{name}{error.strerror or error}", reason="FILE_ERROR")


def _fail(error: MienError, *, as_json: bool) -> int:
    if as_json:
        print(json.dumps(error.as_dict()), file=sys.stderr)
    else:
        print(f"mien: {printable(str(error))}", file=sys.stderr)
    return 1


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    # Options that stand before or after the subcommand: without SUPPRESS, the subcommand's default
    # would undo what stood before it.
    common = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    common.add_argument(
        "--address",
        metavar="HOST:PORT",
        help=f"the server (default: ${ADDRESS_VARIABLE}, or else {DEFAULT_ADDRESS})",
    )
    common.add_argument(
        "--timeout",
        type=cli_options.seconds,
        metavar="SECONDS",
        help=f"how long to wait for an answer (default: {DEFAULT_TIMEOUT:g}; to load: {LOAD_TIMEOUT:g})",
    )
    cli_options.add_connection(common)
    common.add_argument(
        "--json", action="store_true", help="print one JSON document; errors, too, on stderr"
    )
    timed = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    timed.add_argument("--timing", action="store_true", help="print the server's stages, too")

    parser = argparse.ArgumentParser(
        prog="mien",
        parents=[common, timed],
        description="Finds faces, embeds them, and tells whether two are the same person.",
        epilog='A photo or embedding "-" is read from standard input. Exit status: 0 for an answer'
        ' ("different" is one), 1 for a failure, 2 for a wrong command line, 3 if some photos of a folder'
        " failed, 130 after Ctrl-C.",
    )
    parser.add_argument(
        "--version", action="version", version=f"mien {importlib.metadata.version('mien')}"
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(
        name: str, run: Callable[[Client, argparse.Namespace], int | None], help_text: str
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name, parents=[common, timed], help=help_text, description=help_text
        )
        sub.set_defaults(run=run, parser=sub, connect=_client)
        sub.add_argument("--detector", metavar="MODEL", help='"name" or "name:version"')
        return sub

    detect = command("detect", _detect, "Finds the faces of a photo, or of each of several.")
    detect.add_argument("photos", metavar="photo", nargs="+")
    detect.add_argument(
        "--out",
        type=Path,
        metavar="PICTURE",
        help=f"write the photo with the faces drawn into it ({', '.join(cli_options.PICTURES)}); of several"
        " photos, a folder for all",
    )

    embed = command(
        "embed",
        _embed,
        "Turns the largest face of a photo, or of each photo of a folder, into a vector.",
    )
    embed.add_argument("photo", help="a photo, or a folder, of which --out is needed")
    embed.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="of a folder: where the embeddings go (.npz, .csv, .parquet); interrupted, the same command goes"
        " on",
    )
    cli_options.add_concurrency(embed)
    cli_options.add_aligned(embed)
    embed.add_argument("--all", action="store_true", help="every face, not only the largest")
    embed.add_argument("--embedder", metavar="MODEL", help='"name" or "name:version"')

    verify = command("verify", _verify, "Tells whether two photos show the same person.")
    either = "a photo, or an embedding that `mien embed --json` has printed into a file"
    verify.add_argument("a", metavar="a", help=either)
    verify.add_argument("b", metavar="b", help=either)
    verify.add_argument(
        "--threshold", type=float, help="similarity from which on two faces match, from -1 to 1"
    )
    verify.add_argument("--embedder", metavar="MODEL", help='"name" or "name:version"')

    analyze = command(
        "analyze", _analyze, "Tells what analysers say of a photo's faces, and how good these are."
    )
    analyze.add_argument("photo")
    analyze.add_argument(
        "--analyser",
        action="append",
        metavar="MODEL",
        help='"name" or "name:version"; may be repeated (default: those that the server has by default)',
    )
    analyze.add_argument(
        "--out",
        type=Path,
        metavar="PICTURE",
        help=f"write the photo with all of it drawn into it ({', '.join(cli_options.PICTURES)})",
    )

    for sub in (verify, analyze):
        cli_options.add_requirements(sub)

    add_crop_command(commands, common, _client)
    add_gallery_command(commands, common, _client, _read)
    add_models_command(commands, common)
    add_doctor_command(commands, common, _client)

    defaults = argparse.Namespace(
        **cli_options.CONNECTION_DEFAULTS, address=None, timeout=None, json=False, timing=False
    )
    return parser.parse_args(argv, defaults)


if __name__ == "__main__":
    sys.exit(main())
