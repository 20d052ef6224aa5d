"""The pictures that callers may give, as the contract's `Image`."""

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

ImageLike: TypeAlias = Union[
    str,
    os.PathLike[str],
    bytes,
    bytearray,
    memoryview,
    NDArray[np.uint8],
    "PIL.Image.Image",
]
"""A photo, as:

- a path (str or Path) or the bytes of an encoded file: JPEG, PNG, WebP, BMP or TIFF;
- a numpy array of uint8: [height, width, 3] in the order R, G, B (OpenCV reads B, G, R: turn it
  with `array[..., ::-1]`), [height, width] grey, or [height, width, 4] with alpha, which is blended
  onto black; a photo in an array is taken to be upright;
- a PIL image, which is turned upright if its EXIF says so.
"""


def image_message(image: ImageLike, *, aligned: bool = False, field: str = "image") -> pb.Image:
    """The message for a photo, or for a 112x112 crop if `aligned`. `field` is named in errors.

    Raises:
        InvalidRequest: an array or a PIL image that cannot be sent, or a file beyond the limit.
        OSError: the file cannot be read.
        TypeError: the image is of no known type.
    """
    source = _source(image, field)
    if aligned:
        return pb.Image(
            aligned_face=pb.AlignedFace(pixels=source)
            if isinstance(source, pb.Pixels)
            else pb.AlignedFace(encoded=source)
        )
    return pb.Image(pixels=source) if isinstance(source, pb.Pixels) else pb.Image(encoded=source)


def read_encoded(file: BinaryIO, field: str = "image") -> bytes:
    """The rest of an open file, unless it is longer than a request may be.

    Raises:
        InvalidRequest: it is longer.
    """
    data = file.read(MAX_MESSAGE_BYTES + 1)
    if len(data) > MAX_MESSAGE_BYTES:
        raise _too_large("the file", field)
    return data


def _source(image: ImageLike, field: str) -> bytes | pb.Pixels:
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    if isinstance(image, str | os.PathLike):
        with Path(image).open("rb") as file:
            return read_encoded(file, field)
    if isinstance(image, np.ndarray):
        return _pixels(_rgb(image, field), field)
    # Whoever made a PIL image has imported it: looking there spares everyone else the import.
    pillow = sys.modules.get("PIL.Image")
    if pillow is not None and isinstance(image, pillow.Image):
        return _pixels(_rgb(_pillow_array(image, field), field), field)
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
        raise _too_large(f"an array of {rgb.shape[0]} x {rgb.shape[1]} pixels", field)
    return pb.Pixels(height=rgb.shape[0], width=rgb.shape[1], data=rgb.tobytes())


def _pillow_array(image: "PIL.Image.Image", field: str) -> NDArray[np.uint8]:
    from PIL import ImageOps

    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        return (np.asarray(image) >> 8).astype(np.uint8)
    if image.mode in ("I", "F"):
        raise InvalidRequest(
            f"a PIL image of mode {image.mode} says not which value is white; convert it to RGB",
            reason="INVALID_IMAGE",
            field=field,
        )
    return np.asarray(image.convert("RGBA" if image.has_transparency_data else "RGB"))


def _too_large(what: str, field: str) -> InvalidRequest:
    limit = MAX_MESSAGE_BYTES // (1024 * 1024)
    return InvalidRequest(
        f"{what} is larger than the {limit} MiB that a request may have; send the photo encoded, or"
        " smaller",
        reason="IMAGE_TOO_LARGE",
        field=field,
    )
