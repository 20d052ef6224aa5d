"""MiniFASNet as minivision's checkpoints have it, as an ONNX graph.

minivision-ai/Silent-Face-Anti-Spoofing: two convolutions, then MobileFaceNet's bottlenecks, of which three
halve the image, then one value for each of 512 channels, 128 mixtures of these, and three classes, of which
the second is "live". Its sizes differ (V1, V2), and in the SE variants the last block of each group weighs
its channels: a checkpoint's tensors say all of that.
"""

from collections.abc import Mapping
from typing import Any

import torch

from mien_server.backends.weights_file import first_names
from mien_server.models.interface import ArrayF32, Normalisation
from mien_server.weights.errors import WeightsError
from mien_server.weights.recognise.graph_builder import GraphBuilder
from mien_server.weights.recognise.recognised import Recognised
from mien_server.weights.recognise.state_dicts import find

_EPSILON = 1e-5
_NORM = ("weight", "bias", "running_mean", "running_var")
_HALVINGS = 16
"""The image's side, as a multiple of what is left of it in the end."""


def minifasnet(contents: Mapping[Any, Any], source: str) -> Recognised | None:  # noqa: ARG001
    """MiniFASNet V1 and V2, with and without SE: a graph of pixels [N, 3, S, S] to logits [N, classes].

    Raises:
        WeightsError: it looks like one, and is none.
    """
    found = find(contents, "conv_6_dw.conv.weight")
    if found is None:
        return None
    if found.others:
        raise WeightsError(
            f"beside MiniFASNet at {found.where!r} it holds {len(found.others)} other tensors"
            f" ({first_names(found.others)}): torch.save the network's state_dict alone"
        )
    state = {
        key: value.detach().to(torch.float32).numpy()
        for key, value in found.state.items()
        if not key.endswith(".num_batches_tracked")
    }
    graph = _Graph(state)
    model = graph.whole()
    if left := sorted(state.keys() - graph.used):
        raise WeightsError(
            f"it looks like MiniFASNet, but holds {len(left)} tensors more ({first_names(left)})"
        )
    weighs = any(".se_module." in key for key in state)
    return Recognised(
        title=f"MiniFASNet{' with SE' if weighs else ''} (minivision, Silent-Face-Anti-Spoofing)",
        backend="onnxruntime",
        architecture="analyser",
        weights=model,
        tensors=len(state),
        parameters=sum(value.size for value in state.values()),
        normalisation=Normalisation("BGR", (0, 0, 0), 1),
        license="not stated; minivision's public weights are Apache-2.0",
        notes=("its second class is live: score_class 1",),
    )


class _Graph(GraphBuilder):
    """Layers by the names that their publisher gave them."""

    def __init__(self, state: Mapping[str, ArrayF32]) -> None:
        super().__init__()
        self._state = state
        self.used: set[str] = set()

    def whole(self) -> bytes:
        value = self._conv("conv1", "pixels", stride=2)
        value = self._conv("conv2_dw", value)
        for halving, group in (("conv_23", "conv_3"), ("conv_34", "conv_4"), ("conv_45", "conv_5")):
            value = self._bottleneck(halving, value, stride=2)
            for block in range(self._blocks(group)):
                deep = self._bottleneck(f"{group}.model.{block}", value)
                value = self.add("Add", [value, deep])
        value = self._conv("conv_6_sep", value)
        left = self._array("conv_6_dw.conv.weight").shape[-1]
        value = self.add("Flatten", [self._conv("conv_6_dw", value, pad=0, slope=False)])
        width = self._array("bn.weight").size
        if width != self._array("linear.weight").shape[-1]:  # else its authors leave it out
            value = self.add("Gemm", [value, self._tensor("linear.weight")], transB=1)
        value = self.add("Gemm", [self._norm("bn", value), self._tensor("prob.weight")], transB=1)
        classes = len(self._array("prob.weight"))
        side = _HALVINGS * left
        return self.model("minifasnet", "pixels", [3, side, side], value, [classes])

    def _blocks(self, group: str) -> int:
        names = {key.split(".")[2] for key in self._state if key.startswith(f"{group}.model.")}
        return len(names)

    def _bottleneck(self, name: str, value: str, stride: int = 1) -> str:
        value = self._conv(f"{name}.conv", value)
        value = self._conv(f"{name}.conv_dw", value, stride=stride)
        value = self._conv(f"{name}.project", value, slope=False)
        weighing = f"{name}.se_module"
        if f"{weighing}.fc1.weight" not in self._state:
            return value
        share = self.add("GlobalAveragePool", [value])
        for number, activation in (("1", "Relu"), ("2", "Sigmoid")):
            share = self.add("Conv", [share, self._tensor(f"{weighing}.fc{number}.weight")])
            share = self.add(activation, [self._norm(f"{weighing}.bn{number}", share)])
        return self.add("Mul", [value, share])

    def _conv(
        self, name: str, value: str, *, stride: int = 1, pad: int = 1, slope: bool = True
    ) -> str:
        """A convolution, of each channel by itself or of all, its norm, and PReLU if it has a slope."""
        weight = self._array(f"{name}.conv.weight")
        channels, inputs, side, _ = weight.shape
        value = self.add(
            "Conv",
            [value, self._tensor(f"{name}.conv.weight")],
            strides=[stride, stride],
            pads=[pad if side > 1 else 0] * 4,
            group=channels if inputs == 1 else 1,
        )
        value = self._norm(f"{name}.bn", value)
        if not slope:
            return value
        key = f"{name}.prelu.weight"
        slopes = self.weight(key, self._array(key).reshape(-1, 1, 1))
        return self.add("PRelu", [value, slopes])

    def _norm(self, name: str, value: str) -> str:
        parts = [self._tensor(f"{name}.{part}") for part in _NORM]
        return self.add("BatchNormalization", [value, *parts], epsilon=_EPSILON)

    def _tensor(self, key: str) -> str:
        return self.weight(key, self._array(key))

    def _array(self, key: str) -> ArrayF32:
        try:
            array = self._state[key]
        except KeyError:
            raise WeightsError(f"it looks like MiniFASNet, but has no {key}") from None
        self.used.add(key)
        return array
