"""From a file to upright RGB pixels.

Pillow decodes everything. It is strict where OpenCV is lenient: a truncated file is an error, not a half
grey picture; CMYK, palettes, 16 bit and alpha come out right. Milliseconds from file to RGB array, this
module (Pillow 13) against OpenCV 4.14, which gives equal pixels; two cores with AVX-512, other work beside:

    ===================  =======  =======
    file                 here     OpenCV
    ===================  =======  =======
    JPEG 716x900             2.9      2.1
    PNG 716x900             14.7     12.4
    WebP 716x900             8.4      7.2
    TIFF LZW 716x900         6.8      6.7
    JPEG 4000x3000            57       38
    the same at 1/2         32.6     25.9
    the same at 1/4         26.1     22.5
    WebP 4000x3000           208      102
    ===================  =======  =======

Both release the interpreter: on idle cores two threads decode 1.4 to 2 times as much as one, with either.
Large JPEGs, where OpenCV gains most, are decoded at reduced scale. So one strict decoder is enough. At its
peak it holds 7 bytes for each pixel of the photo, for WebP about 20.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from mien_server.errors import InvalidRequest, Reason
from mien_server.pipeline.headers import OpenedImage, broken, open_image
from mien_server.pipeline.types import EncodedImage, ImageU8, Limits, RawPixels

_ORIENTATION_TAG = 0x0112

_BAND_BYTES = 256 * 1024

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

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


def load(source: EncodedImage | RawPixels, limits: Limits, *, enough: int | None = None) -> Photo:
    """Checks a picture of either kind and decodes it, if there is something to decode. Blocking.

    Args:
        enough: as `decode` has it.

    Raises:
        InvalidRequest: as `open_image`, `decode` and `check_pixels` do.
    """
    if isinstance(source, RawPixels):
        return check_pixels(source, limits)
    return decode(open_image(source, limits), enough=enough)


def decode(opened: OpenedImage, *, enough: int | None = None) -> Photo:
    """Decodes a file whose header has been accepted: upright, RGB, 8 bit.

    Alpha is blended onto black, 16 bit keeps the upper 8, CMYK is converted without its profile.

    Args:
        opened: from `headers.open_image`; used up by this call.
        enough: a JPEG is decoded at 1/2, 1/4 or 1/8 while its long side keeps at least so many pixels
            (libjpeg's scaled inverse DCT, an average over each square). None: at full size.

    Raises:
        InvalidRequest: INVALID_IMAGE for a truncated or damaged file; UNSUPPORTED_FORMAT for a colour
            mode that is no photo (32-bit integers, floats, Lab).
    """
    image: Image.Image = opened
    kind = image.format or ""
    try:
        width, height = image.size
        reduction = _draft(image, enough) if enough is not None else 1
        image.load()
        orientation = _orientation(image)
        rgb = _to_rgb(image)
    except (InvalidRequest, MemoryError):
        raise
    except Exception as error:  # decoders of hostile bytes raise whatever they stumble over
        raise broken(kind, error) from error
    if orientation in _UPRIGHT:
        rgb = rgb.transpose(_UPRIGHT[orientation])
        if orientation >= 5:
            width, height = height, width
    return Photo(_packed(rgb), width, height, reduction)


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


def _draft(image: Image.Image, enough: int) -> int:
    """Asks libjpeg for a smaller picture; returns the reduction, 1 for other formats."""
    width, height = image.size
    long_side, short_side = max(width, height), min(width, height)
    fitting = (f for f in (8, 4, 2) if long_side // f >= enough and short_side >= f)
    factor = next(fitting, 1)
    image.draft(None, (width // factor, height // factor))
    return factor if image.size != (width, height) else 1


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation that is still to be applied, 1 to 8; 1 if there is none or it is broken.

    Read after decoding: a PNG may carry its EXIF behind the pixels, and Pillow has by then turned a TIFF
    itself.
    """
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # a photo with broken EXIF is still a photo
        return 1


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
