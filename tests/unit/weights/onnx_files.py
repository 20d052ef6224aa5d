"""ONNX files as their publishers export them."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn


def exported(network: nn.Module, path: Path, *, folded: bool = True, batch: int = 0) -> Path:
    """What arcface_torch's torch2onnx.py makes: the TorchScript-based exporter, opset 11."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (torch.zeros(batch or 1, 3, 112, 112),),
            str(path),
            input_names=["input.1"],
            output_names=["output"],
            opset_version=11,
            dynamo=False,
            training=torch.onnx.TrainingMode.EVAL if folded else torch.onnx.TrainingMode.PRESERVE,
            dynamic_axes=None if batch else {"input.1": {0: "None"}, "output": {0: "None"}},
        )
    return path


def scrfd(path: Path, *, side: int | str = "?", batch: int = 1, landmarks: bool = True) -> Path:
    """A graph with the inputs and outputs of det_10g.onnx and one layer for each."""
    return _grids(path, (1, 4, 10) if landmarks else (1, 4), 2, side=side, batch=batch)


def yunet(path: Path) -> Path:
    """The same of face_detection_yunet_2023mar.onnx, which takes one canvas of 640 pixels."""
    return _grids(path, (1, 1, 4, 10), 1, side=640, batch=1)


def _grids(path: Path, kinds: Sequence[int], anchors: int, *, side: int | str, batch: int) -> Path:
    nodes, outputs, weights = [], [], []
    for kind, width in enumerate(kinds):
        shape = [-1, width] if batch == 1 else [batch, -1, width]
        weights.append(numpy_helper.from_array(np.array(shape), f"shape{kind}"))
        for stride in (8, 16, 32):
            name = f"out{kind}_{stride}"
            weight = np.full((anchors * width, 3, 1, 1), 0.5, np.float32)
            weights.append(numpy_helper.from_array(weight, f"w_{name}"))
            step = [stride, stride]
            nodes += [
                helper.make_node("Conv", ["input.1", f"w_{name}"], [f"c_{name}"], strides=step),
                helper.make_node("Transpose", [f"c_{name}"], [f"t_{name}"], perm=[0, 2, 3, 1]),
                helper.make_node("Reshape", [f"t_{name}", f"shape{kind}"], [f"r_{name}"]),
                helper.make_node("Sigmoid", [f"r_{name}"], [name]),
            ]
            dims: list[str | int] = ["n", width] if batch == 1 else [batch, "n", width]
            outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, dims))
    x = helper.make_tensor_value_info("input.1", TensorProto.FLOAT, [batch, 3, side, side])
    return saved(helper.make_graph(nodes, "grids", [x], outputs, weights), path)


def one_layer(path: Path, shape: Sequence[int | str], outputs: int = 2, seed: int = 0) -> Path:
    """A graph that averages each channel of its input and mixes the averages into some numbers."""
    weight = np.random.default_rng(seed).random((3, outputs), dtype=np.float32)
    nodes = [
        helper.make_node("GlobalAveragePool", ["data"], ["pool"]),
        helper.make_node("Flatten", ["pool"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["out"]),
    ]
    x = helper.make_tensor_value_info("data", TensorProto.FLOAT, shape)
    y = helper.make_tensor_value_info("out", TensorProto.FLOAT, [shape[0], outputs])
    return saved(
        helper.make_graph(nodes, "g", [x], [y], [numpy_helper.from_array(weight, "w")]), path
    )


def saved(graph: onnx.GraphProto, path: Path) -> Path:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path
