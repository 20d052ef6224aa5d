"""A photo is the same photo however its EXIF orientation says to turn it."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import mien

ORIENTATION = 0x0112
Transpose = Image.Transpose
# What a camera held this way stores: the inverse of what the tag tells a viewer to do.
STORED: dict[int, Transpose | None] = {
    1: None,
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_90,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_270,
}


@pytest.mark.parametrize("orientation", STORED)
def test_all_orientations_give_the_same_upright_face(
    server_address: str, sample: Callable[[str], Path], orientation: int
) -> None:
    with Image.open(sample("person_b_1")) as photo:
        upright = photo.convert("RGB")
    turn = STORED[orientation]
    stored = upright if turn is None else upright.transpose(turn)

    with mien.Client(server_address) as client:
        expected = client.embed(_jpeg(upright, None))
        result = client.embed(_jpeg(stored, orientation))

    assert (result.image_width, result.image_height) == upright.size
    [face], [reference] = result.faces, expected.faces
    assert face.box is not None
    assert reference.box is not None
    # The turned photo is another JPEG: its blocks lie elsewhere.
    assert face.box.as_list() == pytest.approx(reference.box.as_list(), abs=2)
    assert face.landmarks is not None
    assert reference.landmarks is not None
    assert face.landmarks.left_eye.x < face.landmarks.right_eye.x
    for name, point in reference.landmarks.as_dict().items():
        assert face.landmarks.as_dict()[name] == pytest.approx(point, abs=2), name
    cosine = float(np.dot(result.embedding.values, expected.embedding.values))
    assert cosine > 0.99


def _jpeg(picture: Image.Image, orientation: int | None) -> bytes:
    exif = Image.Exif()
    if orientation is not None:
        exif[ORIENTATION] = orientation
    encoded = io.BytesIO()
    picture.save(encoded, "JPEG", quality=95, exif=exif)
    return encoded.getvalue()
