"""What a config's `input`, `output` and `model_warmup` say, checked against the role."""

import logging
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tritonclient.grpc import model_config_pb2 as triton

from mien_server.models.interface import AnyRole, TensorSpec
from mien_server.repository.config.pbtxt import ConfigText, FieldPath, field_name
from mien_server.repository.folders import is_regular, leads_out

_log = logging.getLogger(__name__)

_MAX_LABEL_BYTES = 1 << 16
_MAX_WARMUP_BYTES = 1 << 30
_MAX_WARMUP_COUNT = 100
"""Seconds to minutes of the largest batches. What is cold after them, more will not warm."""


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


def read_inputs(text: ConfigText, role: AnyRole) -> tuple[TensorSpec, ...]:
    """The inputs, which must be the role's, under any name.

    Raises:
        ConfigError: they are not.
    """
    for index, message in enumerate(text.message.input):
        if message.format not in (triton.ModelInput.FORMAT_NONE, triton.ModelInput.FORMAT_NCHW):
            raise text.error(("input", index, "format"), "must be FORMAT_NCHW")
    return _read(text, "input", role.inputs, role)


def read_outputs(text: ConfigText, role: AnyRole) -> tuple[TensorSpec, ...]:
    """The outputs, which must be the role's, under any name.

    Raises:
        ConfigError: they are not.
    """
    outputs = _read(text, "output", role.outputs, role, optional=role.optional_outputs)
    for index, output in enumerate(outputs):
        if problem := role.output_problem(output):
            raise text.error(("output", index, "dims"), problem)
    return tuple(
        replace(output, labels=_labels(text, ("output", index, "label_filename"), message, role))
        for index, (output, message) in enumerate(zip(outputs, text.message.output, strict=True))
    )


def read_warmup(
    text: ConfigText, inputs: tuple[TensorSpec, ...], sides: tuple[int, ...], max_batch_size: int
) -> tuple[Warmup, ...]:
    """The warm-up samples.

    Args:
        text: the config.
        inputs: of the model.
        sides: the image sides that the model runs at.
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
    text: ConfigText,
    kind: str,
    expected: tuple[TensorSpec, ...],
    role: AnyRole,
    *,
    optional: int = 0,
) -> tuple[TensorSpec, ...]:
    messages = getattr(text.message, kind)
    least, most = len(expected) - optional, len(expected)
    if not least <= len(messages) <= most:
        wanted = ", ".join(f"{spec.name} {_shape(spec)}" for spec in expected)
        has = f"{least} or {most}" if optional else str(most)
        raise text.error(
            (kind,), f"has {len(messages)} tensors; the task {role.name!r} has {has}: {wanted}"
        )
    specs = read_specs(messages)
    for index, (spec, wanted_spec) in enumerate(zip(specs, expected, strict=False)):
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


def _labels(text: ConfigText, at: FieldPath, message: Any, role: AnyRole) -> tuple[str, ...]:
    """The lines of an output's `label_filename`, a file beside the config.pbtxt."""
    name: str = message.label_filename
    if not name:
        return ()
    if not role.labelled:
        _log.warning("%s:%d: %s has no effect", text.path, text.line(at), field_name(at))
        return ()
    path = text.path.with_name(name) if name == Path(name).name else None
    if path is None:
        raise text.error(at, f"is {name!r}; must be a file beside the config.pbtxt")
    try:
        if leads_out(path, path.parent) or not is_regular(path):
            raise text.error(at, f"{name!r} is no plain file in the model's folder")
        if path.stat().st_size > _MAX_LABEL_BYTES:
            raise text.error(at, f"{name!r} is larger than {_MAX_LABEL_BYTES >> 10} KiB")
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise text.error(at, f"{name!r} cannot be read: {error}") from error
    return tuple(line.strip() for line in lines if line.strip())


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
