"""`mien-server gallery`: the galleries as their stores have them, without a server."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mien_server.commands.shared import (
    Commands,
    add_command,
    add_group,
    add_json,
    add_settings,
    json_text,
    say,
)
from mien_server.settings import load_settings

if TYPE_CHECKING:
    from mien_server.gallery.copying import CopyTarget
    from mien_server.gallery.milvus_access import MilvusAccess


def add_to(commands: Commands) -> None:
    """Adds `gallery` and its commands."""
    gallery = add_group(commands, "gallery", "move galleries between a folder and a Milvus")
    parser = add_command(
        gallery,
        "copy",
        _copy,
        help="copy all collections to another store",
        description="Copy all collections from a folder (--gallery-dir) or a Milvus (milvus://host:port) to"
        " another, with faces' ids, names, labels and request keys. No server may have the folder. Run it"
        " again if it was interrupted: it goes on where it was. At the end both sides are counted.",
    )
    parser.add_argument("source", metavar="FROM", help="a folder or a URL")
    parser.add_argument("target", metavar="TO", help="a folder or a URL")
    add_settings(
        parser, "gallery_token_file", "gallery_tls_ca", "gallery_tls_cert", "gallery_tls_key"
    )
    add_json(parser)


def _copy(source: str, target: str, as_json: bool, **flags: object) -> int:
    settings = load_settings(flags)
    from tqdm import tqdm

    from mien_server.errors import OperatorError
    from mien_server.gallery.copying import copy
    from mien_server.gallery.milvus_access import read_access

    if source == target:
        raise OperatorError(f"{source} is both FROM and TO")
    if "://" not in source and not Path(source).is_dir():
        raise OperatorError(f"{source} is not a folder")
    access = read_access(settings, source, target)
    bar = tqdm(disable=not sys.stderr.isatty(), unit=" faces", leave=False)

    def step(name: str, looked_at: int, faces: int) -> None:
        bar.set_description(name, refresh=False)
        bar.total = faces
        bar.n = looked_at
        bar.refresh()

    def warn(text: str) -> None:
        print(f"mien-server: {text}", file=sys.stderr)

    with bar, _opened(source, access) as one, _opened(target, access) as other:
        copied = copy(one, other, step=step, warn=warn)
    if as_json:
        rows = [
            {"collection": c.name, "faces": c.faces, "persons": c.persons, "copied": c.copied}
            for c in copied
        ]
        say(json_text({"collections": rows}))
    else:
        width = max((len(each.name) for each in copied), default=0)
        for each in copied:
            say(
                f"{each.name:{width}}  {each.faces:,} faces of {each.persons:,} persons,"
                f" {each.copied:,} copied"
            )
    return 0


@contextlib.contextmanager
def _opened(place: str, access: "MilvusAccess") -> "Iterator[CopyTarget]":
    """The store of a folder or a URL.

    Raises:
        OperatorError: it cannot be opened.
    """
    if "://" not in place:
        from mien_server.gallery.copying_folder import FolderEnd

        with FolderEnd.opened(Path(place)) as folder:
            yield folder
        return
    from mien_server.gallery.copying_milvus import MilvusEnd

    end = MilvusEnd(place, access)
    try:
        yield end
    finally:
        end.close()
