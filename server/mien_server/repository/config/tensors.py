"""What a config's `input`, `output` and `model_warmup` say, checked against the task."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from tritonclient.grpc import model_config_pb2 as triton

from mien_server.models.interface import Task
from mien_server.repository.config.pbtxt import ConfigText, FieldPath

CROP_SIDE = 112
"""Side of an embedder's input, in pixels."""

_MAX_WARMUP_BYTES = 1 << 30
_MAX_WARMUP_COUNT = 100
"""Seconds to minutes of the largest batches. What is cold after them, more will not warm."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output of a model, without its batch dimension.

    Attributes:
        name: as Triton's clients name it.
        data_type: Triton's name, "TYPE_FP32".
        dims: the shape of one row; -1 is variable.
    """

    name: str
    data_type: str
    dims: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Warmup:
    """One `model_warmup` sample.

    Attributes:
        name: for logs.
        batch_size: rows, 1 or more.
        side: of each square image, in pixels.
        random: random pixels; else zeros.
        count: how often it runs, 1 to 100.
    """

    name: str
    batch_size: int
    side: int
    random: bool
    count: int


# Pixels come as they are, RGB 0..255: normalising them is the model's own work. In these dims -1
# stands for any size.
_INPUTS: dict[Task, tuple[TensorSpec, ...]] = {
    "detect": (TensorSpec("image", "TYPE_UINT8", (3, -1, -1)),),
    "embed": (TensorSpec("face", "TYPE_UINT8", (3, CROP_SIDE, CROP_SIDE)),),
}
_OUTPUTS: dict[Task, tuple[TensorSpec, ...]] = {
    "detect": (
        TensorSpec("boxes", "TYPE_FP32", (-1, 4)),
        TensorSpec("scores", "TYPE_FP32", (-1,)),
        TensorSpec("landmarks", "TYPE_FP32", (-1, 5, 2)),
    ),
    "embed": (TensorSpec("embedding", "TYPE_FP32", (-1,)),),
}


def read_inputs(text: ConfigText, task: Task) -> tuple[TensorSpec, ...]:
    """The inputs, which must be the task's, under any name.

    Raises:
        ConfigError: they are not.
    """
    for index, message in enumerate(text.message.input):
        if message.format not in (triton.ModelInput.FORMAT_NONE, triton.ModelInput.FORMAT_NCHW):
            raise text.error(("input", index, "format"), "must be FORMAT_NCHW")
    return _read(text, "input", _INPUTS[task], task)


def read_outputs(text: ConfigText, task: Task) -> tuple[TensorSpec, ...]:
    """The outputs, which must be the task's, under any name. An embedding has a fixed size.

    Raises:
        ConfigError: they are not.
    """
    outputs = _read(text, "output", _OUTPUTS[task], task)
    if task == "embed" and outputs[0].dims[0] < 1:
        raise text.error(("output", 0, "dims"), "must be the embedding's size, for example [ 512 ]")
    return outputs


def read_warmup(
    text: ConfigText, inputs: tuple[TensorSpec, ...], sides: tuple[int, ...], max_batch_size: int
) -> tuple[Warmup, ...]:
    """The warm-up samples.

    Args:
        text: the config.
        inputs: of the model.
        sides: the image sides that the model runs at: a detector's buckets, or a crop's.
        max_batch_size: rows of the largest batch.

    Raises:
        ConfigError: a sample that the model could not run.
    """
    return tuple(
        _sample(text, ("model_warmup", index), message, inputs[0], sides, max_batch_size)
        for index, message in enumerate(text.message.model_warmup)
    )


def read_specs(messages: Iterable[Any]) -> tuple[TensorSpec, ...]:
    """Triton's `input` or `output` messages, as they are."""
    return tuple(
        TensorSpec(message.name, triton.DataType.Name(message.data_type), tuple(message.dims))
        for message in messages
    )


def _read(
    text: ConfigText, kind: str, expected: tuple[TensorSpec, ...], task: Task
) -> tuple[TensorSpec, ...]:
    messages = getattr(text.message, kind)
    if len(messages) != len(expected):
        wanted = ", ".join(f"{spec.name} {_shape(spec)}" for spec in expected)
        raise text.error(
            (kind,), f"has {len(messages)} tensors; the task {task!r} has {len(expected)}: {wanted}"
        )
    specs = read_specs(messages)
    for index, (spec, wanted_spec) in enumerate(zip(specs, expected, strict=True)):
        if not spec.name:
            raise text.error((kind, index), f'has no name; add name: "{wanted_spec.name}"')
        if spec.name in {other.name for other in specs[:index]}:
            raise text.error((kind, index, "name"), f"{spec.name!r} is given twice")
        if spec.data_type != wanted_spec.data_type:
            raise text.error(
                (kind, index, "data_type"),
                f"is {spec.data_type}; must be {wanted_spec.data_type}",
            )
        if not _fits(spec.dims, wanted_spec.dims):
            raise text.error(
                (kind, index, "dims"),
                f"is {list(spec.dims)}; must be {list(wanted_spec.dims)}",
            )
    return specs


def _shape(spec: TensorSpec) -> str:
    return f"{spec.data_type} {list(spec.dims)}"


def _fits(dims: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    return len(dims) == len(wanted) and all(
        have == want or (want == -1 and have > 0) for have, want in zip(dims, wanted, strict=True)
    )


def _sample(
    text: ConfigText,
    path: FieldPath,
    message: Any,
    tensor: TensorSpec,
    sides: tuple[int, ...],
    max_batch_size: int,
) -> Warmup:
    if not 1 <= message.batch_size <= max_batch_size:
        raise text.error(
            (*path, "batch_size"),
            f"is {message.batch_size}; must be in [1, {max_batch_size}], the largest batch",
        )
    if set(message.inputs) != {tensor.name}:
        raise text.error((*path, "inputs"), f'must be the one input, key: "{tensor.name}"')
    given = message.inputs[tensor.name]
    at = (*path, "inputs", tensor.name)
    if triton.DataType.Name(given.data_type) != tensor.data_type:
        raise text.error((*at, "data_type"), f"must be {tensor.data_type}")
    possible = list(_squares(sides))
    if tuple(given.dims) not in possible:
        wanted = " or ".join(str(list(dims)) for dims in possible)
        raise text.error((*at, "dims"), f"is {list(given.dims)}; must be {wanted}")
    if (size := message.batch_size * math.prod(given.dims)) > _MAX_WARMUP_BYTES:
        raise text.error(
            (*path, "batch_size"),
            f"makes a batch of {size} bytes; must be at most {_MAX_WARMUP_BYTES}",
        )
    if message.count > _MAX_WARMUP_COUNT:
        raise text.error(
            (*path, "count"),
            f"is {message.count}; must be in [0, {_MAX_WARMUP_COUNT}], where 0 means once",
        )
    kind = given.WhichOneof("input_data_type")
    if kind is None:
        raise text.error(at, "has no data; add random_data: true or zero_data: true")
    if not getattr(given, kind):
        raise text.error((*at, kind), "is false; must be random_data: true or zero_data: true")
    return Warmup(
        name=message.name,
        batch_size=message.batch_size,
        side=given.dims[1],
        random=given.random_data,
        count=message.count or 1,
    )


def _squares(sides: tuple[int, ...]) -> Iterator[tuple[int, int, int]]:
    return ((3, side, side) for side in sides)
