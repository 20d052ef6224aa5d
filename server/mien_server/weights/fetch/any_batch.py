"""Makes a graph that was exported for one row take any number of them."""

from collections.abc import Iterator

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import numpy_helper

from mien_server.weights.errors import WeightsError


def any_batch(data: bytes, output: str = "") -> bytes:
    """The same graph with a free first dimension of its input and outputs.

    A Reshape to [1, -1] puts all rows into one; it becomes [-1, n], where n is what the output says. One to
    [1, ...] with more dimensions becomes [0, ...], which is as many rows as it gets.

    Args:
        data: an ONNX file.
        output: the one to keep of several, or "" for all.

    Raises:
        WeightsError: it is none, has no such output, or does not say its output's size where that is needed.
    """
    try:
        model = onnx.ModelProto.FromString(data)
    except DecodeError as error:
        raise WeightsError(f"the package's graph is no ONNX file: {error}") from error
    graph = model.graph
    if output:
        _keep(graph, output)
    del graph.value_info[:]  # they repeat the batch of one
    for value in (*graph.input, *graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "N"
    sizes = {each.name: each.type.tensor_type.shape.dim[-1].dim_value for each in graph.output}
    shapes = {
        node.input[1]: sizes.get(node.output[0], 0)
        for node in graph.node
        if node.op_type == "Reshape"
    }
    for name, tensor in _constants(graph):
        if name not in shapes:
            continue
        first, *rest = numpy_helper.to_array(tensor).tolist()
        if first != 1:
            continue
        if rest == [-1] and not shapes[name]:
            raise WeightsError("the package's graph reshapes to one row, and does not say how long")
        shape = [-1, shapes[name]] if rest == [-1] else [0, *rest]
        tensor.CopyFrom(numpy_helper.from_array(np.array(shape, np.int64), tensor.name))
    return bytes(model.SerializeToString())


def _constants(graph: onnx.GraphProto) -> Iterator[tuple[str, onnx.TensorProto]]:
    """What a graph has of constants, by the names that its nodes read them under."""
    for tensor in graph.initializer:
        yield tensor.name, tensor
    for node in graph.node:
        if node.op_type == "Constant":
            yield node.output[0], node.attribute[0].t


def _keep(graph: onnx.GraphProto, output: str) -> None:
    """Takes the other outputs out, with the nodes and weights that only they need."""
    others = [each for each in graph.output if each.name != output]
    if len(others) == len(graph.output):
        raise WeightsError(f"the package's graph has no output {output!r}: it is another one")
    for each in others:
        graph.output.remove(each)
    read, nodes = {output}, []
    for node in reversed(graph.node):  # each stands after those that it reads from
        if not read.isdisjoint(node.output):
            read.update(node.input)
            nodes.append(node)
    weights = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(reversed(nodes))
    graph.initializer.extend(weights)
