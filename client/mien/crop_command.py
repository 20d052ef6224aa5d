"""`mien crop`: the faces of many photos as aligned crops, in files."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mien import cli_options
from mien.client import Client
from mien.errors import DeadlineExceeded, FailedPrecondition, InvalidRequest, ServerError
from mien.images import read_file
from mien.messages import FacePolicy

_AT_A_TIME = 8
_OF_ONE_PHOTO = (InvalidRequest, FailedPrecondition, DeadlineExceeded, ServerError, OSError)
"""What goes wrong with one photo may go well with the next."""


@dataclass(frozen=True, slots=True)
class _Cropped:
    """What became of one photo: the files of its faces, or why there are none."""

    photo: str
    crops: tuple[str, ...] = ()
    problem: str = ""

    def as_dict(self) -> dict[str, Any]:
        return {"photo": self.photo, "crops": list(self.crops), "error": self.problem or None}


def add_crop_command(
    commands: Any,
    common: argparse.ArgumentParser,
    connect: Callable[[argparse.Namespace], Client],
) -> None:
    """Adds `crop` to the commands of a parser; `common` are its options, `connect` makes its client."""
    help_text = "Writes the faces of photos as aligned crops of 112x112 pixels, as models see them."
    parser = commands.add_parser("crop", parents=[common], help=help_text, description=help_text)
    parser.set_defaults(run=_crop, parser=parser, connect=connect, many=True)
    parser.add_argument("photos", metavar="photo", nargs="+", help="a photo, or a folder of photos")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        required=True,
        help="where the crops are written, as PNG under the photos' names; a folder's folders are kept",
    )
    parser.add_argument(
        "--all", action="store_true", help="every face, as NAME_1, NAME_2, …; not only the largest"
    )
    parser.add_argument("--detector", metavar="MODEL", help='"name" or "name:version"')


def _crop(client: Client, arguments: argparse.Namespace) -> int:
    """Runs the command and returns its exit status: 1 if a photo gave no crop.

    Raises:
        MienError: what would go wrong with every photo. ImportError: Pillow is missing.
    """
    from mien import alignment  # noqa: F401 - before any call: Pillow may be missing

    targets = _targets(arguments)

    def one(photo: Path) -> _Cropped:
        try:
            return _cut(client, photo, targets[photo], arguments)
        except _OF_ONE_PHOTO as error:
            told = error.strerror if isinstance(error, OSError) else None
            return _Cropped(os.fspath(photo), problem=told or str(error))

    done: list[_Cropped] = []
    pool = ThreadPoolExecutor(_AT_A_TIME)
    try:
        done.extend(pool.map(one, targets))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    failed = [each for each in done if each.problem]
    if arguments.json:
        print(json.dumps([each.as_dict() for each in done]))
    else:
        for each in failed:
            print(f"mien: {each.photo}: {each.problem}", file=sys.stderr)
        counts = f"{len(done)} photos, {sum(len(each.crops) for each in done)} faces"
        print(counts + (f", {len(failed)} failed" if failed else "") + f": {arguments.out}")
    return int(bool(failed))


def _cut(client: Client, photo: Path, target: Path, arguments: argparse.Namespace) -> _Cropped:
    """Finds the faces of a photo, and writes their crops."""
    from mien import alignment, pictures

    content = read_file(photo)
    found = client.detect(
        content,
        detector=arguments.detector,
        policy=FacePolicy.ALL if arguments.all else FacePolicy.LARGEST,
    )
    picture = pictures.upright_rgb(content)
    crops = [
        crop
        for face in found.faces
        if face.landmarks is not None
        and (crop := alignment.aligned_crop(picture, face.landmarks)) is not None
    ]
    if not crops:
        return _Cropped(os.fspath(photo), problem="no face that could be aligned")
    written = []
    for number, crop in enumerate(crops, 1):
        file = target.with_name(
            f"{target.name}_{number}.png" if arguments.all else f"{target.name}.png"
        )
        file.parent.mkdir(parents=True, exist_ok=True)
        crop.save(file)
        written.append(os.fspath(file))
    return _Cropped(os.fspath(photo), tuple(written))


def _targets(arguments: argparse.Namespace) -> dict[Path, Path]:
    """The photos, each with the path, without a suffix, that its crops get."""
    out: Path = arguments.out
    parser: argparse.ArgumentParser = arguments.parser
    targets: dict[Path, Path] = {}
    taken: dict[Path, Path] = {}
    for given in map(Path, arguments.photos):
        for photo, name in _photos(given):
            target = out / name.with_suffix("")
            if taken.setdefault(target, photo) != photo:
                parser.error(f"two photos would be {target}.png: give them by themselves")
            targets[photo] = target
    if not targets:
        kinds = ", ".join(cli_options.PICTURES)
        parser.error(f"no file in {', '.join(arguments.photos)} ends in one of {kinds}")
    if any(Path(f"{target}.png").resolve() == photo.resolve() for photo, target in targets.items()):
        parser.error(f"the crops would overwrite the photos: name another folder than {out}")
    return targets


def _photos(given: Path) -> Iterator[tuple[Path, Path]]:
    """The photos that an argument means, each with its name below it."""
    if not given.is_dir():
        yield given, Path(given.name)
        return
    for path in sorted(given.rglob("*")):
        if cli_options.is_picture(path) and path.is_file():
            yield path, path.relative_to(given)
