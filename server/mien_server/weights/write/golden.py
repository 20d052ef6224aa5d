"""Gives a new version folder what is made from its weights: its graph and its golden file."""

import shutil
from pathlib import Path

from mien_server.backends.weights_file import GRAPH
from mien_server.models.families import find_family
from mien_server.repository.config.model import ModelConfig, read_config
from mien_server.repository.folders import CONFIG
from mien_server.repository.golden import FILENAME
from mien_server.repository.manifest import verify_version
from mien_server.repository.reference import write_golden
from mien_server.weights.errors import WeightsError
from mien_server.weights.progress import Progress
from mien_server.weights.write.graph import write_graph
from mien_server.weights.write.version_folder import turn, write_version


def add_golden(model: Path, staging: Path, progress: Progress) -> None:
    """Writes the graph of new weights, if their network can have one, and the golden file.

    For that it runs them once in float32 and writes down what they answer; it says so if that cannot be.

    Args:
        model: the model's folder, with its config.pbtxt.
        staging: the version folder that is being made, with the weights in it.

    Raises:
        ConfigError: the model's config.pbtxt cannot be read.
        LoadError: the weights cannot be run.
    """
    if reason := _write(model, staging):
        progress.say(f"note: {model.name} has no golden file: {reason}")


def renew_golden(repository: Path, folder: Path, weights: str, progress: Progress) -> None:
    """Makes the graph and the golden file of a version that is there, in place of those that it may have.

    The version folder is replaced in one rename; its weights, their source and their licence stay.

    Args:
        repository: the model repository, which no link may lead out of.
        folder: the version folder.
        weights: the name of the weights' file.

    Raises:
        ManifestError: the version is damaged.
        ConfigError: the model's config.pbtxt cannot be read.
        LoadError: the weights cannot be run; the version stays as it is.
        WeightsError: there is nothing to compare with, or the repository cannot be written; the version stays
            as it is.
    """
    try:
        _renew(repository, folder, weights, progress)
    except OSError as error:
        raise WeightsError(f"no golden file can be written: {error}") from error


def _renew(repository: Path, folder: Path, weights: str, progress: Progress) -> None:
    model = folder.parent
    with turn(model, progress):
        manifest = verify_version(folder, repository, weights)

        def fill(into: Path) -> None:
            for name in manifest.files:
                if name not in (FILENAME, GRAPH):
                    shutil.copy2(folder / name, into / name)
            if reason := _write(model, into):
                raise WeightsError(f"no golden file can be made: {reason}")

        write_version(
            folder,
            fill,
            source=manifest.source,
            license_=manifest.license,
            command="models check",
        )


def _write(model: Path, staging: Path) -> str:
    """Writes the graph and the golden file; returns "", or why there is no golden file."""
    config = read_config(model / CONFIG)
    assert isinstance(config, ModelConfig)  # noqa: S101 - an ensemble has no weights
    weights = staging / config.default_model_filename
    if weights.suffix == ".safetensors":
        write_graph(find_family(config.architecture), weights, config.sides[0])
    return write_golden(config, staging)
