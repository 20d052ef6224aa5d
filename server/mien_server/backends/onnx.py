"""Runs a version's `model.onnx` with onnxruntime."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mien_server.backends import memory
from mien_server.backends.checkpoint import LoadError
from mien_server.backends.devices import CpuDevice, CudaDevice
from mien_server.backends.instance import Computes, LoadedInstance
from mien_server.backends.onnx_graph import Graph, read_graph
from mien_server.backends.onnx_sessions import CpuSessions, CudaSessions, Sessions, first_line
from mien_server.backends.precision import Precision
from mien_server.models.interface import AnyFamily, ArrayF32, ImageU8, Normalisation

_SAME = 1e-4
"""Rows count as independent if others beside them move their outputs by less, as a share of the largest."""


class Layout(NamedTuple):
    """How a graph wants its rows, and gives its outputs.

    Attributes:
        rows: that it takes at once; 0: any number.
        batched: whether its outputs have an axis for the batch. If not, rows is 1.
    """

    rows: int
    batched: bool


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
        size = self._layout.rows or len(batch)
        if size == len(batch) and self._layout.batched:
            return self._run(batch)
        parts = [self._part(batch[start : start + size]) for start in range(0, len(batch), size)]
        return tuple(np.concatenate(outputs) for outputs in zip(*parts, strict=True))

    def _part(self, rows: ArrayF32) -> tuple[ArrayF32, ...]:
        """The outputs for as many rows as the graph takes at once, or for fewer."""
        if not self._layout.batched:
            return tuple(output[None] for output in self._run(rows))
        padding = np.zeros((self._layout.rows - len(rows), *rows.shape[1:]), np.float32)
        outputs = self._run(np.concatenate([rows, padding]))
        return tuple(output[: len(rows)] for output in outputs)

    def _run(self, batch: ArrayF32) -> tuple[ArrayF32, ...]:
        found = self._sessions.current().run(self._outputs, {self._input: batch})
        return tuple(output.astype(np.float32, copy=False) for output in found)


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
    _check_precision(weights, graph.precision, precision)
    _check_sides(weights, graph, sides)
    side = sides[0]
    try:
        sessions = _sessions(graph.model, device)
        pixels = normalise(_pictures(side, max(graph.batch, 2)), normalisation)
        layout, shapes = _probe(sessions, graph, pixels)
    except LoadError as error:
        raise LoadError(f"{weights}: {error}") from error
    try:
        outputs = [sessions.outputs[index] for index in family.arrange(shapes, side)]
    except ValueError as error:
        found = ", ".join(str(list(shape)) for shape in shapes)
        raise LoadError(
            f"{weights} is no graph of architecture {family.name!r}: for an image of {side} pixels it"
            f" gives {found}, but {error}"
        ) from error
    runner = OnnxRunner(sessions, graph.input, outputs, layout, normalisation)
    instance = LoadedInstance(runner, family, options, graph.precision)
    # It still holds the weights, which the sessions have copies of.
    del graph
    memory.release()
    return instance


def normalise(images: Sequence[ImageU8], how: Normalisation) -> ArrayF32:
    """Images [H, W, 3], RGB uint8, of one shape, to a network's input [N, 3, H, W].

    Raises:
        ValueError: the images' shapes differ.
        TypeError: an image is not uint8.
    """
    height, width, _ = images[0].shape
    batch = np.empty((len(images), 3, height, width), np.float32)
    for planes, image in zip(batch, images, strict=True):
        if image.dtype != np.uint8:
            raise TypeError(f"an image holds {image.dtype}, must hold uint8")
        if image.shape != images[0].shape:
            raise ValueError(f"images of {image.shape} and {images[0].shape} in one batch")
        channels = image if how.channel_order == "RGB" else image[..., ::-1]
        np.copyto(planes, channels.transpose(2, 0, 1))
    batch -= np.array(how.mean, np.float32)[:, None, None]
    batch *= np.float32(how.scale)
    return batch


def _check_precision(weights: Path, found: Computes, wanted: Precision) -> None:
    if wanted in ("auto", found):
        return
    fix = "set precision auto"
    if wanted == "int8":
        fix += ", or quantise it with `mien-server models quantize`"
    raise LoadError(f"precision {wanted} is set, but {weights} computes in {found}: {fix}")


def _check_sides(weights: Path, graph: Graph, sides: Sequence[int]) -> None:
    for side in sides:
        if graph.height not in (0, side) or graph.width not in (0, side):
            fixed = f"{graph.width or 'any'}x{graph.height or 'any'}"
            raise LoadError(
                f"{weights} takes images of {fixed} pixels only, not of {side}x{side}: a detector's"
                " buckets must be that size, an embedder must take crops of 112x112"
            )


def _sessions(model: bytes, device: CpuDevice | CudaDevice) -> Sessions:
    if isinstance(device, CudaDevice):
        return CudaSessions(model, device)
    return CpuSessions(model, device)


def _pictures(side: int, count: int) -> list[NDArray[np.uint8]]:
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (side, side, 3), dtype=np.uint8) for _ in range(count)]


def _probe(
    sessions: Sessions, graph: Graph, pixels: ArrayF32
) -> tuple[Layout, list[tuple[int, ...]]]:
    """Runs different images, together if the graph can, and sees whether each gets its own outputs.

    What a graph declares is no guide: exporters leave shapes out, or write the one image that they traced
    with into a reshape, or mix the rows of a batch.

    Returns:
        the layout, and the outputs' shapes for one row.
    """
    if graph.batch > 1:
        outputs = _try(sessions, graph, pixels)
        if any(output.shape[:1] != (graph.batch,) for output in outputs):
            raise LoadError(
                f"it takes {graph.batch} images at once, but gives no outputs for each: export it with"
                " a dynamic batch"
            )
        return Layout(graph.batch, batched=True), [output.shape[1:] for output in outputs]
    alone = _try(sessions, graph, pixels[:1])
    batched = all(output.shape[:1] == (1,) for output in alone)
    several = batched and not graph.batch and _independent(sessions, graph, pixels, alone)
    shapes = [output.shape[1:] if batched else output.shape for output in alone]
    return Layout(0 if several else 1, batched), shapes


def _independent(
    sessions: Sessions, graph: Graph, pixels: ArrayF32, alone: Sequence[ArrayF32]
) -> bool:
    """Whether the first image's outputs are the same among others as they are `alone`."""
    try:
        together = _try(sessions, graph, pixels)
    except LoadError:
        return False
    return all(
        len(a) == len(pixels)
        and np.allclose(a[:1], b, rtol=0, atol=_SAME * np.abs(b).max(initial=0))
        for a, b in zip(together, alone, strict=True)
    )


def _try(sessions: Sessions, graph: Graph, rows: ArrayF32) -> list[ArrayF32]:
    try:
        return sessions.current().run(sessions.outputs, {graph.input: rows})
    except Exception as error:  # onnxruntime's errors have no base of their own
        raise LoadError(f"onnxruntime cannot run the graph: {first_line(error)}") from error
