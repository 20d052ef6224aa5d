"""ONNX files that must not be run: each is refused, with the reason."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mien_server.backends.onnx_graph import read_graph
from mien_server.backends.weights_file import LoadError
from tests import graphs


def elsewhere(tensor: onnx.TensorProto) -> onnx.TensorProto:
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../secret.bin")
    return tensor


def with_weights_elsewhere() -> onnx.ModelProto:
    graph = graphs.embedder()
    elsewhere(graph.graph.initializer[0])
    return graph


def with_a_constant_elsewhere() -> onnx.ModelProto:
    constant = helper.make_node(
        "Constant", [], ["half"], value=elsewhere(numpy_helper.from_array(np.zeros(8, np.float32)))
    )
    return graphs.embedder(
        tail=[constant, helper.make_node("Add", ["vector", "half"], ["embedding"])]
    )


def with_a_branch_elsewhere() -> onnx.ModelProto:
    weights = elsewhere(numpy_helper.from_array(np.zeros(8, np.float32), "branch_weights"))
    output = helper.make_tensor_value_info("branch", TensorProto.FLOAT, [8])
    identity = helper.make_node("Identity", ["branch_weights"], ["branch"])
    branch = helper.make_graph([identity], "branch", [], [output], [weights])
    choice = helper.make_node("If", ["yes"], ["embedding"], then_branch=branch, else_branch=branch)
    return graphs.embedder(tail=[choice], yes=np.array(True))


def with_an_operator_of_its_own() -> onnx.ModelProto:
    node = helper.make_node("Anything", ["pixels"], ["embedding"], domain="evil.example")
    return graphs.model(
        [node],
        {},
        inputs={"pixels": ["n", 3, 112, 112]},
        outputs={"embedding": ["n", 8]},
        domains=["evil.example"],
    )


def with_a_loop() -> onnx.ModelProto:
    kinds = {"count": TensorProto.INT64, "go_on": TensorProto.BOOL, "state": TensorProto.FLOAT}
    inputs = [helper.make_tensor_value_info(name, kind, []) for name, kind in kinds.items()]
    body = helper.make_graph([], "body", inputs, inputs[1:])
    loop = helper.make_node("Loop", ["", "yes", "vector"], ["embedding"], body=body)
    return graphs.embedder(tail=[loop], yes=np.array(True))


def with_a_weight_that_is_not_a_number() -> onnx.ModelProto:
    tail = [helper.make_node("Add", ["vector", "shift"], ["embedding"])]
    return graphs.embedder(tail=tail, shift=np.array([np.nan] * 8, np.float32))


def with_a_truncated_weight() -> onnx.ModelProto:
    graph = graphs.embedder()
    graph.graph.initializer[0].raw_data = graph.graph.initializer[0].raw_data[:-4]
    return graph


def with_two_inputs() -> onnx.ModelProto:
    node = helper.make_node("Add", ["pixels", "more"], ["embedding"])
    dims: graphs.Dims = ["n", 3, 112, 112]
    return graphs.model(
        [node], {}, inputs={"pixels": dims, "more": dims}, outputs={"embedding": dims}
    )


def of_bytes() -> onnx.ModelProto:
    node = helper.make_node("Cast", ["pixels"], ["embedding"], to=TensorProto.FLOAT)
    dims: graphs.Dims = ["n", 3, 112, 112]
    return graphs.model(
        [node],
        {},
        inputs={"pixels": dims},
        outputs={"embedding": dims},
        input_type=TensorProto.UINT8,
    )


def of_two_channels() -> onnx.ModelProto:
    node = helper.make_node("Identity", ["pixels"], ["embedding"])
    dims: graphs.Dims = ["n", 2, 112, 112]
    return graphs.model([node], {}, inputs={"pixels": dims}, outputs={"embedding": dims})


@pytest.mark.parametrize(
    ("build", "problem"),
    [
        (with_weights_elsewhere, "keeps tensor 'projection' in another file"),
        (with_a_constant_elsewhere, "in another file"),
        (with_a_branch_elsewhere, "keeps tensor 'branch_weights' in another file"),
        (with_an_operator_of_its_own, "needs operators of evil.example"),
        (with_a_loop, "has a loop, which may never end"),
        (with_a_weight_that_is_not_a_number, "NaN or infinity in shift"),
        (with_a_truncated_weight, "tensor 'projection' is malformed"),
        (with_two_inputs, "takes pixels float .*, more float .*; it must take one image"),
        (of_bytes, r"takes pixels uint8 \[n, 3, 112, 112\]; it must take one image, float32"),
        (of_two_channels, r"takes pixels float \[n, 2, 112, 112\]; it must"),
        (onnx.ModelProto, "its graph is empty"),
    ],
)
def test_what_must_not_be_run_is_refused(
    tmp_path: Path, build: Callable[[], onnx.ModelProto], problem: str
) -> None:
    with pytest.raises(LoadError, match=problem):
        read_graph(graphs.save(build(), tmp_path))


@pytest.mark.parametrize("content", [b"\xff" * 64, b"PK\x03\x04", b"\x80\x04."])
def test_what_is_no_onnx_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(LoadError, match=r"model\.onnx"):
        read_graph(path)


@pytest.mark.parametrize("tenth", range(1, 10))
def test_a_truncated_file_is_refused(tmp_path: Path, tenth: int) -> None:
    path = graphs.save(graphs.embedder(), tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * tenth // 10])
    with pytest.raises(LoadError, match=r"model\.onnx"):
        read_graph(path)


def test_a_file_of_absurd_size_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(LoadError, match="has 1099511627776 bytes"):
        read_graph(path)


def test_a_missing_file_is_an_error_of_loading(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="cannot be read"):
        read_graph(tmp_path / "model.onnx")


def test_the_image_is_the_only_input_whatever_else_is_listed(tmp_path: Path) -> None:
    graph = graphs.embedder()
    graph.ir_version = 3
    shape = graphs.PROJECTION.shape
    for name in ("projection", "read_by_nobody"):
        graph.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))

    read = read_graph(graphs.save(graph, tmp_path))

    assert read.input == "pixels"
    assert [each.name for each in onnx.load_from_string(read.model).graph.input] == ["pixels"]


@pytest.mark.parametrize(
    ("batch", "side", "found"), [("n", 112, (0, 112, 112)), (4, "s", (4, 0, 0))]
)
def test_fixed_dimensions_are_read(
    tmp_path: Path, batch: int | str, side: int | str, found: tuple[int, int, int]
) -> None:
    graph = read_graph(graphs.save(graphs.embedder(batch, side), tmp_path))
    assert (graph.batch, graph.height, graph.width) == found


def test_a_graph_with_mostly_half_precision_weights_computes_in_fp16(tmp_path: Path) -> None:
    tail = [
        helper.make_node("Cast", ["vector"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("MatMul", ["half", "weights"], ["result"]),
        helper.make_node("Cast", ["result"], ["embedding"], to=TensorProto.FLOAT),
    ]
    graph = graphs.embedder(tail=tail, weights=np.ones((8, 512), np.float16))
    assert read_graph(graphs.save(graph, tmp_path)).precision == "fp16"
