"""Runs a network on a GPU: pinned staging, a stream per concurrent batch, CUDA graphs per batch size.

A batch is padded up to a size that was captured; images of a side that was not are run eagerly.
"""

import queue
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from mien_server.backends.devices import CudaDevice
from mien_server.backends.network import PixelNetwork
from mien_server.models.interface import ArrayF32, ImageU8

Allocate = Callable[[tuple[int, ...]], Tensor]
_WARM_UP_RUNS = 3


class StagedRows(NamedTuple):
    """Staged pixels [N, H, W, 3] uint8, of which the first `rows` are wanted; the rest is padding."""

    pixels: Tensor
    rows: int


class Lane(Protocol):
    """Runs one batch at a time and waits for it."""

    def run(self, batch: StagedRows) -> tuple[ArrayF32, ...]:
        """The outputs of the batch's wanted rows."""
        ...


class CudaRunner:
    """Runs as many batches at once as it has lanes; more wait for one to become free.

    Args:
        lanes: at least one.
        sides: sides of the square images for which the lanes have captured graphs.
        sizes: batch sizes likewise, ascending.
        allocate: makes an uninitialised uint8 tensor on the host.
    """

    def __init__(
        self, lanes: Iterable[Lane], sides: Sequence[int], sizes: Sequence[int], allocate: Allocate
    ) -> None:
        self._free: queue.SimpleQueue[Lane] = queue.SimpleQueue()
        for lane in lanes:
            self._free.put(lane)
        self._shapes = {(side, side, 3) for side in sides}
        self._sizes = sizes
        self._allocate = allocate

    def collate(self, images: Sequence[ImageU8]) -> StagedRows:
        """Images [H, W, 3] of one shape to a batch, padded with black to a captured size."""
        rows, shape = len(images), images[0].shape
        size = padded_size(rows, self._sizes) if shape in self._shapes else rows
        pixels = self._allocate((size, *shape))
        np.stack(images, out=pixels.numpy()[:rows])
        pixels[rows:] = 0
        return StagedRows(pixels, rows)

    def run(self, batch: StagedRows) -> tuple[ArrayF32, ...]:
        """The network's outputs for such a batch, without its padding."""
        lane = self._free.get()
        try:
            return lane.run(batch)
        finally:
            self._free.put(lane)

    def rest(self) -> None:
        """Keeps what it has: the captured graphs need their memory in its place."""


class CudaLane:
    """A stream and the graphs captured on it. Used by one thread at a time.

    Args:
        network: on the GPU already; lanes share it.
        sides: sides of the square images to capture graphs for.
        sizes: batch sizes to capture graphs for.
    """

    def __init__(self, network: PixelNetwork, sides: Sequence[int], sizes: Sequence[int]) -> None:
        self._network = network
        self._device = network.mean.device
        self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()
        self._graphs: dict[tuple[int, ...], _Graph] = {}
        # The graphs of a lane never run at the same time, so they share memory; the largest goes first
        # and the others fit into what it took.
        for size in sorted(sizes, reverse=True):
            for side in sorted(sides, reverse=True):
                shape = (size, side, side, 3)
                self._graphs[shape] = self._capture(shape)

    def run(self, batch: StagedRows) -> tuple[ArrayF32, ...]:
        """The outputs of the batch's wanted rows, in pinned memory that goes with them."""
        with (
            torch.inference_mode(),
            torch.cuda.device(self._device),
            torch.cuda.stream(self._stream),
        ):
            graph = self._graphs.get(tuple(batch.pixels.shape))
            if graph is None:
                outputs = self._network(batch.pixels.to(self._device, non_blocking=True))
            else:
                graph.pixels.copy_(batch.pixels, non_blocking=True)
                graph.graph.replay()
                outputs = graph.outputs
            arrays = []
            for output in outputs:
                host = torch.empty((batch.rows, *output.shape[1:]), pin_memory=True)
                host.copy_(output[: batch.rows], non_blocking=True)
                arrays.append(host.numpy())
            self._stream.synchronize()
        return tuple(arrays)

    def _capture(self, shape: tuple[int, ...]) -> "_Graph":
        with torch.inference_mode(), torch.cuda.device(self._device):
            pixels = torch.zeros(shape, dtype=torch.uint8, device=self._device)
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                # cuDNN and cuBLAS choose kernels and allocate workspaces, which a capture may not do.
                for _ in range(_WARM_UP_RUNS):
                    self._network(pixels)
            self._stream.synchronize()
            graph = torch.cuda.CUDAGraph()
            # "thread_local": other versions go on serving on this GPU while this one is captured.
            with torch.cuda.graph(
                graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
            ):
                outputs = self._network(pixels)
        return _Graph(graph, pixels, outputs)


class _Graph(NamedTuple):
    """A captured run and the tensors on the GPU that it reads and writes."""

    graph: torch.cuda.CUDAGraph
    pixels: Tensor
    outputs: tuple[Tensor, ...]


def cuda_runner(
    network: PixelNetwork,
    device: CudaDevice,
    sides: Sequence[int],
    max_batch_size: int,
    count: int,
) -> CudaRunner:
    """Moves a network to a GPU and captures its graphs there, `count` times."""
    # PyTorch's default lets convolutions round fp32 to TF32, 10 bits: fp32 would not mean fp32.
    torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]  # no stub
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    network = network.to(device.torch_device)
    sizes = capture_sizes(max_batch_size)
    if not capturable(network):
        sides = ()
    lanes = [CudaLane(network, sides, sizes) for _ in range(count)]
    return CudaRunner(lanes, sides, sizes, _pinned)


def capturable(network: PixelNetwork) -> bool:
    """Whether a network runs the same operators whatever it sees, as it does unless it says otherwise."""
    return bool(getattr(network.network, "CAPTURABLE", True))


def capture_sizes(max_batch_size: int) -> tuple[int, ...]:
    """The powers of two below `max_batch_size`, and itself, ascending: 24 gives 1, 2, 4, 8, 16, 24."""
    powers = (1 << exponent for exponent in range((max_batch_size - 1).bit_length()))
    return (*powers, max_batch_size)


def padded_size(rows: int, sizes: Sequence[int]) -> int:
    """The smallest of the ascending `sizes` that holds `rows`; `rows` itself, if none does."""
    return next((size for size in sizes if size >= rows), rows)


def _pinned(shape: tuple[int, ...]) -> Tensor:
    # PyTorch keeps freed pinned memory and hands it out again once no copy uses it any more.
    return torch.empty(shape, dtype=torch.uint8, pin_memory=True)
