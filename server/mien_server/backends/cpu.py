"""Runs a network on the processor."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mien_server.backends.network import PixelNetwork
from mien_server.models.interface import ArrayF32, ImageU8


class CpuRunner:
    """One copy of the weights, run by any number of threads at once."""

    def __init__(self, network: PixelNetwork) -> None:
        self._network = network

    def collate(self, images: Sequence[ImageU8]) -> Tensor:
        """Images [H, W, 3] of one shape to [N, H, W, 3] uint8."""
        batch = np.empty((len(images), *images[0].shape), np.uint8)
        np.stack(images, out=batch)
        return torch.from_numpy(batch)

    def run(self, batch: Tensor) -> tuple[ArrayF32, ...]:
        """The network's outputs for such a batch."""
        with torch.inference_mode():
            return tuple(output.numpy() for output in self._network(batch))

    def rest(self) -> None:
        """Keeps what it has: PyTorch frees a run's memory at its end."""
