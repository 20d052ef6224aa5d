"""Loads a version's `model.safetensors` into its family's network and runs batches of it.

Networks run eagerly. `torch.compile` costs tens of seconds at every start and again for new shapes, and
TorchScript is deprecated.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mien_server.backends import memory
from mien_server.backends.checkpoint import check_finite, load_network
from mien_server.backends.cpu import CpuRunner
from mien_server.backends.cuda import cuda_runner
from mien_server.backends.devices import CpuDevice, CudaDevice
from mien_server.backends.instance import LoadedInstance, Runner
from mien_server.backends.network import PixelNetwork
from mien_server.backends.precision import (
    Precision,
    ResolvedPrecision,
    cpu_multiplies_bf16,
    resolve_precision,
)
from mien_server.backends.weights_file import LoadError
from mien_server.models.interface import AnyFamily, Normalisation
from mien_server.models.networks.folding import fold_batch_norms

__all__ = ["LoadError", "Precision", "load"]

DTYPES: dict[ResolvedPrecision, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


def load(
    family: AnyFamily,
    weights: Path,
    *,
    normalisation: Normalisation,
    options: Any,
    precision: Precision,
    device: CpuDevice | CudaDevice,
    sides: Sequence[int],
    max_batch_size: int,
    count: int = 1,
) -> LoadedInstance:
    """Loads one version of a model onto one device. Takes seconds: call it off the event loop.

    Call it once per device and place the result there: `PlacedInstance(instance, device.name, count)`.
    On a CPU all executor threads share it; on a GPU it runs `count` batches at once, each on a stream of
    its own.

    Args:
        family: names the network and its post-processing.
        weights: a `model.safetensors` with exactly the network's keys.
        normalisation: how pixels become the network's input.
        options: of the family's role, for its results.
        precision: "auto" is fp16 on a GPU, bf16 on a CPU that multiplies in it, else fp32.
        device: where it runs.
        sides: sides in pixels of the square inputs to expect: a detector's buckets, (112,) for an
            embedder. A GPU captures its graphs for these; other sizes run too, more slowly.
        max_batch_size: the largest batch to expect, at least 1, likewise.
        count: batches that a GPU may run at once.

    Raises:
        LoadError: the file is not this network's, a weight is not a finite number, or the device cannot
            compute in `precision`.
    """
    kind = "cuda" if isinstance(device, CudaDevice) else "cpu"
    resolved = resolve_precision(precision, kind, native_bf16=cpu_multiplies_bf16())
    network = load_network(family, weights)
    check_finite(network, f"{weights} is damaged, import the checkpoint again")
    network = fold_batch_norms(network)
    pixel_network = PixelNetwork(network, normalisation, DTYPES[resolved])
    check_finite(
        pixel_network,
        f"a batch norm of {weights} is invalid, or its weights do not fit precision {resolved}",
    )
    runner: Runner
    if isinstance(device, CudaDevice):
        runner = cuda_runner(pixel_network, device, sides, max_batch_size, count)
    else:
        runner = CpuRunner(pixel_network)
    memory.release()
    return LoadedInstance(runner, family, options, resolved)
