"""The model repository: loads, replaces and unloads what its folders hold, while calls go on."""

import contextlib
import logging
import random
import threading
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Future, wait
from functools import partial
from pathlib import Path
from typing import Literal, NoReturn, TypeAlias

from mien_server.backends.devices import DeviceError
from mien_server.errors import Reason, Unmet
from mien_server.repository.config import ConfigError, ModelConfig, read_config
from mien_server.repository.ensembles import EnsembleConfig
from mien_server.repository.entry import LOADING, UNLOADED, UNLOADING, ModelEntry
from mien_server.repository.folders import (
    CONFIG,
    Stamp,
    find_models,
    stamp_of_model,
    version_numbers,
)
from mien_server.repository.leases import LoadedVersion
from mien_server.repository.loading import load_version, load_wanted
from mien_server.repository.operations import Operations
from mien_server.repository.placement import AnyDevice, place
from mien_server.repository.served import ServedModels
from mien_server.repository.versions import State, VersionStatus
from mien_server.scheduling.errors import Draining
from mien_server.scheduling.scheduler import Scheduler

ControlMode = Literal["none", "poll", "explicit"]

AnyConfig: TypeAlias = ModelConfig | EnsembleConfig

_Ahead: TypeAlias = tuple[Stamp, AnyConfig]
"""A config that has been read already, and the stamp of the files from before."""

_log = logging.getLogger(__name__)


class RepositoryError(ValueError):
    """The repository itself cannot be used; the message says why and what to do."""


class ModelRepository(ServedModels):
    """The models in one or more folders of Triton's layout.

    Loads run in threads of their own, those of one model one after the other. A version that is replaced or
    unloaded gets no new calls and is freed when its last one has ended.

    Args:
        paths: the folders; `<path>/<model>/config.pbtxt` and `<path>/<model>/<version>/…`.
        scheduler: where the versions' slots open.
        devices: what the models may run on.
        mode: "explicit" allows `load` and `unload`; in "poll", somebody calls `poll` now and then.
        installable: models for which `mien-server models install` has weights.
        draw: decides which calls go to a canary.

    Raises:
        RepositoryError: a path is no folder.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        scheduler: Scheduler,
        devices: Sequence[AnyDevice],
        *,
        mode: ControlMode = "none",
        installable: Collection[str] = (),
        draw: random.Random | None = None,
    ) -> None:
        super().__init__(draw)
        for path in paths:
            if not path.is_dir():
                raise RepositoryError(f"model repository {path} is not a folder")
        self._paths = [path.resolve() for path in paths]
        self._scheduler = scheduler
        self._devices = devices
        self._mode = mode
        self._installable = installable
        self._operations = Operations()
        self._freed = threading.Condition(self._lock)
        self._closing = False

    def start(self, names: Collection[str] | None = None) -> None:
        """Loads what the models' version policies want. Blocking: call it off the event loop.

        A model or version that fails is UNAVAILABLE with its reason and does not stop the others.

        Args:
            names: of the models; None: all.

        Raises:
            DeviceError: a model is configured for a device that is not there. Nothing was loaded.
            ModelNotFound: a name is no model's.
            RepositoryError: a folder cannot be listed. Draining: it is closing.
        """
        self._look()
        with self._lock:
            entries = [self._find(name) for name in (self._models if names is None else names)]
        ahead: dict[str, _Ahead] = {}
        for entry in entries:
            if entry.folder.problem:
                continue
            stamp = stamp_of_model(entry.folder)
            with contextlib.suppress(ConfigError):  # its own load will say so
                config = read_config(entry.folder.path / CONFIG)
                if isinstance(config, ModelConfig):
                    self._check_devices(config)
                ahead[entry.name] = (stamp, config)
        wait([self._submit_load(entry.name, ahead.get(entry.name)) for entry in entries])

    def load(self, name: str) -> Future[None]:
        """Loads a model, or loads it again: what its config and files say now, beside what serves.

        Returns:
            a future that is done once the new versions get the calls. It fails with ModelNotFound; with
            Unmet: MODEL_LOAD_FAILED, whose `__cause__` is the first cause (of what failed, the old version
            serves on) or MODEL_CONTROL_REFUSED (an unload came in before it began); or with Draining.

        Raises:
            Unmet: MODEL_CONTROL_REFUSED outside of the mode "explicit". Draining: it is closing.
        """
        self._require_explicit("load")
        return self._submit_load(name)

    def unload(self, name: str) -> Future[None]:
        """Takes a model from calls to come. Like Triton's, it does not wait for those that hold it.

        Returns:
            a future. It fails with ModelNotFound; with Unmet: MODEL_CONTROL_REFUSED (a load came in before
            it began); or with Draining. To unload what is not loaded is no failure.

        Raises:
            Unmet: MODEL_CONTROL_REFUSED outside of the mode "explicit". Draining: it is closing.
        """
        self._require_explicit("unload")
        return self._submit_unload(name)

    def poll(self) -> None:
        """Loads the models that are new or have changed on disk and unloads those that are gone. Blocking.

        A model that fails is tried once more at the next poll, and after that whenever its files change.

        Raises:
            RepositoryError: a folder cannot be listed; nothing was done. Draining: it is closing.
        """
        found = self._look()
        with self._lock:
            entries = list(self._models.values())
        operations = []
        for entry in entries:
            if entry.name not in found:
                operations.append(self._submit_unload(entry.name))
            elif entry.retry or stamp_of_model(entry.folder) != entry.stamp:
                operations.append(self._submit_load(entry.name))
        wait(operations)

    def index(self) -> list[VersionStatus]:
        """`statuses`, after looking which models there are. Blocking."""
        try:
            self._look()
        except RepositoryError as error:
            _log.warning("%s", error)
        return self.statuses()

    def drained(self, timeout: float | None = None) -> bool:
        """Waits until all that was replaced or unloaded is freed; False if time ran out."""
        with self._lock:
            return self._freed.wait_for(
                lambda: not any(entry.retired for entry in self._models.values()), timeout
            )

    def close(self, timeout: float | None = None) -> bool:
        """Refuses loads that have not begun, ends those that run at their next step; False if time ran out.

        What serves, serves on, so that accepted calls can finish.
        """
        self._closing = True
        return self._operations.close(timeout)

    def _look(self) -> Collection[str]:
        """Takes in which models there are now.

        Raises:
            RepositoryError: a folder cannot be listed.
        """
        try:
            found = find_models(self._paths)
        except OSError as error:
            raise RepositoryError(f"a model repository cannot be listed: {error}") from error
        with self._lock:
            for name, folder in found.items():
                self._models.setdefault(name, ModelEntry(name, folder)).folder = folder
            for name in self._models.keys() - found.keys():
                entry = self._models[name]
                if not (entry.serving or entry.retired or entry.busy):
                    del self._models[name]
        return found.keys()

    def _require_explicit(self, what: str) -> None:
        if self._mode != "explicit":
            raise Unmet(
                Reason.MODEL_CONTROL_REFUSED,
                f"the server does not {what} models on request: its --model-control-mode is {self._mode},"
                " not explicit",
            )

    def _check_devices(self, config: ModelConfig) -> None:
        try:
            place(config.instance_groups, self._devices)
        except DeviceError as error:
            raise DeviceError(f"model {config.name}: {error}") from error

    def _submit_load(self, name: str, ahead: _Ahead | None = None) -> Future[None]:
        return self._operations.submit(name, "load", partial(self._load, name, ahead))

    def _submit_unload(self, name: str) -> Future[None]:
        return self._operations.submit(name, "unload", partial(self._unload, name))

    def _load(self, name: str, ahead: _Ahead | None) -> None:
        try:
            self._look()
        except RepositoryError as error:
            raise _load_failed(name, str(error)) from error
        with self._lock:
            entry = self._find(name)
            entry.busy = True
        stamp, config = ahead or (stamp_of_model(entry.folder), None)
        complete = False
        try:
            self._load_entry(entry, config)
            complete = True
        finally:
            with self._lock:
                entry.busy = False
                entry.retry = not complete and stamp != entry.stamp
                entry.stamp = stamp

    def _load_entry(self, entry: ModelEntry, config: AnyConfig | None) -> None:
        folder = entry.folder
        if folder.problem:
            self._fail(entry, folder.problem)
        try:
            config = config or read_config(folder.path / CONFIG)
            if isinstance(config, EnsembleConfig):
                self._serve(entry, config, {}, {})
                return
            available = version_numbers(folder.path)
        except (ConfigError, OSError) as error:
            self._fail(entry, str(error), error)

        def go_on() -> None:
            if self._closing:
                raise Draining("the server is shutting down")

        def load(version: int) -> LoadedVersion:
            go_on()
            with self._lock:
                entry.notes = {**entry.notes, version: LOADING}
            return load_version(
                config,
                version,
                folder.path / str(version),
                folder.root,
                self._scheduler,
                self._devices,
                current=entry.serving.get(version),
                go_on=go_on,
            )

        loaded, failures = load_wanted(config, available, entry.serving, load)
        if not loaded and not failures:
            with self._lock:
                entry.config = entry.config or config
            self._fail(entry, self._no_weights(config), missing=not entry.serving)
        if loaded or not entry.serving:
            self._serve(entry, config, loaded, failures)
        else:
            self._serve(entry, entry.config, entry.serving, failures)
        if failures:
            reasons = "; ".join(f"version {n}: {_reason(e)}" for n, e in failures.items())
            _log.warning("model %s: %s", entry.name, reasons)
            raise _load_failed(entry.name, reasons) from next(iter(failures.values()))

    def _unload(self, name: str) -> None:
        with self._lock:
            entry = self._find(name)
            entry.stamp = None  # if its folder comes back, polling loads it
        config = entry.config if isinstance(entry.config, ModelConfig) else None
        self._serve(entry, config, {}, {}, reason=UNLOADED[1])

    def _serve(
        self,
        entry: ModelEntry,
        config: AnyConfig | None,
        serving: Mapping[int, LoadedVersion],
        failures: Mapping[int, Exception],
        *,
        reason: str = "",
    ) -> None:
        """Swaps what calls are given, in one step. What they are given no more is freed once unused."""
        with self._lock:
            replaced = [v for v in entry.serving.values() if v not in serving.values()]
            entry.config, entry.serving = config, dict(serving)
            entry.retired = [*entry.retired, *replaced]
            entry.notes = dict.fromkeys((v.model.version for v in entry.retired), UNLOADING) | {
                number: (State.UNAVAILABLE, _reason(error)) for number, error in failures.items()
            }
            entry.reason, entry.failed = reason, bool(failures)
        for version in replaced:
            # Whoever holds it last may be the event loop, and freeing takes its time.
            free = threading.Thread(
                target=self._free, args=(entry, version), name="mien-unload", daemon=True
            )
            version.retire(free.start)

    def _free(self, entry: ModelEntry, version: LoadedVersion) -> None:
        model = version.model
        try:
            version.close()
            _log.info("model %s version %d is unloaded", model.name, model.version)
        except Exception:
            _log.exception("model %s version %d did not unload", model.name, model.version)
        with self._lock:
            entry.retired = [other for other in entry.retired if other is not version]
            left = [other.model.version for other in entry.retired]
            if entry.notes.get(model.version) == UNLOADING and model.version not in left:
                entry.notes = {**entry.notes, model.version: UNLOADED}
            self._freed.notify_all()

    def _fail(
        self,
        entry: ModelEntry,
        reason: str,
        cause: Exception | None = None,
        *,
        missing: bool = False,
    ) -> NoReturn:
        """Ends a load that found nothing to load. What serves, serves on."""
        # A model without weights is a choice, until somebody asks for it.
        _log.log(logging.INFO if missing else logging.WARNING, "model %s: %s", entry.name, reason)
        with self._lock:
            entry.reason, entry.failed = reason, not missing
            if not entry.serving:
                entry.notes = {n: note for n, note in entry.notes.items() if note == UNLOADING}
        raise _load_failed(entry.name, reason) from cause

    def _no_weights(self, config: ModelConfig) -> str:
        if config.name in self._installable:
            return f"it has no weights yet: run `mien-server models install {config.name}`"
        source = f" (source: {config.source})" if config.source else ""
        return (
            f"it has no weights and none are shipped{source}: run"
            f" `mien-server models import {config.name} FILE`, see docs/models.md"
        )


def _load_failed(name: str, reasons: str) -> Unmet:
    return Unmet(Reason.MODEL_LOAD_FAILED, f"model {name!r} could not be loaded: {reasons}")


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
