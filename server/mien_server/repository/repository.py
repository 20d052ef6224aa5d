"""The model repository: which models there are, which versions of them serve, and why others do not."""

import logging
import re
import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mien_server.backends.devices import DeviceError
from mien_server.backends.pytorch import LoadError
from mien_server.errors import InvalidRequest, ModelNotFound, ModelNotReady, Reason
from mien_server.models.interface import Task
from mien_server.repository.config import ConfigError, ModelConfig, read_config
from mien_server.repository.loading import WarmupError, load_version
from mien_server.repository.manifest import ManifestError
from mien_server.repository.placement import AnyDevice, place
from mien_server.repository.versions import ReadyModel, State, VersionStatus
from mien_server.scheduling.scheduler import Scheduler

_log = logging.getLogger(__name__)

_VERSION = re.compile(r"[1-9][0-9]{0,17}")
_KIND: dict[Task, str] = {"detect": "a detector", "embed": "an embedding model"}


class RepositoryError(ValueError):
    """The repository itself cannot be used; the message says why and what to do."""


@dataclass(slots=True)
class _Model:
    """One model folder. `reason` says why nothing of it can serve at all."""

    folder: Path
    root: Path
    config: ModelConfig | None = None
    reason: str = ""
    versions: dict[int, VersionStatus] = field(default_factory=dict)


class ModelRepository:
    """The models in one or more folders of Triton's layout. Safe to read while versions are loaded.

    Args:
        paths: the folders; `<path>/<model>/config.pbtxt` and `<path>/<model>/<version>/…`.
        scheduler: where the versions' slots open.
        devices: what the models may run on.
        installable: models for which `mien-server models install` has weights.

    Raises:
        RepositoryError: a path is no folder.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        scheduler: Scheduler,
        devices: Sequence[AnyDevice],
        *,
        installable: Collection[str] = (),
    ) -> None:
        for path in paths:
            if not path.is_dir():
                raise RepositoryError(f"model repository {path} is not a folder")
        self._paths = [path.resolve() for path in paths]
        self._scheduler = scheduler
        self._devices = devices
        self._installable = installable
        self._models: dict[str, _Model] = {}
        self._lock = threading.Lock()

    def load_all(self) -> None:
        """Loads the versions that each model's policy wants. Blocking: call it off the event loop.

        A model or version that fails is UNAVAILABLE with its reason and does not stop the others.

        Raises:
            DeviceError: a model is configured for a device that is not there. Nothing was loaded.
        """
        models = self._scan()
        for name, model in models.items():
            if model.config:
                try:
                    place(model.config.instance_groups, self._devices)
                except DeviceError as error:
                    raise DeviceError(f"model {name}: {error}") from error
        self._models = models
        for name, model in models.items():
            if model.config:
                self._load_wanted(name, model, model.config)
            for status in self._statuses(name, model):
                if status.state is not State.READY:
                    # A model without weights is a choice, until somebody asks for it.
                    level = logging.WARNING if status.version or not model.config else logging.INFO
                    version = f" version {status.version}" if status.version else ""
                    _log.log(level, "model %s%s is not ready: %s", name, version, status.reason)

    def load_version(self, name: str, version: int) -> ReadyModel:
        """Loads one version, which does not serve yet, beside those that do. Blocking.

        Raises:
            ModelNotFound: there is no such model.
            ModelNotReady: its configuration is broken.
            ManifestError, LoadError, DeviceError, WarmupError: why the version cannot serve; the same
                stands in the index.
        """
        model = self._find(name, "")
        config = self._config(name, model, "")
        self._publish(model, VersionStatus(name, version, State.LOADING, "is being loaded"))
        folder = model.folder / str(version)
        try:
            ready = load_version(
                config, version, folder, model.root, self._scheduler, self._devices
            )
        except Exception as error:
            reason = str(error) or type(error).__name__
            self._publish(model, VersionStatus(name, version, State.UNAVAILABLE, reason))
            raise
        self._publish(model, VersionStatus(name, version, State.READY, model=ready))
        return ready

    def resolve(self, name: str, version: int = 0, *, task: Task, field: str = "") -> ReadyModel:
        """The version that serves a request.

        Args:
            name: of the model.
            version: 0 is the highest that is ready.
            task: what the model must be for.
            field: the request's field that named the model, for errors.

        Raises:
            ModelNotFound: no such model or version; the message lists those there are.
            ModelNotReady: it exists and does not serve; the message says why.
            InvalidRequest: INVALID_OPTION, the model is for another task.
        """
        model = self._find(name, field)
        config = self._config(name, model, field)
        if config.task != task:
            fit = [other for other, m in self._models.items() if m.config and m.config.task == task]
            raise InvalidRequest(
                Reason.INVALID_OPTION,
                f"model {name!r} is {_KIND[config.task]}, where {_KIND[task]} is needed:"
                f" {', '.join(sorted(fit)) or 'there is none'}",
                field=field,
            )
        versions = model.versions
        if version:
            if version not in versions:
                known = ", ".join(map(str, sorted(versions))) or "none"
                raise ModelNotFound(
                    f"model {name!r} has no version {version}; its versions: {known}", field=field
                )
            chosen = [versions[version]]
        else:
            chosen = [versions[number] for number in sorted(versions, reverse=True)]
        for status in chosen:
            if status.model:
                return status.model
        reasons = "; ".join(f"version {status.version}: {status.reason}" for status in chosen)
        raise ModelNotReady(f"model {name!r} is not ready: {reasons or model.reason}", field=field)

    def index(self) -> list[VersionStatus]:
        """Every model and version with its state, by name and version."""
        models = sorted(self._models.items())
        return [status for name, model in models for status in self._statuses(name, model)]

    def _scan(self) -> dict[str, _Model]:
        models: dict[str, _Model] = {}
        for root in self._paths:
            for folder in sorted(root.iterdir()):
                if not folder.is_dir() or folder.name.startswith("."):
                    continue
                model = _Model(folder, root)
                if folder.name in models:
                    other = models[folder.name].folder
                    model.reason = f"it is in two repositories, {other} and {folder}: remove one"
                else:
                    try:
                        model.config = read_config(folder / "config.pbtxt")
                    except ConfigError as error:
                        model.reason = str(error)
                models[folder.name] = model
        return models

    def _load_wanted(self, name: str, model: _Model, config: ModelConfig) -> None:
        try:
            available = _version_numbers(model.folder)
        except OSError as error:
            model.reason = f"{model.folder} cannot be read: {error.strerror}"
            return
        wanted = config.wanted_versions(available)
        if not wanted:
            model.reason = self._no_weights(name, model, config)
        for version in wanted:
            if version not in available:
                reason = (
                    f"version_policy names it, but {model.folder / str(version)} does not exist"
                )
                self._publish(model, VersionStatus(name, version, State.UNAVAILABLE, reason))
                continue
            try:
                self.load_version(name, version)
            except (ManifestError, LoadError, DeviceError, WarmupError):
                continue  # the index has the reason, and `load_all` logs it
            except Exception:
                _log.exception("model %s version %d failed to load", name, version)

    def _no_weights(self, name: str, model: _Model, config: ModelConfig) -> str:
        if name in self._installable:
            return f"it has no weights yet: run `mien-server models install {name}`"
        source = f" (source: {config.source})" if config.source else ""
        return (
            f"it has no weights and none are shipped{source}: put {config.default_model_filename} and"
            f" manifest.json into {model.folder / '1'}, see docs/models.md"
        )

    def _find(self, name: str, field: str) -> _Model:
        model = self._models.get(name)
        if model is None:
            known = ", ".join(sorted(self._models)) or "none"
            raise ModelNotFound(f"there is no model {name!r}; the models are: {known}", field=field)
        return model

    def _config(self, name: str, model: _Model, field: str) -> ModelConfig:
        if model.config is None:
            raise ModelNotReady(f"model {name!r} is not ready: {model.reason}", field=field)
        return model.config

    def _publish(self, model: _Model, status: VersionStatus) -> None:
        # Readers never lock: they see the old mapping or the new one.
        with self._lock:
            model.versions = {**model.versions, status.version: status}

    def _statuses(self, name: str, model: _Model) -> list[VersionStatus]:
        if not model.versions:
            return [VersionStatus(name, 0, State.UNAVAILABLE, model.reason)]
        return [status for _, status in sorted(model.versions.items())]


def _version_numbers(folder: Path) -> list[int]:
    numbers = []
    for child in folder.iterdir():
        if not child.is_dir() or child.name.startswith("."):
            continue
        if _VERSION.fullmatch(child.name):
            numbers.append(int(child.name))
        else:
            _log.warning("%s is ignored: version folders are named 1, 2, 3, …", child)
    return numbers
