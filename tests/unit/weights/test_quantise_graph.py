"""Quantising a graph: what becomes int8, and that the rest computes the same."""

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from mien_server.models.interface import ArrayF32
from mien_server.weights.write.quantise_graph import quantise_graph
from tests import graphs


def network(slopes: ArrayF32, batch: int | str = "n", side: int = 16) -> bytes:
    """Two convolutions, each with a PReLU of these 8 slopes, then a mean over the pixels."""
    rng = np.random.default_rng(0)
    weights: dict[str, NDArray[Any]] = {
        "slopes": slopes.reshape(8, 1, 1),
        "first": rng.normal(0, 0.3, (8, 3, 3, 3)).astype(np.float32),
        "second": rng.normal(0, 0.3, (8, 8, 3, 3)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["crop", "first"], ["a"]),
        helper.make_node("PRelu", ["a", "slopes"], ["b"]),
        helper.make_node("Conv", ["b", "second"], ["c"]),
        helper.make_node("PRelu", ["c", "slopes"], ["d"]),
        helper.make_node("GlobalAveragePool", ["d"], ["e"]),
        helper.make_node("Flatten", ["e"], ["embedding"]),
    ]
    graph = graphs.model(
        nodes,
        weights,
        inputs={"crop": [batch, 3, side, side]},
        outputs={"embedding": [batch, 8]},
    )
    return bytes(graph.SerializeToString())


def run(model: bytes, pixels: ArrayF32) -> ArrayF32:
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")  # as the server runs int8
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    found: ArrayF32 = session.run(None, {session.get_inputs()[0].name: pixels})[0]
    return found


@pytest.fixture
def pixels() -> ArrayF32:
    return np.random.default_rng(1).normal(size=(12, 3, 16, 16)).astype(np.float32)


SLOPES = {
    "none above one": np.linspace(-0.5, 1, 8).astype(np.float32),
    "some above one": np.linspace(-0.5, 1.5, 8).astype(np.float32),
}


@pytest.mark.parametrize("slopes", SLOPES.values(), ids=list(SLOPES))
def test_answers_stay_near(slopes: ArrayF32, pixels: ArrayF32) -> None:
    model = network(slopes)
    expected, found = run(model, pixels), run(quantise_graph(model, pixels, 0), pixels)
    assert not np.array_equal(found, expected)
    np.testing.assert_allclose(found, expected, atol=0.02 * np.abs(expected).max())


def test_all_but_the_first_convolution_compute_in_int8_with_a_scale_for_each_channel(
    pixels: ArrayF32,
) -> None:
    graph = onnx.load_from_string(
        quantise_graph(network(SLOPES["none above one"]), pixels, 0)
    ).graph
    made_by = {name: node for node in graph.node for name in node.output}
    constants = {each.name: numpy_helper.to_array(each) for each in graph.initializer}

    first, second = (node for node in graph.node if node.op_type == "Conv")
    assert first.input[1] in constants
    assert constants[first.input[1]].dtype == np.float32
    weights = made_by[second.input[1]]
    assert weights.op_type == made_by[second.input[0]].op_type == "DequantizeLinear"
    quantised, scales, zeros = (constants[name] for name in weights.input)
    assert quantised.dtype == np.int8
    assert scales.shape == (8,)
    assert not zeros.any()
    assert all(node.op_type != "PRelu" for node in graph.node)


def test_a_graph_of_fixed_rows_is_calibrated_in_its_size(pixels: ArrayF32) -> None:
    model = network(SLOPES["none above one"], batch=4)
    found = run(quantise_graph(model, pixels, 4), pixels[:4])
    np.testing.assert_allclose(found, run(model, pixels[:4]), atol=0.05)


def test_nothing_is_printed(pixels: ArrayF32, capfd: pytest.CaptureFixture[str]) -> None:
    quantise_graph(network(SLOPES["none above one"]), pixels, 0)
    assert capfd.readouterr() == ("", "")
