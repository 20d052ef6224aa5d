"""What another package brings as a third role: the mean colour of an aligned face, and a family of it.

`test_third_role` installs this file as a package of its own. It imports nothing but mien's interface.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mien_server.models import portraits
from mien_server.models.interface import (
    CROP_SIDE,
    ArrayF32,
    ImageU8,
    Parameters,
    Role,
    TensorSpec,
)

if TYPE_CHECKING:
    from torch import nn


class Crop(NamedTuple):
    """An aligned face [112, 112, 3], and what its channels are multiplied with."""

    image: ImageU8
    gain: float


@dataclass(frozen=True)
class Options:
    """What the config.pbtxt of such a model sets."""

    gain: float = 1.0


class MeanColour(Role[Crop, ArrayF32, Options]):
    """A crop's mean colour: [3] float32, 0..255."""

    name = "colour"
    title = "a model of colours"
    inputs = (TensorSpec("crop", "TYPE_UINT8", (3, CROP_SIDE, CROP_SIDE)),)
    outputs = (TensorSpec("colour", "TYPE_FP32", (3,)),)
    parameters = frozenset({"gain"})

    def read_options(self, parameters: Parameters) -> Options:
        return Options(parameters.number("gain", 0, 2, 1.0))

    def sides(self, options: Options) -> tuple[int, ...]:
        return (CROP_SIDE,)

    def row(self, image: ImageU8, options: Options) -> Crop:
        return Crop(image, options.gain)

    def arrays(self, results: Sequence[ArrayF32]) -> tuple[ArrayF32, ...]:
        return (np.stack(results),)

    def agree(self, ours: ArrayF32, theirs: ArrayF32) -> bool:
        return bool(np.abs(ours - theirs).max() < 1)

    def check_first(self, result: ArrayF32, outputs: Sequence[TensorSpec]) -> None:
        if result.min() < 0:
            raise ValueError(f"the mean of channel {result.argmin()} is negative")

    def golden_pictures(self, options: Options) -> ImageU8:
        return portraits.crops()

    def golden_rows(self, pictures: ImageU8) -> list[Crop]:
        return [Crop(picture, 1.0) for picture in pictures]

    def answers(self, results: Sequence[ArrayF32]) -> ArrayF32:
        return np.stack(results)

    def cosines(self, expected: ArrayF32, found: ArrayF32) -> NDArray[np.float64]:
        norms = np.linalg.norm(expected, axis=1) * np.linalg.norm(found, axis=1)
        return np.asarray((expected * found).sum(axis=1) / norms, np.float64)

    def well_formed(self, pictures: ImageU8, expected: ArrayF32) -> bool:
        return pictures.ndim == 4 and expected.shape == (len(pictures), 3)


MEAN_COLOUR = MeanColour()


class MeanFamily:
    """A network that multiplies each channel's mean with a weight of its own."""

    name = "mean_colour"
    role = MEAN_COLOUR

    def network(self) -> "nn.Module":
        import torch

        class Means(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.weight = torch.nn.Parameter(torch.ones(3))

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return x.mean(dim=(2, 3)) * self.weight

        return Means().eval()

    def arrange(self, shapes: Sequence[tuple[int, ...]], side: int) -> Sequence[int]:
        if list(shapes) != [(3,)]:
            raise ValueError("it gives one mean of three channels")
        return (0,)

    def results(
        self, outputs: Sequence[ArrayF32], rows: Sequence[Crop], options: Options
    ) -> list[ArrayF32]:
        return [
            (mean * row.gain).astype(np.float32) for mean, row in zip(outputs[0], rows, strict=True)
        ]


FAMILIES = (MeanFamily(),)
