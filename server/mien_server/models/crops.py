"""Which part of a photo a network sees of a face, and how a config.pbtxt says so."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from mien_server.models.interface import CROP_SIDE, Parameters, TensorSpec

Around: TypeAlias = Literal["template", "box", "inside"]
Window: TypeAlias = tuple[float, float, float]
"""A square of the aligned face: left, top and side, in pixels of the template."""

AROUND: tuple[Around, ...] = ("template", "box", "inside")
WHOLE = (0.0, 0.0, float(CROP_SIDE))
"""The window that is the template itself."""

_MAX_SIDE = 512


@dataclass(frozen=True, slots=True)
class Crop:
    """The square part of a photo that a network sees.

    Attributes:
        side: of what it gets, in pixels.
        around: "template": the face aligned, as embedders see it; "box": the detector's box, upright;
            "inside": the same, but no more than the photo has, and stretched to the square.
        window: of "template": left, top and side of the square, in pixels of the 112x112 template and from
            the outer corner of its first pixel. (0, 0, 112) is the template itself.
        margin: of "box": the square's side, as a multiple of the box's longer one. Of "inside": by how much
            the box is enlarged, unless the photo ends before.
    """

    side: int = CROP_SIDE
    around: Around = "template"
    window: Window = WHOLE
    margin: float = 1.0

    @property
    def needs_photo(self) -> bool:
        """Whether it shows more than an aligned face has."""
        return self.around != "template"

    @property
    def is_template(self) -> bool:
        """Whether it is the aligned face itself."""
        return self == ALIGNED

    def describe(self) -> str:
        """What it is, in words that never change: they are part of fingerprints."""
        seen = (
            f"{self.around} x {self.margin:g}"
            if self.needs_photo
            else f"template {', '.join(f'{value:g}' for value in self.window)}"
        )
        return f"{seen}, {self.side} pixels"


ALIGNED = Crop()
"""The aligned face itself: what most embedders see."""


def read_window(parameters: Parameters) -> Window:
    """The parameter `window`, which must be given: left, top and side.

    Raises:
        Exception: `parameters.error(…)`, if it is no such square.
    """
    given = parameters.numbers("window", -CROP_SIDE, 4 * CROP_SIDE)
    if len(given) != 3 or given[2] < 1:
        raise parameters.error("window", "must be left, top and side in pixels of the template")
    return (given[0], given[1], given[2])


def input_side(key: str, parameters: Parameters, inputs: Sequence[TensorSpec]) -> int:
    """The side in pixels of the crops that a model with these inputs gets.

    Args:
        key: the parameter that says what they show, for the error.

    Raises:
        Exception: `parameters.error(…)`, if they are no squares of a fixed side.
    """
    _, height, width = inputs[0].dims
    if not 0 < height == width <= _MAX_SIDE:
        raise parameters.error(
            key, f"wants a square input: its dims must be [3, S, S], S at most {_MAX_SIDE}"
        )
    return height
