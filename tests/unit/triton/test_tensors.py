"""Tensors of Triton's messages as numpy and back: what is accepted, and what is said of the rest."""

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as triton

from mien_server.errors import InvalidRequest, at
from mien_server.models.interface import TensorSpec
from mien_server.triton.classification import top_classes
from mien_server.triton.request import InferOptions, infer_options, model_version
from mien_server.triton.tensors import (
    add_outputs,
    datatype,
    has_raw_contents,
    input_shape,
    raw_pixels,
    requested_outputs,
    strings,
    typed_pixels,
)

FACE = TensorSpec("face", "TYPE_UINT8", (3, 2, 2))
PHOTO = TensorSpec("image", "TYPE_STRING", (1,))
OUTPUTS = [TensorSpec("boxes", "TYPE_FP32", (-1, 4)), TensorSpec("scores", "TYPE_FP32", (-1,))]
Edit = Callable[[Any], object]
Call = Callable[[], object]


def face_request(rows: int = 2, **changes: Any) -> Any:
    tensor = {"name": "face", "datatype": "UINT8", "shape": [rows, 3, 2, 2]} | changes
    return triton.ModelInferRequest(
        model_name="m",
        inputs=[triton.ModelInferRequest.InferInputTensor(**tensor)],
        raw_input_contents=[bytes(range(12 * rows))],
    )


def refusal(call: Call) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        call()
    return caught.value


def test_strings_are_bytes_on_the_wire() -> None:
    assert (datatype(FACE), datatype(PHOTO)) == ("UINT8", "BYTES")


def test_raw_and_typed_contents_give_the_same_pixels() -> None:
    raw = face_request()
    typed = face_request()
    del typed.raw_input_contents[:]
    typed.inputs[0].contents.uint_contents.extend(range(24))
    shape = input_shape(raw, FACE, batched=True)
    assert shape == (2, 3, 2, 2)
    assert has_raw_contents(raw, FACE)
    assert not has_raw_contents(typed, FACE)
    expected = np.arange(24, dtype=np.uint8).reshape(shape)
    np.testing.assert_array_equal(raw_pixels(raw, "face", shape), expected)
    np.testing.assert_array_equal(typed_pixels(typed, "face", shape), expected)


def test_typed_contents_longer_than_a_chunk_arrive_whole() -> None:
    request = face_request()
    size = 3 * 200 * 200
    request.inputs[0].contents.uint_contents.extend(np.arange(size) % 251)
    pixels = typed_pixels(request, "face", (3, 200, 200))
    np.testing.assert_array_equal(pixels.ravel(), np.arange(size) % 251)


WRONG_INPUTS: list[tuple[dict[str, Any], str]] = [
    ({"name": "image"}, "one input, 'face'; given: 'image'"),
    ({"datatype": "FP32"}, "input 'face' must be UINT8, not 'FP32'"),
    ({"datatype": ""}, "not ''"),
    ({"shape": [3, 2, 2]}, "a shape of 3 dimensions; must be [-1, 3, 2, 2]"),
    ({"shape": [0, 3, 2, 2]}, "shape [0, 3, 2, 2]"),
    ({"shape": [-1, 3, 2, 2]}, "shape [-1, 3, 2, 2]"),
    ({"shape": [2, 2, 2, 3]}, "must be [-1, 3, 2, 2]"),
    ({"shape": []}, "a shape of 0 dimensions"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG_INPUTS)
def test_an_input_that_does_not_fit_is_named(changes: dict[str, Any], message: str) -> None:
    request = face_request(**changes)
    assert message in refusal(lambda: input_shape(request, FACE, batched=True)).message


def test_missing_and_surplus_inputs_are_counted() -> None:
    none = triton.ModelInferRequest(model_name="m")
    assert "given: 0" in refusal(lambda: input_shape(none, FACE, batched=True)).message
    twice = face_request()
    twice.inputs.add().CopyFrom(twice.inputs[0])
    assert "given: 2" in refusal(lambda: input_shape(twice, FACE, batched=True)).message


@pytest.mark.parametrize(
    "key", ["shared_memory_region", "shared_memory_byte_size", "shared_memory_offset"]
)
def test_shared_memory_is_refused_by_name(key: str) -> None:
    request = face_request()
    request.inputs[0].parameters[key].int64_param = 1
    error = refusal(lambda: input_shape(request, FACE, batched=True))
    assert key in error.message
    assert "'face'" in error.message
    assert error.field == f"inputs[0].parameters.{key}"
    asked = face_request()
    asked.outputs.add(name="boxes").parameters[key].int64_param = 1
    assert key in refusal(lambda: requested_outputs(asked, OUTPUTS)).message


def _both(request: Any) -> None:
    request.inputs[0].contents.uint_contents.append(1)


def _neither(request: Any) -> None:
    del request.raw_input_contents[:]


def _other_type(request: Any) -> None:
    del request.raw_input_contents[:]
    request.inputs[0].contents.int_contents.append(1)


def _two_types(request: Any) -> None:
    request.inputs[0].contents.bytes_contents.append(b"")
    _own_type(request)


def _own_type(request: Any) -> None:
    del request.raw_input_contents[:]
    request.inputs[0].contents.uint_contents.append(1)


def _two_raw(request: Any) -> None:
    request.raw_input_contents.append(b"")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (_both, "give one of them"),
        (_neither, "has no data"),
        (_other_type, "is UINT8 and has contents in int_contents; give them in uint_contents"),
        (_two_types, "has contents in uint_contents, bytes_contents; give them in uint_contents"),
        (_two_raw, "2 entries"),
    ],
)
def test_contents_come_once_and_in_their_own_field(edit: Edit, message: str) -> None:
    request = face_request()
    edit(request)
    error = refusal(lambda: has_raw_contents(request, FACE))
    assert message in error.message
    assert "'face'" in error.message


def test_wrong_number_of_bytes_or_values_is_counted() -> None:
    request = face_request()
    assert "24 bytes" in refusal(lambda: raw_pixels(request, "face", (1, 3, 2, 2))).message
    huge = (1 << 62, 3, 2, 2)
    assert "24 bytes" in refusal(lambda: raw_pixels(request, "face", huge)).message
    request.inputs[0].contents.uint_contents.extend([0, 300])
    assert "2 values" in refusal(lambda: typed_pixels(request, "face", (3,))).message
    assert "the value 300" in refusal(lambda: typed_pixels(request, "face", (2,))).message


def string_request(raw: bytes) -> Any:
    request = triton.ModelInferRequest(raw_input_contents=[raw])
    request.inputs.add(name="image", datatype="BYTES", shape=[2, 1])
    return request


def test_strings_are_length_and_bytes_or_typed() -> None:
    raw = string_request(b"\x02\0\0\0ab\0\0\0\0")
    assert strings(raw, "image", 2, raw=True) == [b"ab", b""]
    typed = string_request(b"")
    typed.inputs[0].contents.bytes_contents.extend([b"ab", b""])
    assert strings(typed, "image", 2, raw=False) == [b"ab", b""]


@pytest.mark.parametrize(
    "raw", [b"\x02\0\0\0a", b"\x02\0\0", b"\x00\0\0\0\x01", b"\xff\xff\xff\xff", b"\x01\0\0\0ab"]
)
def test_strings_that_are_cut_off_are_refused(raw: bytes) -> None:
    error = refusal(lambda: strings(string_request(raw), "image", 2, raw=True))
    assert "cut off" in error.message


def test_wrong_number_of_strings_is_counted() -> None:
    request = string_request(b"\0\0\0\0")
    assert (
        "1 elements; its shape has 2"
        in refusal(lambda: strings(request, "image", 2, raw=True)).message
    )


def test_raw_strings_are_read_up_to_the_first_one_too_many() -> None:
    raw = string_request(b"\0\0\0\0" * 3 + b"\xff")
    assert "more than 2" in refusal(lambda: strings(raw, "image", 2, raw=True)).message


MANY = 1_000_000
InputTensor = triton.ModelInferRequest.InferInputTensor


def _many_dimensions() -> Call:
    request = face_request(shape=[1] * MANY)
    return lambda: input_shape(request, FACE, batched=True)


def _many_inputs() -> Call:
    request = triton.ModelInferRequest(inputs=[InputTensor(name="face")] * MANY)
    return lambda: input_shape(request, FACE, batched=True)


def _many_typed_strings() -> Call:
    request = string_request(b"")
    request.inputs[0].contents.bytes_contents.extend([b""] * MANY)
    return lambda: strings(request, "image", 2, raw=False)


@pytest.mark.parametrize("prepare", [_many_dimensions, _many_inputs, _many_typed_strings])
def test_millions_of_elements_are_refused_without_unpacking_them(
    prepare: Callable[[], Call],
) -> None:
    call = prepare()
    tracemalloc.start()
    try:
        refusal(call)
        _, most_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most_bytes < MANY


def test_long_names_are_quoted_in_part() -> None:
    name = "x" * 100_000
    asked = face_request()
    asked.outputs.add(name=name)
    calls: list[Call] = [
        lambda: input_shape(face_request(name=name), FACE, batched=True),
        lambda: input_shape(face_request(datatype=name), FACE, batched=True),
        lambda: requested_outputs(asked, OUTPUTS),
        lambda: infer_options(parameterised(**{name: 1})),
        lambda: model_version(name),
    ]
    for call in calls:
        message = refusal(call).message
        assert "'xxx" in message
        assert len(message) < 300


def test_outputs_are_those_asked_for_in_their_order_or_all() -> None:
    request = face_request()
    assert requested_outputs(request, OUTPUTS) == {"boxes": 0, "scores": 0}
    request.outputs.add(name="scores")
    assert requested_outputs(request, OUTPUTS) == {"scores": 0}
    request.outputs.add(name="scores")
    assert "twice" in refusal(lambda: requested_outputs(request, OUTPUTS)).message
    request.outputs[1].name = "classes"
    assert "no output 'classes'" in refusal(lambda: requested_outputs(request, OUTPUTS)).message


def test_outputs_may_be_asked_for_as_classes() -> None:
    request = face_request()
    request.outputs.add(name="scores").parameters["classification"].int64_param = 3
    request.outputs.add(name="boxes")
    assert requested_outputs(request, OUTPUTS) == {"scores": 3, "boxes": 0}
    request.outputs[0].parameters["classification"].uint64_param = 7
    assert requested_outputs(request, OUTPUTS)["scores"] == 7


@pytest.mark.parametrize(
    ("choice", "value"),
    [("int64_param", 0), ("int64_param", -1), ("bool_param", True), ("string_param", "3")],
)
def test_a_number_of_classes_is_a_whole_one_from_1_on(choice: str, value: Any) -> None:
    request = face_request()
    output = request.outputs.add(name="scores")
    setattr(output.parameters["classification"], choice, value)
    error = refusal(lambda: requested_outputs(request, OUTPUTS))
    assert "whole number from 1 on" in error.message
    assert error.field == "outputs[0].parameters.classification"
    request.inputs[0].parameters["classification"].int64_param = 3
    inputs = refusal(lambda: input_shape(request, FACE, batched=True))
    assert "input 'face' has the parameter 'classification'" in inputs.message


def test_classes_are_the_largest_values_of_a_row_with_their_places_and_labels() -> None:
    values = np.array([[0.25, 0.5, 0.25], [-1, np.nan, 1e-7]], np.float32)
    plain = top_classes(values, 2, ())
    assert plain.tolist() == [
        [b"0.500000:1", b"0.250000:0"],
        [b"0.000000:2", b"-1.000000:0"],
    ]
    named = top_classes(values, 9, ("red", "gr\u00fcn", "a:b"))
    assert named[0].tolist() == [
        "0.500000:1:gr\u00fcn".encode(),
        b"0.250000:0:red",
        b"0.250000:2:a:b",
    ]
    assert named.shape == (2, 3)
    points = top_classes(np.arange(12, dtype=np.float32).reshape(2, 3, 2), 1, ())
    assert points.tolist() == [[b"5.000000:5"], [b"11.000000:5"]]
    assert top_classes(np.zeros((2, 0), np.float32), 3, ()).shape == (2, 0)


def test_texts_leave_with_their_lengths() -> None:
    response = triton.ModelInferResponse()
    add_outputs(response, {"a": np.array([[b"one", b""]], np.object_)})
    (output,) = response.outputs
    assert (output.datatype, list(output.shape)) == ("BYTES", [1, 2])
    assert response.raw_output_contents[0] == b"\x03\0\0\0one\0\0\0\0"


def test_arrays_leave_as_raw_little_endian_floats() -> None:
    response = triton.ModelInferResponse()
    add_outputs(response, {"a": np.arange(6, dtype=np.float32).reshape(2, 3)})
    assert (response.outputs[0].name, list(response.outputs[0].shape)) == ("a", [2, 3])
    assert response.outputs[0].datatype == "FP32"
    np.testing.assert_array_equal(
        np.frombuffer(response.raw_output_contents[0], "<f4"), np.arange(6)
    )


def parameterised(**parameters: Any) -> Any:
    request = triton.ModelInferRequest()
    for key, value in parameters.items():
        field = {bool: "bool_param", int: "int64_param", str: "string_param"}[type(value)]
        setattr(request.parameters[key], field, value)
    return request


def test_priority_and_timeout_of_either_integer_type() -> None:
    assert infer_options(triton.ModelInferRequest()) == InferOptions()
    assert infer_options(parameterised(priority=2, timeout=1500)) == InferOptions(2, 0.0015)
    unsigned = triton.ModelInferRequest()
    unsigned.parameters["priority"].uint64_param = (1 << 64) - 1
    assert infer_options(unsigned).priority == (1 << 64) - 1
    assert infer_options(parameterised(timeout=0)).queue_timeout is None
    assert infer_options(parameterised(triton_enable_empty_final_response=True)) == InferOptions()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"sequence_id": 7}, "'sequence_id': the models keep no state"),
        ({"priority": "high"}, "'priority' must be a whole number, not string_param"),
        ({"timeout": -1}, "'timeout' is -1"),
        ({"timeot": 5}, "'timeot': requests know no parameter of that name"),
    ],
)
def test_parameters_without_meaning_are_refused_by_name(
    parameters: dict[str, Any], message: str
) -> None:
    error = refusal(lambda: infer_options(parameterised(**parameters)))
    assert message in error.message
    assert error.field == f"parameters.{next(iter(parameters))}"


def test_versions_are_numbers_from_one_on() -> None:
    assert model_version("") == model_version("-1") == 0
    assert model_version("12") == 12
    for text in ("0", "-2", "one", "1.0", " 1", "²", "9" * 5000):
        with pytest.raises(InvalidRequest) as caught, at("version"):
            model_version(text)
        assert caught.value.field == "version"
