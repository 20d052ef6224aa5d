"""A version in memory and the calls that hold it: the last one out lets it be freed."""

import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from mien_server.repository.manifest import FileEntry
from mien_server.repository.traffic import TrafficCounter

if TYPE_CHECKING:
    from mien_server.repository.versions import ReadyModel


class LoadedVersion:
    """One loaded version. Calls hold it while they run; once retired, it is freed after the last of them.

    `hold` must not race with `retire`: the repository calls it only while the version is routed to. All of
    it takes microseconds and never waits.

    Args:
        model: what calls get of it.
        files: what was loaded, as its manifest has it.
        close: gives its memory back; blocking. Called once.

    Attributes:
        model: replaced when the configuration changes without touching what was loaded.
        files: as given.
    """

    def __init__(
        self, model: "ReadyModel", files: Mapping[str, FileEntry], close: Callable[[], None]
    ) -> None:
        self.model = model
        self.files = files
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


class Shadow:
    """The version that gets copies of a call's rows. Whoever submits to it holds it meanwhile."""

    def __init__(self, version: LoadedVersion, counter: TrafficCounter) -> None:
        self._version = version
        self._counter = counter

    @property
    def model(self) -> "ReadyModel":
        """Where the copies go."""
        return self._version.model

    def hold(self) -> None:
        """Keeps it loaded beyond the call that was mirrored; `release` must follow."""
        self._version.hold()

    def release(self) -> None:
        """Ends a `hold`."""
        self._version.release()

    def count(
        self, *, compared: int = 0, agreed: int = 0, failed: int = 0, dropped: int = 0
    ) -> None:
        """Counts rows: `ShadowStatistics` has the meanings."""
        self._counter.shadow(
            self.model.version, compared=compared, agreed=agreed, failed=failed, dropped=dropped
        )
