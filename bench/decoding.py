"""What it takes to decode and shrink a photo, by each decoder that could.

    python -m bench.decoding

Milliseconds of one thread, medians, from the file's bytes to RGB pixels: the server's own way (with its
checks of the header), simplejpeg and Pillow and OpenCV bare, and then letterboxing to 320.
"""

import io
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
from PIL import Image

from mien_server.load.report import machine, table
from mien_server.pipeline.decode import decode
from mien_server.pipeline.finding import ENOUGH_PIXELS, letterbox
from mien_server.pipeline.types import EncodedImage, Limits

PORTRAIT = Path(__file__).resolve().parent.parent / "samples" / "person_b_1.jpg"


def milliseconds(work: Callable[[], object], rounds: int = 30) -> str:
    """The median of so many runs, as text."""
    work()
    taken = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return f"{statistics.median(taken) * 1e3:.1f}"


def encoded(image: Image.Image, kind: str) -> bytes:
    """A file in memory."""
    file = io.BytesIO()
    image.save(file, kind, quality=90)
    return file.getvalue()


def pillow(data: bytes) -> object:
    """Pixels by Pillow."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def row(kind: str, image: Image.Image) -> tuple[str, ...]:
    """A line of the table."""
    data = encoded(image, kind)
    source, limits = EncodedImage(data), Limits()
    photo = decode(source, limits, enough=ENOUGH_PIXELS)
    return (
        f"{kind} {image.width}x{image.height}",
        milliseconds(lambda: decode(source, limits)),
        milliseconds(lambda: decode(source, limits, enough=ENOUGH_PIXELS)),
        milliseconds(lambda: simplejpeg.decode_jpeg(data)) if kind == "JPEG" else "",
        milliseconds(lambda: pillow(data)),
        milliseconds(lambda: cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)),
        milliseconds(lambda: letterbox(photo, 320, (0, 0, 0))),
    )


def main() -> None:
    cv2.setNumThreads(1)
    print(machine())
    portrait = Image.open(PORTRAIT)
    large = portrait.resize((4000, 3000), Image.Resampling.BICUBIC)
    rows = [row(kind, portrait) for kind in ("JPEG", "PNG", "WEBP", "TIFF")]
    rows += [row(kind, large) for kind in ("JPEG", "WEBP")]
    heads = ("file", "mien", "mien, reduced", "simplejpeg", "Pillow", "OpenCV", "letterbox")
    print(table(heads, rows))


if __name__ == "__main__":
    main()
