"""Runs networks on the processor with OpenVINO: those that mien has, and ONNX files.

A version with a network of mien's has a `model.safetensors` and, made from the network when the weights came
in, a `graph.onnx`: what the network computes, without PyTorch. The graph holds no weights, it points into
the other file, which so is one for all backends.
"""

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mien_server.backends import memory
from mien_server.backends.devices import CpuDevice, CudaDevice, DeviceError
from mien_server.backends.instance import (
    Computes,
    Layout,
    LoadedInstance,
    arrange,
    as_seen,
    probe,
    probe_pictures,
    run_rows,
)
from mien_server.backends.openvino_models import (
    CompiledModels,
    metadata,
    multiplies_bf16,
    read_model,
    take_pixels,
)
from mien_server.backends.precision import Precision, resolve_precision
from mien_server.backends.weights_file import GRAPH, LoadError
from mien_server.models.interface import AnyFamily, ArrayF32, ImageU8, Normalisation
from mien_server.models.roles import EMBEDDER

_log = logging.getLogger(__name__)

ARCHITECTURE, HEADER = "mien.architecture", "mien.weights_header"
"""What a graph says of itself: whose it is, and the sha256 of its weights' safetensors header."""


class Unsupported(LoadError):
    """Weights that OpenVINO has no way to run, and another backend may."""


_MOST_ROWS = 8
_MOST_PIXELS = 4 * 320 * 320
"""What one run may have. More rows are no faster a row, and each size of a batch costs memory for good, and
some time when it first comes."""


class OpenVinoRunner:
    """A graph in OpenVINO, run by any number of threads at once.

    Args:
        models: the graph's.
        outputs: indices of those that are wanted, in their order.
        layout: of the graph.
        channel_order: of the `Normalisation` that is in the graph.
    """

    def __init__(
        self,
        models: CompiledModels,
        outputs: Sequence[int],
        layout: Layout,
        channel_order: str = "RGB",
    ) -> None:
        self._channel_order = channel_order
        self._models = models
        self._outputs = outputs
        self._layout = layout

    def collate(self, images: Sequence[ImageU8]) -> ImageU8:
        """Images [H, W, 3] of one shape to [N, H, W, 3] uint8; [N, H, W, 1] if the network sees grey."""
        images = as_seen(images, self._channel_order)
        batch = np.empty((len(images), *images[0].shape), np.uint8)
        np.stack(images, out=batch)
        return batch

    def run(self, batch: ImageU8) -> tuple[ArrayF32, ...]:
        """The wanted outputs for such a batch."""
        return run_rows(self._run, batch, self._layout, most=_most_rows(batch))

    def rest(self) -> None:
        """Frees the memory for what lies between input and output of the largest batches so far."""
        self._models.rest()

    def _run(self, pixels: ImageU8) -> list[ArrayF32]:
        found = self._models.run(pixels)
        return [found[index] for index in self._outputs]


def load(
    family: AnyFamily,
    weights: Path,
    *,
    normalisation: Normalisation,
    options: Any,
    precision: Precision,
    device: CpuDevice | CudaDevice,
    sides: Sequence[int],
    max_batch_size: int,  # noqa: ARG001
    count: int = 1,  # noqa: ARG001
) -> LoadedInstance:
    """Loads one version of a model onto the processor. Takes seconds: call it off the event loop.

    Args:
        family: knows its outputs among the graph's and turns them into results.
        weights: a `model.safetensors` with a `graph.onnx` beside it, or a `model.onnx` with all its weights
            inside.
        normalisation: how pixels become the graph's input.
        options: of the family's role, for its results.
        precision: of a model.onnx, "auto" is what the graph computes in, and any other must be that. Of
            others, "auto" is bf16 for embedders where the processor multiplies in it, and else fp32.
        device: where it runs.
        sides: sides in pixels of the square inputs to expect: a detector's buckets, (112,) for an
            embedder.
        max_batch_size: without effect: any size runs.
        count: without effect: as many batches run at once as the device has executors for.

    Raises:
        Unsupported: OpenVINO cannot run it, or there is no graph beside the weights.
        LoadError: the file is no graph of the family's that may be run, not for such images, or computes
            in another precision.
        DeviceError: the device is no processor.
    """
    if not isinstance(device, CpuDevice):
        raise DeviceError(f"backend openvino runs on the processor, not on {device.name}")
    if weights.suffix == ".onnx":
        runner, computes = _foreign(family, weights, normalisation, precision, device, sides)
    else:
        runner, computes = _own(family, weights, normalisation, precision, device)
    instance = LoadedInstance(runner, family, options, computes)
    memory.release()
    return instance


def header_digest(weights: Path) -> str:
    """The sha256 of a safetensors file's header, which says where in the file each tensor is."""
    with weights.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return hashlib.sha256(file.read(length)).hexdigest()


def _own(
    family: AnyFamily,
    weights: Path,
    normalisation: Normalisation,
    precision: Precision,
    device: CpuDevice,
) -> tuple[OpenVinoRunner, Computes]:
    """A network of mien's, by the graph that was made from it."""
    resolved = _resolved(precision, family)
    path = weights.with_name(GRAPH)
    if not path.is_file():
        raise Unsupported(
            f"{weights.parent} has no {GRAPH}, without which OpenVINO cannot run it: {_makes_one(weights)}"
        )
    try:
        model = read_model(path)
        _check_origin(model, family, weights)
        models = CompiledModels(take_pixels(model, normalisation), device, resolved)
    except (LoadError, OSError) as error:
        raise LoadError(f"{path}: {error}: {_makes_one(weights)}") from error
    outputs = range(len(model.outputs))
    return OpenVinoRunner(models, outputs, Layout(0, batched=True)), resolved


def _makes_one(weights: Path) -> str:
    return f"`mien-server models check {weights.parent.parent.name} --make-golden` makes one"


def _check_origin(model: Any, family: AnyFamily, weights: Path) -> None:
    origin = (metadata(model, ARCHITECTURE), metadata(model, HEADER))
    if origin != (family.name, header_digest(weights)):
        raise LoadError("it was made for other weights, or another architecture")


def _foreign(
    family: AnyFamily,
    weights: Path,
    normalisation: Normalisation,
    precision: Precision,
    device: CpuDevice,
    sides: Sequence[int],
) -> tuple[OpenVinoRunner, Computes]:
    """An ONNX file."""
    from mien_server.backends.onnx_graph import check_fits, read_graph  # which only these need

    graph = read_graph(weights, without_prelu=False)
    check_fits(weights, graph, precision, sides, normalisation.channels)
    side = sides[0]
    pixels = np.stack(as_seen(probe_pictures(side, graph.batch), normalisation.channel_order))
    try:
        model = take_pixels(read_model(graph.model), normalisation)
        models = CompiledModels(model, device, graph.precision)
        layout, shapes = probe(models.try_run, pixels, graph.batch)
    except LoadError as error:
        raise Unsupported(f"{weights}: {error}") from error
    outputs = arrange(family, shapes, side, weights)
    return OpenVinoRunner(models, outputs, layout, normalisation.channel_order), graph.precision


def _resolved(precision: Precision, family: AnyFamily) -> Computes:
    if precision == "auto":
        # A detector's landmarks decide where crops are cut: in bf16 they move by a third of a pixel.
        return "bf16" if family.role is EMBEDDER and multiplies_bf16() else "fp32"
    resolved = resolve_precision(precision, "cpu", native_bf16=True)
    if resolved == "bf16" and not multiplies_bf16():
        # OpenVINO would compute in float32 without a word.
        _log.warning("this processor does not multiply bfloat16: precision is fp32 instead of bf16")
        return "fp32"
    return resolved


def _most_rows(batch: ImageU8) -> int:
    pixels: int = batch[0, ..., 0].size
    return max(1, min(_MOST_ROWS, _MOST_PIXELS // pixels))
