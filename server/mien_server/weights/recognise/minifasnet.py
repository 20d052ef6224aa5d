"""MiniFASNet as minivision's checkpoints have it, as an ONNX graph.

minivision-ai/Silent-Face-Anti-Spoofing: two convolutions, then MobileFaceNet's bottlenecks, of which three
halve the image, then one value for each of 512 channels, 128 mixtures of these, and three classes, of which
the second is "live". Its sizes differ (V1, V2), and in the SE variants each group's last bottleneck weighs
its channels: a checkpoint's tensors say all of that.
"""

from collections.abc import Mapping
from typing import Any

from mien_server.models.interface import Normalisation
from mien_server.weights.recognise.recognised import Recognised
from mien_server.weights.recognise.state_dicts import find
from mien_server.weights.recognise.state_graph import StateGraph

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
    graph = _Graph(found, "MiniFASNet")
    model, state = graph.whole(), graph.state
    graph.check_all_used()
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


class _Graph(StateGraph):
    def whole(self) -> bytes:
        value = self._conv("conv1", "pixels", stride=2)
        value = self._conv("conv2_dw", value)
        for halving, group in (("conv_23", "conv_3"), ("conv_34", "conv_4"), ("conv_45", "conv_5")):
            value = self._bottleneck(halving, value, stride=2)
            for block in range(self._blocks(group)):
                deep = self._bottleneck(f"{group}.model.{block}", value)
                value = self.add("Add", [value, deep])
        value = self._conv("conv_6_sep", value)
        left = self.array("conv_6_dw.conv.weight").shape[-1]
        value = self.add("Flatten", [self._conv("conv_6_dw", value, pad=0, slope=False)])
        width = self.array("bn.weight").size
        if width != self.array("linear.weight").shape[-1]:  # else its authors leave it out
            value = self.add("Gemm", [value, self.tensor("linear.weight")], transB=1)
        value = self.add("Gemm", [self.norm("bn", value), self.tensor("prob.weight")], transB=1)
        classes = len(self.array("prob.weight"))
        side = _HALVINGS * left
        return self.model("minifasnet", "pixels", [3, side, side], value, [classes])

    def _blocks(self, group: str) -> int:
        names = {key.split(".")[2] for key in self.state if key.startswith(f"{group}.model.")}
        return len(names)

    def _bottleneck(self, name: str, value: str, stride: int = 1) -> str:
        value = self._conv(f"{name}.conv", value)
        value = self._conv(f"{name}.conv_dw", value, stride=stride)
        value = self._conv(f"{name}.project", value, slope=False)
        weighing = f"{name}.se_module"
        if f"{weighing}.fc1.weight" not in self.state:
            return value
        share = self.add("GlobalAveragePool", [value])
        for number, activation in (("1", "Relu"), ("2", "Sigmoid")):
            share = self.add("Conv", [share, self.tensor(f"{weighing}.fc{number}.weight")])
            share = self.add(activation, [self.norm(f"{weighing}.bn{number}", share)])
        return self.add("Mul", [value, share])

    def _conv(
        self, name: str, value: str, *, stride: int = 1, pad: int = 1, slope: bool = True
    ) -> str:
        """A convolution, of each channel by itself or of all, its norm, and PReLU if it has a slope."""
        weight = self.array(f"{name}.conv.weight")
        channels, inputs, side, _ = weight.shape
        value = self.add(
            "Conv",
            [value, self.tensor(f"{name}.conv.weight")],
            strides=[stride, stride],
            pads=[pad if side > 1 else 0] * 4,
            group=channels if inputs == 1 else 1,
        )
        value = self.norm(f"{name}.bn", value)
        if not slope:
            return value
        key = f"{name}.prelu.weight"
        slopes = self.weight(key, self.array(key).reshape(-1, 1, 1))
        return self.add("PRelu", [value, slopes])
