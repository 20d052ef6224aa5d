"""How many cores a batch gets: what makes it fastest on an idle processor, what costs least on a busy one.

Two cores seldom make a batch twice as fast, so a call that others are waiting beside is better served by one
core for longer. Both things that this depends on are learnt: what the slot's batches take on so many cores,
and how often calls have company.
"""

from collections import deque
from collections.abc import Hashable, Iterable

from mien_server.scheduling.statistics import ComputeEstimate

_WEIGHT = 0.1
_GAIN = 0.95  # more cores must be faster by so much, or they are left to others
_COMMON = 0.5
_REMEMBERED = 4
_MEMORY = 20.0
"""Seconds after which a number of cores is tried again. A lone caller's batches pay for that."""
_TRIES = 4
"""Batches of each try: after a rest the first ones are slow, and would speak against whatever they ran on."""


class Company:
    """How often a call on a device has other calls beside it.

    A call has company if another one's batch has ended since it came in, or runs, or waits: what goes on
    between batches, on threads that the scheduler does not know, so counts too. Calls are told apart by
    when they came in.

    Attributes:
        often: from 0, never, to 1, always.
    """

    def __init__(self) -> None:
        self.often = 0.0
        self._running: list[frozenset[float]] = []
        self._ended: deque[tuple[float, frozenset[float]]] = deque(maxlen=_REMEMBERED)

    def begin(self, calls: frozenset[float], waiting: Iterable[float]) -> None:
        """Notes that a batch begins.

        Args:
            calls: when the calls came in whose rows it has.
            waiting: when those came in that are next in the queues.
        """
        came = min(calls)
        others = [*self._running, *(ended for at, ended in self._ended if at > came)]
        company = (
            len(calls) > 1
            or any(calls != other for other in others)
            or not calls.issuperset(waiting)
        )
        self.often += _WEIGHT * (company - self.often)
        self._running.append(calls)

    def end(self, calls: frozenset[float], now: float) -> None:
        """Notes that it has ended."""
        self._running.remove(calls)
        self._ended.append((now, calls))


class CoreCosts:
    """What a slot's batches take on so many cores."""

    def __init__(self) -> None:
        self._by_cores: dict[int, ComputeEstimate] = {}

    def learn(self, cores: int, rows: int, shape: Hashable, seconds: float, now: float) -> None:
        """Notes what a batch took."""
        self._by_cores.setdefault(cores, ComputeEstimate(_MEMORY, enough=_TRIES)).learn(
            rows, shape, seconds, now
        )

    def choose(self, most: int, rows: int, shape: Hashable, company: float, now: float) -> int:
        """The number of cores for a batch.

        What is not known of late is tried: fewer cores while calls have company, more while they have none.

        Args:
            most: cores that it may have.
            rows, shape: of the batch.
            company: how often calls have company; then core-seconds count, and else seconds.
            now: the time.
        """
        if most == 1:
            return 1
        choices = _choices(most)
        seconds = {cores: self._seconds(cores, rows, shape, now) for cores in choices}
        unknown = [cores for cores in choices if not seconds[cores]]
        if unknown:
            return min(unknown) if company >= _COMMON else max(unknown)
        best = choices[0]
        for cores in choices[1:]:
            if _cost(cores, seconds, company) < _GAIN * _cost(best, seconds, company):
                best = cores
        return best

    def _seconds(self, cores: int, rows: int, shape: Hashable, now: float) -> float:
        known = self._by_cores.get(cores)
        # Not what they usually take: the first batch of its size takes longer than all that follow.
        return known.fastest(rows, shape, now) if known else 0.0


def _cost(cores: int, seconds: dict[int, float], company: float) -> float:
    return ((1 - company) + company * cores) * seconds[cores]


def _choices(most: int) -> list[int]:
    """1, 4, 16, … and `most`, ascending."""
    choices = [1]
    while choices[-1] * 4 < most:
        choices.append(choices[-1] * 4)
    return [*choices, most]
