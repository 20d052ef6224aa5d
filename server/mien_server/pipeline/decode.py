"""From a file to upright RGB pixels.

JPEGs are decoded by libjpeg-turbo through simplejpeg, everything else by Pillow, and also any JPEG that
simplejpeg does not like: so Pillow alone decides what is refused. It is strict where OpenCV is lenient: a
truncated file is an error, not a half grey picture; CMYK, palettes, 16 bit and alpha come out right. Where
both can decode a JPEG they give equal pixels (tested). Milliseconds from file to RGB array, by
`bench/decoding.py` on an EPYC with AVX2:

    ===================  =======  ========  =======  =======
    file                 here     at least  Pillow   OpenCV
                                  1024 px
    ===================  =======  ========  =======  =======
    JPEG 716x900             2.8       2.8      3.8      2.7
    PNG 716x900             19.0      18.9     18.7     16.6
    WebP 716x900            11.6      12.4     11.1      9.3
    JPEG 4000x3000          36.1      24.3    144.2     66.7
    WebP 4000x3000         333.3     363.4    389.6    160.2
    ===================  =======  ========  =======  =======

All release the interpreter. `_SCRATCH` has what they need at their peak, beside the 3 bytes of each pixel of
the result.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import cv2
import numpy as np
import simplejpeg
from PIL import Image

from mien_server.errors import InvalidRequest, Reason
from mien_server.pipeline.headers import SCAN, broken, exif_orientation, open_image
from mien_server.pipeline.room import Hold
from mien_server.pipeline.types import EncodedImage, ImageU8, Limits, RawPixels
from mien_server.scheduling.errors import QueueFull

_BAND_BYTES = 256 * 1024
_BYTES_PER_PIXEL = 3
_SCRATCH = MappingProxyType({"WEBP": 18})
_PILLOW_SCRATCH = 10
_SCANS_SCRATCH = 6
"""Bytes that decoding a pixel takes at its peak beside the result, as measured: WebP with alpha; Pillow's
other formats with alpha; the coefficients of a JPEG in several scans, and 3 of one that is turned upright."""

_MIRROR, _UPSIDE_DOWN = 1, 0  # cv2.flip's codes
_UPRIGHT: Mapping[int, Callable[[ImageU8], Any]] = MappingProxyType(
    {
        2: lambda pixels: cv2.flip(pixels, _MIRROR),
        3: lambda pixels: cv2.rotate(pixels, cv2.ROTATE_180),
        4: lambda pixels: cv2.flip(pixels, _UPSIDE_DOWN),
        5: cv2.transpose,
        6: lambda pixels: cv2.rotate(pixels, cv2.ROTATE_90_CLOCKWISE),
        7: lambda pixels: cv2.rotate(cv2.transpose(pixels), cv2.ROTATE_180),
        8: lambda pixels: cv2.rotate(pixels, cv2.ROTATE_90_COUNTERCLOCKWISE),
    }
)
"""How pixels of each EXIF orientation are turned."""

_JPEG = {"JPEG", "MPO"}
_TURBO_MODES = {"RGB", "L"}
_MODES = {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr"}


@dataclass(frozen=True, slots=True)
class Photo:
    """An upright photo.

    Attributes:
        pixels: [h, w, 3] RGB uint8, where h and w are the photo's size divided by `reduction`, rounded up.
        width: of the full photo, in pixels.
        height: of the full photo, in pixels.
        reduction: 1, 2, 4 or 8: a pixel stands for a square of so many pixels a side.
    """

    pixels: ImageU8
    width: int
    height: int
    reduction: int = 1


def load(
    source: EncodedImage | RawPixels,
    limits: Limits,
    *,
    enough: int | None = None,
    hold: Hold | None = None,
) -> Photo:
    """Checks a picture of either kind and decodes it, if there is something to decode. Blocking.

    Args:
        enough: as `decode` has it.
        hold: likewise. Raw pixels are those of the request and need no other room.

    Raises:
        InvalidRequest: as `decode` and `check_pixels` do. QueueFull: as `decode` does.
    """
    if isinstance(source, RawPixels):
        return check_pixels(source, limits)
    return decode(source, limits, enough=enough, hold=hold)


def decode(
    source: EncodedImage,
    limits: Limits,
    *,
    enough: int | None = None,
    hold: Hold | None = None,
) -> Photo:
    """Decodes a file once its header has been accepted: upright, RGB, 8 bit.

    Alpha is blended onto black, 16 bit keeps the upper 8, CMYK is converted without its profile.

    Args:
        enough: a JPEG is decoded at 1/2, 1/4 or 1/8 while its long side keeps at least so many pixels
            (libjpeg's scaled inverse DCT, an average over each square). None: at full size.
        hold: takes room for the pixels before they are allocated, until they are freed. None: there is room.

    Raises:
        QueueFull: there is no room.
        InvalidRequest: as `open_image` does; INVALID_IMAGE for a truncated or damaged file;
            UNSUPPORTED_FORMAT for a colour mode that is no photo (32-bit integers, floats, Lab).
    """
    image = open_image(source, limits)
    kind = image.format or ""
    width, height = image.size
    reduction = 1
    try:
        if enough is not None and kind in _JPEG:
            reduction = _reduction(width, height, enough)
        pixels = None
        if kind in _JPEG and image.mode in _TURBO_MODES:
            if hold is not None:
                small = -(-width // reduction) * -(-height // reduction)
                many = source.data.count(SCAN) > 1
                scratch = _SCANS_SCRATCH * width * height if many else _BYTES_PER_PIXEL * small
                hold.take(_BYTES_PER_PIXEL * small, scratch=scratch)
            pixels = _turbo(source.data, width // reduction, height // reduction)
        if pixels is None:
            image.draft(None, (width // reduction, height // reduction))
            if image.size == (width, height):
                reduction = 1
            if hold is not None:
                size = image.size[0] * image.size[1]
                scratch = _SCRATCH.get(kind, _PILLOW_SCRATCH) * size
                if kind in _JPEG:
                    scratch += _SCANS_SCRATCH * width * height
                hold.take(_BYTES_PER_PIXEL * size, scratch=scratch)
            image.load()
            pixels = _packed(_to_rgb(image))
        # After decoding: a PNG may carry its EXIF behind the pixels, and Pillow turns a TIFF itself.
        orientation = exif_orientation(image)
    except (InvalidRequest, QueueFull, MemoryError):
        raise
    except Exception as error:  # decoders of hostile bytes raise whatever they stumble over
        raise broken(kind, error) from error
    if orientation in _UPRIGHT:
        pixels = np.asarray(_UPRIGHT[orientation](pixels), np.uint8)
        if orientation >= 5:
            width, height = height, width
    if hold is not None:
        hold.keep(pixels)
    return Photo(pixels, width, height, reduction)


def _turbo(data: bytes, width: int, height: int) -> ImageU8 | None:
    """A JPEG's pixels, at the least scale that keeps so many; None if anything about it is odd."""
    try:
        pixels: ImageU8 = simplejpeg.decode_jpeg(data, "RGB", min_width=width, min_height=height)
    except ValueError:
        return None
    return pixels


def check_pixels(raw: RawPixels, limits: Limits) -> Photo:
    """Raw pixels as a photo; the caller's buffer is shared, not copied.

    Raises:
        InvalidRequest: INVALID_IMAGE for a size of 0 or data of another length; IMAGE_TOO_LARGE.
    """
    height, width = raw.height, raw.width
    if height < 1 or width < 1:
        raise InvalidRequest(Reason.INVALID_IMAGE, f"A size of {width}x{height} holds no pixel.")
    if height * width > limits.max_image_pixels:
        raise InvalidRequest(
            Reason.IMAGE_TOO_LARGE,
            f"The image has {width}x{height} = {width * height:,} pixels; at most"
            f" {limits.max_image_pixels:,} are allowed. Send it scaled down.",
        )
    expected = height * width * 3
    if len(raw.data) != expected:
        raise InvalidRequest(
            Reason.INVALID_IMAGE,
            f"{width}x{height} RGB pixels take {expected:,} bytes, {len(raw.data):,} were sent.",
            field="data",
        )
    return Photo(np.frombuffer(raw.data, np.uint8).reshape(height, width, 3), width, height)


def _reduction(width: int, height: int, enough: int) -> int:
    """By how much a JPEG of this size may be reduced: 8, 4, 2 or 1."""
    long_side, short_side = max(width, height), min(width, height)
    return next((f for f in (8, 4, 2) if long_side // f >= enough and short_side >= f), 1)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        # Pillow's own conversion clips at 255.
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode not in _MODES:
        raise InvalidRequest(
            Reason.UNSUPPORTED_FORMAT,
            f"{image.format} with pixels of mode {image.mode} is not supported: send 8 or 16 bit grey, RGB"
            " or CMYK.",
        )
    if not image.has_transparency_data:
        # Converting to the same mode would copy.
        return image if image.mode == "RGB" else image.convert("RGB")
    rgba = image.convert("RGBA")
    rgb = Image.new("RGB", image.size)
    rgb.paste(rgba, mask=rgba.getchannel("A"))
    return rgb


def _packed(image: Image.Image) -> ImageU8:
    """Pillow's pixels of 4 bytes as RGB of 3.

    Band by band, through the cache: a quarter of the time, and one copy of the picture less.
    """
    width, height = image.size
    pixels = np.empty((height, width, 3), np.uint8)
    rows = max(1, _BAND_BYTES // (3 * width))
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        pixels[top:bottom] = np.asarray(image.crop((0, top, width, bottom)))
    return pixels
