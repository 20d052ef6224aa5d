"""Which candidate is the best, found within a given time by successive halving. Knows nothing of models."""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Generic, TypeVar

from mien_server.load.tally import Summary

CALLERS = (1, 2, 4, 8, 16, 32)

_FINALISTS = 4
_KEEP = 4
"""About one of so many goes on to the next rung, until there are no more than the finalists."""
_MOST_ROUNDS = 5
_TURNS = 4
"""A measurement lasts until each caller could have had so many answers, the first of them unmeasured."""
_SHORTEST = 0.2
"""Seconds."""
_TIED = 0.02
"""Rates that differ by no more than this share are the same: repeated rounds differ by as much."""
_PROBE_CALLERS = 8
_PROBE_SECONDS = 0.5

C = TypeVar("C")

Visit = Callable[[C, Mapping[int, float]], Mapping[int, Summary]]
"""Measures a candidate: at these numbers of callers for so many seconds each, in this order."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """One measurement: in which rung and round of it, how many callers for how long, and what it showed."""

    rung: int
    round: int
    callers: int
    seconds: float
    summary: Summary


@dataclass(frozen=True, slots=True)
class Figures:
    """What a candidate does with a number of callers: medians over the rounds of its last rung.

    Attributes:
        callers: each with one call at a time.
        rate: right answers a second.
        p50_ms: milliseconds within which half of the answers came; inf if a round had none.
        p99_ms: and 99 of 100.
        failed: calls that failed, of all rounds.
        seconds: that all rounds took.
    """

    callers: int
    rate: float
    p50_ms: float
    p99_ms: float
    failed: int
    seconds: float

    def meets(self, objective_ms: float) -> bool:
        """Whether every call was answered, and 99 of 100 in time."""
        return not self.failed and self.p99_ms <= objective_ms


@dataclass(slots=True)
class Trial(Generic[C]):
    """A candidate, and what was measured of it; nothing if the time was too short."""

    candidate: C
    measurements: list[Measurement] = field(default_factory=list)

    @property
    def rung(self) -> int:
        """The last that it came to, from 1; 0: it was not measured."""
        return max((each.rung for each in self.measurements), default=0)

    def figures(self) -> list[Figures]:
        """By the number of callers, ascending."""
        by_callers: dict[int, list[Measurement]] = {}
        for each in self.measurements:
            if each.rung == self.rung:
                by_callers.setdefault(each.callers, []).append(each)
        return [_medians(callers, found) for callers, found in sorted(by_callers.items())]

    def best(self, objective_ms: float) -> Figures:
        """Its figures with the number of callers that suits it best; it must have been measured."""
        return choose(self.figures(), objective_ms) or closest(self.figures())

    def rank(self, objective_ms: float) -> tuple[bool, float]:
        """Sorts candidates: those first that meet the objective, by rate; then others, by their p99."""
        best = self.best(objective_ms)
        return (False, -best.rate) if best.meets(objective_ms) else (True, best.p99_ms)


def choose(offers: Sequence[Figures], objective_ms: float) -> Figures | None:
    """The highest rate that meets the objective; of rates that are the same, that with the lower median.

    None if none meets it.
    """
    meeting = [each for each in offers if each.meets(objective_ms)]
    highest = max((each.rate for each in meeting), default=0.0)
    tied = [each for each in meeting if each.rate >= highest * (1 - _TIED)]
    return min(tied, key=lambda each: each.p50_ms, default=None)


def closest(offers: Sequence[Figures]) -> Figures:
    """The lowest 99th percentile of some; of those without failed calls, if there are such."""
    return min(offers, key=lambda each: (each.failed > 0, each.p99_ms))


def winner(trials: Sequence[Trial[C]], objective_ms: float) -> tuple[Trial[C], Figures]:
    """The best of those that came to the last rung; if none of them meets the objective, the closest."""
    last = max(trial.rung for trial in trials)
    final = [(trial, trial.best(objective_ms)) for trial in trials if trial.rung == last]
    offers = [figures for _, figures in final]
    found = choose(offers, objective_ms) or closest(offers)
    return next(pair for pair in final if pair[1] is found)


def sizes_of(candidates: int) -> list[int]:
    """How many candidates each rung has: down to the finalists by even factors."""
    if candidates <= _FINALISTS:
        return [candidates]
    ratio = candidates / _FINALISTS
    steps = max(1, round(math.log(ratio, _KEEP)))
    return [round(candidates / ratio ** (step / steps)) for step in range(steps + 1)]


def callers_for(room: float) -> list[int]:
    """The numbers of callers to measure, where so many leave the objective's time to each call on average.

    More callers than that cannot all be answered in time (Little's law). One number beyond is measured, to
    see it, and two at least.
    """
    within = sum(callers <= room for callers in CALLERS)
    return list(CALLERS[: max(2, within + 1)])


def sweep(
    candidates: Sequence[C],
    visit: Visit[C],
    *,
    objective_ms: float,
    seconds: float,
    clock: Callable[[], float] = time.monotonic,
    say: Callable[[str], None] = lambda _: None,
) -> list[Trial[C]]:
    """Measures candidates, the promising ones for longer.

    Args:
        candidates: at least one. The first is what the others are compared with: it is in every rung.
        visit: measures one.
        objective_ms: milliseconds that the 99th percentile may have.
        seconds: that all may take; the measurement that runs then ends.
        clock: the time in seconds.
        say: is told how the time is divided.

    Returns:
        what came of each, in their order.
    """
    ends = clock() + seconds
    trials = [Trial(candidate) for candidate in candidates]
    sizes = sizes_of(len(trials))
    say(
        f"{_counted(len(trials), 'candidate')} in {seconds:.0f} s by successive halving: rungs of"
        f" {', '.join(map(str, sizes))}, each with fewer and for longer"
    )
    rate = _probe(candidates[0], visit, seconds)
    # In the first rung the order is random: if not all can be measured, those that can are a fair sample.
    others = Random(0).sample(trials[1:], len(trials) - 1)  # noqa: S311 - no secret
    field_ = [trials[0], *others]
    for rung, size in enumerate(sizes, start=1):
        if rung > 1:
            field_ = _next_field(trials, rung, size, objective_ms)
        left = max(0.0, ends - clock())
        if not field_ or (rung > 1 and not left):
            break
        room = rate * objective_ms / 1e3
        wanted = callers_for(room)
        if size > _FINALISTS and rung == 1:
            # The one number at which candidates differ most: as many callers as may just be answered in time.
            wanted = [max((n for n in wanted if n <= room), default=wanted[0])]
        share = left / (len(sizes) - rung + 1)
        if rung == 1:  # rather all of them, and later rungs shorter
            share = max(share, min(left / 2, len(trials) * _takes(wanted, rate)))
        _run_rung(rung, field_, visit, wanted, rate, share, clock, say)
        reached = [each.rate for t in field_ if t.rung == rung for each in t.figures()]
        rate = max(reached, default=rate) or rate / 2
    missed = sum(not trial.measurements for trial in trials)
    if missed:
        say(f"the time was too short for {missed} candidates: more --minutes would measure them")
    return trials


def _probe(candidate: C, visit: Visit[C], seconds: float) -> float:
    """About how many answers a second there are, above 0: measurements are as long as that asks for."""
    length = _PROBE_SECONDS
    while True:
        length = min(length, seconds / 10)
        summary = visit(candidate, {_PROBE_CALLERS: length})[_PROBE_CALLERS]
        if summary.calls >= 2 * _PROBE_CALLERS or length >= seconds / 10:
            return max(summary.rate, 1 / length)
        length *= 2


def _run_rung(
    rung: int,
    trials: Sequence[Trial[C]],
    visit: Visit[C],
    wanted: Sequence[int],
    rate: float,
    share: float,
    clock: Callable[[], float],
    say: Callable[[str], None],
) -> None:
    """Measures these candidates in as many rounds as fit into a share of the time, the first one always."""
    ends = clock() + share
    visit_takes = _takes(wanted, rate)
    rounds = max(1, min(_MOST_ROUNDS, int(share / (len(trials) * visit_takes))))
    stretch = max(1.0, share / (len(trials) * rounds * visit_takes))
    lengths = {callers: stretch * _length(callers, rate) for callers in wanted}
    say(
        f"rung {rung}: {_counted(len(trials), 'candidate')}, {_counted(rounds, 'round')} of"
        f" {sum(lengths.values()):.1f} s with {', '.join(map(str, wanted))} callers"
    )
    for number in range(1, rounds + 1):
        # Back and forth: what drifts meanwhile then favours nobody.
        for trial in trials if number % 2 else reversed(trials):
            if clock() >= ends and any(each.measurements for each in trials):
                return
            for callers, summary in visit(trial.candidate, lengths).items():
                trial.measurements.append(
                    Measurement(rung, number, callers, lengths[callers], summary)
                )


def _next_field(
    trials: Sequence[Trial[C]], rung: int, size: int, objective_ms: float
) -> list[Trial[C]]:
    """Who is measured in a rung: the best of the last one, in their order, and second the first candidate.

    If the time ends within the rung, the best and what it is compared with were measured.
    """
    measured = [trial for trial in trials if trial.rung == rung - 1]
    ranked = sorted(measured, key=lambda trial: trial.rank(objective_ms))[:size]
    if ranked and trials[0] not in ranked[:2]:
        ranked = [ranked[0], trials[0], *(t for t in ranked[1:] if t is not trials[0])]
    return ranked


def _length(callers: int, rate: float) -> float:
    return max(_SHORTEST, _TURNS * callers / rate)


def _takes(wanted: Sequence[int], rate: float) -> float:
    """Seconds of a visit at its shortest. A measurement ends when its last answers are there."""
    return sum(_length(callers, rate) + callers / rate for callers in wanted)


def _medians(callers: int, found: Sequence[Measurement]) -> Figures:
    summaries = [each.summary for each in found]

    def middle(values: Sequence[float]) -> float:
        return statistics.median(math.inf if math.isnan(value) else value for value in values)

    return Figures(
        callers=callers,
        rate=middle([each.rate for each in summaries]),
        p50_ms=middle([each.p50_ms for each in summaries]),
        p99_ms=middle([each.p99_ms for each in summaries]),
        failed=sum(sum(each.failures.values()) for each in summaries),
        seconds=sum(each.seconds for each in found),
    )


def _counted(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"
