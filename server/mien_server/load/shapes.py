"""How much load there is at which moment: steady, ramp, spike, soak; and the arrivals of an open loop.

A shape says a level for every moment. What a level counts is up to who follows the shape: callers that each
wait for their answer (closed loop), or calls a second that come whether or not earlier ones are done (open
loop).
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from random import Random


@dataclass(frozen=True, slots=True)
class Stretch:
    """A stretch of time in which the level goes evenly from one value to another.

    Attributes:
        seconds: how long, above 0.
        first: the level at its start, 0 or more.
        last: the level at its end, 0 or more.
    """

    seconds: float
    first: float
    last: float


@dataclass(frozen=True, slots=True)
class Shape:
    """Stretches one after the other, at least one."""

    stretches: tuple[Stretch, ...]

    @property
    def seconds(self) -> float:
        """How long all of it takes."""
        return sum(stretch.seconds for stretch in self.stretches)

    @property
    def peak(self) -> float:
        """The highest level."""
        return max(max(stretch.first, stretch.last) for stretch in self.stretches)

    def level(self, moment: float) -> float | None:
        """The level `moment` seconds after the start; None once the shape is over."""
        ends = accumulate(stretch.seconds for stretch in self.stretches)
        for stretch, end in zip(self.stretches, ends, strict=True):
            if moment < end:
                passed = 1 - (end - moment) / stretch.seconds
                return stretch.first + (stretch.last - stretch.first) * passed
        return None


def steady(level: float, seconds: float) -> Shape:
    """The same level from the first moment to the last."""
    return Shape((Stretch(seconds, level, level),))


def ramp(level: float, seconds: float) -> Shape:
    """From nothing evenly up to the level: shows where latency bends."""
    return Shape((Stretch(seconds, 0.0, level),))


def spike(level: float, seconds: float) -> Shape:
    """A fifth of the level, for a fifth of the time all of it at once, and back: shows the recovery."""
    calm = Stretch(0.4 * seconds, level / 5, level / 5)
    return Shape((calm, Stretch(0.2 * seconds, level, level), calm))


def soak(level: float, seconds: float) -> Shape:
    """Up to the level within a tenth of the time, at most a minute, and then on it: for hours."""
    climb = min(0.1 * seconds, 60.0)
    return Shape((Stretch(climb, 0.0, level), Stretch(seconds - climb, level, level)))


SHAPES: Mapping[str, Callable[[float, float], Shape]] = {
    "steady": steady,
    "ramp": ramp,
    "spike": spike,
    "soak": soak,
}


def arrivals(shape: Shape, random: Random) -> Iterator[float]:
    """When the calls of an open loop are due, in seconds after the start, ascending.

    A Poisson process whose rate is the shape's level: candidates at the peak's rate, each kept with the
    probability that the level of its moment has of the peak (Lewis and Shedler's thinning).
    """
    peak, due = shape.peak, 0.0
    while (due := due + random.expovariate(peak)) < shape.seconds:
        level = shape.level(due)
        if level is not None and random.random() * peak < level:
            yield due
