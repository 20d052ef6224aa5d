"""What is measured, and for how long: cells, whose length follows from the time that the whole may take."""

import time
from dataclasses import dataclass, field

from bench.peers.workloads import EMBED, WORKLOADS, Workload

ALL_CALLERS = (1, 2, 4, 8, 16, 32)
OPEN_LOADS = (0.5, 0.8, None, 1.2)
"""Shares of a server's own peak; None: 80 % of mien's, where all get the same rate."""
_OPEN_LENGTH = 2.5
_ANALYSIS_LENGTH = 2.5
_SETTLING = 0.3
_STARTS = 0.15
"""Share of the time that starting, stopping and comparing takes."""
_LONGEST = 4.0


@dataclass(frozen=True)
class Plan:
    """The cells of a run.

    Attributes:
        minutes: what all of it may take.
        workloads: those to measure.
        quick: fewer callers, one round.
        analyse: whether perf_analyzer runs as well.
        servers: how many take turns.
    """

    minutes: float
    workloads: tuple[Workload, ...]
    quick: bool
    analyse: bool
    servers: int
    _began: float = field(default_factory=time.monotonic)

    def callers(self, workload: Workload) -> tuple[int, ...]:
        """How many callers the closed loops have."""
        if self.quick:
            return (1, 8, 32) if workload is EMBED else (8,)
        return ALL_CALLERS if workload is EMBED else (1, 4, 16)

    def rounds(self, workload: Workload) -> int:
        """How often each cell is measured; medians count."""
        return 1 if self.quick else 3 if workload is EMBED else 2

    def analysed_callers(self) -> tuple[int, ...]:
        """How many callers perf_analyzer has."""
        return (1, 8) if self.quick else ALL_CALLERS

    @property
    def cell(self) -> float:
        """Seconds of a closed loop."""
        closed = sum(len(self.callers(w)) * self.rounds(w) for w in self.workloads) * self.servers
        opened = _OPEN_LENGTH * len(OPEN_LOADS) * self.servers * (EMBED in self.workloads)
        analysed = _ANALYSIS_LENGTH * len(self.analysed_callers()) * 6 * self.analyse
        seconds = self.minutes * 60 * (1 - _STARTS) / (closed + opened + analysed)
        return min(_LONGEST, seconds)

    @property
    def warm_up(self) -> float:
        """Seconds at the start of a closed loop that do not count."""
        return _SETTLING * self.cell

    @property
    def open_seconds(self) -> float:
        """Of an open loop."""
        return _OPEN_LENGTH * self.cell

    @property
    def analysis_seconds(self) -> float:
        """Of the windows of a perf_analyzer run, which needs some time beside them."""
        return 0.7 * _ANALYSIS_LENGTH * self.cell

    @property
    def is_over(self) -> bool:
        """Whether the time is used up, with a tenth of grace: what is left is left out."""
        return time.monotonic() - self._began > self.minutes * 66


def chosen(keys: list[str]) -> tuple[Workload, ...]:
    """The workloads of these keys, in their own order; all if there is none."""
    return tuple(w for w in WORKLOADS if not keys or w.key in keys)
