"""What a role and a family of models must say, and the words that both are told in.

A **role** is a kind of model: what it takes, what it gives, and what the server must know to serve it. A
**family** is an architecture in a role: its network and what that network's outputs mean. `roles` has the
roles that mien knows, and the modules beside it list its families; other packages bring more of both, see
`families`.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import nn

ImageU8 = NDArray[np.uint8]
ArrayF32 = NDArray[np.float32]

ALIGNMENT = "arcface-112-umeyama-halved-bilinear"
"""How crops are made (`pipeline/align.py`). Part of every embedder's fingerprint: change it when the
crops change."""

CROP_SIDE = 112
"""Side in pixels of an aligned face."""

ONE_FACE = """\
parameters [
  $parameters,
  { key: "split_rows", value: { string_value: "true" } }
]
model_warmup [
  {
    name: "one face"
    batch_size: 1
    inputs { key: "face", value: { data_type: TYPE_UINT8, dims: [ 3, $side, $side ], random_data: true } }
  }
]
"""
"""The end of the template of a role whose rows are faces."""


@dataclass(frozen=True, slots=True)
class Normalisation:
    """How RGB uint8 pixels become a network's input: reorder the channels, then (x - mean) * scale.

    Attributes:
        channel_order: the order in which the network was trained to see channels; GREY: it sees one, the
            brightness, rounded to 0..255.
        mean: subtracted from each channel, in `channel_order`, in units of 0..255; of GREY the first counts.
        scale: multiplied afterwards; 1 keeps 0..255. Of each channel, in `channel_order`, if they differ.
    """

    channel_order: Literal["RGB", "BGR", "GREY"]
    mean: tuple[float, float, float]
    scale: float | tuple[float, float, float]

    @property
    def scales(self) -> tuple[float, float, float]:
        """The scale of each channel, in `channel_order`."""
        return self.scale if isinstance(self.scale, tuple) else (self.scale,) * 3

    @property
    def channels(self) -> int:
        """How many the network sees."""
        return 1 if self.channel_order == "GREY" else 3

    @property
    def fill_rgb(self) -> tuple[int, int, int]:
        """The RGB colour that becomes (nearly) zero: what letterboxing pads with."""
        mean = self.mean[::-1] if self.channel_order == "BGR" else self.mean
        return (round(mean[0]), round(mean[1]), round(mean[2]))


CHANNEL_ORDERS: tuple[Literal["RGB", "BGR", "GREY"], ...] = ("RGB", "BGR", "GREY")


def normalisation_of(
    channel_order: Literal["RGB", "BGR", "GREY"], mean: Sequence[float], scale: Sequence[float]
) -> Normalisation:
    """The normalisation with these numbers: one for all channels, or three in `channel_order`.

    Equal ones are as good as one: what is the same is equal, and has one fingerprint.
    """
    means, scales = (tuple(values) * (3 // len(values)) for values in (mean, scale))
    return Normalisation(
        channel_order=channel_order,
        mean=(means[0], means[1], means[2]),
        scale=scales[0] if len(set(scales)) == 1 else (scales[0], scales[1], scales[2]),
    )


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output of a model, without its batch dimension.

    Attributes:
        name: as Triton's clients name it.
        data_type: Triton's name, "TYPE_FP32".
        dims: the shape of one row; -1 is variable.
        labels: of an output's values, from its `label_filename`; maybe none.
    """

    name: str
    data_type: str
    dims: tuple[int, ...]
    labels: tuple[str, ...] = ()


class Parameters(Protocol):
    """The `parameters` of a config.pbtxt. Every reader raises for a value that does not fit."""

    def __contains__(self, key: str) -> bool:
        """Whether the parameter is given."""
        ...

    def error(self, key: str, problem: str) -> Exception:
        """The error to raise that says so about this parameter."""
        ...

    def text(self, key: str, default: str | None = None) -> str:
        """A string; without default it must be given."""
        ...

    def texts(self, key: str) -> tuple[str, ...]:
        """Strings, separated by commas; none if it is not given."""
        ...

    def choice(self, key: str, choices: Collection[T], default: T | None = None) -> T:
        """One of the choices, which are strings; without default it must be given."""
        ...

    def flag(self, key: str, *, default: bool) -> bool:
        """`true` or `false`."""
        ...

    def number(self, key: str, low: float, high: float, default: float | None = None) -> float:
        """A number in [low, high]; without default it must be given."""
        ...

    def integer(self, key: str, low: int, default: int) -> int:
        """A whole number from `low` on."""
        ...

    def numbers(self, key: str, low: float, high: float) -> tuple[float, ...]:
        """Numbers in [low, high], separated by commas; they must be given."""
        ...

    def integers(self, key: str, low: int) -> tuple[int, ...]:
        """Whole numbers from `low` on, separated by commas; they must be given."""
        ...

    def table(
        self, key: str, *, keys: tuple[float, float], values: tuple[float, float]
    ) -> tuple[tuple[float, float], ...]:
        """Pairs of numbers, each within its bounds; none if the parameter is not given."""
        ...


class Row(Protocol):
    """What one row of a batch always has: an image [H, W, 3], RGB uint8. Roles add what they need."""

    @property
    def image(self) -> ImageU8:
        """Of the shape that the network gets."""
        ...


RowT = TypeVar("RowT", bound=Row)
ResultT = TypeVar("ResultT")
OptionsT = TypeVar("OptionsT")


class Role(ABC, Generic[RowT, ResultT, OptionsT]):
    """A kind of model: the rows that it takes, the results that it gives, the options that it has.

    A role is one object without state, shared by all models and threads; models have the same role if it
    is the same object.

    Attributes:
        name: short, "detect". Timings of calls and golden files carry it, so it never changes.
        title: one such model in a sentence, "a detector".
        inputs: the tensors at Triton's door. There is one, of images as planes: TYPE_UINT8, [3, H, W], RGB
            0..255. Normalising them is the model's own work.
        outputs: likewise. A config.pbtxt must have as many tensors, under any names; where a size here is
            -1, it may say any, or -1.
        optional_outputs: how many of the last of these a config.pbtxt may leave out, of models without them.
        parameters: the parameters of a config.pbtxt that such models have beside those that all have.
        labelled: whether an output's `label_filename` means something.
        no_reference: what is wrong if `reference` keeps no answer.
        template: the part of a new config.pbtxt that is the role's, for `string.Template`; it is given
            `$parameters`, `$dimensions` of an embedding, of an analyser how many labels it has, `$buckets`
            and the output `$landmarks` of a detector, and the `$side` of the pictures that it gets.
        template_rows: the largest batch that a new config.pbtxt allows.
    """

    name: str
    title: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    optional_outputs: int = 0
    parameters: frozenset[str] = frozenset()
    labelled: bool = False
    no_reference: str = "its answers to two plain portraits are of no use"
    template: str = ""
    template_rows: int = 32

    @abstractmethod
    def read_options(self, parameters: Parameters) -> OptionsT:
        """The options that a config.pbtxt sets: an immutable value that can be compared.

        Raises:
            Exception: `parameters.error(…)` or what its readers raise, if one does not fit.
        """

    def with_tensors(
        self,
        options: OptionsT,
        parameters: Parameters,  # noqa: ARG002
        inputs: Sequence[TensorSpec],  # noqa: ARG002
        outputs: Sequence[TensorSpec],  # noqa: ARG002
    ) -> OptionsT:
        """The options, once it is known which tensors the config.pbtxt has; they fit `inputs` and `outputs`.

        Raises:
            Exception: `parameters.error(…)`, if they do not fit together.
        """
        return options

    def labels(self, options: OptionsT, output: TensorSpec) -> tuple[str, ...]:  # noqa: ARG002
        """What each value of a row of an output is called; nothing where they have no names."""
        return output.labels

    def describe(self, options: OptionsT) -> str:  # noqa: ARG002
        """What the options change of the answers to a face, in words that never change; "" if nothing.

        Part of the fingerprint, and of what a golden file is good for.
        """
        return ""

    def run_alike(self, options: OptionsT, others: OptionsT) -> bool:
        """Whether a version that was loaded with some options need not be loaded again for others."""
        return options == others

    def output_problem(self, output: TensorSpec) -> str:  # noqa: ARG002
        """Why the `dims` of an output that fit `outputs` will not do after all, or ""."""
        return ""

    @abstractmethod
    def sides(self, options: OptionsT) -> tuple[int, ...]:
        """The sides in pixels of the square images that its networks get, ascending."""

    @abstractmethod
    def row(self, image: ImageU8, options: OptionsT) -> RowT:
        """A row of an image [side, side, 3] that wants nothing but what the options say."""

    def shape(self, row: RowT) -> Hashable:
        """What rows must have in common to share a batch: the size of their images."""
        side: int = row.image.shape[0]
        return side

    @abstractmethod
    def arrays(self, results: Sequence[ResultT]) -> tuple[ArrayF32, ...]:
        """One array for each of `outputs`, rows first, of the results of at least one row."""

    @abstractmethod
    def agree(self, ours: ResultT, theirs: ResultT) -> bool:
        """Whether two versions say the same of one row: what shadows are judged by."""

    def check_first(self, result: ResultT, outputs: Sequence[TensorSpec]) -> None:  # noqa: ARG002
        """Looks at the result of a row of random pixels, the first that a loaded version answers.

        Args:
            result: of that row.
            outputs: what the model's config.pbtxt promises.

        Raises:
            ValueError: it is none that may be served; the message says what is wrong.
        """
        return

    # What a version's golden file holds: pictures, and numbers [m, d] that stand for the answers to them.

    @abstractmethod
    def golden_pictures(self, options: OptionsT) -> ImageU8:
        """The pictures that a golden file asks about, [n, side, side, 3]; see `portraits`."""

    @abstractmethod
    def golden_rows(self, pictures: ImageU8) -> list[RowT]:
        """A row for each of a golden file's pictures. What they want is the same for all models."""

    @abstractmethod
    def answers(self, results: Sequence[ResultT]) -> ArrayF32:
        """The results of those rows in one array [m, d]."""

    def reference(self, answers: ArrayF32) -> ArrayF32:
        """Those of a float32 network's answers that others can be measured by; maybe none."""
        return answers

    @abstractmethod
    def cosines(self, expected: ArrayF32, found: ArrayF32) -> NDArray[np.float64]:
        """How near answers come to each that is expected: [m], where 1 is the same and 0 is lost."""

    @abstractmethod
    def well_formed(self, pictures: ImageU8, expected: ArrayF32) -> bool:
        """Whether a golden file's pictures and answers can be of this role, whatever they show."""


AnyRole: TypeAlias = Role[Any, Any, Any]


class NoNetwork(Exception):
    """A family that exists as an ONNX graph only."""


class Family(Protocol[RowT, ResultT, OptionsT]):
    """An architecture: a network and what its outputs mean. Stateless, safe to share by threads.

    It names its network (for backend pytorch), knows its outputs again in somebody else's graph (for
    onnxruntime), and turns outputs into results. Backends do everything else: stacking rows, normalising,
    moving, running.

    Attributes:
        name: what `architecture` in a config.pbtxt says.
    """

    name: str

    @property
    def role(self) -> Role[RowT, ResultT, OptionsT]:
        """What such models take and give."""
        ...

    def network(self) -> "nn.Module":
        """A new network with random weights and the public checkpoints' key names, in eval mode.

        Its forward takes [N, 3, H, W] float and returns a tensor or a tuple of tensors, batch first. If
        what it runs depends on what it sees, it says so by an attribute `CAPTURABLE = False`: GPUs then
        run it without CUDA graphs. Only this imports torch.

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
        self, outputs: Sequence[ArrayF32], rows: Sequence[RowT], options: OptionsT
    ) -> list[ResultT]:
        """One result per row from the network's outputs (numpy, float32, batch first)."""
        ...


AnyFamily: TypeAlias = Family[Any, Any, Any]
