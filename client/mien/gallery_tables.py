"""What `mien gallery` prints for a person."""

from collections.abc import Iterable, Mapping, Sequence

from mien.gallery_results import (
    Deleted,
    EnrolledFace,
    GalleryInfo,
    GalleryPerson,
    GroupResult,
    IdentifyResult,
)
from mien.printable import printable
from mien.tables import aligned


def galleries(infos: Iterable[GalleryInfo]) -> str:
    """What there is."""
    rows = [
        [
            each.name,
            str(each.persons),
            str(each.faces),
            f"{each.memory_bytes / 2**20:.1f}",
            "model's" if each.threshold is None else f"{each.threshold:.3f}",
            str(each.embedder),
        ]
        for each in infos
    ]
    header = ["gallery", "persons", "faces", "MiB", "threshold", "embedder"]
    return aligned(header, rows, left={0, 5})


def persons(found: Iterable[GalleryPerson]) -> str:
    """The persons of a gallery."""
    rows = [[each.person, str(each.faces), f"{each.created:%Y-%m-%d %H:%M}"] for each in found]
    return aligned(["person", "faces", "since (UTC)"], rows, left={0, 2})


def faces(found: Iterable[EnrolledFace]) -> str:
    """The faces of a person."""
    rows = [
        [
            face.face_id,
            f"{face.created:%Y-%m-%d %H:%M}",
            f"{face.quality.sharpness:.2f}" if face.quality else "-",
            f"{face.quality.size:.0f}" if face.quality and face.quality.size else "-",
            _labels(face.labels),
        ]
        for face in found
    ]
    header = ["face", "since (UTC)", "sharpness", "size", "labels"]
    return aligned(header, rows, left={0, 1, 4})


def search(result: IdentifyResult) -> str:
    """Whose faces those of a photo are."""
    lines = []
    for number, found in enumerate(result.faces, 1):
        if len(result.faces) > 1:
            box = found.face.box if found.face else None
            where = f" at {box.x1:.0f}, {box.y1:.0f}" if box else ""
            lines.append(f"face {number}{where}")
        if not found.persons:
            lines.append("nobody known")
        else:
            rows = [
                [
                    match.person,
                    f"{match.similarity:.4f}",
                    str(len(match.samples)),
                    match.samples[0].face_id,
                    _labels(match.samples[0].labels),
                ]
                for match in found.persons
            ]
            header = ["person", "similarity", "faces", "best face", "labels"]
            lines.append(aligned(header, rows, left={0, 3, 4}))
        lines.append("")
    if not result.faces:
        lines += ["no face in the photo", ""]
    for each in result.searched:
        lines.append(
            f"among {each.faces} faces of {printable(each.gallery)}, from {each.threshold:.3f}"
            f" ({each.threshold_source}) on"
        )
    return "\n".join(lines)


def deletion(deleted: Deleted) -> str:
    """What is gone."""
    faces = "1 face" if deleted.faces == 1 else f"{deleted.faces} faces"
    gone = f"; gone: {names(deleted.emptied)}" if deleted.emptied else ""
    erased = (
        "erased from the server's files"
        if deleted.erased
        else "not erased from the server's files yet"
    )
    return f"deleted {faces}{gone}; {erased}"


def groups(result: GroupResult) -> str:
    """Which faces without a person belong together."""
    lines = []
    for number, group in enumerate(result.groups, 1):
        lines.append(f"group {number}: {len(group.face_ids)} faces, {group.similarity:.3f} alike")
        lines.append(f"  {' '.join(group.face_ids)}")
    grouped = sum(len(group.face_ids) for group in result.groups)
    lines.append(
        f"{grouped} of {result.faces} faces without a person are in {len(result.groups)} groups,"
        f" from {result.threshold:.3f} ({result.threshold_source}) on"
    )
    if result.left_out:
        lines.append(
            f"{result.left_out} more were not looked at: name or delete some of these first"
        )
    return "\n".join(lines)


def names(persons: Sequence[str]) -> str:
    """Persons in one line."""
    return printable(", ".join(persons))


def _labels(labels: Mapping[str, str]) -> str:
    return " ".join(f"{key}={value}" for key, value in sorted(labels.items()))
