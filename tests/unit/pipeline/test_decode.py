import contextlib
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageOps

from mien_server.errors import InvalidRequest, Reason, at
from mien_server.pipeline.decode import Photo, check_pixels, decode
from mien_server.pipeline.types import EncodedImage, Limits, RawPixels

Encode = Callable[..., bytes]

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")

LIMITS = Limits()
ORIENTATION = 0x0112


def decoded(data: bytes, enough: int | None = None) -> Photo:
    return decode(EncodedImage(data), LIMITS, enough=enough)


def worst(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> int:
    assert a.shape == b.shape
    return int(np.abs(a.astype(int) - b.astype(int)).max())


def opencv_png(array: NDArray[np.uint16]) -> bytes:
    """A PNG written by OpenCV, in its channel order (BGR, BGRA) and depth."""
    done, data = cv2.imencode(".png", array)
    assert done
    return data.tobytes()


LOSSLESS: list[tuple[str, dict[str, object]]] = [
    ("PNG", {}),
    ("WEBP", {"lossless": True}),
    ("BMP", {}),
    ("TIFF", {}),
    ("TIFF", {"compression": "tiff_lzw"}),
    ("TIFF", {"compression": "tiff_adobe_deflate"}),
    ("TIFF", {"compression": "packbits"}),
]
LOSSY: list[tuple[str, dict[str, object]]] = [
    ("JPEG", {"quality": 95, "subsampling": 0}),
    ("JPEG", {"quality": 95, "subsampling": 0, "progressive": True}),
    ("WEBP", {"quality": 95}),
    ("TIFF", {"compression": "jpeg", "quality": 95}),
]


@pytest.mark.parametrize(("kind", "options"), LOSSLESS)
def test_lossless_formats_give_the_pixels_that_went_in(
    kind: str, options: dict[str, object], encode: Encode, portrait: Image.Image
) -> None:
    photo = decoded(encode(portrait, kind, **options))
    assert worst(photo.pixels, np.asarray(portrait)) == 0
    assert (photo.width, photo.height, photo.reduction) == (*portrait.size, 1)
    assert photo.pixels.dtype == np.uint8


@pytest.mark.parametrize(("kind", "options"), LOSSY)
def test_lossy_formats_stay_close(
    kind: str, options: dict[str, object], encode: Encode, gradient: Image.Image
) -> None:
    assert worst(decoded(encode(gradient, kind, **options)).pixels, np.asarray(gradient)) <= 12


@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_equals_opencv(progressive: bool, encode: Encode, portrait: Image.Image) -> None:
    data = encode(portrait, "JPEG", quality=90, progressive=progressive)
    reference = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    assert worst(decoded(data).pixels, np.asarray(reference, np.uint8)) <= 2


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 3}])
def test_either_decoder_gives_the_same_pixels_of_a_jpeg(
    mode: str,
    subsampling: int,
    options: dict[str, Any],
    encode: Encode,
    portrait: Image.Image,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    odd = portrait.convert(mode).crop((0, 0, 333, 417))
    data = encode(odd, "JPEG", quality=85, subsampling=subsampling, **options)
    for enough in (None, 200, 100, 50):
        fast = decoded(data, enough)
        with monkeypatch.context() as patch:
            patch.setattr(simplejpeg, "decode_jpeg", refuse)
            slow = decoded(data, enough)
        assert fast.reduction == slow.reduction
        assert worst(fast.pixels, slow.pixels) == 0


def refuse(*_: object, **__: object) -> None:
    raise ValueError("it looks odd")


def test_a_jpeg_with_stray_bytes_in_it_is_decoded_as_pillow_does(
    encode: Encode, portrait: Image.Image
) -> None:
    data = encode(portrait, "JPEG", quality=85)
    odd = data.replace(b"\xff\xda", b"\x00\x00\x00\xff\xda", 1)
    with pytest.raises(ValueError, match="extraneous"):
        simplejpeg.decode_jpeg(odd)
    assert worst(decoded(odd).pixels, decoded(data).pixels) == 0


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_exactly_once(
    kind: str, orientation: int, encode: Encode, gradient: Image.Image
) -> None:
    # How a camera held that way would have stored the upright picture (EXIF 2.32, tag 0x0112).
    upright = np.asarray(gradient)
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright),
        7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    options: dict[str, object] = {"quality": 95} if kind == "JPEG" else {}
    options |= {"lossless": True} if kind == "WEBP" else {}
    image = Image.fromarray(np.ascontiguousarray(stored))
    photo = decoded(encode(image, kind, exif=exif, **options))
    assert worst(photo.pixels, upright) <= (12 if kind == "JPEG" else 0)
    assert (photo.width, photo.height) == gradient.size


def test_orientation_behind_the_pixels_of_a_png_counts(
    encode: Encode, gradient: Image.Image, png_chunk: Callable[[bytes, bytes], bytes]
) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 3
    png = encode(gradient, "PNG")
    late = png[:-12] + png_chunk(b"eXIf", exif.tobytes()[6:]) + png[-12:]
    assert worst(decoded(late).pixels, np.asarray(gradient)[::-1, ::-1]) == 0


@pytest.mark.parametrize("orientation", [0, 9, 255])
def test_an_orientation_that_does_not_exist_is_upright(
    orientation: int, encode: Encode, gradient: Image.Image
) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    assert worst(decoded(encode(gradient, "PNG", exif=exif)).pixels, np.asarray(gradient)) == 0


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF"])
def test_grey_becomes_three_equal_channels(
    kind: str, encode: Encode, gradient: Image.Image
) -> None:
    grey = gradient.convert("L")
    pixels = decoded(encode(grey, kind, **({"lossless": True} if kind == "WEBP" else {}))).pixels
    assert pixels.shape == (64, 96, 3)
    assert (pixels == pixels[..., :1]).all()
    assert worst(pixels[..., 0], np.asarray(grey)) <= 3


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP"])
def test_one_bit_becomes_black_and_white(kind: str, encode: Encode, gradient: Image.Image) -> None:
    bits = gradient.convert("1")
    assert (decoded(encode(bits, kind)).pixels[..., 0] == np.asarray(bits) * 255).all()


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_alpha_is_blended_onto_black(kind: str, encode: Encode, gradient: Image.Image) -> None:
    rgb = np.asarray(gradient)
    alpha = np.tile(np.linspace(0, 255, 96).astype(np.uint8), (64, 1))
    rgba = Image.fromarray(np.dstack([rgb, alpha]))
    options: dict[str, object] = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    expected = rgb.astype(float) * alpha[..., None] / 255
    assert np.abs(decoded(encode(rgba, kind, **options)).pixels - expected).max() <= 1


def test_grey_with_alpha_is_blended_onto_black(encode: Encode, gradient: Image.Image) -> None:
    grey = gradient.convert("L")
    alpha = Image.new("L", grey.size, 51)
    pixels = decoded(encode(Image.merge("LA", [grey, alpha]), "PNG")).pixels
    assert np.abs(pixels[..., 0] - np.asarray(grey) / 5.0).max() <= 1


def test_a_palette_with_transparency_is_blended_onto_black(encode: Encode) -> None:
    image = Image.new("P", (4, 2))
    image.putpalette([200, 100, 50, 10, 20, 30])
    image.putpixel((1, 0), 1)
    pixels = decoded(encode(image, "PNG", transparency=bytes([128, 255]))).pixels
    assert pixels[0, 1].tolist() == [10, 20, 30]
    assert np.abs(pixels[0, 0] - np.array([100.4, 50.2, 25.1])).max() <= 1


def test_a_transparent_colour_becomes_black(encode: Encode) -> None:
    image = Image.new("RGB", (3, 1), (9, 8, 7))
    image.putpixel((2, 0), (1, 2, 3))
    pixels = decoded(encode(image, "PNG", transparency=(9, 8, 7))).pixels
    assert pixels[0].tolist() == [[0, 0, 0], [0, 0, 0], [1, 2, 3]]


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_a_palette_becomes_its_colours(kind: str, encode: Encode, gradient: Image.Image) -> None:
    image = gradient.quantize(32)
    assert worst(decoded(encode(image, kind)).pixels, np.asarray(image.convert("RGB"))) == 0


def test_16_bit_png_keeps_the_upper_8(gradient: Image.Image) -> None:
    low = np.random.default_rng(0).integers(0, 256, (64, 96, 3)).astype(np.uint16)
    rgb = np.asarray(gradient).astype(np.uint16) * 256 + low
    assert worst(decoded(opencv_png(rgb[..., ::-1])).pixels, np.asarray(gradient)) == 0
    grey = decoded(opencv_png(rgb[..., 0])).pixels
    assert worst(grey[..., 2], np.asarray(gradient)[..., 0]) == 0


def test_16_bit_png_with_alpha_is_blended(gradient: Image.Image) -> None:
    rgb = np.asarray(gradient).astype(np.uint16) * 257
    alpha = np.full((64, 96, 1), 0x8080, np.uint16)
    pixels = decoded(opencv_png(np.concatenate([rgb[..., ::-1], alpha], axis=2))).pixels
    assert np.abs(pixels - np.asarray(gradient, float) * 128 / 255).max() <= 1


@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_16_bit_grey_tiff_keeps_the_upper_8(
    order: str, encode: Encode, gradient: Image.Image
) -> None:
    grey = np.asarray(gradient.convert("L"))
    image = Image.fromarray((grey.astype(np.uint16) * 257).astype(order))
    assert worst(decoded(encode(image, "TIFF")).pixels[..., 1], grey) == 0


def test_16_bit_rgb_tiff_keeps_the_upper_8(gradient: Image.Image) -> None:
    rgb = np.asarray(gradient).astype(np.uint16) * 257
    done, data = cv2.imencode(".tiff", rgb[..., ::-1])
    assert done
    assert worst(decoded(data.tobytes()).pixels, np.asarray(gradient)) == 0


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_gives_the_colours_and_not_their_negative(
    kind: str, encode: Encode, gradient: Image.Image
) -> None:
    cmyk = gradient.convert("CMYK")
    options: dict[str, object] = {"quality": 95, "subsampling": 0} if kind == "JPEG" else {}
    assert worst(decoded(encode(cmyk, kind, **options)).pixels, np.asarray(gradient)) <= 12


def test_ycck_gives_the_colours_and_not_their_negative(
    encode: Encode, gradient: Image.Image
) -> None:
    # Adobe's YCCK is the ink's amounts as if they were RGB, turned to YCbCr, and the negative of black. Write
    # these channels as if they were CMYK, then say in the Adobe marker what they are. Pillow inverts what
    # it writes as CMYK, so hand it the negative.
    y, cb, cr = ImageOps.invert(gradient).convert("YCbCr").split()
    black = Image.new("L", gradient.size, 255)
    stored = [channel.point(lambda v: 255 - v) for channel in (y, cb, cr, black)]
    data = encode(Image.merge("CMYK", stored), "JPEG", quality=95, subsampling=0)
    at = data.index(b"Adobe") + 11
    assert data[at] == 0
    ycck = data[:at] + b"\2" + data[at + 1 :]
    assert worst(decoded(ycck).pixels, np.asarray(gradient)) <= 12
    opencv = cv2.imdecode(np.frombuffer(ycck, np.uint8), cv2.IMREAD_COLOR_RGB)
    assert worst(decoded(ycck).pixels, np.asarray(opencv, np.uint8)) <= 6


TRUNCATED: list[tuple[str, str, dict[str, object]]] = [
    ("JPEG", "RGB", {"quality": 90}),
    ("JPEG", "RGB", {"progressive": True}),
    ("JPEG", "CMYK", {}),
    ("JPEG", "L", {}),
    ("PNG", "RGB", {}),
    ("PNG", "RGBA", {}),
    ("PNG", "P", {}),
    ("WEBP", "RGB", {}),
    ("WEBP", "RGBA", {"lossless": True}),
    ("BMP", "RGB", {}),
    ("BMP", "P", {}),
    ("TIFF", "RGB", {}),
    ("TIFF", "RGB", {"compression": "tiff_lzw"}),
    ("TIFF", "RGB", {"compression": "tiff_adobe_deflate"}),
    ("TIFF", "RGB", {"compression": "jpeg"}),
    ("TIFF", "1", {"compression": "group4"}),
]


@pytest.mark.parametrize(("kind", "mode", "options"), TRUNCATED)
def test_a_truncated_file_is_refused_at_every_tenth(
    kind: str, mode: str, options: dict[str, object], encode: Encode, portrait: Image.Image
) -> None:
    data = encode(portrait.convert(mode), kind, **options)
    assert decoded(data).width == portrait.width
    for tenth in range(1, 10):
        with pytest.raises(InvalidRequest) as caught:
            decoded(data[: len(data) * tenth // 10])
        assert caught.value.reason is Reason.INVALID_IMAGE, tenth


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_damage_is_refused_or_decoded_and_never_escapes(
    kind: str, encode: Encode, portrait: Image.Image
) -> None:
    data = encode(portrait, kind)
    rng = np.random.default_rng(1)
    for _ in range(60):
        damaged = bytearray(data)
        for position in rng.integers(0, min(len(data), 700), 4):
            damaged[position] = rng.integers(0, 256)
        with contextlib.suppress(InvalidRequest):
            assert decoded(bytes(damaged)).pixels.dtype == np.uint8


@pytest.mark.parametrize(("enough", "reduction"), [(1601, 1), (800, 2), (401, 2), (400, 4), (1, 8)])
def test_a_large_jpeg_is_decoded_no_larger_than_needed(
    enough: int, reduction: int, encode: Encode, gradient: Image.Image
) -> None:
    large = gradient.resize((1600, 1201), Image.Resampling.BICUBIC)
    photo = decoded(encode(large, "JPEG", quality=95), enough)
    assert photo.reduction == reduction
    assert (photo.width, photo.height) == (1600, 1201)
    assert photo.pixels.shape == (-(-1201 // reduction), -(-1600 // reduction), 3)
    # A reduced pixel is the mean of the square that it stands for.
    whole = 1201 // reduction * reduction
    full = np.asarray(large, np.float32)[:whole]
    means = full.reshape(whole // reduction, reduction, -1, reduction, 3).mean(axis=(1, 3))
    assert np.abs(photo.pixels[: len(means)] - means).max() <= 12


@pytest.mark.parametrize("size", [(3000, 5), (3001, 3), (2999, 1), (9, 2999), (2047, 2047)])
def test_the_reduction_is_what_was_done_for_narrow_photos_too(
    size: tuple[int, int], encode: Encode
) -> None:
    photo = decoded(encode(Image.new("RGB", size), "JPEG"), 200)
    height, width = photo.pixels.shape[:2]
    assert (photo.width, photo.height) == size
    assert (width, height) == tuple(-(-side // photo.reduction) for side in size)


def test_a_reduced_jpeg_is_turned_like_a_full_one(encode: Encode, gradient: Image.Image) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    large = gradient.resize((960, 640)).rotate(90, expand=True)
    photo = decoded(encode(large, "JPEG", quality=95, exif=exif), 200)
    assert (photo.width, photo.height, photo.reduction) == (960, 640, 4)
    small = np.asarray(gradient.resize((240, 160)))
    assert np.abs(photo.pixels.astype(int) - small).mean() < 3


def test_other_formats_are_decoded_in_full(encode: Encode, gradient: Image.Image) -> None:
    assert decoded(encode(gradient, "PNG"), 10).reduction == 1


def test_raw_pixels_are_taken_as_they_are() -> None:
    data = bytes(range(60))
    photo = check_pixels(RawPixels(4, 5, data), LIMITS)
    assert photo.pixels.shape == (4, 5, 3)
    assert photo.pixels.tobytes() == data
    assert (photo.width, photo.height) == (5, 4)


@pytest.mark.parametrize(
    ("raw", "reason", "field"),
    [
        (RawPixels(0, 5, b""), Reason.INVALID_IMAGE, "image.pixels"),
        (RawPixels(5, 0, b""), Reason.INVALID_IMAGE, "image.pixels"),
        (RawPixels(4, 5, b""), Reason.INVALID_IMAGE, "image.pixels.data"),
        (RawPixels(4, 5, bytes(59)), Reason.INVALID_IMAGE, "image.pixels.data"),
        (RawPixels(4, 5, bytes(61)), Reason.INVALID_IMAGE, "image.pixels.data"),
        (RawPixels(4, 5, bytes(20)), Reason.INVALID_IMAGE, "image.pixels.data"),
        (RawPixels(1 << 31, 1 << 31, bytes(12)), Reason.IMAGE_TOO_LARGE, "image.pixels"),
        (RawPixels(50_000_001, 1, bytes(3)), Reason.IMAGE_TOO_LARGE, "image.pixels"),
    ],
)
def test_raw_pixels_that_do_not_add_up_are_refused(
    raw: RawPixels, reason: Reason, field: str
) -> None:
    with pytest.raises(InvalidRequest) as caught, at("image"), at(raw.part):
        check_pixels(raw, LIMITS)
    assert (caught.value.reason, caught.value.field) == (reason, field)
