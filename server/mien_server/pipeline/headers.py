"""What a file is and how large, from its header alone, before anything is decoded.

Pillow parses the headers: `Image.open` with one plugin reads them lazily in 0.1 to 0.3 ms and allocates no
pixels. `check_structure` goes first, because Pillow walks the pieces of a header in Python.
"""

import io
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

from PIL import (
    BmpImagePlugin,
    Image,
    JpegImagePlugin,
    MpoImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from mien_server.errors import InvalidRequest, Reason
from mien_server.pipeline import quiet_tiff
from mien_server.pipeline.types import EncodedImage, Limits

MAX_JPEG_SEGMENTS = 4096
MAX_JPEG_SCANS = 100
MAX_PNG_CHUNKS = 20_000
MAX_TIFF_VALUES = 100_000
MAX_EXIF_SEGMENTS = 16
MAX_EXIF_BYTES = MAX_EXIF_SEGMENTS * 65_536
MAX_SIDE = 65_535
"""Pixels, as in JPEG. A decoder's cost goes with the rows, too: 50 million rows of a pixel took 4 seconds."""
MAX_SCANNED = 24
"""How often a JPEG's scans may go over as many pixels as a photo may have. Progressive pictures have about 10
scans, and a phone's file two or three pictures, most of them small."""

# The markers after which Pillow reads no length: JPG, RST0..7, SOI, EOI, JPG0..13.
BARE_JPEG_MARKERS = frozenset({0xC8, *range(0xD0, 0xDA), *range(0xF0, 0xFE)})
_SOS, _APP1 = 0xDA, 0xE1
SCAN = bytes((0xFF, _SOS))
"""What each scan of a JPEG begins with. Within one 0xFF is always followed by 0 or a restart marker, so the
number of these in a file is that of its scans and those of the pictures in it."""
_PIECE_LENGTHS = {279, 325}
"""TIFF's tags with the lengths of the strips or tiles that hold the pixels."""
_ORIENTATION_TAG = 0x0112
_BYTES_OF_TYPE = {1: 1, 2: 1, 6: 1, 7: 1, 3: 2, 8: 2, 4: 4, 9: 4, 13: 4, 16: 8, 17: 8, 18: 8}
"""TIFF's types of whole numbers."""
_ONE_OBJECT = {1, 2, 6, 7}
"""BYTE, ASCII, SBYTE and UNDEFINED: Pillow reads all values of a tag as one object, whatever their number."""


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
        raise _unusable(kind, complaint)


def _unusable(kind: str, complaint: str) -> InvalidRequest:
    return InvalidRequest(Reason.INVALID_IMAGE, f"Not a usable {kind} file: {complaint}.")


def _jpeg(data: bytes) -> str | None:
    steps, position, exif = 0, 2, 0
    while (at := data.find(b"\xff", position)) >= 0 and at + 4 <= len(data):
        steps += at - position + 1
        if steps > MAX_JPEG_SEGMENTS:
            return f"more than {MAX_JPEG_SEGMENTS} segments or stray bytes before the first scan"
        code = data[at + 1]
        if code == _SOS:
            break
        if code == _APP1 and data.startswith(b"Exif", at + 4):
            # Pillow joins them, each time copying all that came before.
            exif += 1
            if exif > MAX_EXIF_SEGMENTS:
                return f"more than {MAX_EXIF_SEGMENTS} segments of EXIF"
        if code == 0xFF:
            position = at + 1
        elif code == 0 or code in BARE_JPEG_MARKERS:
            position = at + 2
        else:
            position = at + 2 + max(2, int.from_bytes(data[at + 2 : at + 4], "big"))
    return None


def _png(data: bytes) -> str | None:
    chunks, position = 0, 8
    while position + 8 <= len(data):
        chunks += 1
        if chunks > MAX_PNG_CHUNKS:
            return f"more than {MAX_PNG_CHUNKS} chunks"
        position += 12 + int.from_bytes(data[position : position + 4], "big")
    return None


@dataclass(frozen=True, slots=True)
class _Tag:
    """A tag of a TIFF file: what it says, and the integers that it holds.

    Attributes:
        number: what it is about.
        kind: TIFF's type of its values.
        count: of its values, as the file says.
        numbers: reads the values, which are whole numbers.
    """

    number: int
    kind: int
    count: int
    numbers: Callable[[], Iterator[int]]


def _tags(data: bytes) -> Iterator[_Tag]:
    """The tags of the first directory of a TIFF file, or of EXIF, which is laid out alike."""
    order = "little" if data[:2] == b"II" else "big"

    def number(at: int, size: int) -> int:
        return int.from_bytes(data[at : at + size], order)  # type: ignore[arg-type]

    big = number(2, 2) == 43
    word, entry = (8, 20) if big else (4, 12)
    start = number(8 if big else 4, word)
    count_size = 8 if big else 2
    for i in range(min(number(start, count_size), 0xFFFF)):
        at = start + count_size + i * entry
        kind, count, value = number(at + 2, 2), number(at + 4, word), at + 4 + word
        size = _BYTES_OF_TYPE.get(kind, word)
        first = value if count * size <= word else number(value, word)
        places = range(first, first + count * size, size)
        yield _Tag(number(at, 2), kind, count, partial(map, partial(number, size=size), places))


def _crowded(data: bytes) -> str | None:
    """Checks how many values the tags of a TIFF file, or of EXIF, hold."""
    for tag in _tags(data):
        if tag.kind not in _ONE_OBJECT and tag.count > MAX_TIFF_VALUES:
            return f"tag {tag.number} has more than {MAX_TIFF_VALUES} values"
    return None


def _tiff(data: bytes) -> str | None:
    """Checks how many values the tags hold, and that pixels share no bytes.

    A file whose strips are all the same few bytes is small, and takes as long to decode as an honest one.
    """
    for tag in _tags(data):
        if tag.number in _PIECE_LENGTHS and tag.kind in _BYTES_OF_TYPE:
            if tag.count > MAX_TIFF_VALUES:
                return f"tag {tag.number} has more than {MAX_TIFF_VALUES} values"
            if sum(tag.numbers()) > len(data):
                return "its strips or tiles share bytes, or are longer than the file"
    return _crowded(data)


_CHECKS: Mapping[str, Callable[[bytes], str | None]] = MappingProxyType(
    {"JPEG": _jpeg, "PNG": _png, "TIFF": _tiff}
)


# Importing a plugin registers it: without this the first WebP would load all of Pillow's plugins.
_PLUGINS = (
    BmpImagePlugin,
    JpegImagePlugin,
    MpoImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

# Pillow's own guard against decompression bombs is replaced by Limits.max_image_pixels, which is checked
# between reading the header and decoding.
Image.MAX_IMAGE_PIXELS = None

quiet_tiff.silence()
# What Pillow warns of is either an error here (truncation) or does not matter (odd metadata). The texts quote
# the file, and Python would remember each of them for ever.
warnings.filterwarnings("ignore", module=r"PIL\.")

SUPPORTED = "JPEG, PNG, WebP, BMP or TIFF"

_SIGNATURES = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
)

_UNSUPPORTED_SIGNATURES = (
    (b"GIF8", "GIF"),
    (b"%PDF", "PDF"),
    (b"%!PS", "PostScript"),
    (b"8BPS", "Photoshop"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"\0\0\1\0", "ICO"),
    (b"\x76\x2f\x31\x01", "OpenEXR"),
    (b"#?RADIANCE", "Radiance HDR"),
    (b"qoif", "QOI"),
    (b"DDS ", "DDS"),
    (b"\x1aE\xdf\xa3", "Matroska or WebM video"),
    *((b"P%d" % n, "PNM") for n in range(1, 8)),
)

_ISO_BRANDS = {
    b"avif": "AVIF",
    b"avis": "AVIF",
    b"heic": "HEIC",
    b"heix": "HEIC",
    b"heim": "HEIC",
    b"heis": "HEIC",
    b"hevc": "HEIC",
    b"mif1": "HEIF",
    b"msf1": "HEIF",
    b"crx ": "CR3 raw",
}


def open_image(source: EncodedImage, limits: Limits) -> Image.Image:
    """Recognises the file by its content and reads its header. No pixel is decoded before `load()`.

    Raises:
        InvalidRequest: INVALID_IMAGE for an empty, unrecognised or broken file; UNSUPPORTED_FORMAT for a
            known format that the server does not read, for animations and for several pages;
            IMAGE_TOO_LARGE for more bytes or pixels than the limits allow.
    """
    data = source.data
    if not data:
        raise InvalidRequest(Reason.INVALID_IMAGE, "The image is empty.")
    if len(data) > limits.max_image_bytes:
        raise InvalidRequest(
            Reason.IMAGE_TOO_LARGE,
            f"The image has {len(data):,} bytes; at most {limits.max_image_bytes:,} are allowed.",
        )
    kind = _recognise(data)
    check_structure(kind, data)
    try:
        image = Image.open(io.BytesIO(data), formats=[kind])
    except Exception as error:  # parsers of hostile bytes raise whatever they stumble over
        raise broken(kind, error) from error
    width, height = image.size
    if width < 1 or height < 1:
        raise broken(kind, ValueError(f"a size of {width}x{height}"))
    if width * height > limits.max_image_pixels:
        raise InvalidRequest(
            Reason.IMAGE_TOO_LARGE,
            f"The image has {width}x{height} = {width * height:,} pixels; at most"
            f" {limits.max_image_pixels:,} are allowed. Send it scaled down.",
        )
    if max(width, height) > MAX_SIDE:
        raise InvalidRequest(
            Reason.IMAGE_TOO_LARGE,
            f"The image has {width}x{height} pixels; a side may have at most {MAX_SIDE:,}."
            " Send it scaled down.",
        )
    if kind == "JPEG":
        _check_scans(data, width, height, limits)
    _refuse_what_is_no_photo(kind, image, limits)
    return image


def _check_scans(data: bytes, width: int, height: int, limits: Limits) -> None:
    scans = data.count(SCAN)
    if scans > MAX_JPEG_SCANS:
        raise _unusable("JPEG", f"more than {MAX_JPEG_SCANS} scans")
    if width * height * scans > MAX_SCANNED * limits.max_image_pixels:
        raise InvalidRequest(
            Reason.IMAGE_TOO_LARGE,
            f"The image has {width}x{height} pixels in {scans} scans, which is too many together."
            " Save it again, as a baseline JPEG.",
        )


def exif_orientation(image: Image.Image) -> int:
    """What EXIF says of a photo's orientation, 1 to 8; 1 if it says nothing, or is broken or oversized.

    A photo with broken EXIF is still a photo.
    """
    exif = image.info.get("exif", b"").removeprefix(b"Exif\0\0")
    if len(exif) > MAX_EXIF_BYTES or _crowded(exif) is not None:
        return 1
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # whatever a parser of hostile bytes stumbles over
        return 1


def broken(kind: str, error: Exception) -> InvalidRequest:
    """The error for a file that cannot be read to its end."""
    return InvalidRequest(
        Reason.INVALID_IMAGE, f"The {kind} file is truncated or damaged: {error}."
    )


def _recognise(data: bytes) -> str:
    for signature, kind in _SIGNATURES:
        if data.startswith(signature):
            return kind
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    name = _known_but_unsupported(data)
    if name is not None:
        raise InvalidRequest(
            Reason.UNSUPPORTED_FORMAT, f"{name} is not supported: send {SUPPORTED}."
        )
    raise InvalidRequest(Reason.INVALID_IMAGE, f"Not an image: the bytes are not {SUPPORTED}.")


def _known_but_unsupported(data: bytes) -> str | None:
    for signature, name in _UNSUPPORTED_SIGNATURES:
        if data.startswith(signature):
            return name
    if data[4:8] == b"ftyp":
        return _ISO_BRANDS.get(data[8:12], "MP4 or QuickTime")
    start = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<svg", b"<?xml", b"<!doctype svg")) and b"<svg" in data[:4096].lower():
        return "SVG"
    return None


def _refuse_what_is_no_photo(kind: str, image: Image.Image, limits: Limits) -> None:
    # A JPEG with several pictures (MPO: previews, gain maps of phones) is a photo: its first counts.
    if kind != "JPEG" and getattr(image, "is_animated", False):
        what = "has several pages" if kind == "TIFF" else "is animated"
        raise InvalidRequest(
            Reason.UNSUPPORTED_FORMAT, f"The {kind} file {what}: send one picture."
        )
    if kind == "BMP" and image.info.get("compression") in (1, 2):
        # Pillow decodes these in Python, byte by byte.
        raise InvalidRequest(
            Reason.UNSUPPORTED_FORMAT,
            "Run-length encoded BMP is not supported: save it uncompressed.",
        )
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        tile = [size for tag in (322, 323) if isinstance(size := image.tag_v2.get(tag), int)]
        if len(tile) == 2 and tile[0] * tile[1] > limits.max_image_pixels:
            raise InvalidRequest(
                Reason.IMAGE_TOO_LARGE,
                f"The TIFF file has tiles of {tile[0]}x{tile[1]} pixels; at most"
                f" {limits.max_image_pixels:,} pixels are allowed.",
            )
