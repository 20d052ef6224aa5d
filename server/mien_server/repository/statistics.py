"""What versions have done, slots and ensembles alike, for ModelStatistics and for the metrics."""

import threading
import time
from dataclasses import dataclass, field, replace

from mien_server.repository.traffic import TrafficStatistics
from mien_server.scheduling.interface import Timing
from mien_server.scheduling.statistics import SlotStatistics, StageSeconds


@dataclass(slots=True)
class InferenceTotals:
    """What Triton counts of a version.

    Attributes:
        succeeded: requests answered with results.
        seconds: that those took, from the door of the queue to their results.
        failed: requests that failed, were refused, expired or were cancelled.
        failed_seconds: that those took; slots do not measure it, and have 0.
        rows: rows computed with success; of an ensemble, photos.
        executions: batches computed; of an ensemble, requests.
        served: the steps of the requests that succeeded, each counting all of its batch's time.
        last_success: when a request last succeeded, by `time.monotonic()`, or None.
    """

    succeeded: int = 0
    seconds: float = 0.0
    failed: int = 0
    failed_seconds: float = 0.0
    rows: int = 0
    executions: int = 0
    served: StageSeconds = field(default_factory=StageSeconds)
    last_success: float | None = None


@dataclass(frozen=True, slots=True)
class VersionStatistics:
    """What a READY version has done since it was loaded.

    Attributes:
        name: the model's.
        version: 1 or more.
        totals: what Triton counts.
        slot: all figures of its slot; None of an ensemble, which has none.
        pending: requests that wait in the slot's queue.
        traffic: where the model's unversioned calls went; None where it does not split them.
    """

    name: str
    version: int
    totals: InferenceTotals
    slot: SlotStatistics | None = None
    pending: int = 0
    traffic: TrafficStatistics | None = None


def totals_of(slot: SlotStatistics) -> InferenceTotals:
    """A slot's figures as Triton counts them."""
    return InferenceTotals(
        succeeded=slot.succeeded,
        seconds=slot.latency.seconds,
        failed=slot.failed + slot.expired + slot.rejected + slot.cancelled,
        rows=slot.rows,
        executions=slot.batches,
        served=slot.served,
        last_success=slot.last_success,
    )


class EnsembleCounter:
    """Counts what an ensemble does. Safe for threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._totals = InferenceTotals()

    def record_success(self, photos: int, seconds: float, timing: Timing) -> None:
        """Counts a request that was answered: its photos, how long it took, and the steps it went through."""
        with self._lock:
            self._totals.succeeded += 1
            self._totals.seconds += seconds
            self._totals.rows += photos
            self._totals.executions += 1
            self._totals.served.add(timing)
            self._totals.last_success = time.monotonic()

    def record_failure(self, seconds: float) -> None:
        """Counts a request that was not answered."""
        with self._lock:
            self._totals.failed += 1
            self._totals.failed_seconds += seconds

    def copy(self) -> InferenceTotals:
        """An independent copy."""
        with self._lock:
            return replace(self._totals, served=replace(self._totals.served))
