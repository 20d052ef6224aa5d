"""Pictures in every format, made once, and a pipeline over scripted models."""

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.unit.pipeline.scripted import World

Encode = Callable[..., bytes]
Chunk = Callable[[bytes, bytes], bytes]


@pytest.fixture(scope="session")
def encode() -> Encode:
    """Encodes a Pillow image: encode(image, "PNG", **options)."""

    def save(image: Image.Image, kind: str, **options: object) -> bytes:
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        return buffer.getvalue()

    return save


@pytest.fixture(scope="session")
def png_chunk() -> Chunk:
    """A PNG chunk with its length and checksum."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    return chunk


@pytest.fixture(scope="session")
def portrait(portraits: list[Path]) -> Image.Image:
    """A photo of 150x188 pixels, not square, with detail everywhere."""
    return Image.open(portraits[0]).convert("RGB").resize((150, 188))


@pytest.fixture(scope="session")
def gradient() -> Image.Image:
    """A smooth picture of 96x64 pixels whose four corners differ: lossy formats keep it closely."""
    y, x = np.mgrid[0:64, 0:96].astype(np.float32)
    rgb = np.stack([x / 95 * 255, y / 63 * 255, 255 - x / 95 * 200], axis=-1)
    return Image.fromarray(rgb.round().astype(np.uint8))


@pytest.fixture
def world() -> Iterator[World]:
    """A pipeline over scripted models."""
    world = World()
    yield world
    world.close()
