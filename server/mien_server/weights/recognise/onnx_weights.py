"""Reads the weights of an ONNX graph as data: no operator runs and no other file is opened."""

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import numpy_helper

from mien_server.weights.errors import WeightsError

Array = NDArray[np.generic]


def parse_graph(model: bytes) -> onnx.GraphProto:
    """The graph of a serialised ONNX model.

    Raises:
        WeightsError: not an ONNX model, or one that keeps tensors in other files.
    """
    try:
        graph = onnx.ModelProto.FromString(model).graph
    except DecodeError as error:
        raise WeightsError(f"not an ONNX model: {error}") from error
    if not graph.node:
        raise WeightsError("not an ONNX model: its graph is empty")
    for tensor in graph.initializer:
        if tensor.external_data or tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise WeightsError(
                f"tensor {tensor.name!r} lies in another file: save the model with its weights inside"
            )
    return graph


def constants(graph: onnx.GraphProto) -> dict[str, Array]:
    """The graph's initialisers, and what it derives from them alone, by tensor name.

    Derived are the outputs of Identity, of block-quantised DequantizeLinear (as float32) and of Reshape.

    Raises:
        WeightsError: an initialiser is malformed, or quantised in a way that is not supported.
    """
    values: dict[str, Array] = {}
    for tensor in graph.initializer:
        try:
            values[tensor.name] = numpy_helper.to_array(tensor)
        except (ValueError, TypeError) as error:
            raise WeightsError(f"tensor {tensor.name!r} is malformed: {error}") from error
    for node in graph.node:
        inputs = [values[name] for name in node.input if name in values]
        if len(inputs) != len(node.input) or not inputs:
            continue
        try:
            if node.op_type == "Identity":
                values[node.output[0]] = inputs[0]
            elif node.op_type == "DequantizeLinear":
                values[node.output[0]] = _dequantise(node, *inputs)
            elif node.op_type == "Reshape":
                values[node.output[0]] = inputs[0].reshape([int(n) for n in inputs[1]])
        except (ValueError, TypeError, IndexError) as error:
            raise WeightsError(
                f"{node.op_type} node {node.name!r} is malformed: {error}"
            ) from error
    return values


def _dequantise(node: onnx.NodeProto, quantised: Array, scale: Array, zero: Array) -> Array:
    """ONNX's DequantizeLinear for blocks along an axis: (quantised - zero) * scale."""
    attributes = {attribute.name: attribute.i for attribute in node.attribute}
    axis, block = attributes.get("axis", 1), attributes.get("block_size", 0)
    if block < 1:
        raise WeightsError(
            f"{node.name!r} is quantised, but not in blocks: export the model with float weights"
        )
    block_of = np.arange(quantised.shape[axis]) // block
    scale, zero = (blocks.take(block_of, axis).astype(np.float32) for blocks in (scale, zero))
    return (quantised.astype(np.float32) - zero) * scale
