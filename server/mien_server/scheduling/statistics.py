"""What a slot has done, and how long its next batch will take, learnt from that."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass, field, replace

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
class StageSeconds:
    """Seconds in each step, summed over requests or batches, and over how many of them."""

    count: int = 0
    queue: float = 0.0
    preprocess: float = 0.0
    compute: float = 0.0
    postprocess: float = 0.0

    def add(self, timing: Timing) -> None:
        """Counts one request or batch."""
        self.count += 1
        self.queue += timing.queue
        self.preprocess += timing.preprocess
        self.compute += timing.compute
        self.postprocess += timing.postprocess


@dataclass(slots=True)
class SlotStatistics:
    """One slot's figures since it opened. Requests unless said otherwise.

    Attributes:
        succeeded: answered with results.
        failed: the backend raised on them, or the slot broke or closed while they waited.
        expired: their deadline or queue timeout passed.
        cancelled: their caller went away while they waited.
        rejected: refused at the door.
        rows: rows computed with success.
        isolated: batches that raised, whose rows then ran singly.
        batches: batches computed.
        executor_deaths: executor threads that died in one of this slot's batches.
        queue: the wait of each request. preprocess, compute, postprocess: of each batch.
        served: the steps of the requests that succeeded, each counting all of its batch's time.
        latency: of the requests that succeeded, from the queue's door to their results.
        last_success: when one last succeeded, by the scheduler's clock, or None.
        batch_sizes: batches by number of rows.
        batch_seconds: the steps of the batches, by number of rows; nothing in `queue`.
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
    served: StageSeconds = field(default_factory=StageSeconds)
    latency: DurationHistogram = field(default_factory=DurationHistogram)
    last_success: float | None = None
    batch_sizes: Counter[int] = field(default_factory=Counter)
    batch_seconds: dict[int, StageSeconds] = field(default_factory=dict)
    close_reasons: Counter[CloseReason] = field(default_factory=Counter)

    def record_batch(self, rows: int, reason: CloseReason, timing: Timing) -> None:
        """Counts one computed batch."""
        self.batches += 1
        self.batch_sizes[rows] += 1
        self.batch_seconds.setdefault(rows, StageSeconds()).add(timing)
        self.close_reasons[reason] += 1
        self.preprocess.add(timing.preprocess)
        self.compute.add(timing.compute)
        self.postprocess.add(timing.postprocess)

    def record_success(self, timing: Timing, *, latency: float, now: float) -> None:
        """Counts one request that was answered with its results."""
        self.succeeded += 1
        self.served.add(timing)
        self.latency.add(latency)
        self.last_success = now

    def copy(self) -> "SlotStatistics":
        """An independent copy, for readers on other threads."""
        return replace(
            self,
            queue=self.queue.copy(),
            preprocess=self.preprocess.copy(),
            compute=self.compute.copy(),
            postprocess=self.postprocess.copy(),
            served=replace(self.served),
            latency=self.latency.copy(),
            batch_sizes=Counter(self.batch_sizes),
            batch_seconds={size: replace(spent) for size, spent in self.batch_seconds.items()},
            close_reasons=Counter(self.close_reasons),
        )


_FORGET_AFTER = 10.0
_RISE = 0.2
_WEIGHT = 0.2
_HEADROOM = 1.25  # work may take so much longer than is usual,
_LATENESS = 0.002  # and its executor may wake up so many seconds late


@dataclass(slots=True)
class _Seen:
    typical: float
    fastest: float
    at: float
    times: int = 1


class ComputeEstimate:
    """Seconds per batch by shape and number of rows.

    Two figures each: `typical`, a moving average, for planning ahead; and `fastest`, which falls at once
    and rises slowly, for refusing what cannot be done in time. One batch alone refuses nothing: it may
    have been the unlucky one. What no batch has confirmed for a while is forgotten, so that a slow spell
    cannot make a slot refuse work for good.

    Args:
        memory: seconds until then.
        enough: how many batches confirm what they took.
    """

    def __init__(self, memory: float = _FORGET_AFTER, *, enough: int = 2) -> None:
        self._memory = memory
        self._enough = enough
        self._seen: dict[Hashable, dict[int, _Seen]] = {}
        self._row_cost = 0.0
        self._row_cost_at = float("-inf")

    def learn(
        self, rows: int, shape: Hashable, seconds: float, now: float, *, units: int = 1
    ) -> None:
        """Notes that a batch took `seconds` on `units` cores (or executors of a GPU)."""
        if shape not in self._seen:
            self._forget_shapes(now)
        sizes = self._seen.setdefault(shape, {})
        seen = sizes.get(rows)
        if seen is None or now - seen.at > self._memory:
            sizes[rows] = _Seen(seconds, seconds, now)
        else:
            seen.typical += _WEIGHT * (seconds - seen.typical)
            rise = _RISE * (seconds - seen.fastest)
            seen.fastest = seconds if seconds < seen.fastest else seen.fastest + rise
            seen.at = now
            seen.times += 1
        cost = seconds * units / rows
        if now - self._row_cost_at > self._memory:
            self._row_cost = cost
        else:
            self._row_cost += _WEIGHT * (cost - self._row_cost)
        self._row_cost_at = now

    def typical(self, rows: int, shape: Hashable, now: float) -> float:
        """Seconds that a batch usually takes; scaled up from the nearest size known; 0 if none is."""
        sizes = self._known(shape, now)
        if not sizes:
            return 0.0
        larger = min((size for size in sizes if size >= rows), default=None)
        if larger is not None:
            return sizes[larger].typical
        nearest = max(sizes)
        return sizes[nearest].typical * rows / nearest

    def fastest(self, rows: int, shape: Hashable, now: float) -> float:
        """Seconds that a batch takes at the least, by a batch that was not larger; 0 if unknown."""
        sizes = self._known(shape, now)
        return max(
            (
                seen.fastest
                for size, seen in sizes.items()
                if size <= rows and seen.times >= self._enough
            ),
            default=0.0,
        )

    def row_cost(self, now: float) -> float:
        """Seconds of one core (or executor) that a row costs in the batches of late; 0 if unknown."""
        return self._row_cost if now - self._row_cost_at <= self._memory else 0.0

    def _forget_shapes(self, now: float) -> None:
        """Drops the shapes that have not come for long, since callers may choose shapes freely."""
        self._seen = {shape: self._seen[shape] for shape in self._seen if self._known(shape, now)}

    def _known(self, shape: Hashable, now: float) -> dict[int, _Seen]:
        sizes = self._seen.get(shape, {})
        return {size: seen for size, seen in sizes.items() if now - seen.at <= self._memory}


def with_headroom(seconds: float) -> float:
    """Seconds to allow for what usually takes `seconds`, where a deadline depends on it."""
    return seconds * _HEADROOM + _LATENESS
