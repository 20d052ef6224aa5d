"""Reads a request's input as numpy arrays, and writes numpy arrays as a response's outputs. Pure functions.

Every model here has one input. All errors are INVALID_ARGUMENT and name the tensor. What does not fit costs
no more than what does, since these functions run on the event loop and a message has room for millions of
elements.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mien_server.errors import InvalidRequest, Reason, at
from mien_server.models.interface import TensorSpec
from mien_server.quoting import quoted
from mien_server.triton.classification import PARAMETER, class_count

LENGTH_BYTES = 4
"""In raw contents each BYTES element is its length, in so many bytes, little-endian, and then its bytes."""

_CHUNK = 1 << 16  # values of typed contents between two chances for other threads to run
_INPUT = "inputs[0]"
_TYPED_FIELD = {"UINT8": "uint_contents", "BYTES": "bytes_contents"}
_SHARED_MEMORY = "shared_memory_"


def datatype(spec: TensorSpec) -> str:
    """A config's data type as the protocol's messages call it: TYPE_STRING is BYTES."""
    name = spec.data_type.removeprefix("TYPE_")
    return "BYTES" if name == "STRING" else name


def wire_shape(spec: TensorSpec, *, batched: bool) -> list[int]:
    """A tensor's whole shape, -1 for what varies; `batched` puts the rows in front."""
    return [-1, *spec.dims] if batched else list(spec.dims)


def input_shape(request: Any, spec: TensorSpec, *, batched: bool) -> tuple[int, ...]:
    """The shape of a request's input, whose contents are not yet looked at.

    Args:
        request: `inference.ModelInferRequest`.
        spec: what the model's input must be.
        batched: the first dimension counts rows.

    Raises:
        InvalidRequest: not this one input, or another type, or a shape that does not fit.
    """
    count = len(request.inputs)
    if count != 1 or request.inputs[0].name != spec.name:
        given = quoted(request.inputs[0].name) if count == 1 else count
        raise _invalid(
            f"model {request.model_name!r} has one input, {spec.name!r}; given: {given}.", "inputs"
        )
    tensor = request.inputs[0]
    with at(_INPUT):
        check_tensor_parameters(tensor, "input")
    if tensor.datatype != datatype(spec):
        raise _invalid(
            f"input {spec.name!r} must be {datatype(spec)}, not {quoted(tensor.datatype)}.",
            f"{_INPUT}.datatype",
        )
    wanted = wire_shape(spec, batched=batched)
    if len(tensor.shape) != len(wanted):
        raise _invalid(
            f"input {spec.name!r} has a shape of {len(tensor.shape)} dimensions; must be {wanted}.",
            f"{_INPUT}.shape",
        )
    shape = tuple(tensor.shape)
    if not all(have > 0 and want in (-1, have) for have, want in zip(shape, wanted, strict=True)):
        raise _invalid(
            f"input {spec.name!r} has shape {list(shape)}; must be {wanted}.", f"{_INPUT}.shape"
        )
    return shape


def has_raw_contents(request: Any, spec: TensorSpec) -> bool:
    """Whether the input comes in `raw_input_contents`, or else in the tensor's own contents.

    Raises:
        InvalidRequest: in both, in neither, or not in the contents of its type alone.
    """
    typed = [field.name for field, _ in request.inputs[0].contents.ListFields()]
    raw = len(request.raw_input_contents)
    if raw and typed:
        raise _invalid(
            f"input {spec.name!r} has contents and raw_input_contents; give one of them.",
            f"{_INPUT}.contents",
        )
    if raw > 1:
        raise _invalid(
            f"raw_input_contents has {raw} entries for the one input {spec.name!r}.",
            "raw_input_contents",
        )
    field = _TYPED_FIELD[datatype(spec)]
    if not raw and not typed:
        raise _invalid(
            f"input {spec.name!r} has no data: give it in raw_input_contents, or in"
            f" contents.{field}.",
            f"{_INPUT}.contents",
        )
    if typed and typed != [field]:
        raise _invalid(
            f"input {spec.name!r} is {datatype(spec)} and has contents in {', '.join(typed)}; give"
            f" them in {field} alone.",
            f"{_INPUT}.contents",
        )
    return bool(raw)


def raw_pixels(request: Any, name: str, shape: Sequence[int]) -> NDArray[np.uint8]:
    """UINT8 raw contents as an array of `shape`. It copies nothing, so the request stays in memory.

    Raises:
        InvalidRequest: another number of bytes.
    """
    raw, size = request.raw_input_contents[0], math.prod(shape)
    if len(raw) != size:
        raise _invalid(
            f"input {name!r} has {len(raw)} bytes; shape {list(shape)} has {size}.",
            "raw_input_contents",
        )
    return np.frombuffer(raw, np.uint8).reshape(shape)


def typed_pixels(request: Any, name: str, shape: Sequence[int]) -> NDArray[np.uint8]:
    """UINT8 typed contents as an array of `shape`. It takes about 50 ns a value: for a worker thread.

    Raises:
        InvalidRequest: another number of values, or one above 255.
    """
    values, size = request.inputs[0].contents.uint_contents, math.prod(shape)
    if len(values) != size:
        raise _invalid(
            f"input {name!r} has {len(values)} values; shape {list(shape)} has {size}.",
            f"{_INPUT}.contents.uint_contents",
        )
    pixels = np.empty(size, np.uint8)
    for start in range(0, size, _CHUNK):
        chunk = np.array(values[start : start + _CHUNK], np.uint32)
        if chunk.max() > np.iinfo(np.uint8).max:
            raise _invalid(
                f"input {name!r} is UINT8 and has the value {chunk.max()}.",
                f"{_INPUT}.contents.uint_contents",
            )
        pixels[start : start + _CHUNK] = chunk
    return pixels.reshape(shape)


def strings(request: Any, name: str, count: int, *, raw: bool) -> list[bytes]:
    """The `count` elements of a BYTES input.

    Raises:
        InvalidRequest: raw contents that are no sequence of lengths and bytes; another number of them.
    """
    if raw:
        return _split(request.raw_input_contents[0], name, count)
    elements = request.inputs[0].contents.bytes_contents
    if len(elements) != count:
        raise _invalid(
            f"input {name!r} has {len(elements)} elements; its shape has {count}.",
            f"{_INPUT}.contents.bytes_contents",
        )
    return list(elements)


def _split(raw: bytes, name: str, count: int) -> list[bytes]:
    elements: list[bytes] = []
    start = 0
    while start < len(raw) and len(elements) < count:
        begin = start + LENGTH_BYTES
        start = begin + int.from_bytes(raw[start:begin], "little")
        if start > len(raw) or begin > len(raw):
            raise _invalid(
                f"input {name!r}: element {len(elements)} is cut off; each needs {LENGTH_BYTES} bytes of"
                " little-endian length and then as many bytes.",
                "raw_input_contents",
            )
        elements.append(raw[begin:start])
    if start < len(raw) or len(elements) < count:
        found = f"more than {count}" if start < len(raw) else len(elements)
        raise _invalid(
            f"input {name!r} has {found} elements; its shape has {count}.", "raw_input_contents"
        )
    return elements


def requested_outputs(request: Any, specs: Sequence[TensorSpec]) -> dict[str, int]:
    """The outputs that a request asks for, and as how many classes, 0 for none; without any, all.

    Raises:
        InvalidRequest: one that the model does not have, twice the same, or a parameter on it that has no
            meaning.
    """
    known = [spec.name for spec in specs]
    counts: dict[str, int] = {}
    for index, output in enumerate(request.outputs):
        field = f"outputs[{index}]"
        if output.name not in known:
            raise _invalid(
                f"model {request.model_name!r} has no output {quoted(output.name)}, only"
                f" {', '.join(map(repr, known))}.",
                field,
            )
        if output.name in counts:
            raise _invalid(f"output {output.name!r} is asked for twice.", field)
        with at(field):
            check_tensor_parameters(output, "output", known=(PARAMETER,))
            counts[output.name] = class_count(output)
    return counts or dict.fromkeys(known, 0)


def check_tensor_parameters(tensor: Any, kind: str, known: Sequence[str] = ()) -> None:
    """Refuses every parameter of an input or output but those known: none has an effect here.

    Raises:
        InvalidRequest: names the parameter.
    """
    # A map has no order of its own, and the same request should get the same answer.
    key = min((key for key in tensor.parameters if key not in known), default=None)
    if key is not None:
        if key.startswith(_SHARED_MEMORY):
            why = "shared memory is not served, send the bytes themselves"
        else:
            why = "it has no meaning here"
        raise _invalid(
            f"{kind} {tensor.name!r} has the parameter {quoted(key)}: {why}.",
            f"parameters.{key}",
        )


def add_outputs(response: Any, outputs: Mapping[str, NDArray[Any]]) -> None:
    """Puts arrays of float32, or of bytes, into an `inference.ModelInferResponse`, raw."""
    for name, array in outputs.items():
        texts = array.dtype == np.object_
        response.outputs.add(name=name, datatype="BYTES" if texts else "FP32", shape=array.shape)
        if texts:
            elements = (len(each).to_bytes(LENGTH_BYTES, "little") + each for each in array.flat)
            response.raw_output_contents.append(b"".join(elements))
        else:
            response.raw_output_contents.append(np.ascontiguousarray(array, "<f4").tobytes())


def _invalid(message: str, field: str) -> InvalidRequest:
    return InvalidRequest(Reason.INVALID_REQUEST, message, field=field)
