"""Makes an int8 version of an embedding model: measured against the original, and refused if too far off."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import cv2
import numpy as np
from google.protobuf import text_format

from mien_server.backends import onnx, openvino
from mien_server.backends.checkpoint import load_network
from mien_server.backends.devices import CpuDevice
from mien_server.backends.onnx_graph import read_graph
from mien_server.errors import OperatorError
from mien_server.models.crops import Crop
from mien_server.models.families import find_family
from mien_server.models.interface import CROP_SIDE, ArrayF32, ImageU8
from mien_server.models.networks.folding import fold_batch_norms
from mien_server.models.roles import EMBEDDER
from mien_server.pipeline.align import cut_again
from mien_server.repository.config.model import ModelConfig, read_config
from mien_server.repository.config.pbtxt import ConfigText
from mien_server.repository.config.traffic import TRAFFIC_PARAMETERS
from mien_server.repository.folders import CONFIG, version_numbers
from mien_server.repository.golden import (
    BOUNDS,
    Golden,
    PrecisionError,
    check_golden,
    make_golden,
    write_golden_file,
)
from mien_server.repository.instances import load_instance
from mien_server.repository.manifest import verify_version
from mien_server.weights.progress import Progress
from mien_server.weights.write.export import export
from mien_server.weights.write.quantise_graph import quantise_graph
from mien_server.weights.write.version_folder import turn, write_version

_WEIGHTS = "model.onnx"
_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})
_FEWEST, _MOST = 8, 256
"""Crops to calibrate on: fewer say too little, more take minutes and change nothing."""

Align: TypeAlias = Callable[[Sequence[Path]], list[ImageU8]]
"""Cuts aligned faces [112, 112, 3] out of photo files."""


class QuantiseError(OperatorError):
    """Nothing was written: the model or the crops cannot be used, or int8 loses too much."""


@dataclass(frozen=True, slots=True)
class Quantised:
    """An int8 version that is now in the repository.

    Attributes:
        cosine: the lowest cosine to the float32 answers on the golden pictures.
    """

    model: str
    version: int
    folder: Path
    cosine: float


def quantise(
    repository: Path,
    model: str,
    calibration: Path,
    progress: Progress | None = None,
    *,
    version: int | None = None,
    align: Align | None = None,
) -> Quantised:
    """Quantises a version of an embedding model to int8 and writes the result as a new version.

    Of a model on backend onnxruntime it becomes the next version. PyTorch does not run it, so of a model on
    backend pytorch it goes to the model `<model>-int8`, which is made, with the same configuration, if it
    does not exist.

    Args:
        calibration: a folder with pictures in it or below: those of 112x112 pixels are aligned faces, others
            are photos.
        version: which one to quantise, the highest if None.
        align: cuts the faces out of photos; None: there must be none.

    Raises:
        QuantiseError: the model, the version or the crops cannot be used, or its answers in int8 would be
            too far from those in float32.
        ConfigError, ManifestError, LoadError: the model's own files are not what they should be.
    """
    progress = progress or Progress()
    try:
        config, number = _chosen(repository, model, version)
        folder = repository / model / str(number)
        manifest = verify_version(folder, repository, config.default_model_filename)
        target, filename = _target(repository, config)
        crops = _crops(calibration, align)
        progress.say(f"quantising {model} version {number} on {len(crops)} crops")
        graph, batch = _graph(config, folder / config.default_model_filename)
        golden = _golden(config, folder)
        pixels = onnx.normalise(_seen(crops, config), config.normalisation)
        quantised = quantise_graph(graph, _multiple(pixels, batch or 1), batch)
        cosine = _compared(config, quantised, golden)
        target.mkdir(exist_ok=True)
        with turn(target, progress):
            if not (target / CONFIG).is_file():
                _configure(target, repository / model / CONFIG)
            into = target / str(max(version_numbers(target), default=0) + 1)

            def fill(staging: Path) -> None:
                (staging / filename).write_bytes(quantised)
                write_golden_file(staging, golden)

            write_version(
                into,
                fill,
                source=f"{model} version {number} quantised to int8 on {len(crops)} crops;"
                f" {manifest.source}",
                license_=manifest.license,
                command="models quantize",
            )
    except OSError as error:
        raise QuantiseError(str(error)) from error
    progress.say(
        f"{target.name} version {into.name} is int8: its lowest cosine to fp32 is {cosine:.4f}"
    )
    progress.say(
        f"note: no threshold was measured with it: `mien-server evaluate verification --calibrate --embedder"
        f" {target.name}:{into.name}` does that"
    )
    return Quantised(target.name, int(into.name), into, cosine)


def _chosen(repository: Path, model: str, version: int | None) -> tuple[ModelConfig, int]:
    config = read_config(repository / model / CONFIG)
    if not isinstance(config, ModelConfig) or config.role is not EMBEDDER:
        raise QuantiseError(f"{model} is no embedding model, and only those can be quantised")
    numbers = version_numbers(repository / model)
    if version is None and not numbers:
        raise QuantiseError(f"{model} has no version: install or import its weights first")
    number = max(numbers) if version is None else version
    if number not in numbers:
        raise QuantiseError(f"{model} has no version {number}, only {sorted(numbers)}")
    return config, number


def _crops(folder: Path, align: Align | None) -> list[ImageU8]:
    """The faces in a folder, evenly chosen where there are very many."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES)
    paths = paths[:: -(-len(paths) // _MOST) or 1]
    _check_count(folder, len(paths), "pictures")
    read = {path: _crop(path) for path in paths}
    photos = [path for path, crop in read.items() if crop is None]
    if photos and align is None:
        raise QuantiseError(
            f"{photos[0]} is no picture of {CROP_SIDE}x{CROP_SIDE} pixels: only aligned faces show the"
            " network what it will see"
        )
    crops = [crop for crop in read.values() if crop is not None]
    if photos and align is not None:
        crops += align(photos)
        _check_count(folder, len(crops), "faces")
    return crops


def _seen(aligned: list[ImageU8], config: ModelConfig) -> list[ImageU8]:
    """What the network sees of aligned faces."""
    crop: Crop = config.options.crop
    return aligned if crop.is_template else [cut_again(face, crop) for face in aligned]


def _check_count(folder: Path, count: int, what: str) -> None:
    if count < _FEWEST:
        raise QuantiseError(
            f"{folder} has {count} {what}; at least {_FEWEST} faces are needed, better some hundred of"
            " different people"
        )


def _crop(path: Path) -> ImageU8 | None:
    """What is in a file, if it is an aligned face."""
    picture = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR_RGB)
    if picture is None or picture.shape != (CROP_SIDE, CROP_SIDE, 3):
        return None
    return np.asarray(picture, np.uint8)


def _graph(config: ModelConfig, weights: Path) -> tuple[bytes, int]:
    """The model as a graph in float32, and the rows that it takes at once, 0 for any number."""
    if config.backend == "pytorch":
        network = fold_batch_norms(load_network(find_family(config.architecture), weights))
        return export(network, CROP_SIDE, CROP_SIDE, folded=True), 0
    graph = read_graph(weights)
    if graph.precision != "fp32":
        raise QuantiseError(f"{weights} computes in {graph.precision}; quantise the fp32 version")
    return graph.model, graph.batch


def _multiple(pixels: ArrayF32, batch: int) -> ArrayF32:
    """Fills the last batch up with the first rows."""
    count = -(-len(pixels) // batch) * batch
    return pixels[np.arange(count) % len(pixels)]


def _golden(config: ModelConfig, folder: Path) -> Golden:
    """The original's answers, in float32."""
    original = load_instance(config, folder, CpuDevice(), precision="fp32")
    try:
        golden = make_golden(config, original)
    finally:
        original.close()
    assert golden is not None  # noqa: S101 - only detectors can be unsure
    return golden


def _compared(config: ModelConfig, quantised: bytes, golden: Golden) -> float:
    """The lowest cosine of a quantised graph's answers.

    Raises:
        QuantiseError: it is below the bound that a server asks for when it loads the version.
    """
    batch = config.batching.max_batch_size
    with tempfile.TemporaryDirectory() as scratch:
        weights = Path(scratch) / "int8.onnx"
        weights.write_bytes(quantised)
        instance = openvino.load(
            find_family(config.architecture),
            weights,
            normalisation=config.normalisation,
            options=config.options,
            precision="int8",
            device=CpuDevice(),
            sides=config.sides,
            max_batch_size=batch,
        )
    try:
        check_golden(golden, instance, batch, precision="int8", device="cpu")
        return float(golden.cosines(instance, batch).min())
    except PrecisionError as error:
        raise QuantiseError(
            f"nothing was written: {error}. Calibrate on more crops of more people; some networks lose more"
            f" than {BOUNDS['int8']:g} allows whatever they are calibrated on"
        ) from error
    finally:
        instance.close()


def _target(repository: Path, config: ModelConfig) -> tuple[Path, str]:
    """The folder of the model that the int8 version belongs to, and the name of its weights' file.

    Raises:
        QuantiseError: it is there, and for something else.
    """
    own = config.backend == "onnxruntime"
    target = repository / (config.name if own else f"{config.name}-int8")
    if (target / CONFIG).is_file():
        other = read_config(target / CONFIG)
        if not isinstance(other, ModelConfig) or not _serves(other, config):
            raise QuantiseError(
                f"{target / CONFIG} cannot serve {config.name} in int8: backend must be onnxruntime,"
                " precision auto or int8, and architecture, channel_order, mean, scale and output those of"
                f" {repository / config.name / CONFIG}"
            )
        return target, other.default_model_filename
    return target, _WEIGHTS


def _configure(target: Path, original: Path) -> None:
    """Writes the config.pbtxt of an int8 model: that of its original, but for what runs it.

    Thresholds were measured with other weights, and are left out.
    """
    message = ConfigText.read(original).message
    message.name, message.backend = target.name, "onnxruntime"
    message.ClearField("default_model_filename")
    message.ClearField("version_policy")
    for key in (TRAFFIC_PARAMETERS | EMBEDDER.parameters) & message.parameters.keys():
        del message.parameters[key]
    message.parameters["precision"].string_value = "int8"
    partial = target / f".{CONFIG}.partial"
    partial.write_text(text_format.MessageToString(message))
    partial.replace(target / CONFIG)


def _serves(config: ModelConfig, original: ModelConfig) -> bool:
    """Whether a configuration fits what another's weights become."""
    return (
        config.backend == "onnxruntime"
        and config.precision in ("auto", "int8")
        and config.architecture == original.architecture
        and config.normalisation == original.normalisation
        and config.outputs[0].dims == original.outputs[0].dims
    )
