"""Small ONNX graphs for tests, made node by node."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from mien_server.models.interface import ArrayF32

Dims = Sequence[int | str]

OPSET = 17
IR_VERSION = 8


def model(
    nodes: Sequence[onnx.NodeProto],
    weights: dict[str, NDArray[Any]],
    *,
    inputs: dict[str, Dims],
    outputs: dict[str, Dims],
    domains: Sequence[str] = (),
    input_type: int = TensorProto.FLOAT,
) -> onnx.ModelProto:
    """A model of these nodes."""
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info(name, input_type, dims) for name, dims in inputs.items()],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, dims)
            for name, dims in outputs.items()
        ],
        [numpy_helper.from_array(values, name) for name, values in weights.items()],
    )
    opsets = [helper.make_opsetid("", OPSET), *(helper.make_opsetid(name, 1) for name in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)


PROJECTION: ArrayF32 = np.random.default_rng(5).normal(size=(48, 8)).astype(np.float32)


def embedder(
    batch: int | str = "n",
    side: int | str = 112,
    *,
    tail: Sequence[onnx.NodeProto] = (),
    output: Dims = ("n", 8),
    **weights: NDArray[Any],
) -> onnx.ModelProto:
    """Crops to 8 numbers: their 4x4 averages, times `PROJECTION`.

    Args:
        batch: of the input.
        side: of the input.
        tail: nodes from `vector` [n, 8] to `embedding`, instead of none.
        output: the declared shape.
        weights: of the tail.
    """
    nodes = [
        helper.make_node(
            "AveragePool", ["pixels"], ["pooled"], kernel_shape=[28, 28], strides=[28, 28]
        ),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "projection"], ["vector"]),
        *(tail or [helper.make_node("Identity", ["vector"], ["embedding"])]),
    ]
    return model(
        nodes,
        {"projection": PROJECTION, **weights},
        inputs={"pixels": [batch, 3, side, side]},
        outputs={"embedding": output},
    )


def embeddings(pixels: ArrayF32) -> ArrayF32:
    """What `embedder` makes of its input, [n, 3, 112, 112], by numpy alone."""
    pooled = pixels.reshape(len(pixels), 3, 4, 28, 4, 28).mean(axis=(3, 5))
    vectors: ArrayF32 = pooled.reshape(len(pixels), 48) @ PROJECTION
    return vectors


def save(graph: onnx.ModelProto, folder: Path) -> Path:
    """Writes `model.onnx`."""
    path = folder / "model.onnx"
    path.write_bytes(graph.SerializeToString())
    return path
