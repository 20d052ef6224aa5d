"""What a slot has done: counts, durations by stage, batch sizes, and why batches closed."""

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field

from mien_server.scheduling.batching import CloseReason
from mien_server.scheduling.interface import Timing

DURATION_BOUNDS = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip
"""Upper bounds of the duration histograms' buckets, in seconds; one more bucket holds what is longer."""


@dataclass(slots=True)
class DurationHistogram:
    """How often, how long in all (seconds), and how many per bucket of `DURATION_BOUNDS`."""

    count: int = 0
    seconds: float = 0.0
    buckets: list[int] = field(default_factory=lambda: [0] * (len(DURATION_BOUNDS) + 1))

    def add(self, seconds: float) -> None:
        """Counts one duration."""
        self.count += 1
        self.seconds += seconds
        self.buckets[bisect_left(DURATION_BOUNDS, seconds)] += 1

    def copy(self) -> "DurationHistogram":
        """An independent copy."""
        return DurationHistogram(self.count, self.seconds, list(self.buckets))


@dataclass(slots=True)
class SlotStatistics:
    """One slot's figures since it opened. Requests unless said otherwise.

    Attributes:
        succeeded: answered with results.
        failed: the backend raised on them.
        expired: their deadline or queue timeout passed.
        cancelled: their caller went away while they waited.
        rejected: refused at the door.
        rows: rows computed with success.
        isolated: batches that raised, whose rows then ran singly.
        batches: batches computed.
        executor_deaths: executor threads that died in one of this slot's batches.
        queue: the wait of each request. preprocess, compute, postprocess: of each batch.
        batch_sizes: batches by number of rows.
        close_reasons: batches by the reason for which they closed.
    """

    succeeded: int = 0
    failed: int = 0
    expired: int = 0
    cancelled: int = 0
    rejected: int = 0
    rows: int = 0
    batches: int = 0
    isolated: int = 0
    executor_deaths: int = 0
    queue: DurationHistogram = field(default_factory=DurationHistogram)
    preprocess: DurationHistogram = field(default_factory=DurationHistogram)
    compute: DurationHistogram = field(default_factory=DurationHistogram)
    postprocess: DurationHistogram = field(default_factory=DurationHistogram)
    batch_sizes: Counter[int] = field(default_factory=Counter)
    close_reasons: Counter[CloseReason] = field(default_factory=Counter)

    def record_batch(self, rows: int, reason: CloseReason, timing: Timing) -> None:
        """Counts one computed batch."""
        self.batches += 1
        self.batch_sizes[rows] += 1
        self.close_reasons[reason] += 1
        self.preprocess.add(timing.preprocess)
        self.compute.add(timing.compute)
        self.postprocess.add(timing.postprocess)

    def copy(self) -> "SlotStatistics":
        """An independent copy, for readers on other threads."""
        return SlotStatistics(
            self.succeeded,
            self.failed,
            self.expired,
            self.cancelled,
            self.rejected,
            self.rows,
            self.batches,
            self.isolated,
            self.executor_deaths,
            self.queue.copy(),
            self.preprocess.copy(),
            self.compute.copy(),
            self.postprocess.copy(),
            Counter(self.batch_sizes),
            Counter(self.close_reasons),
        )
