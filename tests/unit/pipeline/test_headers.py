import struct
import zlib
from collections.abc import Callable

import pytest
from PIL import Image, JpegImagePlugin

from mien_server.errors import InvalidRequest, Reason, at
from mien_server.pipeline.decode import decode
from mien_server.pipeline.headers import (
    BARE_JPEG_MARKERS,
    MAX_JPEG_SCANS,
    MAX_JPEG_SEGMENTS,
    open_image,
)
from mien_server.pipeline.types import EncodedImage, Limits

Encode = Callable[..., bytes]
Chunk = Callable[[bytes, bytes], bytes]

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")

LIMITS = Limits(max_image_bytes=2_000_000, max_image_pixels=1_000_000)
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def refusal(data: bytes, limits: Limits = LIMITS) -> InvalidRequest:
    image = EncodedImage(data)
    with pytest.raises(InvalidRequest) as caught, at("a"), at("image"), at(image.part):
        decode(image, limits)
    return caught.value


def png_header(png_chunk: Chunk, width: int, height: int, depth: int = 8, colour: int = 2) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return PNG_SIGNATURE + png_chunk(b"IHDR", header)


def tiff(entries: list[tuple[int, int, int, int]], tail: bytes = b"") -> bytes:
    body = b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries))
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + body + bytes(4) + tail


TIFF_TAGS = [(258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (277, 3, 1, 1)]

NOT_IMAGES = {
    "empty": b"",
    "one byte": b"\xff",
    "zeros": bytes(100),
    "text": b"hello, this is no picture",
    "html": b"<!doctype html><html><body>404</body></html>",
    "json": b'{"image": "..."}',
    "base64 of a jpeg": b"/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAgGBgcGBQgHBwcJ",
    "a RIFF that is WAV": b"RIFF\x24\0\0\0WAVEfmt " + bytes(20),
    "zip": b"PK\x03\x04" + bytes(40),
    "elf": b"\x7fELF" + bytes(60),
    "jpeg magic only": b"\xff\xd8\xff",
    "jpeg magic, then text": b"\xff\xd8\xff\xe0 this is not a jpeg at all",
    "jpeg without frame": b"\xff\xd8\xff\xfe\0\4ab\xff\xd9",
    "png magic only": PNG_SIGNATURE,
    "png magic, then text": PNG_SIGNATURE + b"this is not a png at all",
    "webp magic only": b"RIFF\x04\0\0\0WEBP",
    "bmp magic, then text": b"BMthis is not a bitmap at all, is it?",
    "bmp of no width": b"BM" + struct.pack("<IHHIIiiHH", 60, 0, 0, 54, 40, 0, 9, 1, 24) + bytes(24),
    "tiff magic only": b"II*\0",
    "tiff with its directory beyond the end": b"II*\0" + struct.pack("<I", 1 << 30),
    "tiff of nothing": b"MM\0*" + struct.pack(">IH", 8, 0) + bytes(4),
}  # fmt: skip

UNSUPPORTED = {
    "GIF": b"GIF89a\x10\0\x10\0\0\0\0;",
    "PDF": b"%PDF-1.7\n",
    "PostScript": b"%!PS-Adobe-3.0",
    "Photoshop": b"8BPS\0\1",
    "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    "SVG with a prologue": b'\xef\xbb\xbf<?xml version="1.0"?>\n<!-- x --><svg/>',
    "HEIC": b"\0\0\0\x18ftypheic" + bytes(20),
    "HEIF": b"\0\0\0\x18ftypmif1" + bytes(20),
    "AVIF": b"\0\0\0\x18ftypavif" + bytes(20),
    "MP4": b"\0\0\0\x18ftypisom" + bytes(20),
    "JPEG XL": b"\0\0\0\x0cJXL \r\n\x87\n",
    "JPEG XL codestream": b"\xff\x0a\xfa\x1f",
    "JPEG 2000": b"\0\0\0\x0cjP  \r\n\x87\n",
    "ICO": b"\0\0\1\0\1\0",
    "OpenEXR": b"\x76\x2f\x31\x01",
    "PNM": b"P6\n10 10\n255\n",
    "QOI": b"qoif" + bytes(10),
    "WebM": b"\x1aE\xdf\xa3",
}


@pytest.mark.parametrize("name", NOT_IMAGES)
def test_bytes_that_are_no_image_are_invalid(name: str) -> None:
    error = refusal(NOT_IMAGES[name])
    assert error.reason is Reason.INVALID_IMAGE
    assert error.field == "a.image.encoded"


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_known_formats_are_refused_by_their_name(name: str) -> None:
    error = refusal(UNSUPPORTED[name])
    assert error.reason is Reason.UNSUPPORTED_FORMAT
    assert name.split()[0] in error.message
    assert "JPEG, PNG, WebP, BMP or TIFF" in error.message


def test_too_many_bytes_are_refused_with_both_numbers() -> None:
    error = refusal(b"\xff\xd8\xff" + bytes(2_000_000))
    assert error.reason is Reason.IMAGE_TOO_LARGE
    assert "2,000,003" in error.message
    assert "2,000,000" in error.message


def test_a_header_of_50000_x_50000_is_refused_before_decoding(png_chunk: Chunk) -> None:
    error = refusal(png_header(png_chunk, 50_000, 50_000) + png_chunk(b"IDAT", b"x"))
    assert error.reason is Reason.IMAGE_TOO_LARGE
    assert "50000x50000 = 2,500,000,000" in error.message
    assert "1,000,000" in error.message


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF"])
def test_one_pixel_above_the_limit_is_refused_in_every_format(kind: str, encode: Encode) -> None:
    data = encode(Image.new("RGB", (101, 100)), kind)
    at_limit = Limits(max_image_pixels=10_100)
    assert decode(EncodedImage(data), at_limit).pixels.shape == (100, 101, 3)
    assert refusal(data, Limits(max_image_pixels=10_099)).reason is Reason.IMAGE_TOO_LARGE


def test_a_tiff_with_huge_tiles_is_refused() -> None:
    tile = [(322, 4, 1, 40_000), (323, 4, 1, 40_000), (324, 4, 1, 8), (325, 4, 1, 64)]
    data = tiff([(256, 4, 1, 16), (257, 4, 1, 16), *TIFF_TAGS, *tile], bytes(64))
    assert refusal(data).reason is Reason.IMAGE_TOO_LARGE


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_animations_and_pages_are_refused(kind: str, encode: Encode) -> None:
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue", "green")]
    error = refusal(encode(frames[0], kind, save_all=True, append_images=frames[1:]))
    assert error.reason is Reason.UNSUPPORTED_FORMAT
    assert "one picture" in error.message


def test_a_jpeg_with_a_second_picture_is_a_photo(encode: Encode, gradient: Image.Image) -> None:
    preview = Image.new("RGB", (20, 20), "red")
    data = encode(gradient, "MPO", save_all=True, append_images=[preview])
    photo = decode(EncodedImage(data), LIMITS)
    assert (photo.width, photo.height) == gradient.size


def test_a_run_length_encoded_bmp_is_refused() -> None:
    info = struct.pack("<IiiHHIIiiII", 40, 8, 8, 1, 8, 1, 20, 0, 0, 256, 0)
    body = (b"\x08\x01\0\0") * 8 + b"\0\1"
    data = b"BM" + struct.pack("<IHHI", 0, 0, 0, 14 + 40 + 1024) + info + bytes(1024) + body
    error = refusal(data)
    assert error.reason is Reason.UNSUPPORTED_FORMAT
    assert "uncompressed" in error.message


@pytest.mark.parametrize("mode", ["I", "F"])
def test_32_bit_pixels_are_refused(mode: str, encode: Encode) -> None:
    error = refusal(encode(Image.new(mode, (20, 20)), "TIFF"))
    assert error.reason is Reason.UNSUPPORTED_FORMAT


def test_a_png_that_inflates_far_beyond_its_size_costs_nothing(
    png_chunk: Chunk, encode: Encode
) -> None:
    squeezer = zlib.compressobj(9)
    bomb = b"".join(squeezer.compress(bytes(1 << 20)) for _ in range(256)) + squeezer.flush()
    data = png_header(png_chunk, 16, 16) + png_chunk(b"IDAT", bomb) + png_chunk(b"IEND", b"")
    # 256 MiB of zeros: the first 16 rows are the picture, the rest is never inflated.
    assert not decode(EncodedImage(data), LIMITS).pixels.any()


def test_a_png_whose_text_inflates_far_beyond_its_size_is_refused(
    png_chunk: Chunk, encode: Encode
) -> None:
    text = png_chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(64 << 20)))
    png = encode(Image.new("RGB", (16, 16)), "PNG")
    assert refusal(png[:33] + text + png[33:]).reason is Reason.INVALID_IMAGE


def piles(encode: Encode, png_chunk: Chunk) -> dict[str, bytes]:
    small = Image.new("RGB", (64, 64), "red")
    jpeg, png = encode(small, "JPEG"), encode(small, "PNG")
    progressive = encode(small, "JPEG", progressive=True)
    scan = progressive[progressive.rindex(b"\xff\xda") : -2]
    strips = [(256, 4, 1, 64), (257, 4, 1, 64), *TIFF_TAGS, (273, 4, 400_000, 100)]
    return {
        "jpeg of comments": jpeg[:2] + b"\xff\xfe\0\2" * 400_000 + jpeg[2:],
        "jpeg of fill bytes": jpeg[:2] + b"\xff" * 1_600_000 + jpeg[2:],
        "jpeg of stray bytes": jpeg[:20] + b"\xff\xd0" * 800_000 + jpeg[20:],
        "jpeg of stuffed zeros": jpeg[:2] + b"\xff\0" * 800_000 + jpeg[2:],
        "jpeg behind extension markers": jpeg[:2] + b"\xff\xf0" * 800_000 + jpeg[2:],
        "jpeg of scans": progressive[:-2] + scan * (MAX_JPEG_SCANS + 1) + b"\xff\xd9",
        "png of chunks": png[:33] + png_chunk(b"abCd", b"") * 100_000 + png[33:],
        "png of chunks behind": png[:-12] + png_chunk(b"abCd", b"") * 100_000 + png[-12:],
        "png of empty data": png[:33] + png_chunk(b"IDAT", b"") * 100_000 + png[33:],
        "tiff of strips": tiff(strips, bytes(1_600_000)),
        "tiff of bit depths": tiff([(258, 3, 400_000, 100), *strips[:2]], bytes(800_000)),
    }


def test_files_of_absurdly_many_pieces_are_refused(encode: Encode, png_chunk: Chunk) -> None:
    for name, data in piles(encode, png_chunk).items():
        error = refusal(data)
        assert error.reason is Reason.INVALID_IMAGE, name
        assert "more than" in error.message, name


def test_as_many_scans_as_are_allowed_are_read(encode: Encode) -> None:
    progressive = encode(Image.new("RGB", (64, 64), "red"), "JPEG", progressive=True)
    scan = progressive[progressive.rindex(b"\xff\xda") : -2]
    more = MAX_JPEG_SCANS - progressive.count(b"\xff\xda")
    data = progressive[:-2] + scan * more + b"\xff\xd9"
    assert open_image(EncodedImage(data), LIMITS).size == (64, 64)


@pytest.mark.parametrize("length", [b"\0\0", b"\0\1"])
def test_a_segment_shorter_than_its_own_length_counts_as_one(encode: Encode, length: bytes) -> None:
    jpeg = encode(Image.new("RGB", (64, 64), "red"), "JPEG")
    data = jpeg[:2] + (b"\xff\xfe" + length) * (MAX_JPEG_SEGMENTS - 100) + jpeg[2:]
    assert open_image(EncodedImage(data), LIMITS).size == (64, 64)


def test_bare_markers_are_those_that_pillow_reads_without_a_length() -> None:
    bare = {code & 0xFF for code, (_, _, handler) in JpegImagePlugin.MARKER.items() if not handler}
    assert bare == BARE_JPEG_MARKERS


def test_large_metadata_is_no_pile(encode: Encode, gradient: Image.Image) -> None:
    jpeg = encode(gradient, "JPEG", progressive=True)
    segment = b"\xff\xe1" + struct.pack(">H", 60_002) + b"\xff" * 60_000
    data = jpeg[:2] + segment * 20 + jpeg[2:]
    assert decode(EncodedImage(data), LIMITS).width == gradient.width


def test_opening_decodes_no_pixel(encode: Encode, portrait: Image.Image) -> None:
    for kind in ("JPEG", "PNG", "BMP"):
        data = encode(portrait, kind)
        opened = open_image(EncodedImage(data[: len(data) // 2]), LIMITS)
        assert opened.size == portrait.size


def test_broken_exif_does_not_spoil_a_photo(encode: Encode, gradient: Image.Image) -> None:
    for exif in (b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0garbage", b"Exif\0\0"):
        data = encode(gradient, "JPEG", exif=exif)
        photo = decode(EncodedImage(data), LIMITS)
        assert (photo.width, photo.height) == gradient.size
