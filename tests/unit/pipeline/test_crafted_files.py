"""Small files that would cost a decoder more than a photo: each is refused by its structure, or harmless."""

import io
import struct
import subprocess
import sys
from collections.abc import Callable
from itertools import repeat

import pytest
from PIL import Image

from mien_server.errors import InvalidRequest, Reason
from mien_server.pipeline.decode import decode
from mien_server.pipeline.types import EncodedImage, Limits
from tests.crafted import exif, png, segment, tiff, with_segments

Encode = Callable[..., bytes]
LIMITS = Limits()


def refusal(data: bytes) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        decode(EncodedImage(data), LIMITS)
    return caught.value


def test_a_jpeg_of_many_exif_segments_is_refused() -> None:
    body = b"Exif\0\0" + bytes(5_000)
    assert decode(EncodedImage(with_segments(*repeat(segment(0xE1, body), 16))), LIMITS).width == 64
    error = refusal(with_segments(*repeat(segment(0xE1, body), 17)))
    assert error.reason is Reason.INVALID_IMAGE
    assert "16 segments of EXIF" in error.message


def test_other_segments_of_the_same_kind_are_not_counted() -> None:
    xmp = segment(0xE1, b"http://ns.adobe.com/xmp/extension/\0" + bytes(5_000))
    assert decode(EncodedImage(with_segments(*repeat(xmp, 200))), LIMITS).width == 64


@pytest.mark.parametrize("count", [100_001, 2_400_000])
def test_an_orientation_of_many_fractions_is_none(count: int) -> None:
    photo = decode(EncodedImage(png(64, 32, exif=exif(count, kind=5))), LIMITS)
    assert (photo.width, photo.height) == (64, 32)


def test_exif_of_the_usual_size_counts() -> None:
    photo = decode(EncodedImage(png(64, 32, exif=exif(1, kind=3))), LIMITS)
    assert (photo.width, photo.height) == (32, 64)


def test_exif_beyond_its_size_is_not_read() -> None:
    oversized = exif(1, kind=3) + bytes(1 << 20)
    photo = decode(EncodedImage(png(64, 32, exif=oversized)), LIMITS)
    assert (photo.width, photo.height) == (64, 32)


def test_scans_are_bounded_by_the_pixels_that_they_go_over(encode: Encode) -> None:
    data = encode(Image.new("RGB", (2000, 1000)), "JPEG", progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    scans = data.count(b"\xff\xda")

    def of(count: int) -> bytes:
        return data[:-2] + last * (count - scans) + data[-2:]

    limits = Limits(max_image_pixels=4_000_000)
    assert decode(EncodedImage(of(48)), limits).width == 2000
    with pytest.raises(InvalidRequest) as caught:
        decode(EncodedImage(of(49)), limits)
    assert caught.value.reason is Reason.IMAGE_TOO_LARGE
    assert "in 49 scans" in caught.value.message


def test_a_side_longer_than_any_photo_s_is_refused() -> None:
    assert decode(EncodedImage(png(1, 65_535)), LIMITS).height == 65_535
    error = refusal(png(1, 65_536))
    assert error.reason is Reason.IMAGE_TOO_LARGE
    assert "1x65536" in error.message
    assert refusal(png(65_536, 1)).reason is Reason.IMAGE_TOO_LARGE


@pytest.mark.parametrize("compression", [2, 3, 4, 5, 8, 32773])
def test_a_tiff_whose_strips_share_their_bytes_is_refused(compression: int) -> None:
    error = refusal(tiff(6_000, bytes(range(256)) * 32, strips=600, compression=compression))
    assert error.reason is Reason.INVALID_IMAGE
    assert "share bytes" in error.message


@pytest.mark.parametrize("kind", [1, 6, 7])
def test_strip_lengths_beyond_count_are_not_summed(kind: int) -> None:
    """Of these types Pillow makes one object, so that their number is not bounded elsewhere."""
    tags = [
        (256, 4, 1, 64),
        (257, 4, 1, 64),
        (259, 3, 1, 4),
        (273, 4, 1, 8),
        (279, kind, 2**32 - 1, 8),
    ]
    body = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    error = refusal(b"II*\0" + struct.pack("<IH", 8, len(tags)) + body + bytes(100))
    assert error.reason is Reason.INVALID_IMAGE
    assert "tag 279 has more than" in error.message


def test_exif_may_keep_the_strips_of_the_tiff_that_a_photo_once_was() -> None:
    tags = [(0x0112, 3, 1, 6), (279, 4, 1, 30_000_000)]
    body = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    photo = decode(
        EncodedImage(png(64, 32, exif=b"II*\0" + struct.pack("<IH", 8, 2) + body + bytes(4))),
        LIMITS,
    )
    assert (photo.width, photo.height) == (32, 64)


def test_an_honest_big_tiff_is_decoded(encode: Encode, portrait: Image.Image) -> None:
    data = encode(portrait, "TIFF", big_tiff=True, strip_size=1024)
    assert data[2] == 43
    assert decode(EncodedImage(data), LIMITS).width == portrait.width


def test_an_honest_tiff_of_many_strips_is_decoded(encode: Encode, portrait: Image.Image) -> None:
    data = encode(portrait, "TIFF", compression="tiff_lzw", strip_size=1024)
    assert len(Image.open(io.BytesIO(data)).tag_v2[273]) > 10  # type: ignore[attr-defined]
    assert decode(EncodedImage(data), LIMITS).width == portrait.width


def test_libtiff_prints_nothing() -> None:
    damaged = tiff(6_000, bytes(range(256)) * 32, strips=1, compression=3)
    program = (
        "import sys\n"
        "from mien_server.pipeline.decode import decode\n"
        "from mien_server.pipeline.types import EncodedImage, Limits\n"
        "print(decode(EncodedImage(sys.stdin.buffer.read()), Limits()).width)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], input=damaged, capture_output=True, check=True, timeout=60
    )
    assert (done.stdout, done.stderr) == (b"6000\n", b"")
