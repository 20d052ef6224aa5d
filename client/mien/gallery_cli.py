"""`mien gallery`: a server's galleries from a shell, and folders of photos enrolled in them."""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from mien import cli_options, gallery_tables
from mien.client import Client
from mien.enrol_messages import POLICIES
from mien.enrol_results import NewFace
from mien.errors import FailedPrecondition, InvalidRequest
from mien.gallery_picture import draw_names
from mien.gallery_results import GalleryInfo
from mien.gallery_transfer import export_to_file, import_from_file
from mien.messages import FacePolicy
from mien.photo_folders import people_in
from mien.printable import printable
from mien.progress import PARTLY, Progress, Tally, give_time, resumable

LABEL_BYTES = 256
MOVED_AT_ONCE = 1000

Read = Callable[[str], bytes]
Run = Callable[[Client, argparse.Namespace], int | None]


def add_gallery_command(
    commands: Any,
    common: argparse.ArgumentParser,
    connect: Callable[[argparse.Namespace], Client],
    read: Read,
) -> None:
    """Adds `gallery` and its subcommands to the commands of a parser.

    Args:
        common: options of each.
        connect: makes the client of a command.
        read: reads a photo that a command names.
    """
    help_text = "Keeps faces in galleries, and tells whose a face is."
    group = commands.add_parser("gallery", help=help_text, description=help_text)
    subcommands = group.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Run, help_text: str, *, gallery: bool = True) -> Any:
        sub = subcommands.add_parser(name, parents=[common], help=help_text, description=help_text)
        sub.set_defaults(run=run, parser=sub, connect=connect, read=read)
        if gallery:
            sub.add_argument("gallery", metavar="GALLERY")
        return sub

    create = command("create", _create, "Makes a gallery.")
    create.add_argument("--embedder", metavar="MODEL", help='"name" or "name:version"')
    create.add_argument(
        "--threshold",
        type=float,
        help="similarity from which on a face is a person's, from -1 to 1 (default: the model's own, which is"
        " too low for many persons)",
    )
    create.add_argument(
        "--keep-crops",
        action="store_true",
        help="keep a picture of each face on the server, so that reembed can bring the gallery to another"
        " model",
    )
    command("ls", _ls, "Lists the galleries.", gallery=False)
    show = command("show", _show, "Shows a gallery and its persons, or a person's faces.")
    show.add_argument("person", nargs="?", metavar="PERSON")

    add = command("add", _add, "Enrols the photos of a folder: each folder in it is a person.")
    add.add_argument("folder", type=Path, metavar="FOLDER")
    add.add_argument(
        "--quality",
        choices=POLICIES,
        default="refuse",
        help="what happens to poor photos (default: refuse)",
    )
    cli_options.add_concurrency(add)
    add.add_argument("--detector", metavar="MODEL", help='"name" or "name:version"')
    cli_options.add_aligned(add)
    cli_options.add_requirements(add)

    search = command("search", _search, "Tells whose face a photo shows.")
    search.add_argument("photo", metavar="PHOTO")
    search.add_argument("--all", action="store_true", help="every face, not only the largest")
    search.add_argument(
        "--out",
        type=Path,
        metavar="PICTURE",
        help="write the photo with boxes, names and similarities, and the enrolled faces beside them, where"
        f" the gallery keeps crops ({', '.join(cli_options.PICTURES)})",
    )
    search.add_argument("--top", type=cli_options.count, metavar="K", help="persons (default: 5)")
    search.add_argument(
        "--threshold", type=float, help="leave out persons below; -1: none (default: the gallery's)"
    )
    search.add_argument(
        "--label",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="look only among faces with it; may be repeated",
    )
    search.add_argument("--detector", metavar="MODEL", help='"name" or "name:version"')

    remove = command("rm", _rm, "Deletes a person, faces, or a whole gallery.")
    what = remove.add_mutually_exclusive_group(required=True)
    what.add_argument("person", nargs="?", metavar="PERSON")
    what.add_argument("--face", nargs="+", metavar="ID", help="these faces")
    what.add_argument("--everything", action="store_true", help="the gallery itself")

    move = command("mv", _mv, "Gives faces, or all of a person's, to another person.")
    move.add_argument("faces", nargs="*", metavar="FACE")
    move.add_argument("--all-of", metavar="PERSON", help="every face of this person")
    move.add_argument("person", metavar="PERSON")

    export = command(
        "export", export_to_file, "Writes persons, labels and embeddings to a file, without photos."
    )
    importing = command(
        "import", import_from_file, "Enrols what such a file holds; interrupted, it goes on."
    )
    for each in (export, importing):
        each.add_argument("file", type=Path, metavar="FILE")
    reembed = command(
        "reembed", _reembed, "Brings a gallery that keeps crops to another model or version."
    )
    reembed.add_argument("--embedder", metavar="MODEL", help='"name" or "name:version"')

    group = command(
        "group", _group, "Puts the faces without a person together by likeness; changes nothing."
    )
    group.add_argument(
        "--threshold",
        type=float,
        help="mean similarity down to which faces are put together (default: the gallery's)",
    )
    group.add_argument(
        "--min-faces",
        type=cli_options.count,
        metavar="N",
        help="leave out smaller groups (default: 2)",
    )


def _create(client: Client, arguments: argparse.Namespace) -> None:
    gallery = client.gallery(arguments.gallery)
    _tell_galleries(
        [
            gallery.create(
                embedder=arguments.embedder,
                threshold=arguments.threshold,
                keep_crops=arguments.keep_crops,
            )
        ],
        arguments,
    )


def _ls(client: Client, arguments: argparse.Namespace) -> None:
    _tell_galleries(client.galleries(), arguments)


def _tell_galleries(galleries: Sequence[GalleryInfo], arguments: argparse.Namespace) -> None:
    if arguments.json:
        _print_json([each.as_dict() for each in galleries])
        return
    if not galleries:
        print("no galleries yet: mien gallery create NAME")
        return
    print(gallery_tables.galleries(galleries))


def _show(client: Client, arguments: argparse.Namespace) -> None:
    gallery = client.gallery(arguments.gallery)
    if arguments.person is None:
        info, persons = gallery.info(), list(gallery.persons())
        if arguments.json:
            _print_json({**info.as_dict(), "people": [each.as_dict() for each in persons]})
            return
        _tell_galleries([info], arguments)
        if persons:
            print()
            print(gallery_tables.persons(persons))
        return
    faces = list(gallery.faces(arguments.person))
    if arguments.json:
        _print_json([face.as_dict() for face in faces])
        return
    print(gallery_tables.faces(faces))


def _search(client: Client, arguments: argparse.Namespace) -> None:
    out: Path | None = arguments.out
    if out is not None:
        if not cli_options.is_picture(out):
            kinds = ", ".join(cli_options.PICTURES)
            arguments.parser.error(f"argument --out: {str(out)!r} ends in none of {kinds}")
        from mien import pictures  # noqa: F401 - before the call: Pillow may be missing

    photo = arguments.read(arguments.photo)
    gallery = client.gallery(arguments.gallery)
    result = gallery.identify(
        photo,
        policy=FacePolicy.ALL if arguments.all else FacePolicy.LARGEST,
        top_k=arguments.top,
        threshold=arguments.threshold,
        labels=dict(map(_label, arguments.label)),
        detector=arguments.detector,
    )
    if arguments.json:
        _print_json(result.as_dict())
    else:
        print(gallery_tables.search(result))
    if out is not None:
        draw_names(photo, result, gallery, out)
        if not arguments.json:
            print(f"picture   {out}")


def _rm(client: Client, arguments: argparse.Namespace) -> None:
    gallery = client.gallery(arguments.gallery)
    if arguments.everything:
        deleted = gallery.delete()
    elif arguments.face:
        deleted = gallery.delete_faces(arguments.face)
    else:
        deleted = gallery.delete_person(arguments.person)
    if arguments.json:
        _print_json(deleted.as_dict())
    else:
        print(gallery_tables.deletion(deleted))


def _mv(client: Client, arguments: argparse.Namespace) -> None:
    gallery = client.gallery(arguments.gallery)
    faces: list[str] = arguments.faces
    if bool(faces) == bool(arguments.all_of):
        arguments.parser.error("either some faces are moved, or those of --all-of")
    if arguments.all_of:
        faces = [face.face_id for face in gallery.faces(arguments.all_of)]
    emptied: list[str] = []
    for start in range(0, len(faces), MOVED_AT_ONCE):
        emptied += gallery.move(faces[start : start + MOVED_AT_ONCE], arguments.person)
    if arguments.json:
        _print_json({"emptied": emptied})
        return
    told = "1 face is" if len(faces) == 1 else f"{len(faces)} faces are"
    gone = f"; gone: {gallery_tables.names(emptied)}" if emptied else ""
    print(f"{told} {printable(arguments.person)}'s{gone}")


def _reembed(client: Client, arguments: argparse.Namespace) -> None:
    gallery = client.gallery(arguments.gallery)
    while True:
        result = gallery.reembed(embedder=arguments.embedder)
        if result.done:
            break
        if not arguments.json:
            total = result.reembedded + result.left
            print(f"{result.reembedded} of {total} faces", file=sys.stderr)
    if arguments.json:
        _print_json(result.as_dict())
    else:
        print(f"{arguments.gallery} has {result.reembedded} faces of {result.embedder} now")


def _group(client: Client, arguments: argparse.Namespace) -> None:
    give_time(client, arguments)
    result = client.gallery(arguments.gallery).group(
        threshold=arguments.threshold, min_faces=arguments.min_faces
    )
    if arguments.json:
        _print_json(result.as_dict())
    else:
        print(gallery_tables.groups(result))


def _add(client: Client, arguments: argparse.Namespace) -> int:
    give_time(client, arguments)
    photos = people_in(arguments.folder)
    gallery = client.gallery(arguments.gallery)
    tally = Tally()
    enrolled = gallery.enrol_many(
        (
            NewFace(path, person, {"file": _file_label(path.name)}, aligned=arguments.aligned)
            for person, path in photos
        ),
        quality_policy=arguments.quality,
        detector=arguments.detector,
        require=arguments.require,
        require_quality=arguments.require_quality,
        concurrency=arguments.concurrency,
        ordered=False,
    )
    bar = Progress(len(photos), "photos", quiet=arguments.json)
    try:
        with resumable(), closing(enrolled), bar as progress:
            for outcome in enrolled:
                if outcome.error is None:
                    tally.counts[outcome.get().outcome] += 1
                else:
                    person, path = photos[outcome.index]
                    tally.fail(path, outcome.error, person=person)
                progress.step(len(tally.failed))
    finally:
        if tally.counts or tally.failed:
            _tell_added(tally, arguments)
    if tally.failed and not tally.counts:
        raise FailedPrecondition(
            "none of the photos could be enrolled", reason=tally.failed[0]["reason"]
        )
    return PARTLY if tally.failed else 0


def _tell_added(tally: Tally, arguments: argparse.Namespace) -> None:
    enrolled, existing = tally.counts["enrolled"], tally.counts["existing"]
    if arguments.json:
        _print_json({"enrolled": enrolled, "existing": existing, "refused": tally.failed})
        return
    print(f"{enrolled} enrolled, {existing} enrolled before, {len(tally.failed)} refused")
    for line in tally.lines():
        print(line)


def _file_label(name: str) -> str:
    """A file's name as a label can hold it."""
    plain = printable(name).encode(errors="replace")
    return plain[:LABEL_BYTES].decode(errors="ignore")


def _label(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise InvalidRequest(
            f"{text!r} is no label: KEY=VALUE", reason="INVALID_OPTION", field="--label"
        )
    return key, value


def _print_json(document: Any) -> None:
    print(json.dumps(document))
