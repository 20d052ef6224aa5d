"""SCRFD graphs of the shapes that InsightFace publishes, through onnxruntime and OpenVINO."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx as onnx_format
import pytest
from numpy.typing import NDArray
from onnx import helper

from mien_server.backends import onnx, openvino
from mien_server.backends.devices import CpuDevice
from mien_server.backends.instance import LoadedInstance
from mien_server.backends.weights_file import LoadError
from mien_server.models.detections import Detections
from mien_server.models.families import find_family
from mien_server.models.interface import Normalisation
from mien_server.models.roles import DetectorOptions, DetectorRow
from tests import graphs
from tests.unit.models.scrfd_outputs import SIDE, Face, encode

INPUT = Normalisation("RGB", (127.5, 127.5, 127.5), 1 / 128)
BRIGHTEST = 127.5 / 128
"""What white becomes."""
MARKS = ((8.0, 12.0), (15.0, 12.5), (11.0, 16.0), (9.0, 21.0), (14.0, 21.0))
FACES = [
    Face((3.0, 5.0, 20.0, 26.0), 0.9, MARKS),
    Face((30.0, 28.0, 61.0, 63.0), 0.7, [(x + 30, y + 28) for x, y in MARKS]),
]


def scrfd(
    *, batched: bool, batch: int | str = "n", shuffle: bool = False
) -> onnx_format.ModelProto:
    """A graph that sees `FACES` on every canvas, scored by how bright its brightest channel is.

    Args:
        batched: outputs [n, anchors, values], else [n * anchors, values], which is right for n = 1 only.
        batch: of the input.
        shuffle: outputs in another order than by kind and stride.
    """
    heads = encode([FACES])
    nodes = [helper.make_node("ReduceMax", ["canvas"], ["light"], axes=[1, 2, 3], keepdims=1)]
    nodes.append(helper.make_node("Reshape", ["light", "per_row"], ["brightness"]))
    weights: dict[str, NDArray[Any]] = {"per_row": np.array([-1, 1, 1], np.int64)}
    weights["one"] = np.ones((1, 1, 1), np.float32)
    weights["flat"] = np.array([0, 0], np.int64)
    nodes.append(helper.make_node("Div", ["brightness", "brightness"], ["ones"]))
    outputs: dict[str, graphs.Dims] = {}
    for index, head in enumerate(heads):
        weights[f"head{index}"] = head
        factor = "brightness" if index < 3 else "ones"
        name = f"out{index}"
        outputs[name] = ["n", "p", head.shape[-1]] if batched else ["p", head.shape[-1]]
        product = name if batched else f"{name}_rows"
        nodes.append(helper.make_node("Mul", [f"head{index}", factor], [product]))
        if not batched:
            weights[f"shape{index}"] = np.array([-1, head.shape[-1]], np.int64)
            nodes.append(helper.make_node("Reshape", [product, f"shape{index}"], [name]))
    if shuffle:
        outputs = dict(sorted(outputs.items(), key=lambda item: item[0][::-1], reverse=True))
    return graphs.model(nodes, weights, inputs={"canvas": [batch, 3, "h", "w"]}, outputs=outputs)


def load(graph: onnx_format.ModelProto, folder: Path, by: Any = onnx) -> LoadedInstance:
    instance: LoadedInstance = by.load(
        find_family("scrfd"),
        graphs.save(graph, folder),
        normalisation=INPUT,
        options=DetectorOptions(),
        precision="auto",
        device=CpuDevice(2),
        sides=(SIDE,),
        max_batch_size=4,
    )
    return instance


def detect(instance: LoadedInstance, greys: list[int]) -> list[Detections]:
    rows = [DetectorRow(np.full((SIDE, SIDE, 3), grey, np.uint8), 0.5) for grey in greys]
    found: list[Detections] = instance.split(instance.compute(instance.collate(rows)), rows)
    return found


GRAPHS = {
    "outputs by row": scrfd(batched=True),
    "outputs by row, in another order": scrfd(batched=True, shuffle=True),
    "one canvas, outputs without a row axis": scrfd(batched=False, batch=1),
    "outputs without a row axis": scrfd(batched=False),
}


@pytest.mark.parametrize("by", [onnx, openvino], ids=["onnxruntime", "openvino"])
@pytest.mark.parametrize("graph", GRAPHS.values(), ids=list(GRAPHS))
def test_known_faces_are_found_on_each_canvas(
    tmp_path: Path, by: Any, graph: onnx_format.ModelProto
) -> None:
    bright, dark, again, dim = detect(load(graph, tmp_path, by), [255, 0, 255, 220])

    assert len(dark.scores) == 0
    for found in (bright, again):
        np.testing.assert_allclose(found.boxes, [face.box for face in FACES], atol=1e-4)
        np.testing.assert_allclose(found.landmarks, [face.landmarks for face in FACES], atol=1e-4)
        np.testing.assert_allclose(found.scores, [0.9 * BRIGHTEST, 0.7 * BRIGHTEST], atol=1e-6)
    np.testing.assert_allclose(
        dim.scores, [0.9 * (220 - 127.5) / 128, 0.7 * (220 - 127.5) / 128], atol=1e-5
    )


def test_a_graph_without_landmarks_is_refused(tmp_path: Path) -> None:
    graph = scrfd(batched=True)
    del graph.graph.output[6:]
    with pytest.raises(LoadError, match="gives no landmarks, without which no face can be aligned"):
        load(graph, tmp_path)
