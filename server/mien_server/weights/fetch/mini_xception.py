"""Mini-XCEPTION as a Keras file has it, as an ONNX graph.

Arriaga, Plöger and Valdenegro, "Real-time Convolutional Neural Networks for Emotion and Gender
Classification", arXiv:1710.07557: two convolutions, four blocks of separable ones beside a shortcut, and one
convolution whose maps are averaged, one for each class.
"""

from mien_server.models.interface import ArrayF32
from mien_server.weights.errors import WeightsError
from mien_server.weights.recognise.graph_builder import GraphBuilder
from mien_server.weights.recognise.hdf5 import read_arrays

_SIDE = 64
_BLOCKS = 4
_EPSILON = 1e-3
"""Keras' own, which batch norms have."""
_WEIGHTS = "model_weights"


def mini_xception(hdf5: bytes) -> bytes:
    """The graph, float32 [N, 1, 64, 64], grey in [-1, 1], to probabilities [N, classes].

    Raises:
        WeightsError: the file holds no such network.
    """
    graph = _Graph(read_arrays(hdf5))
    value = graph.relu(graph.norm(1, graph.conv(1, "pixels", pad=False)))
    value = graph.relu(graph.norm(2, graph.conv(2, value, pad=False)))
    for block in range(1, _BLOCKS + 1):
        deep = graph.separable(2 * block - 1, value)
        deep = graph.relu(graph.norm(3 * block + 1, deep))
        deep = graph.norm(3 * block + 2, graph.separable(2 * block, deep))
        deep = graph.add(
            "MaxPool", [deep], kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER"
        )
        short = graph.norm(3 * block, graph.conv(block + 2, value, stride=2))
        value = graph.add("Add", [deep, short])
    value = graph.conv(_BLOCKS + 3, value, bias=True)
    classes = graph.classes
    value = graph.add("Flatten", [graph.add("GlobalAveragePool", [value])])
    value = graph.add("Softmax", [value], axis=1)
    return graph.model("mini_xception", "pixels", [1, _SIDE, _SIDE], value, [classes])


class _Graph(GraphBuilder):
    """Layers by the names that Keras gave them."""

    def __init__(self, arrays: dict[str, ArrayF32]) -> None:
        super().__init__()
        self._arrays = arrays
        self.classes = 0

    def relu(self, value: str) -> str:
        return self.add("Relu", [value])

    def norm(self, number: int, value: str) -> str:
        parts = ("gamma", "beta", "moving_mean", "moving_variance")
        weights = [self._weight(f"batch_normalization_{number}", part) for part in parts]
        return self.add("BatchNormalization", [value, *weights], epsilon=_EPSILON)

    def conv(
        self, number: int, value: str, *, pad: bool = True, stride: int = 1, bias: bool = False
    ) -> str:
        layer = f"conv2d_{number}"
        weights = [self._weight(layer, "kernel", (3, 2, 0, 1))]
        if bias:
            weights.append(self._weight(layer, "bias"))
            self.classes = self._array(layer, "bias").size
        padding = "SAME_UPPER" if pad else "VALID"
        return self.add("Conv", [value, *weights], strides=[stride, stride], auto_pad=padding)

    def separable(self, number: int, value: str) -> str:
        layer = f"separable_conv2d_{number}"
        channels = self._array(layer, "depthwise_kernel").shape[2]
        depth = self._weight(layer, "depthwise_kernel", (2, 3, 0, 1))
        value = self.add("Conv", [value, depth], group=channels, auto_pad="SAME_UPPER")
        return self.add("Conv", [value, self._weight(layer, "pointwise_kernel", (3, 2, 0, 1))])

    def _array(self, layer: str, part: str) -> ArrayF32:
        # Keras made the file with the layers' names twice, and a number that counts sessions.
        path = f"{_WEIGHTS}/{layer}/{layer}_1/{part}:0"
        try:
            return self._arrays[path]
        except KeyError:
            raise WeightsError(f"it does not hold {path}: it is another network") from None

    def _weight(self, layer: str, part: str, axes: tuple[int, ...] = ()) -> str:
        array, name = self._array(layer, part), f"{layer}.{part}"
        if axes and array.ndim != len(axes):
            raise WeightsError(f"{name} has the shape {list(array.shape)}")
        return self.weight(name, array.transpose(axes) if axes else array)
