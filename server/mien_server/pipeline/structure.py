"""Refuses files made of absurdly many pieces, before a parser walks them one by one.

Pillow reads JPEG segments, PNG chunks and TIFF tags in Python, a few microseconds each: a 20 MiB file of
empty pieces would hold the interpreter for 5 to 25 seconds, and a progressive JPEG of thousands of tiny
scans would decode for minutes. The walks here stop at a limit far above what cameras and editors write.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from mien_server.errors import InvalidRequest, Reason

MAX_JPEG_SEGMENTS = 4096
MAX_JPEG_SCANS = 100
MAX_PNG_CHUNKS = 20_000
MAX_TIFF_VALUES = 100_000

# The markers after which Pillow reads no length: JPG, RST0..7, SOI, EOI, JPG0..13.
BARE_JPEG_MARKERS = frozenset({0xC8, *range(0xD0, 0xDA), *range(0xF0, 0xFE)})
_SOS = 0xDA


def check_structure(kind: str, data: bytes) -> None:
    """Checks the number of pieces of a JPEG, PNG or TIFF file; other formats pass.

    Args:
        kind: Pillow's name of the format, "JPEG", "PNG", "TIFF", ….
        data: the whole file.

    Raises:
        InvalidRequest: INVALID_IMAGE, more pieces than any real file has.
    """
    check = _CHECKS.get(kind)
    complaint = check(data) if check is not None else None
    if complaint is not None:
        raise InvalidRequest(Reason.INVALID_IMAGE, f"Not a usable {kind} file: {complaint}.")


def _jpeg(data: bytes) -> str | None:
    steps, position = 0, 2
    while (at := data.find(b"\xff", position)) >= 0 and at + 4 <= len(data):
        steps += at - position + 1
        if steps > MAX_JPEG_SEGMENTS:
            return f"more than {MAX_JPEG_SEGMENTS} segments or stray bytes before the first scan"
        code = data[at + 1]
        if code == _SOS:
            break
        if code == 0xFF:
            position = at + 1
        elif code == 0 or code in BARE_JPEG_MARKERS:
            position = at + 2
        else:
            position = at + 2 + max(2, int.from_bytes(data[at + 2 : at + 4], "big"))
    # Within a scan 0xFF is always followed by 0 or a restart marker, so this counts scans (and those of
    # embedded thumbnails).
    if data.count(bytes((0xFF, _SOS))) > MAX_JPEG_SCANS:
        return f"more than {MAX_JPEG_SCANS} scans"
    return None


def _png(data: bytes) -> str | None:
    chunks, position = 0, 8
    while position + 8 <= len(data):
        chunks += 1
        if chunks > MAX_PNG_CHUNKS:
            return f"more than {MAX_PNG_CHUNKS} chunks"
        position += 12 + int.from_bytes(data[position : position + 4], "big")
    return None


def _tiff(data: bytes) -> str | None:
    """Checks the first directory: how many values its numeric tags hold."""
    order = "little" if data[:2] == b"II" else "big"

    def number(at: int, size: int) -> int:
        return int.from_bytes(data[at : at + size], order)  # type: ignore[arg-type]

    big = number(2, 2) == 43
    word, entry = (8, 20) if big else (4, 12)
    start = number(8 if big else 4, word)
    count_size = 8 if big else 2
    for i in range(min(number(start, count_size), 0xFFFF)):
        at = start + count_size + i * entry
        numeric = number(at + 2, 2) not in {1, 2, 6, 7}  # BYTE, ASCII, SBYTE, UNDEFINED: one object
        if numeric and number(at + 4, word) > MAX_TIFF_VALUES:
            return f"tag {number(at, 2)} has more than {MAX_TIFF_VALUES} values"
    return None


_CHECKS: Mapping[str, Callable[[bytes], str | None]] = MappingProxyType(
    {"JPEG": _jpeg, "PNG": _png, "TIFF": _tiff}
)
