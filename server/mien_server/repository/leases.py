"""A version in memory and the calls that hold it: the last one out lets it be freed."""

import threading
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from mien_server.repository.manifest import FileEntry
from mien_server.repository.traffic import TrafficCounter
from mien_server.repository.versions import ReadyModel


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
        message: Triton's `inference.ModelConfig` that `model.config` was read from, for whoever prints
            it; the catalogue sets it when the version goes into service.
    """

    def __init__(
        self, model: ReadyModel, files: Mapping[str, FileEntry], close: Callable[[], None]
    ) -> None:
        self.model = model
        self.files = files
        self.message: Any = None
        self.close = close
        self._lock = threading.Lock()
        self._holders = 0
        self._when_free: Callable[[], None] | None = None

    def hold(self) -> None:
        """Takes it for a call; `release` must follow."""
        with self._lock:
            self._holders += 1

    def release(self) -> None:
        """Ends a `hold`."""
        with self._lock:
            self._holders -= 1
            free = self._when_free if not self._holders else None
        if free:
            free()

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
