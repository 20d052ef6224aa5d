"""What a model family must provide so that a backend can run it and the pipeline can use it.

A family is one module here, which lists it in `FAMILIES`, and one `config.pbtxt`. It names its network
(for the pytorch backend), knows its outputs again in somebody else's graph (for onnxruntime) and turns raw
outputs into results. Backends do everything else: stacking rows, normalising, moving, running.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import nn

ImageU8 = NDArray[np.uint8]
ArrayF32 = NDArray[np.float32]
Task = Literal["detect", "embed"]

ALIGNMENT = "arcface-112-umeyama-bilinear"
"""How crops are made (`pipeline/align.py`). Part of every embedder's fingerprint: change it when the
crops change."""


@dataclass(frozen=True, slots=True)
class Normalisation:
    """How RGB uint8 pixels become a network's input: reorder the channels, then (x - mean) * scale.

    Attributes:
        channel_order: the order in which the network was trained to see channels.
        mean: subtracted from each channel, in `channel_order`, in units of 0..255.
        scale: multiplied afterwards; 1 keeps 0..255.
    """

    channel_order: Literal["RGB", "BGR"]
    mean: tuple[float, float, float]
    scale: float

    @property
    def fill_rgb(self) -> tuple[int, int, int]:
        """The RGB colour that becomes (nearly) zero: what letterboxing pads with."""
        mean = self.mean if self.channel_order == "RGB" else self.mean[::-1]
        return (round(mean[0]), round(mean[1]), round(mean[2]))


class DetectorRow(NamedTuple):
    """One photo for a detector: a square canvas [side, side, 3], RGB uint8, and the score to beat."""

    image: ImageU8
    min_score: float


class EmbedderRow(NamedTuple):
    """One aligned face for an embedder: a crop [112, 112, 3], RGB uint8."""

    image: ImageU8


class Detections(NamedTuple):
    """The faces of one canvas, by falling score, after non-maximum suppression.

    boxes: [n, 4] float32, x1 y1 x2 y2 in canvas pixels. scores: [n] float32 in [0, 1].
    landmarks: [n, 5, 2] float32, x y in canvas pixels: left eye, right eye, nose, left and right mouth
    corner, left and right as the viewer sees them.
    """

    boxes: ArrayF32
    scores: ArrayF32
    landmarks: ArrayF32


@dataclass(frozen=True, slots=True)
class FamilyOptions:
    """What a model's `config.pbtxt` sets for its family's post-processing.

    Attributes:
        score_threshold: faces at or below are dropped, unless a request asks otherwise; in [0, 1].
        nms_threshold: boxes that overlap a better one by more than this IoU are dropped; in [0, 1].
    """

    score_threshold: float = 0.5
    nms_threshold: float = 0.4


class NoNetwork(Exception):
    """A family that exists as an ONNX graph only."""


class Family(Protocol):
    """One model family: a network and what its outputs mean. Stateless, safe to share by threads.

    Rows are `DetectorRow` for the task "detect" and `EmbedderRow` for "embed"; results are `Detections`
    and raw (not normalised) float32 vectors [dimensions] respectively.
    """

    name: str
    task: Task

    def network(self) -> nn.Module:
        """A new network with random weights and the public checkpoints' key names, in eval mode.

        Its forward takes [N, 3, H, W] float and returns a tensor or a tuple of tensors, batch first. If
        what it runs depends on what it sees, it says so by an attribute `CAPTURABLE = False`: GPUs then
        run it without CUDA graphs.

        Raises:
            NoNetwork: there is none in PyTorch.
        """
        ...

    def arrange(self, shapes: Sequence[tuple[int, ...]], side: int) -> Sequence[int]:
        """Which outputs of an ONNX graph `results` takes: their indices, in the order of `network`'s.

        Args:
            shapes: of the graph's outputs for one image, without the batch's axis.
            side: of that square image, in pixels.

        Raises:
            ValueError: it is no graph of this family; the message says what it must give.
        """
        ...

    def results(
        self, outputs: Sequence[ArrayF32], rows: Sequence[Any], options: FamilyOptions
    ) -> list[Any]:
        """One result per row from the network's outputs (numpy, float32, batch first)."""
        ...
