import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mien_server.backends.devices import CpuDevice
from mien_server.backends.instance import LoadedInstance
from mien_server.backends.precision import Precision, cpu_multiplies_bf16
from mien_server.backends.pytorch import load
from mien_server.backends.weights_file import LoadError
from mien_server.models.families import find_family
from mien_server.models.interface import ArrayF32, ImageU8, Normalisation
from mien_server.models.roles import DetectorOptions, DetectorRow, EmbedderRow
from mien_server.scheduling.interface import Instance

from .conftest import LoadInstance, SaveWeights

BATCH_DISTANCE: dict[Precision, float] = {"fp32": 1e-5, "bf16": 1e-3}


def _rows(images: ImageU8) -> list[EmbedderRow]:
    return [EmbedderRow(image) for image in images]


def _raw(instance: LoadedInstance, images: ImageU8) -> list[ArrayF32]:
    """All outputs of each image, in one vector."""
    outputs = instance.compute(instance.collate(_rows(images)))
    return [np.concatenate([o[i].ravel() for o in outputs]) for i in range(len(images))]


def _cosine_distance(a: ArrayF32, b: ArrayF32) -> float:
    a64, b64 = a.astype(np.float64), b.astype(np.float64)
    return float(1 - a64 @ b64 / (np.linalg.norm(a64) * np.linalg.norm(b64)))


def _load(path: Path, precision: Precision = "fp32") -> LoadedInstance:
    return load(
        find_family("sface"),
        path,
        normalisation=Normalisation("RGB", (127.5, 127.5, 127.5), 1 / 127.5),
        options=DetectorOptions(),
        precision=precision,
        device=CpuDevice(1),
        sides=(112,),
        max_batch_size=8,
    )


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=pytest.mark.long)])
@pytest.mark.parametrize(
    "architecture",
    ["sface", pytest.param("iresnet18", marks=pytest.mark.long), "retinaface_mobilenet0.25"],
)
def test_a_batch_does_not_change_a_result(
    load_instance: LoadInstance, images: ImageU8, architecture: str, precision: Precision
) -> None:
    instance = load_instance(architecture, precision)
    alone = [_raw(instance, images[i : i + 1])[0] for i in range(3)]
    assert _cosine_distance(alone[0], alone[1]) > 5 * BATCH_DISTANCE[precision]
    for size in (2, 5):
        together = _raw(instance, images[:size])
        for single, batched in zip(alone, together, strict=False):
            assert _cosine_distance(single, batched) <= BATCH_DISTANCE[precision]


@pytest.mark.long
def test_the_output_is_that_of_the_plain_network(
    load_instance: LoadInstance, save_weights: SaveWeights, images: ImageU8
) -> None:
    network = find_family("sface").network()
    network.load_state_dict(load_file(save_weights("sface")))
    pixels = (images.astype(np.float32) - 127.5) / 127.5
    with torch.inference_mode():
        wanted = network(torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())).numpy()
    for row, plain in zip(_raw(load_instance("sface", "fp32"), images), wanted, strict=True):
        np.testing.assert_allclose(row, plain, rtol=0, atol=1e-4 * np.abs(plain).max())
    for row, plain in zip(_raw(load_instance("sface", "bf16"), images), wanted, strict=True):
        assert _cosine_distance(row, plain) < 1e-3


def test_threads_that_share_an_instance_get_what_serial_calls_get(
    load_instance: LoadInstance, images: ImageU8
) -> None:
    instance = load_instance("sface", "fp32")
    halves = (images[:3], images[3:])
    serial = [_raw(instance, half) for half in halves]
    together = threading.Barrier(2, timeout=30)
    device = CpuDevice(2)
    worst: dict[int, float] = {}

    def run(which: int) -> None:
        distances = []
        for cores in (1, 2, 1):
            device.begin(cores)
            together.wait()
            rows = _raw(instance, halves[which])
            distances += [_cosine_distance(a, b) for a, b in zip(rows, serial[which], strict=True)]
        worst[which] = max(distances)

    threads = [threading.Thread(target=run, args=(which,)) for which in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert worst.keys() == {0, 1}
    assert max(worst.values()) <= 1e-5


def test_loading_a_version_does_not_disturb_the_one_that_serves(
    load_instance: LoadInstance, save_weights: SaveWeights, images: ImageU8
) -> None:
    serving = load_instance("sface", "fp32")
    expected = _raw(serving, images[:1])[0]
    loaded = threading.Event()
    first_served = threading.Event()
    distances: list[float] = []
    failures: list[Exception] = []

    def serve() -> None:
        while not loaded.is_set():
            try:
                distances.append(_cosine_distance(_raw(serving, images[:1])[0], expected))
            except Exception as error:
                failures.append(error)
            first_served.set()

    def load_another() -> None:
        _load(save_weights("sface"))

    server = threading.Thread(target=serve)
    server.start()
    assert first_served.wait(timeout=30)
    loaders = [threading.Thread(target=load_another) for _ in range(2)]
    for loader in loaders:
        loader.start()
    for loader in loaders:
        loader.join()
    loaded.set()
    server.join()

    assert failures == []
    assert len(distances) > 1
    assert max(distances) <= 1e-5


def test_results_are_the_familys_own(load_instance: LoadInstance, images: ImageU8) -> None:
    embedder: Instance = load_instance("sface", "fp32")
    rows = _rows(images)
    vectors = embedder.split(embedder.compute(embedder.collate(rows)), rows)
    assert [(v.shape, v.dtype) for v in vectors] == [((128,), np.float32)] * len(rows)

    detector: Instance = load_instance("retinaface_mobilenet0.25", "fp32")
    photos = [DetectorRow(image, 0.5) for image in images[:2]]
    detections = detector.split(detector.compute(detector.collate(photos)), photos)
    assert [d.boxes.shape[1:] for d in detections] == [(4,)] * 2


def test_auto_is_the_fastest_precision_the_processor_has(load_instance: LoadInstance) -> None:
    assert load_instance("sface", "auto").precision == ("bf16" if cpu_multiplies_bf16() else "fp32")


def test_fp16_on_the_cpu_is_refused(load_instance: LoadInstance) -> None:
    with pytest.raises(LoadError, match="precision fp16 needs a GPU"):
        load_instance("sface", "fp16")


def test_rows_of_different_shapes_are_refused(load_instance: LoadInstance, images: ImageU8) -> None:
    instance = load_instance("sface", "fp32")
    with pytest.raises(ValueError):
        instance.collate([EmbedderRow(images[0]), EmbedderRow(images[1, :100])])


def test_rows_that_are_not_bytes_are_refused(load_instance: LoadInstance, images: ImageU8) -> None:
    instance = load_instance("sface", "fp32")
    with pytest.raises(TypeError):
        instance.collate([EmbedderRow(images[0].astype(np.float32))])


def test_nan_weights_are_refused(save_weights: SaveWeights, tmp_path: Path) -> None:
    state = load_file(save_weights("sface"))
    state["fc.weight"][3, 5] = float("nan")
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(LoadError, match=r"NaN or infinity in fc\.weight"):
        _load(tmp_path / "model.safetensors")


def test_weights_that_only_go_wrong_when_folded_are_refused(
    save_weights: SaveWeights, tmp_path: Path
) -> None:
    state = load_file(save_weights("sface"))
    state["stem.bn.running_var"][0] = -1.0
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(LoadError, match="is invalid, or its weights do not fit precision fp32"):
        _load(tmp_path / "model.safetensors")


@pytest.mark.long
def test_a_closed_instance_gives_its_memory_back(
    save_weights: SaveWeights, images: ImageU8
) -> None:
    def resident() -> int:
        fields = Path("/proc/self/statm").read_text().split()
        return int(fields[1]) * 4096

    def cycle() -> None:
        instance = _load(save_weights("sface"))
        _raw(instance, images)
        instance.close()

    cycle()
    after_first = resident()
    for _ in range(4):
        cycle()
    weights = save_weights("sface").stat().st_size
    assert resident() - after_first < weights / 2
