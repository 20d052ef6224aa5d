"""The versions of a model: what is loaded, and who holds it."""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

from mien_server.repository.config.model import ModelConfig
from mien_server.repository.manifest import FileEntry
from mien_server.repository.thresholds import Thresholds
from mien_server.repository.traffic import TrafficCounter
from mien_server.scheduling.scheduler import Slot


class State(StrEnum):
    """Triton's states of a model version."""

    UNKNOWN = "UNKNOWN"
    LOADING = "LOADING"
    READY = "READY"
    UNLOADING = "UNLOADING"
    UNAVAILABLE = "UNAVAILABLE"


@dataclass(frozen=True, slots=True)
class ReadyModel:
    """A version that serves: everything the pipeline needs of it.

    Attributes:
        name: the model's name, its folder in the repository.
        version: 1 or more.
        fingerprint: 16 hexadecimal digits over weights, preprocessing and alignment.
        config: the parsed config.pbtxt.
        slot: the queue in front of it.
    """

    name: str
    version: int
    fingerprint: str
    config: ModelConfig
    slot: Slot


@dataclass(frozen=True, slots=True)
class VersionStatus:
    """One line of the repository's index.

    Attributes:
        name: the model's name.
        version: 1 or more; 0 stands for the model itself, where no version of it could be tried.
        state: of the version.
        reason: why it is not READY and what to do about it, for people. Of a READY version: why the last
            attempt to replace it failed, or "".
        model: what serves, if READY; None of a version that is asleep.
    """

    name: str
    version: int
    state: State
    reason: str = ""
    model: ReadyModel | None = None


class LoadedVersion:
    """One loaded version. Calls hold it while they run; once retired, it is freed after the last of them.

    `hold` must not race with `retire`: the catalogue calls it only while the version is routed to. All of
    it takes microseconds and never waits.

    Args:
        model: what calls get of it.
        files: what was loaded, as its manifest has it.
        close: gives its memory back; blocking. Called once.

    Attributes:
        model: the catalogue replaces it when the configuration changes without touching what was loaded.
        files: as given.
        thresholds: what was measured of the version, if anything was. `model.config` has them once it is in
            service.
        message: Triton's `inference.ModelConfig` that `model.config` was read from, for whoever prints
            it; the catalogue sets it when the version goes into service.
    """

    def __init__(
        self, model: ReadyModel, files: Mapping[str, FileEntry], close: Callable[[], None]
    ) -> None:
        self.model = model
        self.files = files
        self.message: Any = None
        self.thresholds: Thresholds | None = None
        self.close = close
        self._lock = threading.Lock()
        self._holders = 0
        self._let_go = time.monotonic()
        self._when_free: Callable[[], None] | None = None

    def hold(self) -> None:
        """Takes it for a call; `release` must follow."""
        with self._lock:
            self._holders += 1

    def release(self) -> None:
        """Ends a `hold`."""
        with self._lock:
            self._holders -= 1
            self._let_go = time.monotonic()
            free = self._when_free if not self._holders else None
        if free:
            free()

    def idle_seconds(self) -> float:
        """For how long nobody has held it; 0 while somebody does."""
        with self._lock:
            return 0.0 if self._holders else time.monotonic() - self._let_go

    def retire(self, when_free: Callable[[], None]) -> None:
        """Has `when_free` called once nobody holds it, by whoever lets go last; perhaps now."""
        with self._lock:
            self._when_free = when_free
            held = bool(self._holders)
        if not held:
            when_free()


class Shadow(NamedTuple):
    """A version that gets copies of a call's rows.

    Attributes:
        version: where the copies go. Whoever submits to it holds it until the answers have come, which
            may be after the call.
        counter: where to count what became of the copies.
    """

    version: LoadedVersion
    counter: TrafficCounter


class Lease(NamedTuple):
    """What a call has while it runs.

    Attributes:
        model: the version that answers it.
        shadow: what else gets its rows, to compare the answers; None: nothing.
    """

    model: ReadyModel
    shadow: Shadow | None = None
