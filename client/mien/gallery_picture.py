"""`mien gallery search --out`: the photo with the names of its faces, and whom they are taken for."""

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mien.errors import FailedPrecondition, NotInGallery, PermissionDenied
from mien.gallery import Gallery
from mien.gallery_results import IdentifiedFace, IdentifyResult
from mien.many_photos import save
from mien.printable import printable


def draw_names(photo: bytes, result: IdentifyResult, gallery: Gallery, target: Path) -> None:
    """Writes the photo with each face's name and similarity, and beside it the crop that it is most like.

    A gallery that keeps no crops has none to draw, and neither has a caller who may not see them, which is
    told on standard error.

    Raises:
        InvalidRequest: the kind of file cannot hold it. ImportError: Pillow is missing.
        OSError: it cannot be written. MienError: as `Gallery.crop` says.
    """
    from mien import pictures  # Pillow may be missing

    located = [(found, found.face) for found in result.faces if found.face is not None]
    named = [(face, _name(found)) for found, face in located]
    crops = _crops([found for found, _ in located], gallery)
    save(pictures.name_faces(photo, named, crops), target)


def _name(found: IdentifiedFace) -> str:
    if not found.persons:
        return ""
    best = found.persons[0]
    return f"{printable(best.person)} {best.similarity:.2f}"


def _crops(found: list[IdentifiedFace], gallery: Gallery) -> list[NDArray[np.uint8] | None]:
    """Of each face the crop of the face that it is most like, if there is one to be had."""
    crops: list[NDArray[np.uint8] | None] = [None] * len(found)
    for number, each in enumerate(found):
        if not each.persons:
            continue
        try:
            crops[number] = gallery.crop(each.persons[0].samples[0].face_id)
        except NotInGallery:
            continue  # it was deleted meanwhile
        except PermissionDenied:
            print("mien: enrolled faces are not drawn: that takes the role admin", file=sys.stderr)
            break
        except FailedPrecondition as error:
            if error.reason != "NO_CROPS":
                raise
            break
    return crops
