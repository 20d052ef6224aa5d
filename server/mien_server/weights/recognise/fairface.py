"""FairFace's ResNet-34 as its public checkpoints have it, as an ONNX graph of one thing that it tells.

Kärkkäinen and Joo, "FairFace: Face Attribute Dataset for Balanced Race, Gender, and Age", arXiv:1908.04913.
torchvision's resnet34 (He et al., arXiv:1512.03385), whose last layer gives seven logits of race, two of
gender and nine of age.
"""

from collections.abc import Mapping
from typing import Any

from mien_server.models.interface import Normalisation
from mien_server.weights.errors import WeightsError
from mien_server.weights.recognise.recognised import Recognised
from mien_server.weights.recognise.state_dicts import find
from mien_server.weights.recognise.state_graph import StateGraph

_BLOCKS = (3, 4, 6, 3)
_SIDE = 224

_LABELS = {
    "race": (
        *("White", "Black", "Latino_Hispanic", "East Asian", "Southeast Asian", "Indian"),
        "Middle Eastern",
    ),
    "gender": ("Male", "Female"),
    "age": ("0-2", "3-9", "10-19", "20-29", "30-39", "40-49", "50-59", "60-69", "70+"),
}
"""What it tells, in the order of the rows of its last layer."""

_ROWS = sum(map(len, _LABELS.values()))

_WINDOW = "6.8, 20.5, 100.6"
"""What a chip of dlib's with a padding of a quarter shows, on which it was trained: there the corners of the
eyes, 0.12 to 0.86 of the face from the left and 0.22 from its top, lie where the template has the eyes."""

_IMAGENET = Normalisation("RGB", (123.675, 116.28, 103.53), (1 / 58.395, 1 / 57.12, 1 / 57.375))

_OF_RACE = (
    "to sort people by race from their faces is forbidden in many places (in the European Union by Art. 5 of"
    " the AI Act), and nothing about a person may be decided by it. What it is good for is to see whether"
    " another model does as well for some people as for others, on photos of people who agreed to that",
    "FairFace's file for four races cannot be told from that for seven, and would get these seven's names",
)


def fairface(contents: Mapping[Any, Any], part: str) -> Recognised | None:
    """FairFace's network: a graph of pixels [N, 3, 224, 224] to logits [N, labels of a part].

    Args:
        contents: of a checkpoint.
        part: which of the things that it tells: "age", "gender" or "race".

    Raises:
        WeightsError: it is FairFace's, and no part or no such part is named, or its layers are not those of
            a ResNet-34.
    """
    found = find(contents, "layer3.5.conv2.weight")
    if found is None:
        return None
    last = found.state.get("fc.weight")
    if last is None or len(last) != _ROWS:
        return None
    if part not in _LABELS:
        raise WeightsError(
            "it is FairFace's network, which tells three things, and a model tells one: say which by"
            " --part age, --part gender or --part race, and import it under a name for each that you want"
        )
    graph = _Graph(found, "FairFace's ResNet-34")
    model, labels = graph.whole(part), _LABELS[part]
    graph.check_all_used()
    return Recognised(
        title=f"FairFace's ResNet-34, {part}",
        backend="onnxruntime",
        architecture="analyser",
        weights=model,
        tensors=len(graph.state),
        parameters=sum(value.size for value in graph.state.values()),
        normalisation=_IMAGENET,
        license="not stated; FairFace's publishers say CC BY 4.0",
        dimensions=len(labels),
        side=_SIDE,
        told={
            "answer": "classification",
            "activation": "softmax",
            "labels": ", ".join(labels),
            "crop": "template",
            "window": _WINDOW,
        },
        notes=_OF_RACE if part == "race" else (),
    )


class _Graph(StateGraph):
    def whole(self, part: str) -> bytes:
        value = self.add("Relu", [self._conv("conv1", "bn1", "pixels", stride=2)])
        value = self.add("MaxPool", [value], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
        for layer, blocks in enumerate(_BLOCKS, 1):
            for block in range(blocks):
                stride = 2 if layer > 1 and block == 0 else 1
                value = self._block(f"layer{layer}.{block}", value, stride)
        value = self.add("Flatten", [self.add("GlobalAveragePool", [value])])
        names = list(_LABELS)
        first = sum(len(_LABELS[name]) for name in names[: names.index(part)])
        rows = slice(first, first + len(_LABELS[part]))
        last = [self.weight(key, self.array(key)[rows]) for key in ("fc.weight", "fc.bias")]
        value = self.add("Gemm", [value, *last], transB=1)
        return self.model("fairface", "pixels", [3, _SIDE, _SIDE], value, [len(_LABELS[part])])

    def _block(self, name: str, value: str, stride: int) -> str:
        deep = self.add("Relu", [self._conv(f"{name}.conv1", f"{name}.bn1", value, stride=stride)])
        deep = self._conv(f"{name}.conv2", f"{name}.bn2", deep)
        if stride > 1:
            value = self._conv(f"{name}.downsample.0", f"{name}.downsample.1", value, stride=stride)
        return self.add("Relu", [self.add("Add", [deep, value])])

    def _conv(self, name: str, norm: str, value: str, *, stride: int = 1) -> str:
        """A convolution that pads by half of its kernel, and its norm."""
        half = self.array(f"{name}.weight").shape[-1] // 2
        value = self.add(
            "Conv",
            [value, self.tensor(f"{name}.weight")],
            strides=[stride, stride],
            pads=[half] * 4,
        )
        return self.norm(norm, value)
