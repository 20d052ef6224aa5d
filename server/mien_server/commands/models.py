"""`mien-server models`: weights into the model repository, and checks of what is there."""

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mien_server.commands.shared import (
    Commands,
    add_command,
    add_group,
    add_json,
    add_settings,
    first_repository,
    json_text,
    say,
)
from mien_server.errors import OperatorError
from mien_server.settings import load_settings
from mien_server.start_checks import check_folders

if TYPE_CHECKING:
    from mien_server.weights.importer import Imported
    from mien_server.weights.recognise.recognised import GivenInput

PRECISIONS = ("auto", "fp32", "bf16", "fp16", "int8")
"""The same as those of `backends.precision`, which takes seconds to import."""


def add_to(commands: Commands) -> None:
    """Adds `models` and its commands."""
    models = add_group(commands, "models", "the model repository")
    for add in (_add_ls, _add_install, _add_import, _add_pull, _add_seal):
        add_settings(add(models), "model_repository")
    add_settings(_add_quantize(models), "model_repository", "default_detector", "max_image_pixels")
    add_settings(_add_check(models), "model_repository", "cpu_cores")


def _add_ls(models: Commands) -> argparse.ArgumentParser:
    parser = add_command(
        models,
        "ls",
        _ls,
        help="what the model repositories hold, without a server",
        description="List the models and versions of the model repositories from their folders alone, and"
        " check every file against its manifest. `mien models ls` asks a server.",
    )
    add_json(parser)
    return parser


def _add_install(models: Commands) -> argparse.ArgumentParser:
    parser = add_command(
        models,
        "install",
        _install,
        help="fetch, check and convert the shipped weights, into the first model repository, which is made"
        " if it does not exist",
    )
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help="models (default: retinaface and sface, and their ensemble in a new repository)",
    )
    parser.add_argument(
        "--accept-notice",
        action="store_true",
        help="do not ask whether what is told of weights of unstated origin is accepted",
    )
    return parser


def _add_import(models: Commands) -> argparse.ArgumentParser:
    parser = add_command(
        models,
        "import",
        _import,
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
    _add_new_version(parser)
    return parser


def _add_pull(models: Commands) -> argparse.ArgumentParser:
    parser = add_command(
        models,
        "pull",
        _pull,
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
    _add_new_version(parser)
    return parser


def _add_quantize(models: Commands) -> argparse.ArgumentParser:
    parser = add_command(
        models,
        "quantize",
        _quantize,
        help="make an int8 version of an embedding model",
        description="Quantise a version to int8, compare it to the original and write it as a new version.",
    )
    parser.add_argument("model", metavar="MODEL", help="an embedding model")
    parser.add_argument(
        "--calibration",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="photos, or aligned faces of 112x112 pixels, of some hundred different people",
    )
    _add_version(parser, "to quantise [the highest]")
    return parser


def _add_seal(models: Commands) -> argparse.ArgumentParser:
    parser = add_command(
        models,
        "seal",
        _seal,
        help="make a version of a folder that you filled by hand",
        description="Run the weights in a version folder once, and write their golden file and the manifest,"
        " without which the folder does not count.",
    )
    parser.add_argument("name", metavar="NAME", help="of the model, which has a config.pbtxt")
    parser.add_argument(
        "--version", type=int, metavar="N", required=True, help="the folder's number"
    )
    parser.add_argument(
        "--license", metavar="TEXT", help="who may use the weights for what [config.pbtxt's]"
    )
    parser.add_argument("--source", metavar="TEXT", help="where they come from [config.pbtxt's]")
    return parser


def _add_check(models: Commands) -> argparse.ArgumentParser:
    parser = add_command(
        models,
        "check",
        _check,
        help="is a version what it should be, and how fast is it",
        description="Run a version against its golden file: cosine to fp32, speed by batch size, memory."
        " The exit status is 1 if the cosine is below its bound.",
    )
    parser.add_argument("name", metavar="NAME", help="of the model")
    _add_version(parser, "[the highest that version_policy asks for]")
    parser.add_argument("--device", metavar="DEVICE", help="cpu, cuda:0, … [the configured one]")
    parser.add_argument("--precision", choices=PRECISIONS, help="[the configured one]")
    parser.add_argument(
        "--make-golden",
        action="store_true",
        help="first write the golden file, anew if there is one",
    )
    add_json(parser)
    return parser


def _add_new_version(parser: argparse.ArgumentParser) -> None:
    """Adds what may be said of a version that comes into the repository."""
    _add_version(parser, "[one more than the highest]")
    parser.add_argument(
        "--license", metavar="TEXT", help="who may use the weights for what, for the manifest"
    )
    parser.add_argument(
        "--part",
        choices=("age", "gender", "race"),
        help="of FairFace's network, which tells all three: what the model shall tell",
    )
    _add_input(parser)


def _add_input(parser: argparse.ArgumentParser) -> None:
    """Adds what may be said of a network's input, where its publisher is not known or wrong."""
    group = parser.add_argument_group(
        "the network's input", "(x - mean) * scale, x in 0..255 [as the network's publisher has it]"
    )
    group.add_argument("--channel-order", choices=("RGB", "BGR"), help="in which it sees channels")
    for name, example in (("mean", "127.5"), ("scale", "1/127.5")):
        group.add_argument(
            f"--{name}",
            type=_numbers,
            metavar="X|X,X,X",
            help=f"{example}, or three numbers in the channels' order",
        )
    group.add_argument(
        "--window",
        type=_window,
        metavar="LEFT,TOP,SIDE",
        help="of an embedder: the part of the aligned face that it sees, in pixels of the 112x112 template:"
        " 0,0,112 is all of it, --window=-8,-8,128 more. A network of another input size than 112 needs it",
    )


def _numbers(text: str) -> tuple[float, ...]:
    """One number or three, each perhaps a fraction, with commas between them."""
    try:
        parts = [part.partition("/") for part in text.split(",")]
        numbers = tuple(float(above) / float(below or 1) for above, _, below in parts)
    except (ValueError, ZeroDivisionError):
        numbers = ()
    if len(numbers) not in (1, 3) or not all(map(math.isfinite, numbers)):
        raise argparse.ArgumentTypeError(
            f"{text!r} must be one number or three: 1/58.4,1/57.1,1/57.4"
        )
    return numbers


def _window(text: str) -> tuple[float, float, float]:
    """Three numbers: left, top, and a side of a pixel or more."""
    try:
        left, top, side = (float(part) for part in text.split(","))
    except ValueError:
        left = top = side = math.nan
    if not (all(map(math.isfinite, (left, top))) and 1 <= side < math.inf):
        raise argparse.ArgumentTypeError(f"{text!r} must be left, top and side: -8,-8,128")
    return (left, top, side)


def _given_input(
    channel_order: Any,
    mean: tuple[float, ...] | None,
    scale: tuple[float, ...] | None,
    window: tuple[float, float, float] | None,
) -> "GivenInput | None":
    from mien_server.weights.recognise.recognised import GivenInput

    if (channel_order, mean, scale, window) == (None, None, None, None):
        return None
    return GivenInput(channel_order=channel_order, mean=mean, scale=scale, window=window)


def _add_version(parser: argparse.ArgumentParser, help_: str) -> None:
    parser.add_argument("--version", type=int, metavar="N", help=help_)


def _ls(as_json: bool, **flags: object) -> int:
    repositories = load_settings(flags).model_repository
    check_folders(repositories)
    from mien_server.repository.listing import list_repository, listing_text

    found = list_repository(repositories)
    say(
        json_text({"models": [each.as_dict() for each in found]})
        if as_json
        else listing_text(found)
    )
    return 0


def _install(names: Sequence[str], accept_notice: bool, **flags: object) -> int:
    repository = first_repository(flags)
    from mien_server.weights.install import install

    install(repository, names, accept=_accepting("notice", "--accept-notice", always=accept_notice))
    return 0


def _import(
    model: str,
    path: Path,
    source: str | None,
    version: int | None,
    license: str | None,
    part: str | None,
    channel_order: Any,
    mean: tuple[float, ...] | None,
    scale: tuple[float, ...] | None,
    window: tuple[float, float, float] | None,
    **flags: object,
) -> int:
    repository = first_repository(flags)
    from mien_server.weights.importer import import_weights

    done = import_weights(
        repository,
        model,
        path,
        version=version,
        license_=license,
        source=source,
        given=_given_input(channel_order, mean, scale, window),
        part=part,
    )
    _say_next(repository, done)
    return 0


def _pull(
    source: str,
    model: str | None,
    sha256: str | None,
    accept_license: bool,
    version: int | None,
    license: str | None,
    part: str | None,
    channel_order: Any,
    mean: tuple[float, ...] | None,
    scale: tuple[float, ...] | None,
    window: tuple[float, float, float] | None,
    **flags: object,
) -> int:
    repository = first_repository(flags)
    from mien_server.weights.pull import pull

    done = pull(
        source,
        repository,
        model,
        accept=_accepting("licence", "--accept-license", always=accept_license),
        sha256=sha256,
        version=version,
        license_=license,
        given=_given_input(channel_order, mean, scale, window),
        part=part,
    )
    _say_next(repository, done)
    return 0


def _quantize(model: str, calibration: Path, version: int | None, **flags: object) -> int:
    settings = load_settings(flags)
    from mien_server.evaluation.crops import aligned_faces
    from mien_server.weights.quantise import quantise

    align = partial(aligned_faces, settings)
    quantise(settings.model_repository[0], model, calibration, version=version, align=align)
    return 0


def _seal(name: str, version: int, license: str | None, source: str | None, **flags: object) -> int:
    repository = first_repository(flags)
    from mien_server.weights.seal import seal

    seal(repository, name, version, license_=license, source=source)
    return 0


def _check(
    name: str,
    version: int | None,
    device: str | None,
    precision: Any,
    make_golden: bool,
    as_json: bool,
    **flags: object,
) -> int:
    settings = load_settings(flags)
    check_folders(settings.model_repository)
    from mien_server.evaluation.check import check_version, find_target
    from mien_server.evaluation.reports import check_document, check_text
    from mien_server.weights.progress import Progress
    from mien_server.weights.write.golden import renew_golden

    target = find_target(settings.model_repository, name, version)
    if make_golden:
        weights = target.config.default_model_filename
        renew_golden(target.repository, target.folder, weights, Progress())
        target = find_target(settings.model_repository, name, target.version)
    check = check_version(
        target, device=device, precision=precision, cores=settings.cpu_cores or None
    )
    say(json_text(check_document(check)) if as_json else check_text(check))
    return 0 if check.passed else 1


def _accepting(what: str, flag: str, *, always: bool) -> Callable[[str], bool]:
    """Makes a function that shows a licence or a notice, and asks on a terminal whether it is accepted."""

    def ask(told: str) -> bool:
        print(told, file=sys.stderr)
        if always:
            return True
        if not sys.stdin.isatty():
            raise OperatorError(
                f"nobody can be asked here whether the {what} is accepted: read it and add {flag}"
            )
        return input("Do you accept it? [y/N] ").strip().lower() in ("y", "yes")

    return ask


def _say_next(repository: Path, done: "Sequence[Imported]") -> None:
    at = f"--model-repository {repository}"
    for each in done:
        print(f"next: mien-server models check {each.model} {at}", file=sys.stderr)
    print(f"then: mien-server serve {at}", file=sys.stderr)
