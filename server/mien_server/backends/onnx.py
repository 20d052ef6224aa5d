"""Runs a version's `model.onnx` with onnxruntime."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mien_server.backends import memory
from mien_server.backends.devices import CpuDevice, CudaDevice
from mien_server.backends.instance import (
    Layout,
    LoadedInstance,
    arrange,
    as_seen,
    probe,
    probe_pictures,
    run_rows,
)
from mien_server.backends.onnx_graph import check_fits, read_graph
from mien_server.backends.onnx_sessions import CpuSessions, CudaSessions, Sessions, first_line
from mien_server.backends.precision import Precision
from mien_server.backends.weights_file import LoadError
from mien_server.models.interface import AnyFamily, ArrayF32, ImageU8, Normalisation


class OnnxRunner:
    """A graph in onnxruntime, run by any number of threads at once.

    Args:
        sessions: of the graph.
        input: the graph's.
        outputs: those that are wanted, in their order.
        layout: of the graph.
        normalisation: how pixels become its input.
    """

    def __init__(
        self,
        sessions: Sessions,
        input: str,
        outputs: Sequence[str],
        layout: Layout,
        normalisation: Normalisation,
    ) -> None:
        self._sessions = sessions
        self._input = input
        self._outputs = outputs
        self._layout = layout
        self._normalisation = normalisation

    def collate(self, images: Sequence[ImageU8]) -> ArrayF32:
        """Images [H, W, 3] of one shape to the graph's input, [N, 3, H, W]."""
        return normalise(images, self._normalisation)

    def run(self, batch: ArrayF32) -> tuple[ArrayF32, ...]:
        """The wanted outputs for such a batch."""
        return run_rows(self._run, batch, self._layout)

    def rest(self) -> None:
        """Keeps what it has: the sessions have no arena."""

    def _run(self, rows: ArrayF32) -> list[ArrayF32]:
        found = self._sessions.current().run(self._outputs, {self._input: rows})
        return [output.astype(np.float32, copy=False) for output in found]


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
    """Loads one version of a model onto one device. Takes seconds: call it off the event loop.

    Call it once per device and place the result there, as one of `pytorch.load`.

    Args:
        family: knows its outputs among the graph's and turns them into results.
        weights: a `model.onnx` with all its weights inside.
        normalisation: how pixels become the graph's input.
        options: of the family's role, for its results.
        precision: "auto" is what the graph computes in, and any other must be that.
        device: where it runs.
        sides: sides in pixels of the square inputs to expect: a detector's buckets, (112,) for an
            embedder.
        max_batch_size: without effect: any size runs.
        count: without effect: as many batches run at once as the device has executors for.

    Raises:
        LoadError: the file is no graph of the family's that may be run, not for such images, or computes
            in another precision.
        DeviceError: onnxruntime cannot use the GPU.
    """
    graph = read_graph(weights)
    check_fits(weights, graph, precision, sides, normalisation.channels)
    side = sides[0]
    try:
        sessions = _sessions(graph.model, device)
        pixels = normalise(probe_pictures(side, graph.batch), normalisation)
        layout, shapes = probe(partial(_try, sessions, graph.input), pixels, graph.batch)
    except LoadError as error:
        raise LoadError(f"{weights}: {error}") from error
    outputs = [sessions.outputs[index] for index in arrange(family, shapes, side, weights)]
    runner = OnnxRunner(sessions, graph.input, outputs, layout, normalisation)
    instance = LoadedInstance(runner, family, options, graph.precision)
    # It still holds the weights, which the sessions have copies of.
    del graph
    memory.release()
    return instance


def normalise(images: Sequence[ImageU8], how: Normalisation) -> ArrayF32:
    """Images [H, W, 3], RGB uint8, of one shape, to a network's input [N, 3, H, W], or [N, 1, H, W] of GREY.

    Raises:
        ValueError: the images' shapes differ.
        TypeError: an image is not uint8.
    """
    height, width, _ = images[0].shape
    channels = how.channels
    batch = np.empty((len(images), channels, height, width), np.float32)
    for planes, image in zip(batch, images, strict=True):
        if image.dtype != np.uint8:
            raise TypeError(f"an image holds {image.dtype}, must hold uint8")
        if image.shape != images[0].shape:
            raise ValueError(f"images of {image.shape} and {images[0].shape} in one batch")
        (seen,) = as_seen([image], how.channel_order)
        ordered = seen[..., ::-1] if how.channel_order == "BGR" else seen
        np.copyto(planes, ordered.transpose(2, 0, 1))
    batch -= np.array(how.mean[:channels], np.float32)[:, None, None]
    batch *= np.array(how.scales[:channels], np.float32)[:, None, None]
    return batch


def _sessions(model: bytes, device: CpuDevice | CudaDevice) -> Sessions:
    if isinstance(device, CudaDevice):
        return CudaSessions(model, device)
    return CpuSessions(model, device)


def _try(sessions: Sessions, input: str, rows: ArrayF32) -> list[ArrayF32]:
    try:
        return sessions.current().run(sessions.outputs, {input: rows})
    except Exception as error:  # onnxruntime's errors have no base of their own
        raise LoadError(f"onnxruntime cannot run the graph: {first_line(error)}") from error
