"""Loads, replaces and unloads what the repositories' folders hold, while calls go on."""

import contextlib
import logging
import threading
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn

from mien_server.backends.devices import DeviceError
from mien_server.errors import MienError, OperatorError, Reason, Unmet
from mien_server.repository.catalogue import Catalogue
from mien_server.repository.config.ensembles import EnsembleConfig, is_ensemble
from mien_server.repository.config.model import ModelConfig, parse_config
from mien_server.repository.config.pbtxt import ConfigError, ConfigText
from mien_server.repository.entries import reason_of
from mien_server.repository.folders import (
    CONFIG,
    ModelFolder,
    Stamp,
    find_models,
    stamp_of_model,
    version_numbers,
)
from mien_server.repository.loading import load_version, load_wanted
from mien_server.repository.operations import Operations
from mien_server.repository.placement import AnyDevice, place
from mien_server.repository.versions import LoadedVersion, VersionStatus
from mien_server.scheduling.errors import Draining
from mien_server.scheduling.scheduler import Scheduler

ControlMode = Literal["none", "poll", "explicit"]

_AT_ONCE = 4
"""Models that are loaded at the same time: Triton's own default."""

_log = logging.getLogger(__name__)


class RepositoryError(OperatorError):
    """The repository itself cannot be used; the message says why and what to do."""


class _Read(NamedTuple):
    """A config.pbtxt that has been read.

    Attributes:
        stamp: of the model's files, from before.
        config: what it says.
        message: Triton's message that it says it with, for whoever prints it.
    """

    stamp: Stamp
    config: ModelConfig | EnsembleConfig
    message: Any


@dataclass(slots=True, eq=False)
class _Source:
    """Where a model comes from. The loader changes it under its lock.

    Attributes:
        folder: as last seen.
        stamp: of the files when they were last loaded; None: they have not been, or were unloaded.
        retry: whether the next poll loads them again though they have not changed.
    """

    folder: ModelFolder
    stamp: Stamp | None = None
    retry: bool = False

    def changed(self) -> bool:
        """Whether polling is to load it. Blocking: looks at the files."""
        return self.retry or stamp_of_model(self.folder) != self.stamp

    def read(self) -> _Read:
        """Its config.pbtxt. Blocking.

        Raises:
            ConfigError: why it cannot be used.
        """
        stamp = stamp_of_model(self.folder)
        text = ConfigText.read(self.folder.path / CONFIG)
        return _Read(stamp, parse_config(text), text.message)


class Loader:
    """Keeps a catalogue up to date with one or more folders of Triton's layout.

    Loads run in threads of their own, those of one model one after the other. A version that is replaced or
    unloaded gets no new calls and is freed when its last one has ended.

    Args:
        catalogue: where versions go once they can answer calls.
        paths: the folders; `<path>/<model>/config.pbtxt` and `<path>/<model>/<version>/…`.
        scheduler: where the versions' slots open.
        devices: what the models may run on.
        mode: "explicit" allows `load` and `unload`; in "poll", somebody calls `poll` now and then.
        installable: models for which `mien-server models install` has weights.

    Raises:
        RepositoryError: a path is no folder.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        paths: Sequence[Path],
        scheduler: Scheduler,
        devices: Sequence[AnyDevice],
        *,
        mode: ControlMode = "none",
        installable: Collection[str] = (),
    ) -> None:
        for path in paths:
            if not path.is_dir():
                raise RepositoryError(f"model repository {path} is not a folder")
        self._catalogue = catalogue
        self._paths = paths
        self._scheduler = scheduler
        self._devices = devices
        self._mode = mode
        self._installable = installable
        self._operations = Operations()
        self._at_once = threading.Semaphore(_AT_ONCE)
        self._lock = threading.Lock()  # of the sources; the catalogue's is only taken within it
        self._sources: dict[str, _Source] = {}
        self._waking: dict[str, Future[None]] = {}
        catalogue.wake = self.wake

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
        found = self._look()
        for name in names or ():
            self._catalogue.serving(name)  # raises if there is no such model
        wanted = {name: s for name, s in found.items() if names is None or name in names}
        ahead = _read_ahead(wanted)
        for _, read in ahead:
            if read and isinstance(read.config, ModelConfig):
                self._check_devices(read.config)
        wait([self._submit_load(name, read) for name, read in ahead])

    def load(self, name: str) -> Future[None]:
        """Loads a model, or loads it again: what its config and files say now, beside what serves.

        Returns:
            a future that is done once the new versions get the calls. It fails with ModelNotFound; with
            Unmet: MODEL_LOAD_FAILED, whose `__cause__` is the first cause (of what failed, the old version
            serves on) or MODEL_CONTROL_REFUSED (an unload came in before it ended); or with Draining.

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

    def wake(self, name: str) -> Future[None]:
        """Loads a model that is asleep, once for all who ask meanwhile; in every mode.

        Returns:
            a future, as of `load`.

        Raises:
            Draining: it is closing.
        """
        with self._lock:
            if name not in self._waking:
                self._waking[name] = self._submit_load(name)
            future = self._waking[name]
        future.add_done_callback(lambda _: self._waking.pop(name, None))
        return future

    def poll(self) -> list[Future[None]]:
        """Begins to load the models that are new or have changed on disk and to unload those that are gone.

        A model that fails is tried once more at the next poll, and after that whenever its files change.
        One that is still being loaded is left alone until then. Blocking, but not for the loads.

        Returns:
            a future of each, as of `load` and `unload`.

        Raises:
            RepositoryError: a folder cannot be listed; nothing was done. Draining: it is closing.
        """
        found = self._look()
        with self._lock:
            idle = {name: self._sources[name] for name in self._catalogue.idle()}
        gone = [name for name in idle if name not in found]
        changed = {name: s for name, s in idle.items() if name in found and s.changed()}
        begun = [self._submit_unload(name) for name in gone]
        return begun + [self._submit_load(name, read) for name, read in _read_ahead(changed)]

    def index(self) -> list[VersionStatus]:
        """The catalogue's statuses, after looking which models there are. Blocking."""
        try:
            self._look()
        except RepositoryError as error:
            _log.warning("%s", error)
        return self._catalogue.statuses()

    def close(self, timeout: float | None = None) -> bool:
        """Refuses loads that have not begun, ends those that run at their next step; False if time ran out.

        What serves, serves on, so that accepted calls can finish.
        """
        return self._operations.close(timeout)

    def _look(self) -> dict[str, _Source]:
        """Takes in which models there are now, and returns them.

        Raises:
            RepositoryError: a folder cannot be listed.
        """
        try:
            # Anew each time: a root that is a link may be turned to another release.
            found = find_models([path.resolve() for path in self._paths])
        except OSError as error:
            raise RepositoryError(f"a model repository cannot be listed: {error}") from error
        with self._lock:
            for name, folder in found.items():
                self._sources.setdefault(name, _Source(folder)).folder = folder
            kept = self._catalogue.list_models(found)
            self._sources = {name: self._sources[name] for name in kept}
            return {name: self._sources[name] for name in found}

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

    def _submit_load(self, name: str, read: _Read | None = None) -> Future[None]:
        return self._operations.submit(name, "load", partial(self._load, name, read))

    def _submit_unload(self, name: str) -> Future[None]:
        return self._operations.submit(name, "unload", partial(self._unload, name))

    def _unload(self, name: str) -> None:
        self._catalogue.withdraw(name)
        with self._lock:
            if source := self._sources.get(name):
                source.stamp = None  # if its folder comes back, polling loads it

    def _load(self, name: str, read: _Read | None) -> None:
        try:
            self._look()
        except RepositoryError as error:
            raise _load_failed(name, str(error)) from error
        with self._catalogue.loading(name):
            with self._lock:
                source = self._sources[name]
            stamp = read.stamp if read else stamp_of_model(source.folder)
            complete = False
            try:
                self._load_source(name, source, read)
                complete = True
            finally:
                with self._lock:
                    source.retry = not complete and stamp != source.stamp
                    source.stamp = stamp

    def _load_source(self, name: str, source: _Source, read: _Read | None) -> None:
        folder = source.folder
        if folder.problem:
            self._fail(name, folder.problem)
        try:
            _, config, message = read or source.read()
            available = version_numbers(folder.path)
        except (ConfigError, OSError) as error:
            self._fail(name, str(error), error)
        if isinstance(config, EnsembleConfig):
            self._load_ensemble(config, message)
        else:
            self._load_model(config, message, folder, available)

    def _load_ensemble(self, config: EnsembleConfig, message: Any) -> None:
        """Takes an ensemble into service once its models are; in the mode "explicit" it has them loaded."""
        for name in dict.fromkeys((config.detector.model, config.embedder.model)):
            self._settle_step(name)
        if problem := self._catalogue.swap_ensemble(config, message):
            raise _load_failed(config.name, problem)

    def _settle_step(self, name: str) -> None:
        """Waits for what is under way with a model of an ensemble; loads it if need be."""
        with self._lock:
            source = self._sources.get(name)
        if source is None:
            return
        with contextlib.suppress(ConfigError):  # its own load will say so
            if is_ensemble(ConfigText.read(source.folder.path / CONFIG)):
                # It cannot be a step, and to wait for it might be to wait for oneself.
                return
        with contextlib.suppress(MienError, Draining):
            if self._mode == "explicit" and not self._catalogue.serving(name):
                self._submit_load(name).result()
        self._operations.settle(name)

    def _load_model(
        self, config: ModelConfig, message: Any, folder: ModelFolder, available: Collection[int]
    ) -> None:
        name = config.name
        serving = self._catalogue.serving(name)  # of one model, nothing else changes it meanwhile
        stop_if_asked = partial(self._operations.stop_if_asked, name)

        def load(version: int) -> LoadedVersion:
            stop_if_asked()
            self._catalogue.begin(name, version)
            return load_version(
                config,
                version,
                folder.path / str(version),
                folder.root,
                self._scheduler,
                self._devices,
                current=serving.get(version),
                stop_if_asked=stop_if_asked,
            )

        with self._at_once:
            loaded, failures = load_wanted(config, available, serving, load)
        if not loaded and not failures:
            reason = self._no_weights(config)
            self._catalogue.fail(name, reason, lacking=config)
            raise _load_failed(name, reason)
        self._catalogue.swap(config, message, loaded, failures)
        if failures:
            reasons = "; ".join(f"version {n}: {reason_of(e)}" for n, e in failures.items())
            for number, error in failures.items():
                facts = {"model": name, "version": number}
                _log.warning("the model cannot serve: %s", reason_of(error), extra=facts)
            raise _load_failed(name, reasons) from next(iter(failures.values()))

    def _fail(self, name: str, reason: str, cause: Exception | None = None) -> NoReturn:
        self._catalogue.fail(name, reason)
        raise _load_failed(name, reason) from cause

    def _no_weights(self, config: ModelConfig) -> str:
        if config.name in self._installable:
            return f"it has no weights yet: run `mien-server models install {config.name}`"
        source = f" (source: {config.source})" if config.source else ""
        return (
            f"it has no weights and none are shipped{source}: run"
            f" `mien-server models import {config.name} FILE`, see docs/models.md"
        )


def _read_ahead(sources: Mapping[str, _Source]) -> list[tuple[str, _Read | None]]:
    """The models with their configs, as far as they can be read; ensembles last, after what they need."""
    found: list[tuple[str, _Read | None]] = []
    for name, source in sources.items():
        read = None
        with contextlib.suppress(ConfigError):  # its own load will say so
            read = None if source.folder.problem else source.read()
        found.append((name, read))
    return sorted(
        found, key=lambda each: bool(each[1] and isinstance(each[1].config, EnsembleConfig))
    )


def _load_failed(name: str, reasons: str) -> Unmet:
    """The error of a load that did not do all that it should."""
    return Unmet(Reason.MODEL_LOAD_FAILED, f"model {name!r} could not be loaded: {reasons}")
