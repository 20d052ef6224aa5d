"""`mien detect` of several photos: some at a time, one table or one JSON document, and a failure for each."""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mien import cli_options
from mien.analysis import AnalyzeResult, Points
from mien.bulk import is_of_one
from mien.client import Client
from mien.errors import InvalidRequest, MienError
from mien.progress import Progress
from mien.results import DetectResult
from mien.tables import aligned, located

if TYPE_CHECKING:
    import PIL.Image

AT_A_TIME = 8
OVERLOAD_RETRIES = 5
"""Whoever has many photos rather waits than reads that the server is busy."""

Read = Callable[[str], bytes]
Error = Callable[[MienError | OSError | ImportError], MienError]


@dataclass(frozen=True, slots=True)
class _Done:
    """What became of one photo."""

    photo: str
    result: DetectResult | None = None
    error: MienError | None = None

    def as_dict(self) -> dict[str, Any]:
        if self.error is not None:
            return {"photo": self.photo, "error": self.error.as_dict()}
        faces = self.result.faces if self.result else ()
        return {"photo": self.photo, "faces": [face.as_dict() for face in faces]}


def detect_many(
    client: Client, arguments: argparse.Namespace, read: Read, mien_error: Error
) -> int:
    """Runs the command and returns its exit status: 1 if a photo has failed.

    Args:
        client: of the server.
        arguments: of the command.
        read: reads a photo.
        mien_error: makes a `MienError` of what a photo's call raises.

    Raises:
        MienError: what would go wrong with every photo.
    """
    photos: list[str] = arguments.photos
    targets = _targets(arguments)

    def one(photo: str) -> _Done:
        try:
            content = read(photo)
            result = client.detect(content, detector=arguments.detector)
            if photo in targets:
                draw(content, result, targets[photo])
        except (MienError, OSError, ImportError) as caught:
            error = mien_error(caught)
            if not is_of_one(error) or error.reason == "MISSING_EXTRA":
                raise
            return _Done(photo, error=error)
        return _Done(photo, result)

    found: list[_Done] = []
    pool = ThreadPoolExecutor(AT_A_TIME)
    try:
        with Progress(len(photos), "photos", quiet=False) as progress:
            for done in pool.map(one, photos):
                found.append(done)
                progress.step(sum(each.error is not None for each in found))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    if arguments.json:
        print(json.dumps([done.as_dict() for done in found]))
    else:
        print(_table(found))
        for done in found:
            if done.error is not None:
                print(f"mien: {_named(done.photo, done.error)}", file=sys.stderr)
    return int(any(done.error for done in found))


def draw(photo: bytes, result: DetectResult | AnalyzeResult, target: Path) -> None:
    """Writes the photo with its faces drawn into it, and what analysers say of them.

    Raises:
        InvalidRequest: the kind of file cannot hold it. ImportError: Pillow is missing.
        OSError: it cannot be written.
    """
    from mien import pictures  # Pillow may be missing

    if isinstance(result, AnalyzeResult):
        said = [[a for a in each.analyses if not isinstance(a, Points)] for each in result.faces]
        picture = pictures.annotate(
            photo,
            [each.face for each in result.faces],
            [[f"{a.model.name} {a}" for a in each] for each in said],
            [
                p
                for each in result.faces
                for a in each.analyses
                if isinstance(a, Points)
                for p in a.points
            ],
        )
    else:
        picture = pictures.annotate(photo, result.faces)
    save(picture, target)


def save(picture: "PIL.Image.Image", target: Path) -> None:
    """Writes a picture.

    Raises:
        InvalidRequest: the kind of file cannot hold it. OSError: it cannot be written.
    """
    try:
        picture.save(target, quality=92)
    except ValueError as error:  # as for sides that WebP does not hold
        raise InvalidRequest(f"{target}: {error}", reason="FILE_ERROR") from error


def target_in(folder: Path, photo: str) -> Path:
    """Where in a folder the picture of a photo is written: under its own name, if that says a kind."""
    name = Path("standard_input" if photo == "-" else photo)
    return folder / (name.name if cli_options.is_picture(name) else f"{name.stem}.png")


def _targets(arguments: argparse.Namespace) -> dict[str, Path]:
    """Where to write the picture of each photo; none without `--out`. Makes the folder."""
    folder: Path | None = arguments.out
    if folder is None:
        return {}
    parser: argparse.ArgumentParser = arguments.parser
    if cli_options.is_picture(folder) and not folder.is_dir():
        parser.error(
            f"argument --out: of several photos it is a folder, and {folder} would be a file"
        )
    targets = {photo: target_in(folder, photo) for photo in arguments.photos}
    if len(set(targets.values())) < len(targets):
        parser.error("two of the photos have the same name: their pictures would be one file")
    if any(target.resolve() == Path(photo).resolve() for photo, target in targets.items()):
        parser.error(f"the pictures would overwrite the photos: name another folder than {folder}")
    from mien import pictures  # noqa: F401 - before any call: Pillow may be missing

    folder.mkdir(parents=True, exist_ok=True)
    return targets


def _table(found: Sequence[_Done]) -> str:
    rows = []
    for done in found:
        faces = done.result.faces if done.result else ()
        rows += [[done.photo, str(i), *located(face)] for i, face in enumerate(faces, 1)]
        if not faces:
            rows.append([done.photo, "failed" if done.error else "none", *["-"] * 5])
    results = [done.result for done in found if done.result is not None]
    counts = f"{len(results)} photos, {sum(len(result.faces) for result in results)} faces"
    failed = len(found) - len(results)
    parts = [
        aligned(["photo", "face", "score", "x1", "y1", "x2", "y2"], rows, left={0}),
        counts + (f", {failed} failed" if failed else ""),
    ]
    detectors = dict.fromkeys(str(result.detector) for result in results)
    return "\n\n".join(parts) + "".join(f"\ndetector  {line}" for line in detectors)


def _named(photo: str, error: MienError) -> str:
    text = str(error)
    return text if text.startswith(photo) else f"{photo}: {text}"
