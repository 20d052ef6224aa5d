"""Makes a version of a folder that somebody filled by hand: what is made from weights, and a manifest."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from mien_server.errors import OperatorError
from mien_server.repository.config.model import ModelConfig, read_config
from mien_server.repository.folders import CONFIG, is_regular, leads_out, version_numbers
from mien_server.repository.manifest import FILENAME
from mien_server.weights.progress import Progress
from mien_server.weights.write.golden import add_golden
from mien_server.weights.write.version_folder import turn, write_version


class SealRefused(OperatorError):
    """Nothing was sealed: the folder is not what it must be, or is sealed already."""


@dataclass(frozen=True, slots=True)
class Sealed:
    """A version that now counts."""

    model: str
    version: int
    folder: Path


def seal(
    repository: Path,
    model: str,
    version: int,
    progress: Progress | None = None,
    *,
    license_: str | None = None,
    source: str | None = None,
) -> Sealed:
    """Runs the weights in a version folder once, and writes their graph, golden file and manifest.

    The folder is replaced in one rename: until then it is as it was, and no version.

    Args:
        repository: the model repository.
        model: its folder, with a config.pbtxt.
        version: the folder's number.
        license_: who may use the weights for what; None: what config.pbtxt says.
        source: where they come from; None: what config.pbtxt says.

    Raises:
        SealRefused: there is no such folder, it has a manifest, or something that no version has.
        ConfigError: the model's config.pbtxt cannot be read.
        LoadError: the weights are not the configured network's, or cannot be run.
    """
    progress = progress or Progress()
    into = repository / model
    try:
        config = _config(into)
        with turn(into, progress):
            files = _files(repository, into, version, config)

            def fill(staging: Path) -> None:
                for file in files:
                    shutil.copy2(file, staging / file.name)
                add_golden(into, staging, progress)

            manifest = write_version(
                into / str(version),
                fill,
                source=source or config.source or "made by hand",
                license_=license_ or config.license or "not stated",
                command="models seal",
            )
    except OSError as error:
        raise SealRefused(f"{into / str(version)} cannot be sealed: {error}") from error
    progress.say(f"licence: {manifest.license}")
    progress.say(f"{model} version {version} is sealed: {', '.join(sorted(manifest.files))}")
    return Sealed(model, version, into / str(version))


def _config(model: Path) -> ModelConfig:
    if not (model / CONFIG).is_file():
        raise SealRefused(
            f"there is no {model / CONFIG}: write it first, docs/models.md says what is in it"
        )
    config = read_config(model / CONFIG)
    if not isinstance(config, ModelConfig):
        raise SealRefused(f"{model.name} is an ensemble, which has no weights")
    return config


def _files(repository: Path, model: Path, version: int, config: ModelConfig) -> list[Path]:
    """What somebody put into the folder."""
    folder = model / str(version)
    if version not in version_numbers(model):
        raise SealRefused(
            f"there is no folder {folder}: make it, with {config.default_model_filename} in it"
        )
    if (folder / FILENAME).exists():
        raise SealRefused(
            f"{folder} has a {FILENAME} and is left as it is: `mien-server models check {model.name}"
            f" --version {version}` says whether it holds. Of other weights make another version"
        )
    files = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    for path in files:
        if leads_out(path, repository) or not is_regular(path):
            raise SealRefused(f"{path} is no file of its own: a version folder holds files only")
    if config.default_model_filename not in {path.name for path in files}:
        raise SealRefused(
            f"{folder} has no {config.default_model_filename}, which {model / CONFIG} asks for"
        )
    return files
