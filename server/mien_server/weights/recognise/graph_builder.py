"""Puts an ONNX graph together, node by node, out of a network's arrays."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from mien_server.weights.errors import WeightsError

_OPSET, IR_VERSION = 17, 8


class GraphBuilder:
    """Nodes and weights as they are put together; methods return the name of what they give."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._weights: list[onnx.TensorProto] = []

    def add(self, operator: str, inputs: Sequence[str], **attributes: Any) -> str:
        """A node with one output."""
        output = f"value{len(self._nodes)}"
        self._nodes.append(helper.make_node(operator, inputs, [output], **attributes))
        return output

    def weight(self, name: str, array: NDArray[Any]) -> str:
        """A constant.

        Raises:
            WeightsError: it is not finite.
        """
        if not np.isfinite(array).all():
            raise WeightsError(f"{name} is not finite")
        self._weights.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def model(
        self, name: str, input: str, shape: Sequence[int], output: str, values: Sequence[int]
    ) -> bytes:
        """The whole, of float32 [N, *shape] to [N, *values].

        Raises:
            WeightsError: its layers do not fit together.
        """
        graph = helper.make_graph(
            self._nodes,
            name,
            [helper.make_tensor_value_info(input, TensorProto.FLOAT, ["n", *shape])],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["n", *values])],
            self._weights,
        )
        return finished(graph)


def finished(graph: onnx.GraphProto) -> bytes:
    """A model of a graph, the same bytes for the same graph.

    Raises:
        WeightsError: its layers do not fit together.
    """
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=IR_VERSION
    )
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # whatever it says of weights that do not fit each other
        raise WeightsError(f"its layers do not fit together: {error}") from error
    return bytes(model.SerializeToString(deterministic=True))
