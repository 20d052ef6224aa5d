"""Takes versions into service and out of it, in one step; what nobody holds any more is freed."""

import logging
import random
import threading
from collections.abc import Mapping
from dataclasses import replace
from typing import NoReturn, TypeAlias

from mien_server.errors import Reason, Unmet
from mien_server.repository.config.ensembles import EnsembleConfig
from mien_server.repository.config.model import ModelConfig
from mien_server.repository.entry import UNLOADED, UNLOADING, ModelEntry
from mien_server.repository.leases import LoadedVersion
from mien_server.repository.served import ServedModels
from mien_server.repository.statistics import EnsembleCounter
from mien_server.repository.versions import State

AnyConfig: TypeAlias = ModelConfig | EnsembleConfig

_log = logging.getLogger(__name__)


class SwappedModels(ServedModels):
    """Served models of which versions come and go.

    Args:
        draw: decides which calls go to a canary.
    """

    def __init__(self, draw: random.Random | None = None) -> None:
        super().__init__(draw)
        self._freed = threading.Condition(self._lock)

    def drained(self, timeout: float | None = None) -> bool:
        """Waits until all that was replaced or unloaded is freed; False if time ran out."""
        with self._lock:
            return self._freed.wait_for(
                lambda: not any(entry.retired for entry in self._models.values()), timeout
            )

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
            for number, version in serving.items():
                if number not in failures and isinstance(config, ModelConfig):
                    # Of what stays as it is, settings that need no load have changed perhaps.
                    version.model = replace(version.model, config=config)
            entry.config, entry.serving = config, dict(serving)
            entry.retired = [*entry.retired, *replaced]
            entry.notes = dict.fromkeys((v.model.version for v in entry.retired), UNLOADING) | {
                number: (State.UNAVAILABLE, reason_of(error)) for number, error in failures.items()
            }
            entry.reason, entry.failed = reason, bool(failures)
            if config is None:
                entry.ensemble_counter = EnsembleCounter()
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
                notes = {n: note for n, note in entry.notes.items() if n != model.version}
                served = model.version in entry.serving
                entry.notes = notes if served else {**notes, model.version: UNLOADED}
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
            # Older notes on what serves, and all if nothing does, are out of date.
            entry.notes = {
                number: note
                for number, note in entry.notes.items()
                if note == UNLOADING or (entry.serving and number not in entry.serving)
            }
        raise load_failed(entry.name, reason) from cause


def load_failed(name: str, reasons: str) -> Unmet:
    """The error of a load that did not do all that it should."""
    return Unmet(Reason.MODEL_LOAD_FAILED, f"model {name!r} could not be loaded: {reasons}")


def reason_of(error: Exception) -> str:
    """What is told of an error."""
    return str(error) or type(error).__name__
