"""Makes a graph that was exported for one row take any number of them."""

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import numpy_helper

from mien_server.weights.errors import WeightsError


def any_batch(data: bytes) -> bytes:
    """The same graph with a free first dimension of its input and outputs.

    A Reshape to [1, -1] puts all rows into one; it becomes [-1, n], where n is what the output says.

    Args:
        data: an ONNX file.

    Raises:
        WeightsError: it is none, or says nothing of its output's size where that is needed.
    """
    try:
        model = onnx.ModelProto.FromString(data)
    except DecodeError as error:
        raise WeightsError(f"the package's graph is no ONNX file: {error}") from error
    graph = model.graph
    del graph.value_info[:]  # they repeat the batch of one
    for value in (*graph.input, *graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "N"
    sizes = {each.name: each.type.tensor_type.shape.dim[-1].dim_value for each in graph.output}
    shapes = {
        node.input[1]: sizes.get(node.output[0], 0)
        for node in graph.node
        if node.op_type == "Reshape"
    }
    for tensor in graph.initializer:
        if tensor.name in shapes and numpy_helper.to_array(tensor).tolist() == [1, -1]:
            if not shapes[tensor.name]:
                raise WeightsError(
                    "the package's graph reshapes to one row, and does not say how long"
                )
            shape = np.array([-1, shapes[tensor.name]], np.int64)
            tensor.CopyFrom(numpy_helper.from_array(shape, tensor.name))
    return model.SerializeToString()
