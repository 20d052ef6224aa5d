"""Slots to measure: real networks on this machine's processor, behind a real scheduler."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from safetensors.torch import save_file

from mien_server.backends import openvino
from mien_server.backends.devices import CpuDevice
from mien_server.backends.precision import Precision
from mien_server.models.families import find_family
from mien_server.models.interface import Normalisation
from mien_server.models.roles import EmbedderOptions, EmbedderRow
from mien_server.scheduling.batching import BatchingPolicy
from mien_server.scheduling.interface import PlacedInstance, Work
from mien_server.scheduling.scheduler import Scheduler, Slot
from mien_server.weights.write.graph import write_graph

CROP_BYTES = 112 * 112 * 3


def crop() -> EmbedderRow:
    """An aligned face's worth of pixels; what they show does not change the speed."""
    return EmbedderRow(np.random.default_rng(0).integers(0, 256, (112, 112, 3), dtype=np.uint8))


@contextmanager
def embedder_slot(
    architecture: str, policy: BatchingPolicy, *, precision: Precision = "auto"
) -> Iterator[Slot]:
    """A slot of a network with random weights: speed does not depend on what it has learnt."""
    family = find_family(architecture)
    device = CpuDevice()
    scheduler = Scheduler([device])
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "model.safetensors"
        save_file(family.network().state_dict(), weights)
        write_graph(family, weights)
        instance = openvino.load(
            family,
            weights,
            normalisation=Normalisation("RGB", (127.5, 127.5, 127.5), 1 / 127.5),
            options=EmbedderOptions(),
            precision=precision,
            device=device,
            sides=(112,),
            max_batch_size=policy.max_batch_size,
        )
    placed = PlacedInstance(instance, device.name, device.executors)
    slot = scheduler.open_slot(architecture, 1, policy, [placed])
    try:
        slot.submit(Work(rows=[crop()])).result()
        yield slot
    finally:
        scheduler.close()
        instance.close()
