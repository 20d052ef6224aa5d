"""The golden file of a version: a few pictures, and what its network makes of them in float32.

Whoever runs the version, on whatever device and in whatever precision, can tell from it whether the answers
are still those of the weights. It is a safetensors file in the version folder and counts in its manifest.

The pictures are `golden.jpg` of this package: two portraits in the public domain (Barack Obama by the
United States Senate, Jacinda Ardern by the Office of the Vice President of the United States). Embedders get
the two faces and their mirror images; detectors get faces of three sizes, for which different parts of them
are responsible.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError
from safetensors.numpy import load, save_file

from mien_server.errors import OperatorError
from mien_server.models.interface import (
    ArrayF32,
    Detections,
    DetectorRow,
    EmbedderRow,
    ImageU8,
    Normalisation,
    Task,
)
from mien_server.repository.config.model import ModelConfig
from mien_server.repository.config.tensors import CROP_SIDE
from mien_server.repository.manifest import ManifestError
from mien_server.scheduling.interface import Instance

FILENAME = "golden.safetensors"

BOUNDS = {"fp32": 0.99999, "bf16": 0.999, "fp16": 0.999, "int8": 0.99}
"""The lowest cosine to float32 that a precision may come down to."""

SURE = 0.75
"""Faces that a detector scores lower are no reference: rounding may lose them."""

_PICTURE = Path(__file__).with_name("golden.jpg")
_CORNERS = ((23, 24), (183, 184))
"""Upper left corners (row, column) of the faces in it that, cut out, are aligned well enough."""
_SMALL = (slice(24, 136), slice(184, 296))
"""Where it is empty: rows and columns for a small copy of it."""
_LARGE = (slice(160, 320), slice(160, 320))
"""One of the portraits."""
_PADDING = 96
_MIN_SCORE = 0.3
"""A face that a precision scores lower counts as lost."""
_MAX_BYTES = 64 << 20
_SCORE = 5
"""The column of a face's score."""


class PrecisionError(OperatorError):
    """A version whose answers, in this precision on this device, are not those of its weights."""


@dataclass(frozen=True, slots=True, eq=False)
class Golden:
    """Pictures and what is expected of them.

    Attributes:
        task: of the model.
        input: how the pixels became the network's input, in words; other answers would be right for
            another.
        pictures: [n, side, side, 3] RGB uint8.
        expected: [m, d] float32, m at least 1. An embedder's embedding of each picture; or a detector's
            faces: number of the picture, box, score and landmarks.
    """

    task: Task
    input: str
    pictures: ImageU8
    expected: ArrayF32

    def cosines(self, instance: Instance, batch: int) -> NDArray[np.float64]:
        """How near the answers of an instance come: the cosine to each that is expected, [m].

        A face counts as the vector of its corners and landmarks, seen from the expected box's centre in
        units of half its longer side, and its score; a face that is not found counts as 0.

        Args:
            instance: of the version.
            batch: rows that it takes at once.
        """
        found = _answers(self.task, instance, self.pictures, batch)
        if self.task == "embed":
            fits = found.shape == self.expected.shape
            return _cosines(self.expected, found) if fits else np.zeros(len(self.expected))
        return np.array([_nearest(face, found) for face in self.expected])


def golden_pictures(config: ModelConfig) -> ImageU8:
    """The pictures for a model: canvases of a detector's smallest side, or crops."""
    with Image.open(_PICTURE) as file:
        picture = np.asarray(file.convert("RGB"))
    if config.task == "embed":
        faces = [picture[y : y + CROP_SIDE, x : x + CROP_SIDE] for y, x in _CORNERS]
        return np.stack([view for face in faces for view in (face, face[:, ::-1])])
    side = min(config.buckets)
    large = _resized(picture[_LARGE], len(picture))
    picture = picture.copy()
    picture[_SMALL] = _resized(picture, CROP_SIDE)
    canvases = np.full((2, side, side, 3), _PADDING, np.uint8)
    size = min(side, len(picture))
    canvases[:, :size, :size] = [_resized(each, size) for each in (picture, large)]
    return canvases


def rows_of(task: Task, pictures: Sequence[ImageU8] | ImageU8) -> list[Any]:
    """Pictures as the rows that an instance takes."""
    if task == "detect":
        return [DetectorRow(picture, _MIN_SCORE) for picture in pictures]
    return [EmbedderRow(np.ascontiguousarray(picture)) for picture in pictures]


def make_golden(config: ModelConfig, reference: Instance) -> Golden | None:
    """Has an instance in float32 answer the golden pictures.

    Returns:
        None if it is a detector that is not sure of any face in them.
    """
    pictures = golden_pictures(config)
    expected = _answers(config.task, reference, pictures, config.batching.max_batch_size)
    if config.task == "detect":
        expected = expected[expected[:, _SCORE] >= SURE]
    if not len(expected):
        return None
    return Golden(config.task, _describe(config.normalisation), pictures, expected)


def write_golden_file(folder: Path, golden: Golden) -> None:
    """Writes it into a version folder that has no manifest yet."""
    path = folder / FILENAME
    tensors: dict[str, NDArray[Any]] = {"pictures": golden.pictures, "expected": golden.expected}
    save_file(tensors, path, metadata={"task": golden.task, "input": golden.input})
    path.chmod(0o644)


def read_golden(folder: Path) -> Golden | None:
    """The golden file of a version folder that matches its manifest; None if it has none.

    Raises:
        ManifestError: it is none.
    """
    path = folder / FILENAME
    if not path.exists():
        return None
    again = f"`mien-server models check {folder.parent.name} --make-golden` makes another"
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ManifestError(f"{path} is larger than {_MAX_BYTES >> 20} MiB: {again}")
        data = path.read_bytes()
    except OSError as error:
        raise ManifestError(f"{path} cannot be read: {error.strerror}") from error
    try:
        tensors, metadata = load(data), _metadata(data)
        golden = Golden(
            metadata["task"], metadata["input"], tensors["pictures"], tensors["expected"]
        )
    except (SafetensorError, KeyError, TypeError) as error:
        raise ManifestError(f"{path} is no golden file ({error}): {again}") from error
    if not _well_formed(golden):
        raise ManifestError(f"{path} is no golden file that this program knows: {again}")
    return golden


def applies(golden: Golden, config: ModelConfig) -> bool:
    """Whether it was made with the pixels prepared as the configuration now says."""
    return golden.task == config.task and golden.input == _describe(config.normalisation)


def check_golden(
    golden: Golden, instance: Instance, batch: int, *, precision: str, device: str
) -> None:
    """Refuses an instance whose answers are not near enough.

    Args:
        golden: of its version.
        instance: what is to serve.
        batch: rows that it takes at once.
        precision: that it computes in: "auto" resolved.
        device: that it is on.

    Raises:
        PrecisionError: names the cosine and its bound.
    """
    worst = float(golden.cosines(instance, batch).min())
    bound = BOUNDS[precision]
    if not worst >= bound:
        raise PrecisionError(
            f"in {precision} on {device} its answers have a cosine of {worst:.6f} to the golden file, below"
            f" the bound of {bound:g}: set another `precision`, or, if fp32 is refused too, import the"
            " weights again"
        )


def _metadata(data: bytes) -> dict[str, Any]:
    """Of a safetensors file, which its library reads out of files only."""
    length = int.from_bytes(data[:8], "little")
    found: dict[str, Any] = json.loads(data[8 : 8 + length]).get("__metadata__", {})
    return found


def _well_formed(golden: Golden) -> bool:
    pictures, expected = golden.pictures, golden.expected
    if pictures.dtype != np.uint8 or expected.dtype != np.float32 or not expected.size:
        return False
    match pictures.shape, expected.shape:
        case (n, height, width, 3), (_, 16) if golden.task == "detect":
            return bool(height == width and np.isin(expected[:, 0], np.arange(n)).all())
        case (n, height, width, 3), (m, _) if golden.task == "embed":
            return bool(n == m and height == width == CROP_SIDE)
    return False


def _resized(picture: ImageU8, side: int) -> ImageU8:
    way = cv2.INTER_AREA if side < len(picture) else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(picture, (side, side), interpolation=way), np.uint8)


def _describe(normalisation: Normalisation) -> str:
    mean = ", ".join(f"{value:g}" for value in normalisation.mean)
    return f"{normalisation.channel_order}, mean {mean}, scale {normalisation.scale:.9g}"


def _answers(task: Task, instance: Instance, pictures: ImageU8, batch: int) -> ArrayF32:
    rows = rows_of(task, pictures)
    results: list[Any] = []
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        results += instance.split(instance.compute(instance.collate(part)), part)
    if task == "embed":
        return np.stack(results).astype(np.float32)
    return np.concatenate([_faces(picture, found) for picture, found in enumerate(results)])


def _faces(picture: int, found: Detections) -> ArrayF32:
    number = np.full((len(found.scores), 1), picture)
    parts = (number, found.boxes, found.scores[:, None], found.landmarks.reshape(-1, 10))
    return np.concatenate(parts, axis=1).astype(np.float32)


def _nearest(face: ArrayF32, found: ArrayF32) -> float:
    """The best cosine to the expected face of any that was found in the same picture."""
    found = found[found[:, 0] == face[0]]
    if not len(found):
        return 0.0
    low, high = face[1:3], face[3:5]
    centre, unit = (low + high) / 2, (high - low).max() / 2

    def seen(faces: ArrayF32) -> NDArray[np.float64]:
        points = np.concatenate([faces[:, 1:_SCORE], faces[:, _SCORE + 1 :]], axis=1)
        shape = (points.reshape(len(faces), -1, 2) - centre) / unit
        return np.concatenate(
            [shape.reshape(len(faces), -1), faces[:, _SCORE, None]], axis=1
        ).astype(np.float64)

    return float(_cosines(seen(face[None]), seen(found)).max())


def _cosines(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float64]:
    """Of vectors [1 or n, d] with vectors [n, d]; 0 where one is zero or not finite."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    with np.errstate(all="ignore"):
        norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        cosines: NDArray[np.float64] = (a * b).sum(axis=1) / norms
    return np.nan_to_num(cosines, nan=0.0, posinf=0.0, neginf=0.0)
