"""IResNet out of an ONNX graph: the network's own weights, with batch norms folded or not.

`torch.onnx.export` of an ArcFace backbone in eval mode folds each batch norm that follows a convolution
(InsightFace's w600k_r50.onnx is one). They come back as identities that carry the bias.
"""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper
from torch import Tensor, nn

from mien_server.models.families import find_family
from mien_server.models.iresnet import BLOCKS, DIMENSIONS
from mien_server.models.networks.iresnet import IResNet
from mien_server.weights.recognise.onnx_weights import Array, constants
from mien_server.weights.recognise.recognised import (
    ARCFACE_INPUT,
    INSIGHTFACE_LICENSE,
    Recognised,
)
from mien_server.weights.recognise.state_dicts import (
    FoundState,
    StateDict,
    fit,
    for_pytorch,
    norm_entries,
)

_PASSED_OVER = frozenset({"Identity", "Dropout", "Cast"})
"""Operators that leave values what they are in inference."""

_CONV_DEFAULTS: dict[str, Any] = {
    "strides": [1, 1],
    "pads": [0, 0, 0, 0],
    "dilations": [1, 1],
    "group": 1,
}


class _AnotherNetwork(Exception):
    """The graph is not that of an IResNet."""


def iresnet_graph(graph: onnx.GraphProto) -> Recognised | None:
    """An ArcFace backbone exported to ONNX, such as InsightFace's w600k_r50.onnx, read into PyTorch."""
    found = read_iresnet(graph)
    if found is None:
        return None
    architecture, weights = found
    state, notes = fit(FoundState("", weights, ()), architecture)
    return for_pytorch(
        architecture,
        state,
        notes,
        title="ArcFace IResNet as an ONNX graph (InsightFace w600k_r50)",
        normalisation=ARCFACE_INPUT,
        license_=INSIGHTFACE_LICENSE,
        dimensions=DIMENSIONS,
    )


def read_iresnet(graph: onnx.GraphProto) -> tuple[str, StateDict] | None:
    """The architecture and state_dict of an IResNet, or None where the graph is another network.

    Args:
        graph: its only input is the normalised crop.

    Raises:
        WeightsError: a weight is malformed.
    """
    architecture = by_activations(sum(node.op_type == "PRelu" for node in graph.node))
    if architecture is None:
        return None
    with torch.device("meta"):
        network = find_family(architecture).network()
    assert isinstance(network, IResNet)  # noqa: S101 - for the type checker
    try:
        return architecture, _Walk(graph, network).state_dict()
    except _AnotherNetwork:
        return None


def by_activations(count: int) -> str | None:
    """The IResNet architecture with so many PReLU layers: one, and one in each residual block."""
    return next((name for name, blocks in BLOCKS.items() if 1 + sum(blocks) == count), None)


class _Walk:
    """Follows the data through graph and network, in step, and collects the network's weights."""

    def __init__(self, graph: onnx.GraphProto, network: IResNet) -> None:
        self._network = network
        self._values = constants(graph)
        self._state: StateDict = {}
        self._output = graph.output[0].name
        inputs = [each.name for each in graph.input if each.name not in self._values]
        if len(inputs) != 1:
            raise _AnotherNetwork
        self._input = inputs[0]
        self._readers: Mapping[str, list[onnx.NodeProto]] = defaultdict(list)
        self._same: dict[str, str] = {}
        for node in graph.node:
            sources = [self._source(name) for name in node.input if name not in self._values]
            if node.op_type in _PASSED_OVER and len(sources) == 1:
                self._same[node.output[0]] = sources[0]
            for source in sources:
                self._readers[source].append(node)

    def state_dict(self) -> StateDict:
        network = self._network
        x = self._conv(self._input, "conv1", "bn1")
        x = self._prelu(x, "prelu")
        for name, layer in network.named_children():
            if isinstance(layer, nn.Sequential):
                for index in range(len(layer)):
                    x = self._block(x, f"{name}.{index}")
        x = self._norm(x, "bn2")
        x = self._node(x, "Flatten", "Reshape").output[0]
        x = self._linear(x, "fc")
        x = self._norm(x, "features", optional=True, width=network.fc.out_features)
        if x != self._source(self._output):
            raise _AnotherNetwork
        return self._state

    def _block(self, x: str, key: str) -> str:
        skip = x
        if isinstance(self._network.get_submodule(f"{key}.downsample"), nn.Sequential):
            skip = self._conv(x, f"{key}.downsample.0", f"{key}.downsample.1")
        x = self._norm(x, f"{key}.bn1")
        x = self._conv(x, f"{key}.conv1", f"{key}.bn2")
        x = self._prelu(x, f"{key}.prelu")
        x = self._conv(x, f"{key}.conv2", f"{key}.bn3")
        node = self._node(x, "Add")
        if {self._source(name) for name in node.input} != {x, skip}:
            raise _AnotherNetwork
        return node.output[0]

    def _source(self, name: str) -> str:
        """What a value is, before operators that pass it on."""
        return self._same.get(name, name)

    def _node(self, x: str, *kinds: str) -> onnx.NodeProto:
        found = [node for node in self._readers[x] if node.op_type in kinds]
        if len(found) != 1:
            raise _AnotherNetwork
        return found[0]

    def _conv(self, x: str, key: str, norm: str) -> str:
        """A convolution and the batch norm behind it, which may be folded into its weight and bias."""
        layer = self._network.get_submodule(key)
        assert isinstance(layer, nn.Conv2d)  # noqa: S101 - for the type checker
        node = self._node(x, "Conv")
        expected = {
            "strides": list(layer.stride),
            "pads": [int(side) for side in layer.padding] * 2,
            "dilations": list(layer.dilation),
            "group": layer.groups,
        }
        attributes = _CONV_DEFAULTS | _attributes(node)
        if any(attributes[name] != value for name, value in expected.items()):
            raise _AnotherNetwork
        weight, *bias = self._constants(node)
        self._put(f"{key}.weight", weight)
        return self._norm(
            node.output[0],
            norm,
            optional=True,
            width=layer.out_channels,
            bias=next(iter(bias), None),
        )

    def _prelu(self, x: str, key: str) -> str:
        node = self._node(x, "PRelu")
        (slope,) = self._constants(node)
        self._put(f"{key}.weight", slope.flatten())
        return node.output[0]

    def _linear(self, x: str, key: str) -> str:
        node = self._node(x, "Gemm")
        attributes = _attributes(node)
        if attributes.get("alpha", 1.0) != 1 or attributes.get("beta", 1.0) != 1:
            raise _AnotherNetwork
        weight, bias = self._constants(node)
        self._put(f"{key}.weight", weight if attributes.get("transB") else weight.T)
        self._put(f"{key}.bias", bias)
        return node.output[0]

    def _norm(
        self,
        x: str,
        key: str,
        *,
        optional: bool = False,
        width: int = 0,
        bias: Array | None = None,
    ) -> str:
        """A batch norm behind `x`; where there is none and it is optional, an identity plus a bias."""
        layer = self._network.get_submodule(key)
        assert isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d)  # noqa: S101 - for the type checker
        follows = any(node.op_type == "BatchNormalization" for node in self._readers[x])
        if optional and (bias is not None or not follows):
            one, zero = torch.ones(width), torch.zeros(width)
            shift = zero if bias is None else _tensor(bias)
            self._state |= norm_entries(key, one, shift, zero, one - layer.eps)
            return x
        node = self._node(x, "BatchNormalization")
        weight, bias_, mean, variance = (_tensor(value) for value in self._constants(node))
        variance = variance + (_attributes(node).get("epsilon", 1e-5) - layer.eps)
        self._state |= norm_entries(key, weight, bias_, mean, variance)
        return node.output[0]

    def _constants(self, node: onnx.NodeProto) -> list[Array]:
        """A node's inputs after the first."""
        if any(name not in self._values for name in node.input[1:]):
            raise _AnotherNetwork
        return [self._values[name] for name in node.input[1:]]

    def _put(self, key: str, value: Array) -> None:
        self._state[key] = _tensor(value)


def _tensor(value: Array) -> Tensor:
    # bfloat16 is no type of NumPy's own, which PyTorch would take.
    return torch.from_numpy(np.array(value, np.float32 if value.dtype.kind == "V" else None))


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {each.name: helper.get_attribute_value(each) for each in node.attribute}
