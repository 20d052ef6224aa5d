"""Finds out what is wrong with the model repositories from their folders alone, before anything is loaded."""

from collections.abc import Sequence
from pathlib import Path

from mien_server.errors import OperatorError
from mien_server.settings import flag_of, name_of


class StartError(OperatorError):
    """The server cannot start; the message says why and what to do."""


def check_folders(repositories: Sequence[Path]) -> None:
    """Checks that the model repositories are folders.

    Raises:
        StartError: one is not; names the command that makes it.
    """
    flag = name_of("model_repository")
    for path in repositories:
        if not path.exists():
            raise StartError(
                f"the model repository {path} does not exist. Name another with {flag}, or make it:"
                f" {_install_into(path)}"
            )
        if not path.is_dir():
            raise StartError(
                f"the model repository {path} is not a folder. Name another with {flag}."
            )


def check_weights(repositories: Sequence[Path], models: Sequence[str]) -> None:
    """Checks that each of the models has an installed version, judged by their folders alone.

    Raises:
        StartError: there is no such model, it is an ensemble, or it has no weights; names the command that
            installs them.
    """
    for name in models:
        folders = [path / name for path in repositories if (path / name).is_dir()]
        if not folders:
            places = ", ".join(map(str, repositories))
            raise StartError(
                f"there is no model {name!r} in {places} ({flag_of('model_repository')})."
                f" {_install_into(repositories[0])}"
            )
        if any(any(folder.glob("*/manifest.json")) for folder in folders):
            continue
        if _is_ensemble(folders[0]):
            raise StartError(
                f"model {name!r} is an ensemble: {flag_of('default_detector')} and"
                f" {flag_of('default_embedder')} name single models, such as those that it is made of."
            )
        raise StartError(
            f"model {name!r} has no weights in {folders[0]}. {_install_into(folders[0].parent)}"
        )


def _install_into(repository: Path) -> str:
    return (
        f"`mien-server models install {flag_of('model_repository')} {repository}` installs the default"
        " models, and another shipped one if you add its name; docs/models.md says how to bring your own."
    )


def _is_ensemble(folder: Path) -> bool:
    from mien_server.repository.config.ensembles import ENSEMBLE_PLATFORM
    from mien_server.repository.config.pbtxt import ConfigError, ConfigText
    from mien_server.repository.folders import CONFIG

    try:
        return bool(ConfigText.read(folder / CONFIG).message.platform == ENSEMBLE_PLATFORM)
    except ConfigError:
        return False
