"""ONNX files: IResNet is read into PyTorch, other embedders and SCRFD are kept as they are."""

from copy import deepcopy
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from mien_server.models.families import find_family
from mien_server.models.interface import Normalisation
from mien_server.models.roles import DETECTOR
from mien_server.repository.config.pbtxt import ConfigText
from mien_server.repository.manifest import read_manifest, sha256_of
from mien_server.weights.errors import WeightsError
from mien_server.weights.importer import ImportRefused
from mien_server.weights.recognise.checkpoint import recognise
from tests.unit.weights.conftest import CONFIGS, Import, difference_as_served, largest_difference
from tests.unit.weights.onnx_files import exported, one_layer, saved, scrfd, yunet
from tests.unit.weights.public_networks import public_input, shared_network


@pytest.fixture(scope="module")
def iresnet18() -> nn.Module:
    return shared_network("iresnet18")


@pytest.fixture(scope="module")
def folded(iresnet18: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A graph that tests only read."""
    return exported(iresnet18, tmp_path_factory.mktemp("folded") / "w600k.onnx")


@pytest.mark.long
def test_arcface_with_folded_batch_norms_computes_the_same_in_pytorch(
    iresnet18: nn.Module, folded: Path, bring: Import
) -> None:
    architecture, network, path = "iresnet18", iresnet18, folded
    kinds = {node.op_type for node in onnx.load(path).graph.node}
    assert {"BatchNormalization", "Conv", "PRelu"} <= kinds, "an export like InsightFace's"

    (done,), said = bring("mine", path)

    assert done.recognised.kind == f"architecture '{architecture}' on backend 'pytorch'"
    assert "ArcFace IResNet as an ONNX graph" in said
    assert difference_as_served(network, done) <= 1e-4
    session = onnxruntime.InferenceSession(path)
    x = public_input(architecture)
    (by_graph,) = session.run(None, {"input.1": x.numpy()})
    with torch.inference_mode():
        np.testing.assert_allclose(by_graph, network(x).numpy(), atol=1e-4)


@pytest.mark.parametrize("batch", [pytest.param(0, marks=pytest.mark.long), 4])
def test_batch_norms_that_were_not_folded_are_read_too(
    iresnet18: nn.Module, batch: int, tmp_path: Path
) -> None:
    path = exported(iresnet18, tmp_path / "unfolded.onnx", folded=False, batch=batch)
    best = recognise(path)[0]
    assert best.architecture == "iresnet18"
    assert largest_difference(iresnet18, best) <= 1e-4


def test_epsilon_of_the_graph_counts(iresnet18: nn.Module, tmp_path: Path) -> None:
    network = deepcopy(iresnet18)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            layer.eps = 1e-2
    best = recognise(exported(network, tmp_path / "eps.onnx"))[0]
    assert largest_difference(network, best) <= 1e-4
    assert largest_difference(iresnet18, best) > 1e-3


def test_half_precision_graph_becomes_float32(
    iresnet18: nn.Module, folded: Path, tmp_path: Path
) -> None:
    path, model = tmp_path / "half.onnx", onnx.load(folded)
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            half = numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(numpy_helper.from_array(half, tensor.name))
    path.write_bytes(model.SerializeToString())
    best = recognise(path)[0]
    assert "were float16 and are float32 now" in " ".join(best.notes)
    assert largest_difference(iresnet18, best) <= 0.05


def test_strides_of_another_network_are_not_taken_for_iresnet(folded: Path, tmp_path: Path) -> None:
    path, model = tmp_path / "other.onnx", onnx.load(folded)
    conv = next(node for node in model.graph.node if node.op_type == "Conv")
    pads = next(each for each in conv.attribute if each.name == "pads")
    pads.ints[:] = [2, 2, 0, 0]
    path.write_bytes(model.SerializeToString())
    assert [each.backend for each in recognise(path)] == ["onnxruntime"]


@pytest.mark.long
def test_iresnet_may_also_stay_an_onnx_graph(folded: Path, repository: Path, bring: Import) -> None:
    config = (CONFIGS / "arcface" / "config.pbtxt").read_text()
    config = config.replace('"arcface"', '"kept"').replace('"pytorch"', '"onnxruntime"')
    (repository / "kept").mkdir()
    (repository / "kept" / "config.pbtxt").write_text(config.replace('"iresnet50"', '"embedder"'))

    (done,), _ = bring("kept", folded)

    assert (done.folder / "model.onnx").read_bytes() == folded.read_bytes()


def test_other_embedder_is_kept_for_onnxruntime(
    tmp_path: Path, repository: Path, bring: Import
) -> None:
    path = one_layer(tmp_path / "w600k_mbf.onnx", ["None", 3, 112, 112], outputs=128)

    (done,), said = bring("mbf", path)

    assert done.recognised.kind == "architecture 'embedder' on backend 'onnxruntime'"
    assert "an ONNX embedder of 128 dimensions" in said
    assert (done.folder / "model.onnx").read_bytes() == path.read_bytes()
    manifest = read_manifest(done.folder)
    assert manifest.files["model.onnx"].sha256 == sha256_of(path)
    message = ConfigText.read(repository / "mbf" / "config.pbtxt").message
    assert message.backend == "onnxruntime"
    assert list(message.output[0].dims) == [128]
    assert message.parameters["scale"].string_value == "1/127.5"


def test_embedder_that_normalises_by_itself_gets_plain_pixels(tmp_path: Path) -> None:
    x = helper.make_tensor_value_info("data", TensorProto.FLOAT, ["n", 3, 112, 112])
    y = helper.make_tensor_value_info("out", TensorProto.FLOAT, ["n", 64])
    nodes = [
        helper.make_node("Sub", ["data", "mean"], ["a"]),
        helper.make_node("Mul", ["a", "scale"], ["b"]),
        helper.make_node("GlobalAveragePool", ["b"], ["c"]),
        helper.make_node("Flatten", ["c"], ["d"]),
        helper.make_node("MatMul", ["d", "w"], ["out"]),
    ]
    weights = [
        numpy_helper.from_array(np.array(127.5, np.float32), "mean"),
        numpy_helper.from_array(np.array(1 / 128, np.float32), "scale"),
        numpy_helper.from_array(np.ones((3, 64), np.float32), "w"),
    ]
    path = saved(helper.make_graph(nodes, "g", [x], [y], weights), tmp_path / "older.onnx")
    (found,) = recognise(path)
    assert found.normalisation == Normalisation("RGB", (0, 0, 0), 1)


@pytest.mark.parametrize(
    ("side", "batch", "rows", "buckets"),
    [("?", 1, 1, "320, 640, 1024"), (640, 1, 1, "640"), ("?", 8, 8, "320, 640, 1024")],
)
def test_scrfd_is_recognised_by_its_nine_outputs(
    side: int | str,
    batch: int,
    rows: int,
    buckets: str,
    tmp_path: Path,
    repository: Path,
    bring: Import,
) -> None:
    (done,), _ = bring("scrfd", scrfd(tmp_path / "det_10g.onnx", side=side, batch=batch))
    assert done.recognised.kind == "architecture 'scrfd' on backend 'onnxruntime'"
    assert done.recognised.normalisation == Normalisation("RGB", (127.5, 127.5, 127.5), 1 / 128)
    assert find_family(done.recognised.architecture).role is DETECTOR
    message = ConfigText.read(repository / "scrfd" / "config.pbtxt").message
    assert message.max_batch_size == rows
    assert message.parameters["buckets"].string_value == buckets
    assert message.parameters["scale"].string_value == "1/128"
    assert list(message.input[0].dims) == [3, -1, -1]


def test_yunet_is_recognised_by_its_twelve_outputs(
    tmp_path: Path, repository: Path, bring: Import
) -> None:
    (done,), _ = bring("mine", yunet(tmp_path / "face_detection_yunet_2023mar.onnx"))
    assert done.recognised.kind == "architecture 'yunet' on backend 'onnxruntime'"
    assert done.recognised.normalisation == Normalisation("BGR", (0, 0, 0), 1)
    message = ConfigText.read(repository / "mine" / "config.pbtxt").message
    assert message.max_batch_size == 1
    assert message.parameters["buckets"].string_value == "640"
    assert message.parameters["license"].string_value == "MIT"


def test_without_pytorch_a_graph_for_a_network_of_its_own_is_told_what_may_be_missing(
    bring: Import, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = one_layer(tmp_path / "w600k_r50.onnx", ["n", 3, 112, 112], 512)
    for module in ("importer", "recognise.checkpoint"):
        monkeypatch.setattr(f"mien_server.weights.{module}.has_pytorch", lambda: False)
    with pytest.raises(ImportRefused, match=r"under another name.*PyTorch is not installed"):
        bring("arcface", path)


def test_shapes_that_outputs_do_not_state_are_inferred(tmp_path: Path) -> None:
    path = scrfd(tmp_path / "det.onnx")
    model = onnx.load(path)
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    path.write_bytes(model.SerializeToString())
    (found,) = recognise(path)
    assert found.architecture == "scrfd"


@pytest.mark.parametrize(
    ("shape", "outputs"),
    [(["n", 3, 192, 192], 212), (["n", 3, 96, 96], 3), (["n", 3, 112, 112], 3)],
)
def test_landmark_and_attribute_networks_are_refused(
    shape: list[int | str], outputs: int, tmp_path: Path
) -> None:
    path = one_layer(tmp_path / "genderage.onnx", shape, outputs)
    with pytest.raises(WeightsError, match="landmark and age-and-gender models have no use here"):
        recognise(path)
