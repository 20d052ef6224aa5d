"""What the tests of importing share."""

import io
import shutil
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from torch import nn

from mien_server.backends.checkpoint import load_network
from mien_server.models.families import find_family
from mien_server.repository.config.model import ModelConfig, read_config
from mien_server.weights.importer import Imported, import_weights
from mien_server.weights.progress import Progress
from mien_server.weights.recognise.recognised import GivenInput, Recognised
from mien_server.weights.recognise.state_dicts import StateDict
from tests.unit.weights.public_networks import answer, public_answer

CONFIGS = Path(__file__).resolve().parents[3] / "model_repository"

Import = Callable[..., tuple[list[Imported], str]]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A model repository with the shipped configurations, without weights."""
    root = tmp_path / "repository"
    for config in CONFIGS.glob("*/config.pbtxt"):
        (root / config.parent.name).mkdir(parents=True)
        shutil.copy(config, root / config.parent.name)
    return root


@pytest.fixture
def bring(repository: Path) -> Import:
    """Imports into the repository; returns what was imported and what was said."""

    def run(
        model: str | None,
        path: Path,
        *,
        version: int | None = None,
        license_: str | None = None,
        source: str | None = None,
        given: GivenInput | None = None,
    ) -> tuple[list[Imported], str]:
        said = io.StringIO()
        done = import_weights(
            repository,
            model,
            path,
            Progress(said),
            version=version,
            license_=license_,
            source=source,
            given=given,
        )
        return done, said.getvalue()

    return run


def config_of(model: Path) -> ModelConfig:
    """A model's config.pbtxt, read as the server reads it."""
    config = read_config(model / "config.pbtxt")
    assert isinstance(config, ModelConfig)
    return config


def largest_difference(network: nn.Module, recognised: Recognised) -> float:
    """How far the outputs of the network that will be served are from those of the public one."""
    assert isinstance(recognised.weights, dict)
    before = network.state_dict()
    if all(torch.equal(value, before[key]) for key, value in recognised.weights.items()):
        return _difference_unchanged(network, recognised.architecture)
    return _difference_with(network, recognised.weights, recognised.architecture)


@lru_cache(maxsize=2)
def _difference_unchanged(network: nn.Module, architecture: str) -> float:
    """Computed once for all checkpoints that have a network's very weights in them."""
    return _difference_with(network, network.state_dict(), architecture)


def _difference_with(network: nn.Module, weights: StateDict, architecture: str) -> float:
    with torch.device("meta"):
        served = find_family(architecture).network()
    served.load_state_dict(weights, strict=True, assign=True)
    return _difference(network, served, architecture)


def difference_as_served(network: nn.Module, imported: Imported) -> float:
    """The same of a version that was imported, read from its folder as a server does it."""
    recognised = imported.recognised
    family = find_family(recognised.architecture)
    served = load_network(family, imported.folder / recognised.filename)
    return _difference(network, served, recognised.architecture)


def _difference(network: nn.Module, served: nn.Module, architecture: str) -> float:
    before, after = public_answer(network, architecture), answer(served, architecture)
    return max(float((a - b).abs().max()) for a, b in zip(before, after, strict=True))
