"""Graphs in onnxruntime: what pixels become, how rows are batched, which cores a batch uses."""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx as onnx_format
import onnxruntime
import pytest
import torch
from onnx import helper
from torch import nn

from mien_server.backends import onnx, openvino
from mien_server.backends.devices import CpuDevice, CudaDevice, DeviceError, thread_counts
from mien_server.backends.instance import LoadedInstance
from mien_server.backends.network import PixelNetwork
from mien_server.backends.onnx_sessions import CpuSessions, CudaSessions
from mien_server.backends.precision import Precision
from mien_server.backends.weights_file import LoadError
from mien_server.models.families import find_family
from mien_server.models.interface import ArrayF32, ImageU8, Normalisation
from mien_server.models.roles import EmbedderOptions, EmbedderRow
from tests import graphs

BGR = Normalisation("BGR", (104.0, 117.0, 123.0), 1 / 64)


def load(
    graph: onnx_format.ModelProto,
    folder: Path,
    *,
    architecture: str = "embedder",
    precision: Precision = "auto",
    sides: Sequence[int] = (112,),
    cores: int = 2,
    normalisation: Normalisation = BGR,
    by: Any = onnx,
) -> LoadedInstance:
    instance: LoadedInstance = by.load(
        find_family(architecture),
        graphs.save(graph, folder),
        normalisation=normalisation,
        options=EmbedderOptions(),
        precision=precision,
        device=CpuDevice(cores),
        sides=sides,
        max_batch_size=8,
    )
    return instance


def answers(instance: LoadedInstance, images: ImageU8) -> ArrayF32:
    rows = [EmbedderRow(image) for image in images]
    results: list[Any] = instance.split(instance.compute(instance.collate(rows)), rows)
    return np.stack(results)


def expected(images: ImageU8, how: Normalisation = BGR) -> ArrayF32:
    channels = images if how.channel_order == "RGB" else images[..., ::-1]
    pixels = (channels.astype(np.float64) - how.mean) * how.scales
    return graphs.embeddings(pixels.transpose(0, 3, 1, 2).astype(np.float32))


@pytest.mark.parametrize("by", [onnx, openvino], ids=["onnxruntime", "openvino"])
@pytest.mark.parametrize("scale", [1 / 64, (1 / 58, 1 / 57, 1 / 99)])
@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_pixels_are_normalised_and_run(
    tmp_path: Path, by: Any, images: ImageU8, order: str, scale: float | tuple[float, float, float]
) -> None:
    how = Normalisation("RGB" if order == "RGB" else "BGR", (104.0, 117.0, 123.0), scale)
    instance = load(graphs.embedder(), tmp_path, by=by, normalisation=how)
    np.testing.assert_allclose(answers(instance, images), expected(images, how), atol=1e-5)


def test_normalising_is_that_of_the_pytorch_backend(images: ImageU8) -> None:
    in_torch = PixelNetwork(nn.Identity(), BGR, torch.float32).normalise(torch.from_numpy(images))
    np.testing.assert_array_equal(onnx.normalise(list(images), BGR), in_torch.numpy())


@pytest.mark.parametrize(
    ("images_of", "error"),
    [
        ([np.zeros((8, 8, 3), np.uint8), np.zeros((8, 9, 3), np.uint8)], ValueError),
        ([np.zeros((8, 8, 3), np.float32)], TypeError),
    ],
)
def test_rows_that_do_not_fit_are_refused(images_of: list[Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        onnx.normalise(images_of, BGR)


def mean_of_the_batch() -> list[onnx_format.NodeProto]:
    """A tail that subtracts from each row what all rows have in common."""
    return [
        helper.make_node("ReduceMean", ["vector"], ["mean"], axes=[0]),
        helper.make_node("Mul", ["mean", "half"], ["part"]),
        helper.make_node("Sub", ["vector", "part"], ["embedding"]),
    ]


def reshape() -> list[onnx_format.NodeProto]:
    return [helper.make_node("Reshape", ["vector", "shape"], ["embedding"])]


GRAPHS = {
    "any number of rows": graphs.embedder(),
    "one row": graphs.embedder(1),
    "always four rows": graphs.embedder(4),
    "no axis for the batch": graphs.embedder(
        1, tail=reshape(), output=[8], shape=np.array([8], np.int64)
    ),
    "one row, though it declares any": graphs.embedder(
        tail=reshape(), shape=np.array([1, 8], np.int64)
    ),
}


@pytest.mark.parametrize("by", [onnx, openvino], ids=["onnxruntime", "openvino"])
@pytest.mark.parametrize("graph", GRAPHS.values(), ids=list(GRAPHS))
@pytest.mark.parametrize("count", [1, 3, 4, 6])
def test_any_number_of_rows_gets_the_same_answers_from_any_graph(
    tmp_path: Path, by: Any, images: ImageU8, graph: onnx_format.ModelProto, count: int
) -> None:
    instance = load(graph, tmp_path, by=by)
    np.testing.assert_allclose(
        answers(instance, images[:count]), expected(images[:count]), atol=1e-5
    )


@pytest.mark.parametrize("by", [onnx, openvino], ids=["onnxruntime", "openvino"])
def test_rows_that_would_change_one_another_run_singly(
    tmp_path: Path, by: Any, images: ImageU8
) -> None:
    graph = graphs.embedder(tail=mean_of_the_batch(), half=np.array(0.5, np.float32))
    instance = load(graph, tmp_path, by=by)
    np.testing.assert_allclose(answers(instance, images), expected(images) / 2, atol=1e-5)


@pytest.mark.parametrize("by", [onnx, openvino], ids=["onnxruntime", "openvino"])
def test_a_graph_of_four_rows_without_outputs_for_each_is_refused(tmp_path: Path, by: Any) -> None:
    graph = graphs.embedder(4, tail=reshape(), output=[32], shape=np.array([32], np.int64))
    with pytest.raises(LoadError, match="takes 4 images at once, but gives no outputs for each"):
        load(graph, tmp_path, by=by)


@pytest.mark.parametrize("by", [onnx, openvino], ids=["onnxruntime", "openvino"])
def test_a_graph_of_one_size_serves_that_size_only(tmp_path: Path, by: Any) -> None:
    with pytest.raises(LoadError, match="takes images of 112x112 pixels only, not of 128x128"):
        load(graphs.embedder(), tmp_path, by=by, sides=(112, 128))


@pytest.mark.parametrize("by", [onnx, openvino], ids=["onnxruntime", "openvino"])
def test_outputs_of_another_family_are_refused(tmp_path: Path, by: Any) -> None:
    problem = r"'scrfd': for an image of 112 pixels it gives \[8\], but SCRFD with landmarks gives"
    with pytest.raises(LoadError, match=problem):
        load(graphs.embedder(), tmp_path, by=by, architecture="scrfd")


def test_what_onnxruntime_cannot_run_is_refused(tmp_path: Path) -> None:
    tail = [helper.make_node("NoSuchOperator", ["vector"], ["embedding"])]
    with pytest.raises(LoadError, match=r"model\.onnx: onnxruntime cannot run.*NoSuchOperator"):
        load(graphs.embedder(tail=tail), tmp_path)


def test_what_openvino_cannot_run_may_be_for_another_backend(tmp_path: Path) -> None:
    tail = [helper.make_node("NoSuchOperator", ["vector"], ["embedding"])]
    with pytest.raises(openvino.Unsupported, match=r"model\.onnx: OpenVINO.*NoSuchOperator"):
        load(graphs.embedder(tail=tail), tmp_path, by=openvino)


@pytest.mark.parametrize("by", [onnx, openvino], ids=["onnxruntime", "openvino"])
@pytest.mark.parametrize("precision", ["fp32", "auto"])
def test_precision_is_what_the_graph_computes_in(
    tmp_path: Path, by: Any, precision: Precision
) -> None:
    assert load(graphs.embedder(), tmp_path, by=by, precision=precision).precision == "fp32"


@pytest.mark.parametrize("by", [onnx, openvino], ids=["onnxruntime", "openvino"])
@pytest.mark.parametrize("precision", ["int8", "bf16"])
def test_another_precision_is_refused(tmp_path: Path, by: Any, precision: Precision) -> None:
    with pytest.raises(LoadError, match=f"{precision} is set, but .* computes in fp32: set"):
        load(graphs.embedder(), tmp_path, by=by, precision=precision)


@pytest.mark.parametrize(
    ("cores", "sizes"),
    [(1, (1,)), (2, (1, 2)), (4, (1, 4)), (5, (1, 4, 5)), (16, (1, 4, 16)), (24, (1, 4, 16, 24))],
)
def test_there_is_a_session_for_each_power_of_four_and_for_all_cores(
    cores: int, sizes: tuple[int, ...]
) -> None:
    assert thread_counts(cores) == sizes


def test_a_batch_runs_on_the_largest_session_within_its_grant() -> None:
    device = CpuDevice(6)
    sessions = CpuSessions(graphs.embedder().SerializeToString(), device)

    def threads(granted: int) -> int:
        device.begin(granted)
        session = cast(onnxruntime.InferenceSession, sessions.current())
        count: int = session.get_session_options().intra_op_num_threads
        return count

    assert [threads(granted) for granted in range(1, 7)] == [1, 1, 1, 4, 4, 6]


def test_each_thread_has_its_own_grant() -> None:
    device = CpuDevice(4)
    device.begin(1)
    with ThreadPoolExecutor(1) as other:
        assert other.submit(lambda: device.granted).result() == 4
        other.submit(device.begin, 2).result()
        assert other.submit(lambda: device.granted).result() == 2
    assert device.granted == 1


def test_a_batch_of_one_core_starts_no_thread(tmp_path: Path, images: ImageU8) -> None:
    # The first session of a process may start what all later ones share.
    answers(load(graphs.embedder(), tmp_path, cores=1), images)
    before = threads_of_this_process()
    instance = load(graphs.embedder(), tmp_path, cores=1)
    answers(instance, images)
    assert threads_of_this_process() <= before


def threads_of_this_process() -> set[str]:
    return {task.name for task in Path("/proc/self/task").iterdir()}


@pytest.mark.parametrize("by", [onnx, openvino], ids=["onnxruntime", "openvino"])
def test_several_threads_run_it_at_once(tmp_path: Path, by: Any, images: ImageU8) -> None:
    instance = load(graphs.embedder(), tmp_path, by=by)
    start = threading.Barrier(4)

    def work(index: int) -> ArrayF32:
        start.wait()
        found = [answers(instance, np.roll(images, index, axis=0)) for _ in range(20)]
        assert all((each == found[0]).all() for each in found)
        return np.roll(found[0], -index, axis=0)

    with ThreadPoolExecutor(4) as pool:
        for result in pool.map(work, range(4)):
            np.testing.assert_allclose(result, expected(images), atol=1e-5)


def test_a_gpu_that_onnxruntime_cannot_use_is_no_silent_cpu() -> None:
    class Gpu:
        name = "cuda:0"

    with pytest.raises(DeviceError, match=r"built without CUDA.*onnxruntime-gpu.*KIND_CPU"):
        CudaSessions(graphs.embedder().SerializeToString(), cast(CudaDevice, Gpu()))
