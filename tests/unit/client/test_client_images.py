"""Every kind of picture that callers may give, and those that are refused before any call."""

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import mien
from mien.channel import MAX_MESSAGE_BYTES

Call = Callable[..., Any]
RGB = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)


def sent_pixels(peer: Any) -> np.ndarray[Any, Any]:
    pixels = peer.received[-1].request.image.pixels
    return np.frombuffer(pixels.data, np.uint8).reshape(pixels.height, pixels.width, 3)


def test_a_path_is_read(call: Call, peer: Any, tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(b"from a file")
    for given in (path, str(path)):
        call("detect", given)
        assert peer.received[-1].request.image.encoded == b"from a file"


def test_a_path_that_is_not_utf8_is_read(call: Call, peer: Any, tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.jpg"))
    path.write_bytes(b"coffee")
    call("detect", path)
    assert peer.received[-1].request.image.encoded == b"coffee"


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_bytes_are_sent_as_they_are(call: Call, peer: Any, kind: Callable[[bytes], Any]) -> None:
    call("detect", kind(b"encoded"))
    assert peer.received[-1].request.image.encoded == b"encoded"


def test_an_rgb_array_is_sent_as_it_is(call: Call, peer: Any) -> None:
    call("detect", RGB)
    np.testing.assert_array_equal(sent_pixels(peer), RGB)


def test_an_array_of_any_memory_layout_is_sent_row_by_row(call: Call, peer: Any) -> None:
    call("detect", RGB[::-1, :, ::-1])
    np.testing.assert_array_equal(sent_pixels(peer), RGB[::-1, :, ::-1])
    call("detect", np.asfortranarray(RGB))
    np.testing.assert_array_equal(sent_pixels(peer), RGB)


def test_a_grey_array_becomes_rgb(call: Call, peer: Any) -> None:
    call("detect", RGB[..., 0])
    np.testing.assert_array_equal(sent_pixels(peer), np.stack([RGB[..., 0]] * 3, axis=2))


def test_alpha_is_blended_onto_black(call: Call, peer: Any) -> None:
    rgba = np.array([[[200, 100, 50, 255], [200, 100, 50, 128], [200, 100, 50, 0]]], np.uint8)
    call("detect", rgba)
    np.testing.assert_array_equal(sent_pixels(peer), [[[200, 100, 50], [100, 50, 25], [0, 0, 0]]])


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.zeros((2, 2, 3), np.float32), "float32"),
        (np.zeros((2, 2, 3), np.int64), "int64"),
        (np.zeros((2, 2, 3), bool), "bool"),
        (np.zeros((2, 2, 2), np.uint8), r"\[2, 2, 2\]"),
        (np.zeros((3, 2, 2), np.uint8), r"\[3, 2, 2\]"),
        (np.zeros((1, 2, 2, 3), np.uint8), r"\[1, 2, 2, 3\]"),
        (np.zeros((4,), np.uint8), r"\[4\]"),
        (np.zeros((), np.uint8), r"\[\]"),
        (np.zeros((0, 2, 3), np.uint8), r"\[0, 2, 3\]"),
        (np.zeros((2, 0), np.uint8), r"\[2, 0\]"),
    ],
)
def test_an_array_of_wrong_type_or_shape_is_refused(
    call: Call, peer: Any, array: Any, said: str
) -> None:
    with pytest.raises(mien.InvalidRequest, match=said) as caught:
        call("verify", b"fine", array)
    assert (caught.value.reason, caught.value.field) == ("INVALID_IMAGE", "b.image")
    assert peer.received == []


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "CMYK", "YCbCr", "HSV"])
def test_a_pil_image_is_sent_as_pillow_converts_it(call: Call, peer: Any, mode: str) -> None:
    image = Image.fromarray(RGB).convert(mode)
    call("detect", image)
    np.testing.assert_array_equal(sent_pixels(peer), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_a_pil_image_with_alpha_is_blended_onto_black(call: Call, peer: Any, mode: str) -> None:
    image = Image.new("RGBA", (2, 1), (90, 90, 90, 0)).convert(mode)
    image.putpixel((1, 0), (90, 90, 90, 255) if mode == "RGBA" else (90, 255))
    call("detect", image)
    np.testing.assert_array_equal(sent_pixels(peer), [[[0, 0, 0], [90, 90, 90]]])


def test_a_pil_image_of_16_bits_becomes_8(call: Call, peer: Any) -> None:
    call("detect", Image.fromarray(np.array([[0, 256, 65535]], np.uint16)))
    np.testing.assert_array_equal(sent_pixels(peer)[..., 0], [[0, 1, 255]])


@pytest.mark.parametrize("mode", ["F", "I"])
def test_a_pil_image_without_a_range_is_refused(call: Call, mode: str) -> None:
    with pytest.raises(mien.InvalidRequest, match=f"mode {mode}"):
        call("detect", Image.new(mode, (2, 2)))


def test_a_pil_image_is_turned_upright(call: Call, peer: Any) -> None:
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(RGB).save(file, "PNG", exif=exif)
    call("detect", Image.open(file))
    np.testing.assert_array_equal(sent_pixels(peer), np.rot90(RGB, -1))


@pytest.mark.parametrize("image", [None, 5, [[0]], ["a.jpg"], io.BytesIO(b"x")])
def test_anything_else_is_a_type_error_that_names_what_is_taken(call: Call, image: Any) -> None:
    with pytest.raises(TypeError, match="a path, bytes, a numpy array or a PIL image"):
        call("detect", image)


def test_a_file_that_is_not_there_is_an_os_error(call: Call, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        call("detect", tmp_path / "none.jpg")
    with pytest.raises(IsADirectoryError):
        call("detect", tmp_path)


@pytest.mark.parametrize(
    ("image", "fix"),
    [
        ("/dev/zero", "scale it down, or save it as JPEG"),
        (bytes(MAX_MESSAGE_BYTES + 1), "scale it down, or save it as JPEG"),
        (np.zeros((4000, 4000, 3), np.uint8), "send the photo encoded, or scaled down"),
    ],
    ids=["file", "bytes", "array"],
)
def test_a_photo_that_no_request_can_hold_is_refused_with_its_side(
    call: Call, peer: Any, image: Any, fix: str
) -> None:
    with pytest.raises(mien.InvalidRequest, match=rf"larger than the 32 MiB .*; {fix}") as caught:
        call("verify", b"fine", image)
    assert (caught.value.reason, caught.value.field) == ("IMAGE_TOO_LARGE", "b.image")
    assert peer.received == []


def test_a_photo_that_leaves_no_room_for_the_rest_of_its_request_is_refused(
    call: Call, peer: Any
) -> None:
    for method in ("detect", "embed"):
        with pytest.raises(mien.InvalidRequest, match="the request is larger than") as caught:
            call(method, bytes(MAX_MESSAGE_BYTES))
        assert (caught.value.reason, caught.value.field) == ("IMAGE_TOO_LARGE", "image")
    assert peer.received == []


def test_a_request_may_have_as_many_bytes_as_the_limit_says(call: Call, peer: Any) -> None:
    # The photo, and the tag and the length, of four bytes, of its field and of its image's.
    largest = MAX_MESSAGE_BYTES - 2 * (1 + 4)
    call("detect", bytes(largest))
    assert peer.received[0].request.ByteSize() == MAX_MESSAGE_BYTES
    with pytest.raises(mien.InvalidRequest, match="the request is larger than"):
        call("detect", bytes(largest + 1))


@pytest.mark.parametrize(
    ("a", "b", "larger"),
    [(17, 17, "a"), (10, 24, "b")],
)
def test_two_photos_that_fit_only_singly_are_refused_as_too_large_together(
    call: Call, peer: Any, a: int, b: int, larger: str
) -> None:
    encoded = bytes(a * 1024**2), bytes(b * 1024**2)
    arrays = tuple(np.zeros((1, side * 1024**2 // 3, 3), np.uint8) for side in (a, b))
    for photos in (encoded, arrays):
        with pytest.raises(mien.InvalidRequest, match=r"a and b hold together .* 32 MiB") as caught:
            call("verify", *photos)
        assert caught.value.reason == "IMAGE_TOO_LARGE"
        assert caught.value.field == f"{larger}.image"
    assert peer.received == []


def phone_photo(columns: int = 3024, rows: int = 4032) -> Image.Image:
    """12 megapixels, which WebP and PNG make small and raw pixels do not."""
    return Image.linear_gradient("L").resize((columns, rows)).convert("RGB")


def test_a_pil_image_too_large_for_raw_pixels_is_sent_without_loss(call: Call, peer: Any) -> None:
    photo = phone_photo()
    call("detect", photo)
    with Image.open(io.BytesIO(peer.received[0].request.image.encoded)) as sent:
        assert sent.format == "WEBP"
        np.testing.assert_array_equal(np.asarray(sent), np.asarray(photo))


def test_a_pil_image_too_wide_for_webp_is_sent_without_loss(call: Call, peer: Any) -> None:
    panorama = phone_photo(columns=16384, rows=700)
    call("detect", panorama)
    with Image.open(io.BytesIO(peer.received[0].request.image.encoded)) as sent:
        np.testing.assert_array_equal(np.asarray(sent), np.asarray(panorama))


def test_two_pil_images_share_a_request(call: Call, peer: Any) -> None:
    photo = phone_photo(columns=2500, rows=2500)
    call("verify", photo, photo)
    assert {side.image.WhichOneof("source") for side in sides(peer)} == {"encoded"}
    embedding = call("embed", photo).embedding
    assert peer.received[-1].request.image.WhichOneof("source") == "pixels"
    call("verify", embedding, photo)
    assert sides(peer)[1].image.WhichOneof("source") == "pixels"


def sides(peer: Any) -> tuple[Any, Any]:
    request = peer.received[-1].request
    return request.a, request.b


def test_a_pil_image_that_no_coding_makes_fit_is_refused(call: Call, peer: Any) -> None:
    noise = np.random.default_rng(7).integers(0, 256, (3400, 3400, 3), np.uint8)
    with pytest.raises(mien.InvalidRequest, match="scale it down, or save it as JPEG") as caught:
        call("verify", b"fine", Image.fromarray(noise))
    assert (caught.value.reason, caught.value.field) == ("IMAGE_TOO_LARGE", "b.image")
    assert peer.received == []


@pytest.mark.parametrize(
    ("path", "said"), [("", "the path is empty"), ("a\0b.jpg", r"'a\\x00b.jpg' is no path: .*null")]
)
def test_a_path_that_cannot_be_one_is_refused(call: Call, peer: Any, path: str, said: str) -> None:
    with pytest.raises(mien.InvalidRequest, match=said) as caught:
        call("verify", b"fine", path)
    assert (caught.value.reason, caught.value.field) == ("FILE_ERROR", "b.image")
    assert peer.received == []


def closed_picture() -> Image.Image:
    picture = Image.new("RGB", (2, 2))
    picture.close()
    return picture


def damaged_picture() -> Image.Image:
    """A PNG whose second chunk of pixels is none."""
    file = io.BytesIO()
    noise = np.random.default_rng(7).integers(0, 256, (400, 400, 3), np.uint8)
    Image.fromarray(noise).save(file, "PNG")
    start, name, rest = file.getvalue().partition(b"IDAT")
    return Image.open(io.BytesIO(start + name + rest.replace(b"IDAT", b"ID\0T", 1)))


@pytest.mark.parametrize(
    "picture", [closed_picture, damaged_picture, lambda: Image.new("La", (2, 2))]
)
def test_a_pil_image_that_cannot_become_rgb_is_refused(
    call: Call, peer: Any, picture: Callable[[], Image.Image]
) -> None:
    with pytest.raises(mien.InvalidRequest, match="cannot be converted to RGB") as caught:
        call("verify", picture(), b"fine")
    assert (caught.value.reason, caught.value.field) == ("INVALID_IMAGE", "a.image")
    assert peer.received == []
