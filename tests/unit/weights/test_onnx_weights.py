"""ONNX graphs as data: what is read, what is refused."""

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from mien_server.weights.errors import WeightsError
from mien_server.weights.recognise.onnx_weights import constants, parse_graph


def graph_of(
    nodes: Sequence[onnx.NodeProto], **initializers: NDArray[np.generic]
) -> onnx.GraphProto:
    """A graph that gives the last node's first output."""
    output = helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)
    tensors = [numpy_helper.from_array(value, name) for name, value in initializers.items()]
    return helper.make_graph(list(nodes), "g", [], [output], tensors)


def serialised(graph: onnx.GraphProto) -> bytes:
    opsets = [helper.make_opsetid("", 21)]
    data: bytes = helper.make_model(graph, opset_imports=opsets).SerializeToString()
    return data


@pytest.mark.parametrize(
    ("shape", "axis", "block"), [((6, 8), 1, 4), ((6, 8), 0, 2), ((6, 10), 1, 4), ((128,), 0, 64)]
)
@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_block_quantised_weights_are_what_onnx_says(
    shape: tuple[int, ...], axis: int, block: int, dtype: type[np.integer]
) -> None:
    rng = np.random.default_rng(0)
    limits = np.iinfo(dtype)
    blocks = list(shape)
    blocks[axis] = -(-shape[axis] // block)
    graph = graph_of(
        [helper.make_node("DequantizeLinear", ["q", "s", "z"], ["w"], axis=axis, block_size=block)],
        q=rng.integers(limits.min, limits.max, shape, dtype=dtype, endpoint=True),
        s=rng.random(blocks, dtype=np.float32),
        z=rng.integers(limits.min, limits.max, blocks, dtype=dtype, endpoint=True),
    )

    found = np.asarray(constants(parse_graph(serialised(graph)))["w"], np.float64)

    if shape[axis] % block == 0:  # the reference cannot do a shorter last block
        (expected,) = ReferenceEvaluator(onnx.load_from_string(serialised(graph))).run(None, {})
        np.testing.assert_allclose(found, np.asarray(expected, np.float64), rtol=1e-6)
    else:
        values = constants(graph)
        scale = np.repeat(values["s"], block, axis)[:, : shape[axis]].astype(np.float64)
        zero = np.repeat(values["z"], block, axis)[:, : shape[axis]].astype(np.float64)
        expected = (values["q"].astype(np.float64) - zero) * scale
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_identity_and_reshape_of_constants_are_constants() -> None:
    graph = graph_of(
        [
            helper.make_node("Identity", ["a"], ["b"]),
            helper.make_node("Reshape", ["b", "shape"], ["c"]),
            helper.make_node("Relu", ["c"], ["d"]),
        ],
        a=np.arange(6, dtype=np.float32),
        shape=np.array([2, 3]),
    )

    values = constants(parse_graph(serialised(graph)))

    np.testing.assert_array_equal(values["c"], np.arange(6).reshape(2, 3))
    assert "d" not in values


def test_weights_in_another_file_are_refused() -> None:
    graph = graph_of([helper.make_node("Relu", ["a"], ["b"])], a=np.zeros(4, np.float32))
    tensor = graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../elsewhere.bin")

    with pytest.raises(WeightsError, match=r"'a' lies in another file"):
        parse_graph(serialised(graph))


@pytest.mark.parametrize("data", [b"", b"no model at all", b"\x08\x06", b"PK\x03\x04"])
def test_what_is_no_model_is_refused(data: bytes) -> None:
    with pytest.raises(WeightsError, match="not an ONNX model"):
        parse_graph(data)


def test_a_tensor_shorter_than_its_shape_is_refused() -> None:
    graph = graph_of([helper.make_node("Relu", ["a"], ["b"])], a=np.zeros(4, np.float32))
    graph.initializer[0].dims[0] = 400_000_000_000

    with pytest.raises(WeightsError, match="'a' is malformed"):
        constants(graph)


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (helper.make_node("DequantizeLinear", ["q", "s", "z"], ["w"]), "not in blocks"),
        (helper.make_node("DequantizeLinear", ["q", "s"], ["w"], block_size=2), "malformed"),
        (
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["w"], axis=7, block_size=2),
            "malformed",
        ),
        (
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["w"], axis=0, block_size=1),
            "malformed",
        ),
        (helper.make_node("Reshape", ["q", "shape"], ["w"]), "malformed"),
        (helper.make_node("Reshape", ["q"], ["w"]), "malformed"),
    ],
)
def test_a_node_that_does_not_fit_its_constants_is_refused(
    node: onnx.NodeProto, message: str
) -> None:
    graph = graph_of(
        [node],
        q=np.zeros(8, np.int8),
        s=np.ones(4, np.float32),
        z=np.zeros(4, np.int8),
        shape=np.array([3, 5]),
    )
    with pytest.raises(WeightsError, match=message):
        constants(parse_graph(serialised(graph)))
