"""Checkpoints with random weights of real families, and instances loaded from them."""

import functools
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from mien_server.backends.devices import CpuDevice
from mien_server.backends.instance import LoadedInstance
from mien_server.backends.precision import Precision
from mien_server.backends.pytorch import load
from mien_server.models.families import find_family
from mien_server.models.interface import Normalisation
from mien_server.models.roles import DetectorOptions

SaveWeights = Callable[[str], Path]
LoadInstance = Callable[[str, Precision], LoadedInstance]


def random_state(architecture: str) -> dict[str, Tensor]:
    """Weights of a family's network under which its outputs depend on the picture."""
    generator = torch.Generator().manual_seed(7)
    state = find_family(architecture).network().state_dict()
    for key, tensor in state.items():
        if tensor.ndim > 1:
            # He et al., arXiv:1502.01852: signals neither die out nor grow from layer to layer.
            deviation = math.sqrt(2 / tensor[0].numel())
            state[key] = torch.empty_like(tensor).normal_(0, deviation, generator=generator)
        elif key.endswith("running_var"):
            state[key] = torch.empty_like(tensor).uniform_(0.5, 2.0, generator=generator)
        elif key.endswith("running_mean"):
            state[key] = torch.empty_like(tensor).uniform_(-0.5, 0.5, generator=generator)
    return state


@pytest.fixture(scope="session")
def save_weights(tmp_path_factory: pytest.TempPathFactory) -> SaveWeights:
    folder = tmp_path_factory.mktemp("weights")

    def save(architecture: str) -> Path:
        path = folder / f"{architecture}.safetensors"
        if not path.exists():
            save_file(random_state(architecture), path)
        return path

    return save


@pytest.fixture(scope="session")
def load_instance(save_weights: SaveWeights) -> LoadInstance:
    @functools.cache
    def load_one(architecture: str, precision: Precision) -> LoadedInstance:
        return load(
            find_family(architecture),
            save_weights(architecture),
            normalisation=Normalisation("RGB", (127.5, 127.5, 127.5), 1 / 127.5),
            options=DetectorOptions(),
            precision=precision,
            device=CpuDevice(1),
            sides=(112,),
            max_batch_size=8,
        )

    return load_one


@pytest.fixture
def images() -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Six pictures [112, 112, 3] of smooth random blobs."""
    rng = np.random.default_rng(3)
    coarse = rng.integers(0, 256, (6, 14, 14, 3), dtype=np.uint8)
    return coarse.repeat(8, axis=1).repeat(8, axis=2)
