"""What a checkpoint was recognised as: everything that importing it needs to know."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mien_server.models.crops import Window
from mien_server.models.interface import Normalisation, normalisation_of
from mien_server.repository.config.model import Backend

if TYPE_CHECKING:  # graphs are imported without it
    from torch import Tensor

ARCFACE_INPUT = Normalisation("RGB", (127.5, 127.5, 127.5), 1 / 127.5)
NO_LICENSE = "not stated"
INSIGHTFACE_LICENSE = (
    "not stated; InsightFace's and ModelScope's public weights are for non-commercial research only"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenInput:
    """What a person says of a network's input; None of each that is as its publisher has it.

    Attributes:
        channel_order: the order in which it sees channels.
        mean, scale: (x - mean) * scale, x in 0..255: one number, or three in `channel_order`.
        window: the part of the aligned face that an embedder sees: left, top and side, in pixels of the
            112x112 template.
    """

    channel_order: Literal["RGB", "BGR"] | None = None
    mean: tuple[float, ...] | None = None
    scale: tuple[float, ...] | None = None
    window: Window | None = None

    def over(self, known: Normalisation | None) -> Normalisation | None:
        """The input that a network has if this is said of it; None if all of it is not known yet."""
        order = self.channel_order or (known and known.channel_order)
        mean = self.mean or (known and known.mean)
        scale = self.scale or (known and known.scales)
        return normalisation_of(order, mean, scale) if order and mean and scale else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Recognised:
    """What a checkpoint can be imported as.

    Attributes:
        title: what people call the network.
        architecture: as `config.pbtxt` names it.
        weights: the state_dict for `model.safetensors`, or the file that becomes `model.onnx`, or its bytes.
        tensors, parameters: how many tensors there are, and learnt numbers in them.
        normalisation: the input that its publisher trained it with, or None where nobody is known to have
            said so.
        license: what is known of who may use such weights for what.
        dimensions: those of its embeddings, or how many labels it has; 0 where neither is known.
        batch: rows that the graph always takes at once, or 0 for any number.
        side: of the square pictures that its graph always takes, in pixels; 0: any of a
            detector, and of an embedder what its config.pbtxt says.
        window: the part of the aligned face that an embedder sees, where somebody has said it.
        told: of an analyser whose publisher is known, the parameters that say what it tells, and of what.
        landmarks: whether a detector places any.
        buckets: sides of the square canvases that suit a detector of any side, or the usual ones.
        notes: what a person should know.
    """

    title: str
    backend: Backend
    architecture: str
    weights: "Mapping[str, Tensor] | Path | bytes"
    tensors: int
    parameters: int
    normalisation: Normalisation | None
    license: str
    dimensions: int = 0
    batch: int = 0
    side: int = 0
    window: Window | None = None
    told: Mapping[str, str] = field(default_factory=dict)
    landmarks: bool = True
    buckets: tuple[int, ...] = (320, 640, 1024)
    notes: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """Backend and architecture, for people: what a config.pbtxt must say."""
        return f"architecture {self.architecture!r} on backend {self.backend!r}"

    @property
    def filename(self) -> str:
        """What the weights are called in a version folder."""
        return "model.onnx" if isinstance(self.weights, Path | bytes) else "model.safetensors"
