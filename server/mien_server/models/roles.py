"""The roles of models: detectors, which find faces, and embedders, which turn an aligned face into a vector.

Everything that the server must know of a kind of model is said here. Elsewhere a role is named only by who
needs a model of it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from mien_server.models import portraits
from mien_server.models.answers import SCORE, cosines, faces_of, grown, nearest
from mien_server.models.crops import ALIGNED, Crop, input_side, read_window
from mien_server.models.detections import Detections
from mien_server.models.interface import (
    CROP_SIDE,
    ONE_FACE,
    AnyFamily,
    ArrayF32,
    ImageU8,
    NoNetwork,
    Parameters,
    Role,
    TensorSpec,
)

MIN_IOU = 0.75
"""From this overlap on two detectors' boxes agree."""

MIN_COSINE = 0.99
"""From this cosine on two vectors of one face agree: what a lower precision of a network may lose."""

NO_LANDMARKS = "detector {!r} places no landmarks, and without these no face can be aligned"
"""Why such a detector will not do, with its name."""

SURE = 0.75
"""Faces that a detector scores lower are no reference: rounding may lose them."""

_LOST = 0.3
"""A face of a golden file that a precision scores lower counts as lost."""
_STRIDE = 32
"""A detector's deepest feature map has a 32nd of the side."""
_MAX_BUCKET = 4096


class DetectorRow(NamedTuple):
    """One photo for a detector: a square canvas [side, side, 3], RGB uint8, and the score to beat."""

    image: ImageU8
    min_score: float


@dataclass(frozen=True, slots=True)
class DetectorOptions:
    """What a detector's `config.pbtxt` sets.

    Attributes:
        buckets: sides of its square canvases in pixels, ascending multiples of 32.
        score_threshold: faces at or below are dropped, unless a request asks otherwise; in [0, 1].
        nms_threshold: boxes that overlap a better one by more than this IoU are dropped; in [0, 1].
        landmarks: whether it places any, for which it has an output then. Without, no face can be aligned.
    """

    buckets: tuple[int, ...] = ()
    score_threshold: float = 0.5
    nms_threshold: float = 0.4
    landmarks: bool = True


class Detector(Role[DetectorRow, Detections, DetectorOptions]):
    """Finds the faces of a photo that was letterboxed to one of its square canvases."""

    name = "detect"
    title = "a detector"
    inputs = (TensorSpec("image", "TYPE_UINT8", (3, -1, -1)),)
    outputs = (
        TensorSpec("boxes", "TYPE_FP32", (-1, 4)),
        TensorSpec("scores", "TYPE_FP32", (-1,)),
        TensorSpec("landmarks", "TYPE_FP32", (-1, 5, 2)),
    )
    optional_outputs = 1
    parameters = frozenset({"buckets", "score_threshold", "nms_threshold"})
    no_reference = (
        "it is sure of no face in two plain portraits: channel_order, mean or scale may be wrong"
    )
    template = """
# Square canvases, RGB 0..255, and the faces on them in canvas pixels.
input [
  { name: "image", data_type: TYPE_UINT8, format: FORMAT_NCHW, dims: [ 3, -1, -1 ] }
]
output [
  { name: "boxes", data_type: TYPE_FP32, dims: [ -1, 4 ] },
  { name: "scores", data_type: TYPE_FP32, dims: [ -1 ] }$landmarks
]

# Photos are letterboxed to square canvases of these sides. Faces that score above the threshold are
# reported, unless a request asks otherwise.
parameters [
  $parameters,
  { key: "buckets", value: { string_value: "$buckets" } },
  { key: "score_threshold", value: { string_value: "0.5" } },
  { key: "nms_threshold", value: { string_value: "0.4" } }
]
model_warmup [
  {
    name: "one photo"
    batch_size: 1
    inputs { key: "image", value: { data_type: TYPE_UINT8, dims: [ 3, $side, $side ], random_data: true } }
  }
]
"""
    template_rows = 16

    def read_options(self, parameters: Parameters) -> DetectorOptions:
        """The buckets, which must be given, and the thresholds."""
        usual = DetectorOptions()
        buckets = parameters.integers("buckets", 1)
        for side in buckets:
            if side % _STRIDE or side > _MAX_BUCKET:
                raise parameters.error(
                    "buckets", f"{side} must be a multiple of {_STRIDE}, at most {_MAX_BUCKET}"
                )
        if list(buckets) != sorted(set(buckets)):
            raise parameters.error("buckets", "must be ascending, without repetition")
        return DetectorOptions(
            buckets,
            parameters.number("score_threshold", 0, 1, usual.score_threshold),
            parameters.number("nms_threshold", 0, 1, usual.nms_threshold),
        )

    def with_tensors(
        self,
        options: DetectorOptions,
        parameters: Parameters,  # noqa: ARG002
        inputs: Sequence[TensorSpec],  # noqa: ARG002
        outputs: Sequence[TensorSpec],
    ) -> DetectorOptions:
        """A detector without an output for landmarks places none."""
        return replace(options, landmarks=len(outputs) == len(self.outputs))

    def sides(self, options: DetectorOptions) -> tuple[int, ...]:
        """The buckets."""
        return options.buckets

    def row(self, image: ImageU8, options: DetectorOptions) -> DetectorRow:
        """A canvas whose faces are to beat the model's own threshold."""
        return DetectorRow(image, options.score_threshold)

    def arrays(self, results: Sequence[Detections]) -> tuple[ArrayF32, ...]:
        """Boxes [N, M, 4], scores [N, M] and, if the detector places any, landmarks [N, M, 5, 2].

        M is the number of faces of the row with the most, at least one. What a row has less is zeros.
        """
        most = max(1, *(len(found.scores) for found in results))
        every = tuple(
            np.stack([grown(np.asarray(part, np.float32), most) for part in parts])
            for parts in zip(*results, strict=True)
        )
        return every if results[0].placed else every[:-1]

    def agree(self, ours: Detections, theirs: Detections) -> bool:
        """Whether both found as many faces, each where the other has one."""
        if len(ours.boxes) != len(theirs.boxes):
            return False
        return bool((ours.iou(theirs).max(axis=1, initial=0.0) >= MIN_IOU).all())

    def check_first(self, result: Detections, outputs: Sequence[TensorSpec]) -> None:
        """It has landmarks if an output is promised for them, and only then: even where it found no face.

        Raises:
            ValueError: it is not so.
        """
        promised = len(outputs) == len(self.outputs)
        if result.placed and not promised:
            raise ValueError(
                "the detector places landmarks, but config.pbtxt has no output for them"
            )
        if promised and not result.placed:
            raise ValueError(
                f"the detector places no landmarks, but config.pbtxt has the output {outputs[-1].name!r}"
            )

    def golden_pictures(self, options: DetectorOptions) -> ImageU8:
        """Canvases of the smallest side."""
        return portraits.canvases(min(options.buckets))

    def golden_rows(self, pictures: ImageU8) -> list[DetectorRow]:
        """Canvases with a low score to beat, whatever the model's own threshold is."""
        return [DetectorRow(picture, _LOST) for picture in pictures]

    def answers(self, results: Sequence[Detections]) -> ArrayF32:
        """The faces of all pictures [m, 16]: number of the picture, box, score and landmarks.

        [m, 6] of a detector that places none.
        """
        return np.concatenate([faces_of(picture, found) for picture, found in enumerate(results)])

    def reference(self, answers: ArrayF32) -> ArrayF32:
        """The faces that the detector is sure of."""
        return answers[answers[:, SCORE] >= SURE]

    def cosines(self, expected: ArrayF32, found: ArrayF32) -> NDArray[np.float64]:
        """Of each face with the nearest that was found in its picture, or 0 if there is none.

        A face counts as the vector of its corners and landmarks, seen from the expected box's centre in
        units of half its longer side, and its score. Landmarks where none are expected count as lost, as
        none where some are.
        """
        if expected.shape[1] != found.shape[1]:
            return np.zeros(len(expected))
        return np.array([nearest(face, found) for face in expected])

    def well_formed(self, pictures: ImageU8, expected: ArrayF32) -> bool:
        """Whether they are square canvases and faces on them."""
        match pictures.shape, expected.shape:
            case (n, height, width, 3), (_, 16 | 6):
                return bool(height == width and np.isin(expected[:, 0], np.arange(n)).all())
        return False


class EmbedderRow(NamedTuple):
    """One aligned face for an embedder: a crop [side, side, 3], RGB uint8; most see 112 pixels."""

    image: ImageU8


@dataclass(frozen=True, slots=True)
class EmbedderOptions:
    """What an embedder's `config.pbtxt` sets.

    Attributes:
        match_threshold: the cosine from which two faces match, in [-1, 1], or None.
        thresholds_by_far: false accept rates, each with the cosine that was measured to keep it.
        crop: what it sees, always of the aligned face: so it can embed what galleries keep, too.
    """

    match_threshold: float | None = None
    thresholds_by_far: tuple[tuple[float, float], ...] = ()
    crop: Crop = ALIGNED


class Embedder(Role[EmbedderRow, ArrayF32, EmbedderOptions]):
    """Turns an aligned face into a vector [dimensions] float32, not normalised."""

    name = "embed"
    title = "an embedding model"
    inputs = (TensorSpec("face", "TYPE_UINT8", (3, -1, -1)),)
    outputs = (TensorSpec("embedding", "TYPE_FP32", (-1,)),)
    parameters = frozenset({"match_threshold", "thresholds_by_far", "window"})
    template = (
        """
# Aligned crops, RGB 0..255, and their embeddings as the network gives them: not of unit length.
input [
  { name: "face", data_type: TYPE_UINT8, format: FORMAT_NCHW, dims: [ 3, $side, $side ] }
]
output [
  { name: "embedding", data_type: TYPE_FP32, dims: [ $dimensions ] }
]

# Without match_threshold, which is known of no new weights, Verify wants one in each request.
"""
        + ONE_FACE
    )

    def read_options(self, parameters: Parameters) -> EmbedderOptions:
        """The thresholds and the crop's window, all of which may be left out."""
        threshold = (
            parameters.number("match_threshold", -1, 1) if "match_threshold" in parameters else None
        )
        table = parameters.table("thresholds_by_far", keys=(0, 1), values=(-1, 1))
        crop = Crop(window=read_window(parameters)) if "window" in parameters else ALIGNED
        return EmbedderOptions(threshold, table, crop)

    def with_tensors(
        self,
        options: EmbedderOptions,
        parameters: Parameters,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],  # noqa: ARG002
    ) -> EmbedderOptions:
        """The side of the crop is the input's; what another than the usual one shows, has to be said."""
        side = input_side("window", parameters, inputs)
        if side != CROP_SIDE and "window" not in parameters:
            raise parameters.error(
                "window",
                f"is missing: say which part of the {CROP_SIDE}x{CROP_SIDE} template an input of"
                f" {side}x{side} pixels shows, as left, top and side; all of it is 0, 0, {CROP_SIDE}",
            )
        return replace(options, crop=replace(options.crop, side=side))

    def describe(self, options: EmbedderOptions) -> str:
        """The crop, if it is not the aligned face itself."""
        return "" if options.crop.is_template else options.crop.describe()

    def run_alike(self, options: EmbedderOptions, others: EmbedderOptions) -> bool:
        """Whether they see the same: thresholds judge vectors, and are looked up when they do."""
        return options.crop == others.crop

    def output_problem(self, output: TensorSpec) -> str:
        """An embedding has a fixed size, which its config says."""
        return "" if output.dims[0] >= 1 else "must be the embedding's size, for example [ 512 ]"

    def sides(self, options: EmbedderOptions) -> tuple[int, ...]:
        """That of its crop."""
        return (options.crop.side,)

    def row(self, image: ImageU8, options: EmbedderOptions) -> EmbedderRow:  # noqa: ARG002
        """A crop."""
        return EmbedderRow(image)

    def arrays(self, results: Sequence[ArrayF32]) -> tuple[ArrayF32, ...]:
        """The vectors [N, dimensions]."""
        return (np.stack(results),)

    def agree(self, ours: ArrayF32, theirs: ArrayF32) -> bool:
        """Whether both vectors have nearly one direction."""
        norms = float(np.linalg.norm(ours)) * float(np.linalg.norm(theirs))
        return norms > 0.0 and float(np.dot(ours, theirs)) / norms >= MIN_COSINE

    def check_first(self, result: ArrayF32, outputs: Sequence[TensorSpec]) -> None:
        """A vector of the promised size, of finite numbers.

        Raises:
            ValueError: it is not.
        """
        if result.shape != outputs[0].dims:
            raise ValueError(
                f"the embedding has shape {list(result.shape)}, but config.pbtxt says"
                f" output.dims {list(outputs[0].dims)}"
            )
        if not np.isfinite(result).all():
            raise ValueError(
                "the embedding of a random image is not finite: the weights are broken"
            )

    def golden_pictures(self, options: EmbedderOptions) -> ImageU8:
        """Two crops and their mirror images, at the side of its own."""
        return portraits.crops(options.crop.side)

    def golden_rows(self, pictures: ImageU8) -> list[EmbedderRow]:
        """The crops."""
        return [EmbedderRow(np.ascontiguousarray(picture)) for picture in pictures]

    def answers(self, results: Sequence[ArrayF32]) -> ArrayF32:
        """The vectors [n, dimensions]."""
        return np.stack(results).astype(np.float32)

    def cosines(self, expected: ArrayF32, found: ArrayF32) -> NDArray[np.float64]:
        """Of each picture's vectors; vectors of another size count as lost."""
        fits = found.shape == expected.shape
        return cosines(expected, found) if fits else np.zeros(len(expected))

    def well_formed(self, pictures: ImageU8, expected: ArrayF32) -> bool:
        """Whether they are crops and a vector of each."""
        match pictures.shape, expected.shape:
            case (n, height, width, 3), (m, _):
                return bool(n == m and height == width)
        return False


DETECTOR = Detector()
EMBEDDER = Embedder()


if TYPE_CHECKING:
    from torch import nn


class EmbedderFamily:
    """A network whose only output [N, dimensions] is the embedding: `interface.Family` of embedders."""

    role = EMBEDDER

    def __init__(self, name: str, build: Callable[[], "nn.Module"]) -> None:
        self.name = name
        self._build = build

    def network(self) -> "nn.Module":
        """A new network with random weights, in eval mode.

        Raises:
            NoNetwork: it is a family of ONNX graphs.
        """
        return self._build().eval()

    def arrange(self, shapes: Sequence[tuple[int, ...]], side: int) -> Sequence[int]:  # noqa: ARG002
        """The only output there is.

        Raises:
            ValueError: there are several, or it is no vector.
        """
        if [len(shape) for shape in shapes] != [1]:
            raise ValueError("an embedder gives one output, [dimensions]")
        return (0,)

    def results(
        self,
        outputs: Sequence[ArrayF32],
        rows: Sequence[EmbedderRow],
        options: EmbedderOptions,  # noqa: ARG002 - vectors are compared later
    ) -> list[ArrayF32]:
        """Each row's vector [dimensions] float32, as the network gave it: not normalised."""
        return [vector for vector, _ in zip(outputs[0], rows, strict=True)]


def _graphs_only() -> NoReturn:
    raise NoNetwork("any embedder's graph, of whatever layers")


FAMILIES: tuple[AnyFamily, ...] = (EmbedderFamily("embedder", _graphs_only),)
