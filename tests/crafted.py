"""Builds small files that would cost a decoder more than a photo, part by part."""

import io
import struct
import zlib
from itertools import repeat

from PIL import Image


def segment(marker: int, body: bytes) -> bytes:
    """One segment of a JPEG."""
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def small_jpeg() -> bytes:
    """A black JPEG of 64x64."""
    file = io.BytesIO()
    Image.new("RGB", (64, 64)).save(file, "JPEG")
    return file.getvalue()


def with_segments(*segments: bytes) -> bytes:
    """That JPEG with these segments at its beginning."""
    data = small_jpeg()
    return data[:2] + b"".join(segments) + data[2:]


def png_chunk(name: bytes, body: bytes) -> bytes:
    """A PNG chunk with its length and checksum."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width: int, height: int, exif: bytes = b"") -> bytes:
    """A black PNG of a width and a height, with EXIF if it is given."""
    pixels = zlib.compress(bytes(height * (1 + 3 * width)))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = {b"IHDR": header, b"eXIf": exif, b"IDAT": pixels}
    parts = [png_chunk(kind, body) for kind, body in chunks.items() if body]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + png_chunk(b"IEND", b"")


def exif(orientations: int, *, kind: int) -> bytes:
    """EXIF whose orientation has so many values of a TIFF type: 3 is one of two bytes, 5 a fraction."""
    entry = struct.pack("<HHI", 0x0112, kind, orientations)
    value = struct.pack("<HH", 6, 0) if kind == 3 else struct.pack("<I", 26)
    return b"II*\0" + struct.pack("<IH", 8, 1) + entry + value + bytes(4) + bytes(8 * orientations)


def tiff(side: int, strip: bytes, *, strips: int, compression: int) -> bytes:
    """A bilevel TIFF of `strips` strips that are all the same bytes."""
    offsets, lengths = 8 + len(strip), 8 + len(strip) + 4 * strips
    directory = lengths + 4 * strips
    one = strips == 1
    tags = [
        (256, 4, 1, side),
        (257, 4, 1, side),
        (258, 3, 1, 1),
        (259, 3, 1, compression),
        (262, 3, 1, 0),
        (273, 4, strips, 8 if one else offsets),
        (277, 3, 1, 1),
        (278, 4, 1, -(-side // strips)),
        (279, 4, strips, len(strip) if one else lengths),
    ]
    return b"".join(
        [
            b"II*\0" + struct.pack("<I", directory) + strip,
            b"".join(repeat(struct.pack("<I", 8), strips)),
            b"".join(repeat(struct.pack("<I", len(strip)), strips)),
            struct.pack("<H", len(tags)),
            b"".join(struct.pack("<HHII", *tag) for tag in tags),
            bytes(4),
        ]
    )
