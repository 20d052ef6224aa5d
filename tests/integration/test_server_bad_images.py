"""Bad pictures of every kind, over the wire: status and reason as documented, and the server lives on."""

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
import pytest
from PIL import Image

from mien.v1 import face_pb2, face_pb2_grpc

MIB = 1024 * 1024
INVALID = grpc.StatusCode.INVALID_ARGUMENT
Spoil = Callable[[bytes], bytes]


def saved(image: Image.Image, file_format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def animation(file_format: str) -> bytes:
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
    return saved(frames[0], file_format, save_all=True, append_images=frames[1:])


def png(width: int, height: int, data: bytes = b"") -> bytes:
    """A PNG of RGB whose header states a size, whatever its data hold."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + checksum

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def with_jpeg_size(photo: bytes, width: int, height: int) -> bytes:
    """The photo with another size in its frame header (SOF0 or SOF2)."""
    at = max(photo.find(b"\xff\xc0"), photo.find(b"\xff\xc2"))
    assert at > 0
    return photo[: at + 5] + struct.pack(">HH", height, width) + photo[at + 9 :]


def cut(tenths: int) -> Spoil:
    return lambda photo: photo[: len(photo) * tenths // 10]


FILES: dict[str, tuple[Spoil, str]] = {
    "empty file": (lambda _: b"", "INVALID_IMAGE"),
    **{f"cut at {tenths} tenths": (cut(tenths), "INVALID_IMAGE") for tenths in range(1, 10)},
    "one byte": (lambda photo: photo[:1], "INVALID_IMAGE"),
    "wrong magic": (lambda photo: bytes(4) + photo[4:], "INVALID_IMAGE"),
    "text": (lambda _: b"a face, honestly", "INVALID_IMAGE"),
    "zeros": (lambda _: bytes(9999), "INVALID_IMAGE"),
    "JPEG magic and noise": (
        lambda _: b"\xff\xd8\xff\xe0" + np.random.default_rng(0).bytes(2673),
        "INVALID_IMAGE",
    ),
    "SVG": (lambda _: b"<svg xmlns='x'/>", "UNSUPPORTED_FORMAT"),
    "PDF": (lambda _: b"%PDF-1.7\n" * 99, "UNSUPPORTED_FORMAT"),
    "animated GIF": (lambda _: animation("GIF"), "UNSUPPORTED_FORMAT"),
    "animated WebP": (lambda _: animation("WEBP"), "UNSUPPORTED_FORMAT"),
    "animated PNG": (lambda _: animation("PNG"), "UNSUPPORTED_FORMAT"),
    "TIFF of two pages": (lambda _: animation("TIFF"), "UNSUPPORTED_FORMAT"),
    "PNG of no width": (lambda _: png(0, 100), "INVALID_IMAGE"),
    "PNG without data": (lambda _: png(100, 100), "INVALID_IMAGE"),
    "PNG with broken data": (lambda _: png(100, 100, b"not zlib"), "INVALID_IMAGE"),
    "PNG header of 50000x50000": (lambda _: png(50_000, 50_000), "IMAGE_TOO_LARGE"),
    "PNG header of 2^31-1 x 1": (lambda _: png(2**31 - 1, 1), "IMAGE_TOO_LARGE"),
    "zip bomb PNG": (
        lambda _: png(20_000, 20_000, zlib.compress(bytes(200 * MIB), 9)),
        "IMAGE_TOO_LARGE",
    ),
    "JPEG header of 60000x60000": (
        lambda photo: with_jpeg_size(photo, 60_000, 60_000),
        "IMAGE_TOO_LARGE",
    ),
    "too many bytes": (lambda photo: photo + bytes(21 * MIB), "IMAGE_TOO_LARGE"),
}


@pytest.mark.parametrize("name", FILES)
def test_bad_file_is_refused(name: str, refused: Callable[..., None], photo: bytes) -> None:
    spoil, reason = FILES[name]
    image = face_pb2.Image(encoded=spoil(photo))
    refused(face_pb2.DetectRequest(image=image), INVALID, reason, "image.encoded")


def test_bad_file_on_the_other_side_of_a_comparison_is_named(
    refused: Callable[..., None], photo: bytes
) -> None:
    good = face_pb2.Subject(image=face_pb2.Image(encoded=photo))
    bad = face_pb2.Subject(image=face_pb2.Image(encoded=photo[:5000]))
    refused(face_pb2.VerifyRequest(a=good, b=bad), INVALID, "INVALID_IMAGE", "b.image.encoded")


@pytest.mark.parametrize(
    ("height", "width", "nbytes", "reason", "field"),
    [
        (10, 10, 299, "INVALID_IMAGE", "image.pixels.data"),
        (10, 10, 301, "INVALID_IMAGE", "image.pixels.data"),
        (0, 10, 0, "INVALID_IMAGE", "image.pixels"),
        (2**32 - 1, 2**32 - 1, 3, "IMAGE_TOO_LARGE", "image.pixels"),
    ],
)
def test_bad_pixels_are_refused(
    height: int, width: int, nbytes: int, reason: str, field: str, refused: Callable[..., None]
) -> None:
    pixels = face_pb2.Pixels(height=height, width=width, data=bytes(nbytes))
    request = face_pb2.DetectRequest(image=face_pb2.Image(pixels=pixels))
    refused(request, INVALID, reason, field)


def test_aligned_face_of_another_size_is_refused(
    refused: Callable[..., None], photo: bytes
) -> None:
    image = face_pb2.Image(aligned_face=face_pb2.AlignedFace(encoded=photo))
    refused(
        face_pb2.EmbedRequest(image=image), INVALID, "INVALID_IMAGE", "image.aligned_face.encoded"
    )


def test_message_above_the_limit_is_refused_by_grpc(
    stub: face_pb2_grpc.FaceServiceStub, photo: bytes
) -> None:
    large = face_pb2.Image(encoded=bytes(33 * MIB))
    with pytest.raises(grpc.RpcError) as caught:
        stub.Detect(face_pb2.DetectRequest(image=large), timeout=60)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    good = face_pb2.Image(encoded=photo)
    assert stub.Detect(face_pb2.DetectRequest(image=good), timeout=60).faces
