"""The model repository: loads, replaces and unloads what its folders hold, while calls go on."""

import contextlib
import logging
import random
import threading
from collections.abc import Collection, Sequence
from concurrent.futures import Future, wait
from functools import partial
from pathlib import Path
from typing import Literal, TypeAlias

from mien_server.backends.devices import DeviceError
from mien_server.errors import MienError, Reason, Unmet
from mien_server.repository.config.ensembles import EnsembleConfig
from mien_server.repository.config.model import ConfigError, ModelConfig, read_config
from mien_server.repository.entry import LOADING, UNLOADED, ModelEntry
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
from mien_server.repository.swapping import AnyConfig, SwappedModels, load_failed, reason_of
from mien_server.repository.versions import VersionStatus
from mien_server.scheduling.errors import Draining
from mien_server.scheduling.scheduler import Scheduler

ControlMode = Literal["none", "poll", "explicit"]

_Ahead: TypeAlias = tuple[Stamp, AnyConfig]
"""A config that has been read already, and the stamp of the files from before."""

_AT_ONCE = 4
"""Models that are loaded at the same time: Triton's own default."""

_log = logging.getLogger(__name__)


class RepositoryError(ValueError):
    """The repository itself cannot be used; the message says why and what to do."""


class ModelRepository(SwappedModels):
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
        self._paths = paths
        self._scheduler = scheduler
        self._devices = devices
        self._mode = mode
        self._installable = installable
        self._operations = Operations()
        self._at_once = threading.Semaphore(_AT_ONCE)

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
        ahead = self._read_ahead(entries)
        for _, known in ahead:
            if known and isinstance(known[1], ModelConfig):
                self._check_devices(known[1])
        wait([self._submit_load(name, known) for name, known in ahead])

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
            entries = [entry for entry in self._models.values() if not entry.busy]
        gone = [entry.name for entry in entries if entry.name not in found]
        changed = [
            entry
            for entry in entries
            if entry.name in found and (entry.retry or stamp_of_model(entry.folder) != entry.stamp)
        ]
        begun = [self._submit_unload(name) for name in gone]
        return begun + [self._submit_load(name, known) for name, known in self._read_ahead(changed)]

    def index(self) -> list[VersionStatus]:
        """`statuses`, after looking which models there are. Blocking."""
        try:
            self._look()
        except RepositoryError as error:
            _log.warning("%s", error)
        return self.statuses()

    def close(self, timeout: float | None = None) -> bool:
        """Refuses loads that have not begun, ends those that run at their next step; False if time ran out.

        What serves, serves on, so that accepted calls can finish.
        """
        return self._operations.close(timeout)

    def _look(self) -> Collection[str]:
        """Takes in which models there are now.

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
                self._models.setdefault(name, ModelEntry(name, folder)).folder = folder
            for name in self._models.keys() - found.keys():
                entry = self._models[name]
                if not (entry.serving or entry.retired or entry.busy):
                    del self._models[name]
        return found.keys()

    def _read_ahead(self, entries: Sequence[ModelEntry]) -> list[tuple[str, _Ahead | None]]:
        """The models with their configs, as far as they can be read; ensembles last, after what they need."""
        found: list[tuple[str, _Ahead | None]] = []
        for entry in entries:
            stamp = stamp_of_model(entry.folder)
            with contextlib.suppress(ConfigError):  # its own load will say so
                if not entry.folder.problem:
                    found.append((entry.name, (stamp, read_config(entry.folder.path / CONFIG))))
                    continue
            found.append((entry.name, None))
        return sorted(found, key=lambda model: _is_ensemble(model[1]))

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
            raise load_failed(name, str(error)) from error
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
            available = version_numbers(folder.path)
        except (ConfigError, OSError) as error:
            self._fail(entry, str(error), error)
        if isinstance(config, EnsembleConfig):
            self._load_ensemble(entry, config)
        else:
            self._load_model(entry, config, available)

    def _load_ensemble(self, entry: ModelEntry, config: EnsembleConfig) -> None:
        """Takes an ensemble into service once its models are; in the mode "explicit" it has them loaded."""
        for name in dict.fromkeys((config.detector.model, config.embedder.model)):
            self._settle_step(name)
        with self._lock:
            problem = self._problem(config)
            works = isinstance(entry.config, EnsembleConfig) and self._answers(entry)
            missing = self._lacks_a_model(config)
        if problem and works:
            self._fail(entry, problem)
        self._serve(entry, config, {}, {})
        if problem:
            # It will serve as soon as its models do, without another load.
            _log.log(logging.INFO if missing else logging.WARNING, "%s: %s", entry.name, problem)
            with self._lock:
                entry.failed = not missing
            raise load_failed(entry.name, problem)

    def _settle_step(self, name: str) -> None:
        """Waits for what is under way with a model of an ensemble; loads it if need be."""
        with self._lock:
            step = self._models.get(name)
        if step is None:
            return
        with contextlib.suppress(ConfigError, OSError, MienError, Draining):
            # An ensemble cannot be a step, and to wait for it might be to wait for oneself.
            if isinstance(read_config(step.folder.path / CONFIG), EnsembleConfig):
                return
            if self._mode == "explicit" and not step.serving:
                self._submit_load(name).result()
        self._operations.settle(name)

    def _load_model(
        self, entry: ModelEntry, config: ModelConfig, available: Collection[int]
    ) -> None:
        folder = entry.folder

        go_on = partial(self._operations.go_on, entry.name)

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

        with self._at_once:
            loaded, failures = load_wanted(config, available, entry.serving, load)
        if not loaded and not failures:
            with self._lock:
                entry.config = entry.config or config
            self._fail(entry, self._no_weights(config), missing=not entry.serving)
        taken = loaded.keys() - failures.keys()
        answered = taken and config.traffic.choose(loaded, None)
        if answered or not entry.serving:
            self._serve(entry, config, loaded, failures)
        else:
            self._serve(entry, entry.config, entry.serving, failures)
        if failures:
            reasons = "; ".join(f"version {n}: {reason_of(e)}" for n, e in failures.items())
            _log.warning("model %s: %s", entry.name, reasons)
            raise load_failed(entry.name, reasons) from next(iter(failures.values()))

    def _unload(self, name: str) -> None:
        with self._lock:
            entry = self._find(name)
            entry.stamp = None  # if its folder comes back, polling loads it
        config = entry.config if isinstance(entry.config, ModelConfig) else None
        self._serve(entry, config, {}, {}, reason=UNLOADED[1])

    def _no_weights(self, config: ModelConfig) -> str:
        if config.name in self._installable:
            return f"it has no weights yet: run `mien-server models install {config.name}`"
        source = f" (source: {config.source})" if config.source else ""
        return (
            f"it has no weights and none are shipped{source}: run"
            f" `mien-server models import {config.name} FILE`, see docs/models.md"
        )


def _is_ensemble(ahead: _Ahead | None) -> bool:
    return ahead is not None and isinstance(ahead[1], EnsembleConfig)
