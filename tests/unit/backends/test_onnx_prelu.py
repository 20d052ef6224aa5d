"""Replacing PReLU: the same function, whatever the slopes and wherever they stand."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

from mien_server.backends.onnx_prelu import replace_prelu
from mien_server.models.interface import ArrayF32
from tests import graphs

SLOPES = {
    "none above one": np.array([-2, -0.25, 0, 0.25, 0.75, 1], np.float32),
    "some above one": np.array([-2, 0, 0.5, 1, 1.12, 3], np.float32),
    "one for all": np.array([0.25], np.float32),
}


def prelu(slopes: ArrayF32, *, through_identity: bool = False) -> onnx.ModelProto:
    nodes = [helper.make_node("PRelu", ["x", "slopes"], ["y"], "prelu")]
    if through_identity:
        nodes.insert(0, helper.make_node("Identity", ["shared"], ["slopes"]))
    return graphs.model(
        nodes,
        {"shared" if through_identity else "slopes": slopes.reshape(-1, 1, 1)},
        inputs={"x": ["n", 6, 5, 5]},
        outputs={"y": ["n", 6, 5, 5]},
    )


def run(model: onnx.ModelProto, x: ArrayF32) -> ArrayF32:
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    y: ArrayF32 = session.run(None, {"x": x})[0]
    return y


@pytest.mark.parametrize("slopes", SLOPES.values(), ids=list(SLOPES))
@pytest.mark.parametrize("through_identity", [False, True])
def test_the_graph_computes_the_same(slopes: ArrayF32, through_identity: bool) -> None:
    x = np.random.default_rng(0).normal(size=(2, 6, 5, 5)).astype(np.float32)
    model = prelu(slopes, through_identity=through_identity)
    expected = run(model, x)

    replace_prelu(model)

    assert all(node.op_type != "PRelu" for node in model.graph.node)
    np.testing.assert_allclose(run(model, x), expected, atol=1e-6)


def test_slopes_that_are_computed_stay() -> None:
    model = prelu(SLOPES["one for all"])
    model.graph.node[0].input[1] = "computed"
    model.graph.node.insert(0, helper.make_node("Neg", ["slopes"], ["computed"]))
    replace_prelu(model)
    assert [node.op_type for node in model.graph.node] == ["Neg", "PRelu"]


def test_graphs_of_operators_that_do_not_broadcast_stay() -> None:
    model = prelu(SLOPES["none above one"])
    model.opset_import[0].version = 7
    replace_prelu(model)
    assert [node.op_type for node in model.graph.node] == ["PRelu"]
