"""Repositories on disk for tests: networks with random weights, and what the index says of them."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mien_server.errors import MienError, Reason, Unmet
from mien_server.models.families import families
from mien_server.models.roles import EmbedderFamily, EmbedderRow
from mien_server.repository.catalogue import Catalogue
from mien_server.repository.loader import Loader
from mien_server.repository.manifest import describe, write_manifest
from mien_server.repository.traffic import TrafficStatistics
from mien_server.repository.versions import ReadyModel, State, VersionStatus
from mien_server.scheduling.interface import Work

ARCHITECTURES = {"retinaface": "retinaface_mobilenet0.25", "sface": "sface", "arcface": "iresnet50"}


class SmallEmbedder(nn.Module):
    """Two layers in place of SFace's thirty: what it computes is not the subject here."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, kernel_size=16, stride=16)
        self.fc = nn.Linear(8 * 7 * 7, 128)

    def forward(self, x: Tensor) -> Tensor:
        embedding: Tensor = self.fc(self.conv(x).flatten(1))
        return embedding


NETWORKS = {**families(), "sface": EmbedderFamily("sface", SmallEmbedder)}
"""The families that these tests load: those of the server, with a small one under the name of SFace."""


class Opened(NamedTuple):
    """A repository in memory: what is there, and what loads it."""

    catalogue: Catalogue
    loader: Loader


Open = Callable[..., Opened]

SECONDS = 60
"""That anything may take before a test fails."""


def add_version(
    root: Path, name: str, version: int, *, seed: int = 0, network: str = "", nudge: float = 0.0
) -> Path:
    """Puts a network with random weights into a version folder; `nudge` moves them all a little."""
    folder = root / name / str(version)
    folder.mkdir(exist_ok=True)
    torch.manual_seed(seed)
    state = NETWORKS[network or ARCHITECTURES[name]].network().state_dict()
    if nudge:
        state = {k: v * (1 + nudge) if v.is_floating_point() else v for k, v in state.items()}
    (folder / "manifest.json").unlink(missing_ok=True)
    save_file(state, folder / "model.safetensors")
    seal(folder)
    return folder


def seal(folder: Path) -> None:
    """Writes the manifest of what is in a version folder."""
    (folder / "manifest.json").unlink(missing_ok=True)
    write_manifest(
        folder,
        describe(folder, source="test", license_="", created=datetime.now(UTC), importer="pytest"),
    )


def configure(root: Path, name: str, old: str, new: str) -> None:
    """Replaces a piece of a config.pbtxt."""
    path = root / name / "config.pbtxt"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def keep_versions(root: Path, name: str, count: int) -> None:
    """Has the highest `count` versions served."""
    policy = f"version_policy {{ latest {{ num_versions: {count} }} }}"
    configure(root, name, 'backend: "pytorch"', f'backend: "pytorch" {policy}')


def parameter(root: Path, name: str, key: str, value: object) -> None:
    """Adds a parameter to a config.pbtxt."""
    with (root / name / "config.pbtxt").open("a") as file:
        file.write(f'\nparameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n')


def states(repository: Opened) -> dict[tuple[str, int], State]:
    """The state of each line of the index."""
    return {(status.name, status.version): status.state for status in repository.loader.index()}


def line(repository: Opened, name: str, version: int = 0) -> VersionStatus:
    """One line of the index."""
    (found,) = (s for s in repository.loader.index() if (s.name, s.version) == (name, version))
    return found


def reason(repository: Opened, name: str, version: int = 0) -> str:
    """Why a model or version is unavailable."""
    found = line(repository, name, version)
    assert found.state is State.UNAVAILABLE
    return found.reason


def embed(model: ReadyModel) -> Any:
    """What an embedder makes of a black crop."""
    crop = np.zeros((112, 112, 3), np.uint8)
    return model.slot.submit(Work(rows=[EmbedderRow(crop)])).result(SECONDS).results[0]


def failure(repository: Opened, name: str) -> MienError:
    """The error that loading a model again ends with."""
    with pytest.raises(Unmet) as caught:
        repository.loader.load(name).result(SECONDS)
    assert caught.value.reason is Reason.MODEL_LOAD_FAILED
    return caught.value


def traffic(catalogue: Catalogue, name: str) -> TrafficStatistics:
    """Where the unversioned calls went of a model that splits them."""
    found = next(each.traffic for each in catalogue.statistics() if each.name == name)
    assert found is not None
    return found
