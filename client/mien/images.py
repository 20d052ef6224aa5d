"""The pictures that callers may give, as the contract's `Image`."""

import io
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias, Union

import numpy as np
from numpy.typing import NDArray

from mien.channel import MAX_MESSAGE_BYTES
from mien.errors import InvalidRequest
from mien.v1 import face_pb2 as pb

if TYPE_CHECKING:
    import PIL.Image

EncodedOrPicture: TypeAlias = Union[
    str, os.PathLike[str], bytes, bytearray, memoryview, "PIL.Image.Image"
]
"""A photo that is no array: a path, the bytes of an encoded file, or a PIL image."""

ImageLike: TypeAlias = EncodedOrPicture | NDArray[np.uint8]
"""A photo, as:

- a path (str or Path) or the bytes of an encoded file: JPEG, PNG, WebP, BMP or TIFF;
- a numpy array of uint8: [height, width, 3] in the order R, G, B (OpenCV reads B, G, R: turn it
  with `array[..., ::-1]`), [height, width] grey, or [height, width, 4] with alpha, which is blended
  onto black; a photo in an array is taken to be upright;
- a PIL image, which is turned upright if its EXIF says so. It is sent as pixels or, where these do
  not fit into the request, as lossless WebP, which takes some 0.7 s for 12 megapixels.
"""

_LARGEST_WEBP = 16383
"""The longest side that WebP holds, in pixels."""


def image_message(
    image: ImageLike, *, aligned: bool = False, field: str = "image", photos: int = 1
) -> pb.Image:
    """The message for a photo.

    Args:
        image: the photo.
        aligned: it is a 112x112 crop.
        field: named in errors.
        photos: how many share the request, at least 1.

    Raises:
        InvalidRequest: no path at all, an array or a PIL image that cannot be sent, or what no
            request can hold.
        OSError: the file cannot be read.
        TypeError: the image is of no known type.
    """
    source = _source(image, field, MAX_MESSAGE_BYTES // photos)
    if aligned:
        return pb.Image(
            aligned_face=pb.AlignedFace(pixels=source)
            if isinstance(source, pb.Pixels)
            else pb.AlignedFace(encoded=source)
        )
    return pb.Image(pixels=source) if isinstance(source, pb.Pixels) else pb.Image(encoded=source)


def read_file(path: str | os.PathLike[str], field: str = "image") -> bytes:
    """The file at `path`.

    Raises:
        InvalidRequest: it is longer than a request may be, or the path is empty or none at all.
        OSError: it cannot be read.
    """
    if not os.fspath(path):
        raise InvalidRequest("the path is empty", reason="FILE_ERROR", field=field)
    try:
        with Path(path).open("rb") as file:
            return read_encoded(file, field)
    except ValueError as error:  # as for one that holds a NUL
        raise InvalidRequest(
            f"{path!r} is no path: {error}", reason="FILE_ERROR", field=field
        ) from error


def read_encoded(file: BinaryIO, field: str = "image") -> bytes:
    """The rest of an open file, unless it is longer than a request may be.

    Raises:
        InvalidRequest: it is longer.
    """
    data = file.read(MAX_MESSAGE_BYTES + 1)
    return _fitting(data, field)


def too_large(what: str, fix: str, field: str) -> InvalidRequest:
    """The error for `what` no request can hold, with how to `fix` that."""
    return InvalidRequest(
        f"{what} is larger than the {MAX_MESSAGE_BYTES // 1024**2} MiB that a request may have; {fix}",
        reason="IMAGE_TOO_LARGE",
        field=field,
    )


def _source(image: ImageLike, field: str, most_pixel_bytes: int) -> bytes | pb.Pixels:
    if isinstance(image, bytes | bytearray | memoryview):
        return _fitting(bytes(image), field)
    if isinstance(image, str | os.PathLike):
        return read_file(image, field)
    if isinstance(image, np.ndarray):
        return _pixels(_rgb(image, field), field)
    # Whoever made a PIL image has imported it: looking there spares everyone else the import.
    pillow = sys.modules.get("PIL.Image")
    if pillow is not None and isinstance(image, pillow.Image):
        rgb = _rgb(_pillow_array(image, field), field)
        if rgb.nbytes <= most_pixel_bytes:
            return _pixels(rgb, field)
        return _fitting(_lossless(rgb), field)
    raise TypeError(
        f"{field} must be a path, bytes, a numpy array or a PIL image, not {type(image).__name__}"
    )


def _rgb(array: NDArray[Any], field: str) -> NDArray[np.uint8]:
    if array.dtype != np.uint8:
        raise InvalidRequest(
            f"an array must hold uint8 from 0 to 255, not {array.dtype}",
            reason="INVALID_IMAGE",
            field=field,
        )
    match array.shape:
        case (height, width) if height and width:
            return np.repeat(array[..., np.newaxis], 3, axis=2)
        case (height, width, 3) if height and width:
            return array
        case (height, width, 4) if height and width:
            alpha = array[..., 3:].astype(np.uint16)
            return ((array[..., :3] * alpha + 127) // 255).astype(np.uint8)
    raise InvalidRequest(
        "an array must have the shape [height, width, 3] (RGB), [height, width] (grey) or"
        f" [height, width, 4] (RGBA) and hold at least one pixel, not {list(array.shape)}",
        reason="INVALID_IMAGE",
        field=field,
    )


def _pixels(rgb: NDArray[np.uint8], field: str) -> pb.Pixels:
    if rgb.nbytes > MAX_MESSAGE_BYTES:
        what = f"an array of {rgb.shape[0]} rows and {rgb.shape[1]} columns of pixels"
        raise too_large(what, "send the photo encoded, or scaled down", field)
    return pb.Pixels(height=rgb.shape[0], width=rgb.shape[1], data=rgb.tobytes())


def _pillow_array(image: "PIL.Image.Image", field: str) -> NDArray[np.uint8]:
    from PIL import ImageOps

    if image.mode in ("I", "F"):
        raise InvalidRequest(
            f"a PIL image of mode {image.mode} says not which value is white; convert it to RGB",
            reason="INVALID_IMAGE",
            field=field,
        )
    try:
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I;16"):
            return (np.asarray(image) >> 8).astype(np.uint8)
        return np.asarray(image.convert("RGBA" if image.has_transparency_data else "RGB"))
    except (ValueError, SyntaxError) as error:  # closed, of a mode that is not converted, damaged
        raise InvalidRequest(
            f"a PIL image of mode {image.mode} cannot be converted to RGB: {error}",
            reason="INVALID_IMAGE",
            field=field,
        ) from error


def _lossless(rgb: NDArray[np.uint8]) -> bytes:
    from PIL import Image

    # In the same time, WebP takes a third less than PNG: a phone's photo stays below the 20 MiB that
    # the server takes, and two of them below the 32 MiB of a request.
    options: dict[str, Any] = {"format": "WEBP", "lossless": True, "quality": 0, "method": 0}
    if max(rgb.shape) > _LARGEST_WEBP:
        options = {"format": "PNG", "compress_level": 1}
    file = io.BytesIO()
    Image.fromarray(rgb).save(file, **options)
    return file.getvalue()


def _fitting(encoded: bytes, field: str) -> bytes:
    if len(encoded) > MAX_MESSAGE_BYTES:
        raise too_large("the photo", "scale it down, or save it as JPEG", field)
    return encoded
