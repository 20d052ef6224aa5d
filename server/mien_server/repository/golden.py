"""The golden file of a version: a few pictures, and what its network makes of them in float32.

Whoever runs the version, on whatever device and in whatever precision, can tell from it whether the answers
are still those of the weights. It is a safetensors file in the version folder and counts in its manifest.
Which pictures there are, and how near an answer comes, is for the model's role to say.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save_file

from mien_server.errors import OperatorError
from mien_server.models.families import roles
from mien_server.models.interface import AnyRole, ArrayF32, ImageU8
from mien_server.repository.config.model import ModelConfig
from mien_server.repository.manifest import ManifestError
from mien_server.scheduling.interface import Instance

FILENAME = "golden.safetensors"

BOUNDS = {"fp32": 0.99999, "bf16": 0.999, "fp16": 0.999, "int8": 0.99}
"""The lowest cosine to float32 that a precision may come down to."""

_MAX_BYTES = 64 << 20


class PrecisionError(OperatorError):
    """A version whose answers, in this precision on this device, are not those of its weights."""


@dataclass(frozen=True, slots=True, eq=False)
class Golden:
    """Pictures and what is expected of them.

    Attributes:
        role: of the model.
        input: how the pixels became the network's input, in words; other answers would be right for
            another.
        pictures: [n, side, side, 3] RGB uint8.
        expected: [m, d] float32, m at least 1: `role.answers`.
    """

    role: AnyRole
    input: str
    pictures: ImageU8
    expected: ArrayF32

    def cosines(self, instance: Instance, batch: int) -> NDArray[np.float64]:
        """How near the answers of an instance come: the cosine to each that is expected, [m].

        Args:
            instance: of the version.
            batch: rows that it takes at once.
        """
        found = _answers(self.role, instance, self.pictures, batch)
        return self.role.cosines(self.expected, found)


def make_golden(config: ModelConfig, reference: Instance) -> Golden | None:
    """Has an instance in float32 answer the golden pictures.

    Returns:
        None if none of the answers can be a reference; `config.role.no_reference` says why.
    """
    role, batch = config.role, config.batching.max_batch_size
    pictures = role.golden_pictures(config.options)
    expected = role.reference(_answers(role, reference, pictures, batch))
    if not len(expected):
        return None
    return Golden(role, _describe(config), pictures, expected)


def write_golden_file(folder: Path, golden: Golden) -> None:
    """Writes it into a version folder that has no manifest yet."""
    path = folder / FILENAME
    tensors: dict[str, NDArray[Any]] = {"pictures": golden.pictures, "expected": golden.expected}
    save_file(tensors, path, metadata={"task": golden.role.name, "input": golden.input})
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
        role, described = roles().get(metadata["task"]), metadata["input"]
        pictures, expected = tensors["pictures"], tensors["expected"]
    except (SafetensorError, KeyError, TypeError) as error:
        raise ManifestError(f"{path} is no golden file ({error}): {again}") from error
    if role is None or not _well_formed(role, pictures, expected):
        raise ManifestError(f"{path} is no golden file that this program knows: {again}")
    return Golden(role, described, pictures, expected)


def applies(golden: Golden, config: ModelConfig) -> bool:
    """Whether it was made with the pixels prepared as the configuration now says."""
    return golden.role is config.role and golden.input == _describe(config)


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


def _well_formed(role: AnyRole, pictures: NDArray[Any], expected: NDArray[Any]) -> bool:
    if pictures.dtype != np.uint8 or expected.dtype != np.float32 or not expected.size:
        return False
    return role.well_formed(pictures, expected)


def _describe(config: ModelConfig) -> str:
    normalisation = config.normalisation
    mean = ", ".join(f"{value:g}" for value in normalisation.mean)
    scales = (
        normalisation.scales if isinstance(normalisation.scale, tuple) else (normalisation.scale,)
    )
    scale = ", ".join(f"{value:.9g}" for value in scales)
    pixels = f"{normalisation.channel_order}, mean {mean}, scale {scale}"
    options = config.role.describe(config.options)
    return f"{pixels}; {options}" if options else pixels


def _answers(role: AnyRole, instance: Instance, pictures: ImageU8, batch: int) -> ArrayF32:
    rows = role.golden_rows(pictures)
    results: list[Any] = []
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        results += instance.split(instance.compute(instance.collate(part)), part)
    return role.answers(results)
