"""What became of the calls of a load: how many, how fast, why not, and what the server says of them."""

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

from mien_server.load.report import percentile, table


class Stage(Protocol):
    """One stage of a call, as whoever answered it tells: `mien.StageTiming` is one.

    Attributes:
        name: what was done: "detect.queue", "detect.compute".
        milliseconds: how long it took, 0 or more.
        batch: rows of the batch that it ran in; None where nothing was batched.
    """

    @property
    def name(self) -> str: ...  # noqa: D102 - see above
    @property
    def milliseconds(self) -> float: ...  # noqa: D102
    @property
    def batch(self) -> int | None: ...  # noqa: D102


@dataclass(slots=True)
class Tally:
    """Calls of one kind, as they end.

    Attributes:
        began: when the first one was due, in seconds of any one clock; inf before that.
        ended: when the last one ended, by the same clock; -inf before that.
        latencies: seconds from the moment a call was due to its answer, of those answered right.
        failures: how many calls failed for each reason.
        queued: milliseconds that a call waited in the server's queues, of those that asked for their stages.
        batches: rows of the batches in which they ran.
    """

    began: float = math.inf
    ended: float = -math.inf
    latencies: list[float] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)
    queued: list[float] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)

    def add(
        self,
        due: float,
        ended: float,
        *,
        failure: str | None = None,
        stages: Iterable[Stage] = (),
    ) -> None:
        """Enters one call: due and ended in seconds, why it failed, and the stages that it was told."""
        self.began, self.ended = min(self.began, due), max(self.ended, ended)
        if failure is not None:
            self.failures[failure] += 1
            return
        self.latencies.append(ended - due)
        known = list(stages)
        if known:
            self.queued.append(sum(s.milliseconds for s in known if s.name.endswith(".queue")))
            self.batches += [s.batch for s in known if s.batch and s.name.endswith(".compute")]

    def merge(self, other: "Tally") -> None:
        """Adds the calls of another tally, whose clock must be the same."""
        self.began, self.ended = min(self.began, other.began), max(self.ended, other.ended)
        self.latencies += other.latencies
        self.failures += other.failures
        self.queued += other.queued
        self.batches += other.batches

    def as_dict(self) -> dict[str, Any]:
        """All of it as plain lists and numbers, for another process."""
        names = ("began", "ended", "latencies", "queued", "batches")
        return {**{name: getattr(self, name) for name in names}, "failures": dict(self.failures)}

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """What `as_dict` gave."""
        return cls(**{**values, "failures": Counter(values["failures"])})

    def summary(self, seconds: float | None = None) -> "Summary":
        """The figures, over so many seconds: by default from the first call due to the last one's end."""
        failed = self.failures.total()
        answered = len(self.latencies)
        if seconds is None:
            seconds = self.ended - self.began if answered + failed else 0.0
        p50, p95, p99 = (
            percentile(self.latencies, share) * 1e3 if answered else math.nan
            for share in (0.5, 0.95, 0.99)
        )
        return Summary(
            calls=answered + failed,
            rate=answered / seconds if seconds > 0 else 0.0,
            error_rate=failed / (answered + failed) if failed else 0.0,
            p50_ms=p50,
            p95_ms=p95,
            p99_ms=p99,
            queue_ms=statistics.median(self.queued) if self.queued else None,
            batch=statistics.fmean(self.batches) if self.batches else None,
            failures=dict(self.failures),
        )


@dataclass(frozen=True, slots=True)
class Summary:
    """The figures of a load.

    Attributes:
        calls: how many ended, failed ones among them.
        rate: right answers a second.
        error_rate: share of the calls that failed, 0 to 1.
        p50_ms: milliseconds within which half of the right answers came; NaN if there are none.
        p95_ms: and 95 of 100.
        p99_ms: and 99 of 100.
        queue_ms: median of the time in the server's queues; None if the server told none.
        batch: mean rows of the batches, as calls met them; None if the server told none.
        failures: how many calls failed for each reason.
    """

    calls: int
    rate: float
    error_rate: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    queue_ms: float | None
    batch: float | None
    failures: Mapping[str, int]

    def cells(self) -> list[str]:
        """A row of a table, without the call's name."""
        reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(self.failures.items()))
        percentiles = (self.p50_ms, self.p95_ms, self.p99_ms)
        return [
            str(self.calls),
            f"{self.rate:.1f}",
            *("-" if math.isnan(value) else f"{value:.1f}" for value in percentiles),
            "-" if self.queue_ms is None else f"{self.queue_ms:.1f}",
            "-" if self.batch is None else f"{self.batch:.1f}",
            reasons or "none",
        ]


def markdown(measured: Mapping[str, Summary]) -> str:
    """A table of summaries by their calls' names."""
    figures = ("answers/s", "p50 ms", "p95 ms", "p99 ms", "queue ms", "batch")
    header = ("call", "calls", *figures, "failures")
    return table(header, [[name, *summary.cells()] for name, summary in measured.items()])
