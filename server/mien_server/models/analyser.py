"""Analysers: networks that tell something about one face.

What they tell is said by their configuration, in four kinds: a **classification** (a probability for each
label), a **score** (one probability), a **number** (an age in years) or **points** (landmarks). So is what
they see: an aligned crop, or the face's box with some margin. An analyser of these kinds is one config.pbtxt
and one ONNX graph, and no code.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mien_server.models import portraits
from mien_server.models.crops import ALIGNED, AROUND, WHOLE, Crop, input_side, read_window
from mien_server.models.interface import (
    ONE_FACE,
    AnyFamily,
    ArrayF32,
    ImageU8,
    NoNetwork,
    Parameters,
    Role,
    TensorSpec,
)

if TYPE_CHECKING:
    from torch import nn

Kind: TypeAlias = Literal["classification", "score", "number", "points"]
Activation: TypeAlias = Literal["none", "softmax", "sigmoid"]

_KINDS: tuple[Kind, ...] = ("classification", "score", "number", "points")
_ACTIVATIONS: tuple[Activation, ...] = ("none", "softmax", "sigmoid")
_UNITS: tuple[Literal["pixels", "fractions"], ...] = ("pixels", "fractions")

_AGREE = 0.05
"""By so much values of two versions that agree may differ, as a part of the largest of them or of 1."""

_ROUNDING = 1e-3
"""By so much a probability may leave [0, 1]."""

_LARGEST = 1e9
_MAX_MARGIN = 10.0


@dataclass(frozen=True, slots=True)
class AnalyserOptions:
    """What an analyser's `config.pbtxt` sets.

    Attributes:
        kind: what it tells.
        crop: what it sees.
        activation: what the graph's outputs still lack: "softmax" over all of them, "sigmoid" of each.
        labels: of a classification, one for each output.
        score_class: of a score, which of the outputs it is.
        values: of a number, what each output stands for: the answer is their mean, weighted by the outputs.
            Empty: the graph gives the number itself.
        unit: of a number, for people: "years".
        points_in: of points, whether the graph gives pixels of its crop or fractions of its side.
        by_default: whether callers that name no analysers get this one.
        average_with: other analysers that tell the same; answers to calls about faces are the mean of its own
            and theirs.
    """

    kind: Kind
    crop: Crop = ALIGNED
    activation: Activation = "none"
    labels: tuple[str, ...] = ()
    score_class: int = 0
    values: tuple[float, ...] = ()
    unit: str = ""
    points_in: Literal["pixels", "fractions"] = "pixels"
    by_default: bool = False
    average_with: tuple[str, ...] = ()


class AnalyserRow(NamedTuple):
    """One face for an analyser: a crop [side, side, 3], RGB uint8."""

    image: ImageU8


class Analysed(NamedTuple):
    """What an analyser says of a face.

    Attributes:
        kind: of analyser.
        values: [n] float32. A classification's probabilities in the order of its labels; one score or
            number; of points x and y in turn, in pixels of the crop, whose first has its centre at (0, 0).
    """

    kind: Kind
    values: ArrayF32


class Analyser(Role[AnalyserRow, Analysed, AnalyserOptions]):
    """Tells something about a face that was found."""

    name = "analyse"
    title = "an analyser"
    inputs = (TensorSpec("face", "TYPE_UINT8", (3, -1, -1)),)
    outputs = (TensorSpec("values", "TYPE_FP32", (-1,)),)
    parameters = frozenset(
        {
            *("answer", "activation", "labels", "score_class", "values", "unit", "points_in"),
            *("crop", "window", "margin", "analyse_by_default", "average_with"),
        }
    )
    labelled = True
    template = (
        """
# Crops, RGB 0..255, and what is told of each.
input [
  { name: "face", data_type: TYPE_UINT8, format: FORMAT_NCHW, dims: [ 3, $side, $side ] }
]
output [
  { name: "values", data_type: TYPE_FP32, dims: [ $dimensions ] }
]

"""
        + ONE_FACE
    )

    def read_options(self, parameters: Parameters) -> AnalyserOptions:
        """What it tells, which must be given, and of what; the rest may be left out."""
        kind = parameters.choice("answer", _KINDS)
        for key, only in (
            *(("labels", "classification"), ("score_class", "score"), ("values", "number")),
            *(("unit", "number"), ("points_in", "points")),
        ):
            if key in parameters and kind != only:
                raise parameters.error(key, f"has no meaning for a {kind}; remove it")
        return AnalyserOptions(
            kind,
            _crop(parameters),
            parameters.choice("activation", _ACTIVATIONS, "none"),
            labels=parameters.texts("labels"),
            score_class=parameters.integer("score_class", 0, 0),
            values=parameters.numbers("values", -_LARGEST, _LARGEST)
            if "values" in parameters
            else (),
            unit=parameters.text("unit", ""),
            points_in=parameters.choice("points_in", _UNITS, "pixels"),
            by_default=parameters.flag("analyse_by_default", default=False),
            average_with=parameters.texts("average_with"),
        )

    def with_tensors(
        self,
        options: AnalyserOptions,
        parameters: Parameters,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
    ) -> AnalyserOptions:
        """The side of the crop is the input's, and labels may come from the output's `label_filename`."""
        side = input_side("crop", parameters, inputs)
        (count,), labels = outputs[0].dims, outputs[0].labels
        if labels and options.labels:
            raise parameters.error("labels", "are given here and by label_filename; remove one")
        labels = options.labels or labels
        match options.kind:
            case "classification":
                if len(labels) != count or len(set(labels)) != count:
                    raise parameters.error(
                        "labels",
                        f"has {len(labels)}; must be {count} different ones, one for each output",
                    )
            case "points":
                if count % 2:
                    raise parameters.error(
                        "answer", f"of {count} numbers cannot be points: x and y in turn"
                    )
            case _:
                if count != 1:
                    raise parameters.error(
                        "answer", f"is one {options.kind}; output.dims must be [1], not [{count}]"
                    )
        return replace(options, labels=labels, crop=replace(options.crop, side=side))

    def labels(self, options: AnalyserOptions, output: TensorSpec) -> tuple[str, ...]:  # noqa: ARG002
        """Those of a classification, wherever its configuration has them."""
        return options.labels

    def describe(self, options: AnalyserOptions) -> str:
        """All that the network's own answers depend on: not the words, who gets it, or who else is asked."""
        told = {
            "classification": "",
            "score": f" {options.score_class}",
            "number": f" {', '.join(f'{value:g}' for value in options.values)}",
            "points": f" in {options.points_in}",
        }[options.kind]
        return f"{options.kind}{told}, {options.activation}; {options.crop.describe()}"

    def run_alike(self, options: AnalyserOptions, others: AnalyserOptions) -> bool:
        """Whether only that differs which `describe` leaves out."""
        return self.describe(options) == self.describe(others)

    def output_problem(self, output: TensorSpec) -> str:
        """It has a fixed size, which its config says."""
        return "" if output.dims[0] >= 1 else "must be how many values it gives, for example [ 7 ]"

    def sides(self, options: AnalyserOptions) -> tuple[int, ...]:
        """That of its crop."""
        return (options.crop.side,)

    def row(self, image: ImageU8, options: AnalyserOptions) -> AnalyserRow:  # noqa: ARG002
        """A crop."""
        return AnalyserRow(image)

    def arrays(self, results: Sequence[Analysed]) -> tuple[ArrayF32, ...]:
        """The values [N, n]."""
        return (np.stack([result.values for result in results]),)

    def agree(self, ours: Analysed, theirs: Analysed) -> bool:
        """Whether no value differs by more than a twentieth of the largest, or of 1."""
        largest = max(1.0, float(np.abs(ours.values).max()))
        return bool(np.abs(ours.values - theirs.values).max() <= _AGREE * largest)

    def check_first(self, result: Analysed, outputs: Sequence[TensorSpec]) -> None:
        """As many finite values as promised, and probabilities where they should be.

        Raises:
            ValueError: they are not.
        """
        values = result.values
        if values.shape != outputs[0].dims:
            raise ValueError(
                f"it gives values of shape {list(values.shape)}, but config.pbtxt says output.dims"
                f" {list(outputs[0].dims)}"
            )
        if not np.isfinite(values).all():
            raise ValueError("its values of a random image are not finite: the weights are broken")
        if result.kind in ("classification", "score") and not (
            values.min() >= -_ROUNDING and values.max() <= 1 + _ROUNDING
        ):
            raise ValueError(
                f"of a random image it gives values from {values.min():.3g} to {values.max():.3g}, which are"
                " no probabilities: `activation` may have to be softmax or sigmoid"
            )

    def golden_pictures(self, options: AnalyserOptions) -> ImageU8:
        """Two aligned crops and their mirror images, at the side of its own."""
        return portraits.crops(options.crop.side)

    def golden_rows(self, pictures: ImageU8) -> list[AnalyserRow]:
        """The crops."""
        return [AnalyserRow(np.ascontiguousarray(picture)) for picture in pictures]

    def answers(self, results: Sequence[Analysed]) -> ArrayF32:
        """The values [N, n]."""
        return self.arrays(results)[0].astype(np.float32)

    def cosines(self, expected: ArrayF32, found: ArrayF32) -> NDArray[np.float64]:
        """1 - d²/2, where d is how far values are off, as a part of the mean length of the expected.

        Of vectors of one length that is their cosine; that of single numbers would say nothing.
        """
        if found.shape != expected.shape:
            return np.zeros(len(expected))
        off = np.square(expected.astype(np.float64) - found).sum(axis=1)
        scale = np.square(expected.astype(np.float64)).sum(axis=1).mean()
        with np.errstate(all="ignore"):
            near = 1.0 - off / scale / 2.0
        return np.nan_to_num(np.where(off == 0.0, 1.0, near), nan=0.0, posinf=0.0, neginf=0.0)

    def well_formed(self, pictures: ImageU8, expected: ArrayF32) -> bool:
        """Whether they are square pictures and values for each."""
        match pictures.shape, expected.shape:
            case (n, height, width, 3), (m, _):
                return bool(n == m and height == width)
        return False


ANALYSER = Analyser()


class AnalyserFamily:
    """Any graph from crops [N, 3, S, S], or [N, 1, S, S], to values: `interface.Family` of analysers."""

    name = "analyser"
    role = ANALYSER

    def network(self) -> "nn.Module":
        """There is none.

        Raises:
            NoNetwork: always.
        """
        raise NoNetwork("any analyser's graph, of whatever layers")

    def arrange(self, shapes: Sequence[tuple[int, ...]], side: int) -> Sequence[int]:  # noqa: ARG002
        """The only output there is.

        Raises:
            ValueError: there are several.
        """
        if len(shapes) != 1:
            raise ValueError("an analyser gives one output")
        return (0,)

    def results(
        self, outputs: Sequence[ArrayF32], rows: Sequence[AnalyserRow], options: AnalyserOptions
    ) -> list[Analysed]:
        """What each row's outputs mean."""
        values = _activated(outputs[0].reshape(len(rows), -1), options.activation)
        match options.kind:
            case "score":
                values = values[:, options.score_class : options.score_class + 1]
            # Values that do not fit the outputs leave too many of them, which `check_first` refuses.
            case "number" if len(options.values) == values.shape[1]:
                values = values @ np.array(options.values, np.float32)[:, None]
            case "points" if options.points_in == "fractions":
                values = values * options.crop.side - 0.5
        return [Analysed(options.kind, row.astype(np.float32)) for row in values]


def _activated(values: ArrayF32, activation: Activation) -> ArrayF32:
    match activation:
        case "softmax":
            powers = np.exp(values - values.max(axis=1, keepdims=True))
            return np.asarray(powers / powers.sum(axis=1, keepdims=True), np.float32)
        case "sigmoid":
            return np.asarray(0.5 * (1.0 + np.tanh(0.5 * values)), np.float32)
    return values


def _crop(parameters: Parameters) -> Crop:
    around = parameters.choice("crop", AROUND, "template")
    for key, only in (("window", ("template",)), ("margin", ("box", "inside"))):
        if key in parameters and around not in only:
            raise parameters.error(key, f"has no meaning for a crop around the {around}; remove it")
    window = read_window(parameters) if "window" in parameters else WHOLE
    margin = parameters.number("margin", 0.1, _MAX_MARGIN, 1.0)
    return Crop(around=around, window=window, margin=margin)


FAMILIES: tuple[AnyFamily, ...] = (AnalyserFamily(),)
