"""Networks of mien's own in OpenVINO: the same answers as in PyTorch, whatever runs beside them."""

import functools
import shutil
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file

from mien_server.backends import openvino, pytorch
from mien_server.backends.devices import CpuDevice, CudaDevice, DeviceError
from mien_server.backends.instance import LoadedInstance
from mien_server.backends.openvino_models import multiplies_bf16
from mien_server.backends.precision import Precision
from mien_server.backends.weights_file import GRAPH, LoadError
from mien_server.models.families import find_family
from mien_server.models.interface import ArrayF32, ImageU8, Normalisation
from mien_server.models.roles import DetectorOptions, DetectorRow
from mien_server.weights.write.graph import write_graph

from .conftest import SaveWeights

RGB = Normalisation("RGB", (127.5, 127.5, 127.5), 1 / 127.5)
BGR = Normalisation("BGR", (104.0, 117.0, 123.0), 1.0)
DETECTOR = "retinaface_mobilenet0.25"
DEVICE = CpuDevice(2)
# IResNet-18 has ten times the weights, and shows nothing that SFace does not.
USUAL_FIRST = ("sface", pytest.param("iresnet18", marks=pytest.mark.long), DETECTOR)


@pytest.fixture(scope="session")
def versions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("versions")


@pytest.fixture
def folder(versions: Path, save_weights: SaveWeights, request: pytest.FixtureRequest) -> Path:
    """A version folder for SFace, for the detector, and for the architecture that a test is about."""
    parameters = getattr(request.node, "callspec", None)
    asked_for = parameters.params.get("architecture", DETECTOR) if parameters else DETECTOR
    for architecture in {"sface", DETECTOR, asked_for}:
        weights = versions / architecture / "1" / "model.safetensors"
        if not weights.exists():
            weights.parent.mkdir(parents=True)
            shutil.copy(save_weights(architecture), weights)
            assert write_graph(find_family(architecture), weights)
    return versions


def load(
    folder: Path,
    architecture: str,
    *,
    by: Any = openvino,
    precision: Precision = "fp32",
    device: Any = None,
    normalisation: Normalisation = RGB,
) -> LoadedInstance:
    instance: LoadedInstance = by.load(
        find_family(architecture),
        folder / architecture / "1" / "model.safetensors",
        normalisation=normalisation,
        options=DetectorOptions(),
        precision=precision,
        device=device or DEVICE,
        sides=(112,),
        max_batch_size=16,
    )
    return instance


_loaded = functools.cache(load)


def loaded(
    folder: Path,
    architecture: str,
    *,
    by: Any = openvino,
    precision: Precision = "fp32",
    normalisation: Normalisation = RGB,
) -> LoadedInstance:
    """The same for tests that only run it: what many of them need is loaded once."""
    return _loaded(folder, architecture, by=by, precision=precision, normalisation=normalisation)


@pytest.fixture(scope="module", autouse=True)
def _freed() -> Iterator[None]:
    yield
    _loaded.cache_clear()


@pytest.fixture(autouse=True)
def _all_cores() -> Iterator[None]:
    yield
    DEVICE.begin(DEVICE.cores)


def outputs(instance: LoadedInstance, images: Sequence[ImageU8]) -> tuple[ArrayF32, ...]:
    found: tuple[ArrayF32, ...] = instance.compute(
        instance.collate([DetectorRow(image, 0.5) for image in images])
    )
    return found


def pictures(count: int, side: int = 112) -> list[ImageU8]:
    """Different pictures of smooth random blobs."""
    coarse = np.random.default_rng(5).integers(0, 256, (count, side // 8, side // 8, 3), np.uint8)
    return list(coarse.repeat(8, axis=1).repeat(8, axis=2))


def cosine(a: ArrayF32, b: ArrayF32) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


@pytest.mark.parametrize("normalisation", [RGB, BGR], ids=["RGB", "BGR"])
@pytest.mark.parametrize("architecture", USUAL_FIRST)
def test_it_answers_as_pytorch_does(
    folder: Path, architecture: str, normalisation: Normalisation
) -> None:
    images = pictures(3)
    ours = outputs(loaded(folder, architecture, normalisation=normalisation), images)
    theirs = outputs(loaded(folder, architecture, by=pytorch, normalisation=normalisation), images)
    assert len(ours) == len(theirs)
    for found, wanted in zip(ours, theirs, strict=True):
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())


@pytest.mark.parametrize("architecture", USUAL_FIRST)
def test_bf16_is_near_enough_where_the_processor_has_it(folder: Path, architecture: str) -> None:
    instance = loaded(folder, architecture, precision="bf16")
    assert instance.precision == ("bf16" if multiplies_bf16() else "fp32")
    images = pictures(3)
    theirs = outputs(loaded(folder, architecture, by=pytorch), images)
    for found, wanted in zip(outputs(instance, images), theirs, strict=True):
        for a, b in zip(found.reshape(3, -1), wanted.reshape(3, -1), strict=True):
            assert a @ b >= 0.999 * np.linalg.norm(a) * np.linalg.norm(b)


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=pytest.mark.long)])
@pytest.mark.parametrize("architecture", ["sface", DETECTOR])
def test_neither_neighbours_nor_cores_change_an_answer(
    folder: Path, architecture: str, precision: Precision
) -> None:
    instance = loaded(folder, architecture, precision=precision)
    images = pictures(9)  # more than one run has
    alone = outputs(instance, images[:1])
    for cores in (1, 2):
        DEVICE.begin(cores)
        for size in (1, 2, 3, 8, 9):
            for among, single in zip(outputs(instance, images[:size]), alone, strict=True):
                assert len(among) == size
                bound = 1e-5 if instance.precision == "fp32" else 1e-4
                assert cosine(among[0].ravel(), single.ravel()) >= 1 - bound


@pytest.mark.parametrize(
    "architecture", ["sface", pytest.param("iresnet18", marks=pytest.mark.long)]
)
def test_a_verdict_does_not_depend_on_what_runs_beside_it(folder: Path, architecture: str) -> None:
    """The similarity of a pair moves by at most 5e-4, whatever batches its faces are in: docs/backends.md."""
    instance = loaded(folder, architecture, precision="auto")
    images = pictures(9)

    def embedded(index: int, size: int) -> ArrayF32:
        among = (images[index:] + images[:index])[:size]
        vector: ArrayF32 = outputs(instance, among)[0][0]
        return vector

    similarity = cosine(embedded(0, 1), embedded(1, 1))
    for cores in (1, 2):
        DEVICE.begin(cores)
        for sizes in ((1, 2), (3, 9), (8, 4)):
            found = cosine(*(embedded(index, size) for index, size in enumerate(sizes)))
            assert found == pytest.approx(similarity, abs=5e-4)


def test_several_threads_run_it_at_once(folder: Path) -> None:
    instance = loaded(folder, "sface")
    images = pictures(3)
    wanted = outputs(instance, images)[0]
    start = threading.Barrier(4)

    def work(index: int) -> None:
        DEVICE.begin(1 + index % 2)
        start.wait()
        for size in (1, 3, 2):
            (found,) = outputs(instance, (images[-index:] + images[:-index])[:size])
            np.testing.assert_allclose(found, np.roll(wanted, index, axis=0)[:size], atol=1e-5)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))


def test_an_answer_stays_as_it_is_while_others_are_computed(folder: Path) -> None:
    instance = loaded(folder, "sface")
    first, second = pictures(2)
    (found,) = outputs(instance, [first])
    before = found.copy()
    outputs(instance, [second])
    np.testing.assert_array_equal(found, before)


@pytest.mark.parametrize("side", [64, 320])
def test_a_detector_takes_canvases_of_any_side(folder: Path, side: int) -> None:
    images = pictures(5, side)
    ours = outputs(loaded(folder, DETECTOR), images)
    theirs = outputs(loaded(folder, DETECTOR, by=pytorch), images)
    for found, wanted in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())


@pytest.mark.parametrize(
    ("images", "error"),
    [
        ([np.zeros((112, 112, 3), np.uint8), np.zeros((112, 113, 3), np.uint8)], ValueError),
        ([np.zeros((112, 112, 3), np.float32)], TypeError),
    ],
)
def test_rows_that_do_not_fit_are_refused(
    folder: Path, images: list[ImageU8], error: type[Exception]
) -> None:
    with pytest.raises(error):
        outputs(loaded(folder, "sface"), images)


@pytest.mark.parametrize(
    ("architecture", "wanted", "native"),
    [("sface", "auto", "bf16"), (DETECTOR, "auto", "fp32"), ("sface", "fp32", "fp32")],
)
def test_auto_is_bf16_for_embedders_only_and_where_it_is_native(
    folder: Path, architecture: str, wanted: Precision, native: str
) -> None:
    instance = loaded(folder, architecture, precision=wanted)
    assert instance.precision == (native if multiplies_bf16() else "fp32")


def test_fp16_is_refused(folder: Path) -> None:
    with pytest.raises(LoadError, match="precision fp16 needs a GPU"):
        load(folder, "sface", precision="fp16")


def test_a_gpu_is_refused(folder: Path) -> None:
    class Gpu:
        name = "cuda:0"

    with pytest.raises(DeviceError, match="runs on the processor, not on cuda:0"):
        load(folder, "sface", device=cast(CudaDevice, Gpu()))


@pytest.mark.parametrize("architecture", USUAL_FIRST)
def test_the_graph_holds_no_weights(folder: Path, architecture: str) -> None:
    assert (folder / architecture / "1" / GRAPH).stat().st_size < 200_000


@pytest.mark.parametrize(
    "dtype",
    [
        pytest.param(torch.float16, marks=pytest.mark.long),
        torch.bfloat16,
        pytest.param(torch.float64, marks=pytest.mark.long),
    ],
)
def test_weights_of_another_type_stand_in_the_graph(
    folder: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    weights = tmp_path / "sface" / "1" / "model.safetensors"
    weights.parent.mkdir(parents=True)
    state = load_file(folder / "sface" / "1" / "model.safetensors")
    save_file({k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}, weights)
    write_graph(find_family("sface"), weights)
    images = pictures(2)
    (found,) = outputs(load(tmp_path, "sface"), images)
    (wanted,) = outputs(load(tmp_path, "sface", by=pytorch), images)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())


def test_a_network_that_decides_by_what_it_sees_has_no_graph(tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    save_file(find_family("mtcnn").network().state_dict(), weights)
    assert not write_graph(find_family("mtcnn"), weights)
    assert not weights.with_name(GRAPH).exists()


def test_weights_that_are_not_finite_get_no_graph(folder: Path, tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    state = load_file(folder / "sface" / "1" / "model.safetensors")
    state["fc.weight"][0, 0] = torch.nan
    save_file(state, weights)
    with pytest.raises(LoadError, match=r"NaN or infinity in fc\.weight: .* is damaged"):
        write_graph(find_family("sface"), weights)


@pytest.fixture
def version(folder: Path, tmp_path: Path) -> Path:
    """A version folder of SFace that may be spoilt."""
    shutil.copytree(folder / "sface", tmp_path / "sface")
    return tmp_path / "sface" / "1"


REMEDY = r"`mien-server models check sface --make-golden` makes one"


def test_a_graph_that_is_none_is_refused(version: Path, tmp_path: Path) -> None:
    (version / GRAPH).write_bytes(b"no graph" * 100)
    with pytest.raises(LoadError, match=rf"1/graph\.onnx: OpenVINO cannot read.*{REMEDY}"):
        load(tmp_path, "sface")


def test_a_graph_of_other_weights_is_refused(version: Path, tmp_path: Path) -> None:
    state = load_file(version / "model.safetensors")
    state["fd.weight"] = state.pop("fc.weight")
    save_file(state, version / "model.safetensors")
    with pytest.raises(LoadError, match=rf"1/graph\.onnx: it was made for other weights.*{REMEDY}"):
        load(tmp_path, "sface")


def test_a_graph_of_another_architecture_is_refused(version: Path, tmp_path: Path) -> None:
    (tmp_path / "iresnet18").symlink_to(tmp_path / "sface")
    with pytest.raises(LoadError, match=r"made for .* another architecture"):
        load(tmp_path, "iresnet18")


def test_weights_that_end_early_are_refused(version: Path, tmp_path: Path) -> None:
    weights = version / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(LoadError, match=rf"1/graph\.onnx: OpenVINO cannot .*{REMEDY}"):
        load(tmp_path, "sface")


@pytest.mark.parametrize("location", ["../model.safetensors", "/dev/zero", "gone.safetensors"])
def test_a_graph_that_points_elsewhere_is_refused(
    version: Path, tmp_path: Path, location: str
) -> None:
    shutil.copy(version / "model.safetensors", version.parent)
    model = onnx.load(version / GRAPH, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    (version / GRAPH).write_bytes(model.SerializeToString())
    with pytest.raises(LoadError, match=r"1/graph\.onnx: OpenVINO cannot read the graph"):
        load(tmp_path, "sface")
