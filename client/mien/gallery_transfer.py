"""`mien gallery export` and `import`: a gallery into a file, and back into one."""

import argparse
import json
import sys
from contextlib import closing
from pathlib import Path

from mien.client import Client
from mien.errors import EmbeddingMismatch, FailedPrecondition, InvalidRequest, NotInGallery
from mien.gallery import Gallery
from mien.gallery_files import Contents, checked, export_gallery, faces_of
from mien.gallery_results import GalleryInfo
from mien.progress import PARTLY, Progress, Tally, give_time, resumable


def export_to_file(client: Client, arguments: argparse.Namespace) -> int:
    """Runs the command and returns its exit status: 3 if the gallery was changed meanwhile."""
    give_time(client, arguments)
    path: Path = arguments.file
    if path.exists():
        why = f"{path} is there already: remove it, or name another file"
        raise InvalidRequest(why, reason="FILE_ERROR")
    gallery = client.gallery(arguments.gallery)
    info = gallery.info()
    with Progress(info.faces, "faces", quiet=arguments.json) as progress:
        written = export_gallery(gallery, info, path, progress.step)
    now = gallery.info()
    if arguments.json:
        told = {"faces": written.faces, "persons": written.persons}
        print(json.dumps({"file": str(path), **told, "faces_in_gallery": now.faces}))
    else:
        print(f"{written.faces} faces of {written.persons} persons in {path}")
    if (written.faces, written.persons) != (now.faces, now.persons):
        print(
            f"mien: {now.name} has {now.faces} faces of {now.persons} persons now: it was changed meanwhile",
            file=sys.stderr,
        )
        return PARTLY
    return 0


def import_from_file(client: Client, arguments: argparse.Namespace) -> int:
    """Runs the command and returns its exit status: 3 if faces of the file are not in the gallery."""
    give_time(client, arguments)
    path: Path = arguments.file
    contents = checked(path)
    gallery = client.gallery(arguments.gallery)
    _opened(gallery, contents, path)
    tally = Tally()
    # They were judged when they were enrolled.
    enrolled = gallery.enrol_many(faces_of(path, contents), quality_policy="accept")
    bar = Progress(contents.faces, "faces", quiet=arguments.json)
    with resumable(), closing(enrolled), bar as progress:
        for outcome in enrolled:
            if outcome.error is None:
                tally.counts[outcome.get().outcome] += 1
            else:
                line = f"{path}:{outcome.index + 2}"
                tally.fail(Path(line), outcome.error, person=outcome.item.person or "")
            progress.step(len(tally.failed))
    now = gallery.info()
    counts = {outcome: tally.counts[outcome] for outcome in ("enrolled", "existing")}
    if arguments.json:
        print(json.dumps({**counts, "refused": tally.failed, "faces_in_gallery": now.faces}))
    else:
        print(
            f"{counts['enrolled']} of {contents.faces} faces enrolled, {counts['existing']} before,"
            f" {len(tally.failed)} refused; {now.name} has {now.faces} faces of {now.persons} persons"
        )
        for line in tally.lines():
            print(line)
    if tally.failed and not tally.counts:
        raise FailedPrecondition("no face could be enrolled", reason=tally.failed[0]["reason"])
    return PARTLY if tally.failed else 0


def _opened(gallery: Gallery, contents: Contents, path: Path) -> None:
    """The gallery to import into; it is made if there is none.

    Raises:
        EmbeddingMismatch: it is, or would be, of another model than the file.
        FailedPrecondition: it keeps crops, which no file has.
        InvalidRequest: the file was written from this very gallery.
    """
    wanted = contents.embedder
    try:
        info, made = gallery.info(), False
    except NotInGallery:
        model = (wanted.name, wanted.version)
        info, made = gallery.create(embedder=model, threshold=contents.threshold), True
    if info.embedder.fingerprint != wanted.fingerprint:
        if made:
            gallery.delete()
        raise EmbeddingMismatch(
            f"{path} holds embeddings of {wanted}, and {'this server has' if made else 'the gallery is for'}"
            f" {info.embedder}. They cannot be compared. {_CURE}",
            reason="EMBEDDING_MISMATCH",
        )
    if info.keeps_crops:
        raise FailedPrecondition(
            f"{info.name} keeps the crops of its faces, and {path} has none: name another gallery, or enrol"
            f" the photos: mien gallery add {info.name} FOLDER",
            reason="NO_CROPS",
        )
    if _is_origin(info, contents):
        raise InvalidRequest(
            f"{path} was written from {info.name} itself, and its faces would be in it twice: name another"
            " gallery, which is made if there is none",
            reason="FILE_ERROR",
        )


_CURE = (
    "Serve that version, too (version_policy in its config.pbtxt), and name a gallery that is new or was made"
    " with --embedder NAME:VERSION; or enrol the photos anew: mien gallery add."
)


def _is_origin(info: GalleryInfo, contents: Contents) -> bool:
    return (info.name, info.as_dict()["created"]) == (contents.gallery, contents.created)
